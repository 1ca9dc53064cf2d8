"""Image, Pathfinder and Path-X from files to a number: a short run and, slowly, the demos."""

import json
import os
import subprocess
import sys

import pytest

from megalodon_tasks.cli.main import main
from megalodon_tasks.recipes.lra.image import prepare as prepare_image
from megalodon_tasks.recipes.lra.pathfinder import prepare as prepare_pathfinder
from tests.recipes.run_scripts import ROOT, run_demo
from tests.recipes.test_image import write_release
from tests.recipes.test_pathfinder_preparation import write_images

LRA = ROOT / "recipes" / "lra"
SCRIPTS = {name: LRA / f"{name}.sh" for name in ("image", "pathfinder", "pathx")}
RESOLUTION = {"pathfinder": "32", "pathx": "128"}

SMALL = {
    "model.model_dim": 16, "model.num_layers": 1, "model.value_dim": 32, "model.z_dim": 16,
    "model.ffn_hidden_dim": 32, "model.cema_ndim": 4, "model.chunk_size": 64, "dataset.batch_size": 8,
    "dataset.num_workers": 0, "task.effective_batch": "null", "optimization.max_update": 4,
    "common.cpu": "true",
}  # fmt: skip


# The demos run the code of the other two as well.
@pytest.mark.parametrize(
    "name",
    [
        "pathx",
        pytest.param("image", marks=pytest.mark.slow),
        pytest.param("pathfinder", marks=pytest.mark.slow),
    ],
)
def test_images_are_trained_on_and_evaluated(tmp_path, name):
    raw, prepared = tmp_path / "raw", tmp_path / "prepared"
    if name == "image":
        write_release(raw)
        prepare_image.main([str(raw), str(prepared)])
    else:
        side = int(RESOLUTION[name])
        write_images(raw, f"pathfinder{side}/curv_contour_length_14", side=side)
        prepare_pathfinder.main([str(raw), str(prepared), "--workers", "1"], name)
    command = [
        sys.executable, "-m", "megalodon_tasks", "train", "--config-dir", LRA,
        "--config-name", name, "--data", prepared, "--save-dir", tmp_path / "run",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command += [f"{field}={value}" for field, value in SMALL.items()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    checkpoint = tmp_path / "run" / "checkpoint_best.pt"
    assert main(["evaluate", str(checkpoint), "--recipe", f"lra/{name}", "--cpu"]) == 0
    (record,) = map(json.loads, (tmp_path / "run" / "results.jsonl").read_text().splitlines())
    assert (record["benchmark"], record["split"]) == (f"lra/{name}", "test")
    assert record["n"] == (20 if name == "image" else 6)
    assert record["update"] == 4


# The best constant answer has 10.1 % of the digits and about 50 % of the paths.
LEARNED = {"image": 90.0, "pathfinder": 75.0, "pathx": 80.0}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_demo_learns(tmp_path, name):
    _, (record,) = run_demo(SCRIPTS[name], tmp_path)
    assert record["best_constant"] < 55.0
    assert record["value"] > LEARNED[name]

"""Paths with ``${...}`` in them are paths: in training, in checkpoints, and where both are read."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from megalodon_tasks.cli import train
from megalodon_tasks.evaluation import checkpoint
from megalodon_tasks.fairseq_compat.literal_text import LiteralOmegaConf, literal
from tests.cli.test_train import COMMAND, ROOT
from tests.toy_plugin import runs

TEXTS = ("${x}", "a${b.c}d", "back\\slash${y}", "two\\\\${z}", "$plain {text}", "${oc.env:HOME}")


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_stays_as_it_is_through_any_number_of_configurations(text):
    config = OmegaConf.create({"section": {"path": literal(text), "many": [literal(text)]}})
    for _ in range(3):
        assert (config.section.path, config.section.many[0]) == (text, text)
        config = OmegaConf.create(LiteralOmegaConf.to_container(config, resolve=True))


def test_folders_of_a_run(tmp_path):
    (tmp_path / "toy.yaml").write_text(runs.YAML.replace("toy}", "toy, data: .}", 1))
    folder = tmp_path / "a ${b}"
    for name in ("${c}", "${d}"):
        (folder / name).mkdir(parents=True)
    words = [
        "--config-dir",
        str(tmp_path),
        "--config-name",
        "toy",
        "--save-dir",
        str(folder / "run"),
    ]
    for updates in ("6", "12"):
        command = [sys.executable, "-c", COMMAND, *words, "--data", str(folder / "${c}")]
        done = subprocess.run(
            [*command, f"optimization.max_update={updates}"],
            cwd=ROOT, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert {"checkpoint_last.pt", "train.log", "metrics.jsonl"} <= {
        p.name for p in (folder / "run").iterdir()
    }
    assert [path.name for path in tmp_path.iterdir() if path.name != "toy.yaml"] == ["a ${b}"]
    for data, expected in ((None, "${c}"), (folder / "${d}", "${d}")):
        trained = checkpoint.load(folder / "run" / "checkpoint_last.pt", data)
        assert trained.update == 12
        assert trained.task.cfg.data == str(folder / expected)


def test_a_path_of_the_command_line_is_escaped_once():
    assert train.path("/a/${b}") == r"'/a/\${b}'"

"""``task.chunk_parallel``: an update of processes that share sequences is that of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megalodon_tasks.errors import UserError
from megalodon_tasks.recipes.lm.chunk_groups import ChunkGroups, check_settings
from megalodon_tasks.runs.record import read_run
from tests.recipes.lm_data import TRAIN, preprocess, train

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = ("--tokens-per-sample", "16", "--block-multiple-max", "2", "--effective-batch", "2")
STREAM = (*BLOCKS, "--stream", "--max-update", "9")


def start(data, save_dir, processes, *arguments):
    words = [
        *TRAIN.split(),
        "--user-dir",
        str(ROOT / "megalodon_tasks"),
        "--save-dir",
        str(save_dir),
    ]
    line = [sys.executable, "-m", "fairseq_cli.train", str(data), *words, *arguments]
    line += ["--distributed-world-size", str(processes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def load(save_dir):
    return torch.load(save_dir / "checkpoint_last.pt", weights_only=True)


@pytest.mark.parametrize(
    ("arguments", "processes"),
    [
        (BLOCKS, 2),
        pytest.param(STREAM, 2, marks=pytest.mark.slow),
        pytest.param((*BLOCKS, "--batch-size", "1"), 4, marks=pytest.mark.slow),
    ],
    ids=["blocks", "stream", "two groups"],
)
def test_an_update_is_that_of_one_process(tmp_path, arguments, processes):
    data = preprocess(tmp_path / "corpus", 80)
    parallel = start(data, tmp_path / "two", processes, *arguments, "--chunk-parallel", "2")
    train(data, tmp_path / "one", *arguments)
    output, _ = parallel.communicate(timeout=480)
    assert parallel.returncode == 0, output[-3000:]
    one, two = load(tmp_path / "one"), load(tmp_path / "two")
    for name, tensor in one["model"].items():
        torch.testing.assert_close(two["model"][name], tensor, rtol=1e-3, atol=1e-4)
    record = read_run(tmp_path / "two").start
    assert (record["effective_batch"], record["processes"]) == (2, processes)
    losses = [
        list(read_run(tmp_path / name).valid["valid"].values())[-1]["loss"]
        for name in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--chunk-parallel", "3"), "chunk_parallel=3 times model.chunk_size=8"),
        (
            ("--chunk-parallel", "2", "--documents", "line"),
            "documents=line with task.chunk_parallel=2",
        ),
        (("--chunk-parallel", "2"), "chunk_parallel=2 does not divide the number of processes, 1"),
        (("--chunk-parallel", "0"), "chunk_parallel=0 must be at least 1"),
        (
            ("--chunk-parallel", "2", "--compile-blocks"),
            "compile_blocks=true with task.chunk_parallel=2",
        ),
    ],
)
def test_what_cannot_be_divided_is_refused(tmp_path, arguments, message):
    data = preprocess(tmp_path / "corpus", 30)
    with pytest.raises(UserError, match=message):
        train(data, tmp_path / "run", *BLOCKS, *arguments)


def test_full_attention_is_refused():
    with pytest.raises(ValueError, match=r"model.chunk_size=None: each process takes whole chunks"):
        check_settings(2, 16, "none", None)


@pytest.mark.parametrize(("rank", "group"), [(0, 0), (1, 0), (2, 1), (3, 1)])
def test_neighbours_share_their_data(rank, group):
    assert ChunkGroups(2).shards(4, rank) == (2, group)

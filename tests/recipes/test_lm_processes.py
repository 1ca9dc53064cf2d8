"""Training on streams by two processes: each has rows of its own, and both states are saved."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.recipes.lm_data import TRAIN, preprocess

ROOT = Path(__file__).resolve().parents[2]
STREAM = "--stream --block-multiple-min 2 --block-multiple-max 3 --max-update 9"
pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train(data, save_dir, processes, *arguments):
    words = [str(data), *TRAIN.split(), *STREAM.split(), "--save-interval-updates", "4"]
    words += ["--user-dir", str(ROOT / "megalodon_tasks"), "--save-dir", str(save_dir), *arguments]
    if processes > 1:
        address = f"tcp://127.0.0.1:{free_port()}"
        words += f"--distributed-world-size {processes} --distributed-init-method {address}".split()
        words += [
            "--distributed-no-spawn",
            "--distributed-backend",
            "gloo",
            "--ddp-backend",
            "legacy_ddp",
        ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = []
    for rank in range(processes):
        line = [sys.executable, "-m", "fairseq_cli.train", *words]
        line += ["--distributed-rank", str(rank)] if processes > 1 else []
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        running.append(subprocess.Popen(line, env=environment, **pipes))
    for process in running:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output[-3000:]


def load(save_dir, name="checkpoint_last.pt"):
    return torch.load(save_dir / name, weights_only=True)


def test_two_processes_equal_one_with_both_rows_and_resume_exactly(tmp_path):
    data = preprocess(tmp_path / "corpus", 80)
    train(data, tmp_path / "one", 1, "--batch-size", "2")
    train(data, tmp_path / "two", 2, "--batch-size", "1")
    one, two = load(tmp_path / "one"), load(tmp_path / "two")
    for name, tensor in one["model"].items():
        torch.testing.assert_close(two["model"][name], tensor, rtol=1e-3, atol=1e-4)

    middle = load(tmp_path / "two", "checkpoint_1_4.pt")
    states = middle["extra_state"]["MegalodonLanguageModelingTask"]["states"]
    assert len(states) == 2
    first, second = (state["blocks"][0]["cema"] for state in states)
    assert first.shape == second.shape
    assert not torch.allclose(first, second)
    restore = ["--restore-file", str(tmp_path / "two" / "checkpoint_1_4.pt")]
    train(data, tmp_path / "resumed", 2, "--batch-size", "1", *restore)
    for name, tensor in load(tmp_path / "resumed")["model"].items():
        assert torch.equal(tensor, two["model"][name]), name

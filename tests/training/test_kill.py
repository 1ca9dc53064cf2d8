"""Real processes, really killed: ``kill -9`` while checkpoints are written, and several processes."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from megalodon_tasks.runs.record import read_run
from tests.toy_plugin import runs

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = str(ROOT / "tests" / "toy_plugin")
pytestmark = pytest.mark.slow

# 4.4 million parameters: a checkpoint of 53 MB, which takes a while to write
LARGE = ["--dim", "400000", "--max-update", "48", "--save-interval-updates", "3"]
KILLS = 8


def start(save_dir, log, *arguments, **variables):
    # as the command fairseq-train does
    code = "from fairseq_cli.train import cli_main; cli_main()"
    line = [sys.executable, "-c", code, *runs.SETTINGS, "--user-dir", PLUGIN,
            "--save-dir", str(save_dir), *arguments]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    with open(log, "a") as file:
        return subprocess.Popen(line, env=environment, stdout=file, stderr=subprocess.STDOUT)


def finish(process, log):
    assert process.wait(timeout=240) == 0, log.read_text()[-3000:]


def losses(save_dir):
    run = read_run(save_dir)
    series = {"train_inner": run.train_inner, "train": run.train, **run.valid}
    return {
        name: {step: tuple(line.get(n) for n in runs.COMPARED) for step, line in points.items()}
        for name, points in series.items()
    }


def wait_for_a_save(process, save_dir, log):
    """Return when the next checkpoint begins to be written, or the process has ended."""
    deadline = time.monotonic() + 120
    while process.poll() is None and not list(save_dir.glob("*.tmp")):
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.001)


def test_kill_9_while_checkpoints_are_written(tmp_path):
    whole, whole_log = tmp_path / "whole", tmp_path / "whole.log"
    finish(start(whole, whole_log, *LARGE), whole_log)
    killed, log = tmp_path / "killed", tmp_path / "killed.log"
    killed.mkdir()
    moment = random.Random(0)
    for number in range(KILLS):
        for leftover in killed.glob("*.tmp"):
            leftover.unlink()
        process = start(killed, log, *LARGE)
        # let it get on a little, then strike within a save: its file, its copies, or just after
        for _ in range(1 + number % 2):
            wait_for_a_save(process, killed, log)
            time.sleep(moment.uniform(0, 0.25))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path in killed.glob("*.pt"):
            torch.load(path, mmap=True)
    finish(start(killed, log, *LARGE), log)
    recorded, expected = losses(killed), losses(whole)
    # an epoch's line comes after its checkpoint: killed between them, it is never written
    assert recorded.pop("train").items() <= expected.pop("train").items()
    assert recorded == expected
    for name in ("checkpoint_last.pt", "checkpoint_best.pt"):
        runs.assert_equal(runs.state_of(killed, name), runs.state_of(whole, name))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_two(save_dir, logs, *arguments):
    address = f"tcp://127.0.0.1:{free_port()}"
    return [
        start(save_dir, logs[rank], *arguments, "--distributed-world-size", "2",
              "--distributed-rank", str(rank), "--distributed-no-spawn",
              "--distributed-init-method", address, "--distributed-backend", "gloo",
              "--ddp-backend", "legacy_ddp")
        for rank in range(2)
    ]  # fmt: skip


def train_on_two(save_dir, logs, *arguments):
    for process, log in zip(start_two(save_dir, logs, *arguments), logs, strict=True):
        finish(process, log)


def test_a_signal_to_one_of_two_processes_saves_and_ends_both(tmp_path):
    logs = [tmp_path / f"{rank}.log" for rank in range(2)]
    processes = start_two(tmp_path / "run", logs, "--max-update", "1000000", "--max-epoch", "0")
    deadline = time.monotonic() + 240
    while not list((tmp_path / "run").glob("checkpoint_last.pt")):
        assert time.monotonic() < deadline, logs[0].read_text()[-3000:]
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=120) for process in processes] == [143, 143]
    ended = next(line for line in logs[0].read_text().splitlines() if "ended by SIGTERM" in line)
    updates = runs.state_of(tmp_path / "run")["updates"]
    assert f"after update {updates}: saved" in ended


def test_two_processes_resume_exactly(tmp_path):
    logs = {name: [tmp_path / f"{name}{rank}.log" for rank in range(2)] for name in ("a", "b")}
    train_on_two(tmp_path / "a", logs["a"])
    train_on_two(tmp_path / "b", logs["b"], "--max-epoch", "3")
    train_on_two(tmp_path / "b", logs["b"])
    assert "Loaded checkpoint" in logs["b"][0].read_text()
    assert losses(tmp_path / "b") == losses(tmp_path / "a")
    assert losses(tmp_path / "a")["train_inner"]
    # only the master process records
    lines = (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if '"start"' in line] == [0, 9]
    runs.assert_equal(runs.state_of(tmp_path / "b"), runs.state_of(tmp_path / "a"))

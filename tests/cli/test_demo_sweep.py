"""Sweeps of the ListOps demo, interrupted on the way: minutes on two cores."""

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megalodon_tasks.errors import UserError
from megalodon_tasks.runs.sweep import DONE, FAILED, RUNNING, read_sweep

ROOT = Path(__file__).resolve().parents[2]


def start(folder, *words):
    command = [sys.executable, "-m", "megalodon_tasks", "sweep", "lra/listops"]
    command += [str(folder / "data"), str(folder / "sweep"), "--demo", *words]
    with open(folder / "sweep.txt", "ab") as output:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True
        )


def states(folder):
    try:
        return [run.state for run in read_sweep(folder / "sweep").runs]
    except UserError:
        return []


def wait_until(condition, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the sweep does not get on"
        time.sleep(0.5)


def running_with_checkpoint(folder):
    return RUNNING in states(folder) and any(folder.glob("sweep/runs/*/checkpoint_last.pt"))


def check_outcome(folder, chunk_sizes, seeds):
    assert set(states(folder)) == {DONE}, (folder / "sweep.txt").read_text()[-3000:]
    with open(folder / "sweep" / "table.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["chunk_size"] for row in rows] == chunk_sizes
    for row in rows:
        assert int(row["seeds"]) == seeds
        assert float(row["tokens_per_s"]) > 0
        assert float(row["peak_memory_gb"]) > 0
        assert float(row["seconds"]) > 0
    assert (folder / "sweep" / "chunk_size.png").is_file()
    return rows


@pytest.mark.slow
def test_four_chunk_sizes_and_two_seeds_stopped_twice(tmp_path):
    words = ["--chunk-sizes", "8", "16", "32", "full", "--seeds", "1", "2", "--workers", "2"]
    first = start(tmp_path, *words)
    wait_until(lambda: running_with_checkpoint(tmp_path))
    first.kill()  # only the sweep: its runs must notice
    first.wait()
    wait_until(lambda: RUNNING not in states(tmp_path), 60)

    second = start(tmp_path, *words)
    wait_until(lambda: states(tmp_path).count(DONE) >= 2 and RUNNING in states(tmp_path))
    finished = [run for run in read_sweep(tmp_path / "sweep").runs if run.state == DONE]
    outputs = [run.output.read_bytes() for run in finished]
    second.send_signal(signal.SIGINT)
    assert second.wait(90) == 130

    assert start(tmp_path, *words).wait(1800) == 0, (tmp_path / "sweep.txt").read_text()[-4000:]
    rows = check_outcome(tmp_path, ["8", "16", "32", "full"], 2)
    assert min(float(row["accuracy"]) for row in rows) > 30  # the best constant answer: 12
    assert [run.output.read_bytes() for run in finished] == outputs, "run again"
    logs = [path.read_text() for path in tmp_path.glob("sweep/runs/*/train.log")]
    assert any("Loaded checkpoint" in log for log in logs), "none resumed"


@pytest.mark.slow
def test_submitit_runs_the_same(tmp_path):
    words = ["--chunk-sizes", "8", "full", "--launcher", "submitit_local"]
    words += ["optimization.max_update=50", "common.log_interval=10"]
    assert start(tmp_path, *words).wait(900) == 0
    check_outcome(tmp_path, ["8", "full"], 1)


@pytest.mark.slow
def test_a_run_that_fails_is_listed_and_the_others_finish(tmp_path):
    # a rate that cannot be: fairseq stops with an error of its own
    words = ["--sweep", "optimizer.adam_betas='(0.9, 0.98)','(0.9, nonsense'", "--workers", "2"]
    assert start(tmp_path, *words, "optimization.max_update=20").wait(900) == 1
    assert sorted(states(tmp_path)) == [DONE, FAILED]
    assert "failed: adam_betas" in (tmp_path / "sweep.txt").read_text()

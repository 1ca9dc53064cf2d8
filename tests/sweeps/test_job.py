import threading
import time

import pytest

from megalodon_tasks.sweeps import alive, job, status
from megalodon_tasks.sweeps.request import Run
from megalodon_tasks.sweeps.status import Status


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "sweep"


def run_of(seed):
    return Run(f"seed-{seed}", {"model.chunk_size": "64", "common.seed": str(seed)})


def test_a_run_is_done_with_its_share_of_cores(asked, script, folder):
    run = run_of(1)
    job.perform(folder, asked, run, 3, None)
    found = status.read(folder, run)
    assert (found.state, found.returncode, found.attempts) == (status.DONE, 0, 1)
    assert found.seconds > 0
    save = status.run_folder(folder, run)
    assert (save / "threads").read_text() == "OMP 3\n"
    words = f"{asked.data} {save} model.dropout=0 model.chunk_size=64 common.seed=1"
    assert status.last_lines(folder, run) == [f"called with {words}"]


def test_a_failure_is_recorded_with_its_last_lines(asked, script, folder):
    job.perform(folder, asked, run_of(13), 0, None)
    found = status.read(folder, run_of(13))
    assert (found.state, found.returncode) == (status.FAILED, 3)
    assert status.last_lines(folder, run_of(13))[-1] == "the loss is nan"


def test_a_run_stops_when_its_sweep_is_gone(asked, script, folder):
    run = run_of(99)
    with alive.sign_of_life(folder) as sign:
        work = threading.Thread(target=job.perform, args=(folder, asked, run, 0, sign))
        work.start()
        deadline = time.monotonic() + 30
        while not status.last_lines(folder, run) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert status.read(folder, run).state == status.RUNNING
    work.join(30)
    found = status.read(folder, run)
    assert (found.state, found.returncode) == (status.STOPPED, 130)
    assert status.last_lines(folder, run)[-1] == "saved"


def test_attempts_and_time_add_up(asked, script, folder):
    run = run_of(1)
    status.write(folder, run, Status(status.STOPPED, seconds=100.0, attempts=2))
    job.perform(folder, asked, run, 0, None)
    found = status.read(folder, run)
    assert found.attempts == 3
    assert found.seconds > 100


def test_a_killed_run_is_not_running(asked, folder, tmp_path):
    run = asked.runs()[0]
    left = Status(status.RUNNING, started=1.0, alive=str(tmp_path / ".alive-1-2"), attempts=1)
    status.write(folder, run, left)
    assert status.read(folder, run).state == status.STOPPED


def test_the_overview_counts_and_estimates(asked, folder, finish):
    runs = asked.runs()
    assert str(status.overview(folder, asked, 2)) == "0 of 4 runs done, 4 to do"
    finish(runs[0], 50.0, seconds=60.0)
    status.write(folder, runs[1], Status(status.FAILED, returncode=1))
    found = status.overview(folder, asked, 2)
    assert found.seconds_left == 60
    assert str(found) == "1 of 4 runs done, 1 failed, 2 to do, about 60 s left"


@pytest.mark.parametrize(("seconds", "text"), [(3.2, "3 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations_are_short(seconds, text):
    assert status.duration(seconds) == text

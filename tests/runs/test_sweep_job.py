"""One run of a sweep: its script, its end, and the end of the sweep."""

import threading
import time

import pytest

from megalodon_tasks.files import sole_writer
from megalodon_tasks.runs.sweep import DONE, FAILED, RUNNING, WAITING, enter_sweep
from megalodon_tasks.runs.sweep_job import run_point
from tests.runs.toy_sweep import toy_recipe, toy_sweep


@pytest.fixture
def sweep(tmp_path):
    toy_recipe(tmp_path / "toy")
    (tmp_path / "data").mkdir()
    return enter_sweep(toy_sweep(tmp_path, "model.chunk_size=64", "common.seed=1,13,99"))


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "nothing happens"
        time.sleep(0.02)


def in_background(sweep, run, attached):
    work = threading.Thread(target=run_point, args=(sweep.folder, run.name, 1, attached))
    work.start()
    wait_for(lambda: (run.folder / "started").is_file())
    return work


def test_a_run_is_done_once_with_its_share_of_cores(sweep):
    run = sweep.runs[0]
    assert run.state == WAITING
    for _ in range(2):
        run_point(sweep.folder, run.name, 3, False)
    assert run.state == DONE
    assert (run.folder / "threads").read_text() == "OMP 3\n"
    words = f"{sweep.data} {run.folder} model.dropout=0 model.chunk_size=64 common.seed=1"
    assert run.output.read_text() == f"called with {words}\n"


def test_a_failure_is_recorded_and_tried_again(sweep):
    run = sweep.runs[1]
    for attempts in (1, 2):
        run_point(sweep.folder, run.name, 0, False)
        assert (run.state, run.status) == (FAILED, 3)
        assert run.output.read_text().count("the loss is nan\n") == attempts
    assert sweep.summary() == "0 of 3 runs done, 1 failed"


def test_a_run_stops_when_its_sweep_has_ended(sweep):
    run = sweep.runs[2]
    with sole_writer(sweep.folder):
        work = in_background(sweep, run, attached=True)
        assert run.state == RUNNING
    work.join(30)
    assert run.state == WAITING
    (run.folder / "started").unlink()
    run_point(sweep.folder, run.name, 0, True)
    assert not (run.folder / "started").exists(), "started without its sweep"


def test_a_run_on_a_cluster_outlives_its_sweep_and_is_not_run_twice(sweep, tmp_path):
    run = sweep.runs[2]
    work = in_background(sweep, run, attached=False)
    (run.folder / "started").unlink()
    again = threading.Thread(target=run_point, args=(sweep.folder, run.name, 1, False))
    again.start()
    (tmp_path / "data" / "go").touch()
    work.join(30)
    again.join(30)
    assert run.state == DONE
    assert run.output.read_text().count("called with") == 1

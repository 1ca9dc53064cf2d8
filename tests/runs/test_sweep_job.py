"""One run of a sweep: its script, its end, and the end of the sweep."""

import threading
import time

import pytest

from megalodon_tasks.files import sole_writer
from megalodon_tasks.runs.sweep import DONE, FAILED, RUNNING, WAITING, enter_sweep
from megalodon_tasks.runs.sweep_job import gpu_shares, run_point
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


@pytest.mark.parametrize(
    ("visible", "workers", "shares"),
    [
        ("0,1,2,3", 2, ["0,1", "2,3"]),
        ("4, 6,7", 3, ["4", "6", "7"]),
        ("0,1,2", 2, ["0", "1"]),
        ("0,1", 3, ["0", "1", "0"]),
        ("GPU-8a,GPU-9b", 1, ["GPU-8a,GPU-9b"]),
        ("1,-1,2", 1, ["1"]),
        ("", 2, []),
    ],
)
def test_workers_divide_the_visible_gpus(monkeypatch, visible, workers, shares):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_shares(workers) == shares


def test_without_a_choice_all_gpus_are_divided(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert gpu_shares(2) == ["0,1", "2,3"]


def test_runs_at_the_same_time_have_gpus_of_their_own(tmp_path):
    toy_recipe(tmp_path / "toy")
    (tmp_path / "data").mkdir()
    sweep = enter_sweep(toy_sweep(tmp_path, "model.chunk_size=64,32", "common.seed=99"))
    gpus = ["0,1", "2,3"]
    jobs = []
    for run in sweep.runs:
        words = (sweep.folder, run.name, 1, False, gpus)
        jobs.append(threading.Thread(target=run_point, args=words))
        jobs[-1].start()
        wait_for(lambda run=run: (run.folder / "started").is_file())
    (tmp_path / "data" / "go").touch()
    for job in jobs:
        job.join(30)
    found = [(run.folder / "gpus").read_text().strip() for run in sweep.runs]
    assert sorted(found) == gpus
    first = sweep.runs[0]
    first.attempts_file.unlink()
    run_point(sweep.folder, first.name, 1, False, gpus)
    assert (first.folder / "gpus").read_text() == "0,1\n"

import csv

import pytest
from matplotlib.image import imread

from megalodon_tasks.sweeps import pictures, status, table
from megalodon_tasks.sweeps.status import Status


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "sweep"


@pytest.fixture
def finished(asked, finish):
    for run, value in zip(asked.runs(), (50.0, 54.0, 60.0, 60.0), strict=True):
        finish(run, value, wps=(7, 300, 500), host_peak_bytes=3 * 2**29)
    return asked


def test_seeds_are_averaged(finished, folder):
    table.write(folder, finished, table.rows(folder, finished))
    with open(folder / "table.csv", newline="") as stream:
        small, full = csv.DictReader(stream)
    assert (small["chunk_size"], full["chunk_size"]) == ("64", "full")
    assert (small["accuracy"], small["deviation"], small["seeds"]) == ("52.00", "2.83", "2")
    assert (full["accuracy"], full["deviation"]) == ("60.00", "0.00")
    # without the first line, which has the warm-up
    assert (small["tokens_per_s"], small["samples_per_s"]) == ("400", "8.0")
    assert (small["peak_memory_gb"], small["params"], small["seconds"]) == ("1.50", "1234", "10")
    head, _, first, _ = (folder / "table.md").read_text().splitlines()
    assert head.split(" | ")[1] == "accuracy"
    assert first.startswith("| 64 | 52.00 | 2.83 |")


def test_only_finished_runs_count(asked, folder, finish):
    first, second, *_ = asked.runs()
    finish(first, 50.0)
    finish(second, 10.0)
    status.write(folder, second, Status(status.FAILED))
    (row,) = table.rows(folder, asked)
    assert [run.value for run in row.runs] == [50.0]
    assert row.deviation is None
    assert "| 64 | 50.00 |  | 1 |" in table.markdown(asked, [row])


def test_memory_is_that_of_the_gpu_where_there_is_one(asked, folder, finish):
    run = asked.runs()[0]
    finish(run, 50.0, host_peak_bytes=3 * 2**30, device_peak_bytes=10 * 2**30)
    assert table.measured(folder, run).memory == 10


def test_a_picture_for_every_field_but_the_seed(finished, folder):
    rows = table.rows(folder, finished)
    (path,) = pictures.draw(folder, finished, rows, {"paper": 63.79})
    assert path == folder / "chunk_size.png"
    height, width, _ = imread(path).shape
    assert width > 2 * height


def test_a_picture_without_speeds_has_the_metric(asked, folder, finish):
    finish(asked.runs()[0], 50.0, wps=())
    rows = table.rows(folder, asked)
    (path,) = pictures.draw(folder, asked, rows, {})
    height, width, _ = imread(path).shape
    assert width < 1.5 * height

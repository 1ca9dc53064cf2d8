"""Table, pictures and report page of a sweep."""

import csv

import pytest
from matplotlib.image import imread

from megalodon_tasks.cli.main import main
from megalodon_tasks.runs import sweep_table
from megalodon_tasks.runs.record import append
from megalodon_tasks.runs.sweep import enter_sweep
from tests.runs.records import result, write_record
from tests.runs.toy_sweep import toy_sweep


@pytest.fixture
def sweep(tmp_path):
    return enter_sweep(toy_sweep(tmp_path))


def finish(run, value, speeds=(100, 300, 500), status=0, **memory):
    """Make ``run`` look finished."""
    intervals = [
        {"step": 10 * i, "wps": speed, "samples_per_second": 8.0, **memory}
        for i, speed in enumerate(speeds, start=1)
    ]
    write_record(run.folder, [result(value=value, params=1234)], train_inner=intervals)
    for attempt in ({"status": -9, "seconds": 4.0}, {"status": status, "seconds": 6.0}):
        append(run.attempts_file, attempt)


@pytest.fixture
def finished(sweep):
    for run, value in zip(sweep.runs, (50.0, 54.0, 60.0, 60.0), strict=True):
        finish(run, value, speeds=(7, 300, 500), host_peak_bytes=3 * 2**29)
    return sweep


def test_seeds_are_averaged(finished):
    sweep_table.write_table(finished, sweep_table.collect(finished))
    with open(finished.folder / "table.csv", newline="") as stream:
        small, full = csv.DictReader(stream)
    assert (small["chunk_size"], full["chunk_size"]) == ("64", "full")
    assert (small["accuracy"], small["deviation"], small["seeds"]) == ("52.00", "2.83", "2")
    assert (full["accuracy"], full["deviation"]) == ("60.00", "0.00")
    # without the first interval, which has the warm-up
    assert (small["tokens_per_s"], small["samples_per_s"]) == ("400", "8.0")
    assert (small["peak_memory_gb"], small["params"], small["seconds"]) == ("1.50", "1234", "10")
    head, _, first, _ = (finished.folder / "table.md").read_text().splitlines()
    assert head.split(" | ")[1] == "accuracy"
    assert first.startswith("| 64 | 52.00 | 2.83 |")


def test_the_reasons_against_the_published_number_stand_in_the_table(sweep):
    for run, reason in zip(sweep.runs, (True, "generated data", True, True), strict=True):
        said = {"compared_with": "lra/listops", "comparable": reason}
        write_record(run.folder, [result(**said)])
        append(run.attempts_file, {"status": 0, "seconds": 1.0})
    sweep_table.write_table(sweep, sweep_table.collect(sweep))
    with open(sweep.folder / "table.csv", newline="") as stream:
        small, full = csv.DictReader(stream)
    assert (small["published"], small["comparable"]) == ("63.79", "generated data")
    assert (full["published"], full["comparable"]) == ("63.79", "yes")


def test_only_finished_runs_count(sweep):
    first, second, *_ = sweep.runs
    finish(first, 50.0)
    finish(second, 10.0, status=1)
    (row,) = sweep_table.collect(sweep)
    assert row.mean("accuracy") == 50.0
    assert row.deviation is None
    assert "| 64 | 50.00 |  | 1 |" in sweep_table.markdown(sweep, [row])


SPOIL = {
    "a torn last line": lambda run: (run.folder / "results.jsonl").write_text(
        '{"benchmark": "lra/l'
    ),
    "no line": lambda run: (run.folder / "results.jsonl").write_text(""),
    "no files": lambda run: [path.unlink() for path in run.folder.glob("*.jsonl")],
    "another line": lambda run: (run.folder / "results.jsonl").write_text('{"value": 3}\n'),
    "a value that is none": lambda run: append(run.folder / "results.jsonl", result(value="much")),
    "zeros": lambda run: (run.folder / "metrics.jsonl").write_bytes(bytes(100)),
}


@pytest.mark.parametrize("spoiled", SPOIL)
def test_one_spoiled_run_is_named_and_the_others_have_their_rows(finished, spoiled, capsys):
    run = finished.runs[0]
    SPOIL[spoiled](run)
    problems = []
    rows = sweep_table.collect(finished, problems)
    assert [len(row.runs) for row in rows] == [1, 2]
    assert any(problem.startswith(f"{run.name} is left out: {run.folder}") for problem in problems)
    assert main(["report", str(finished.folder)]) == 0
    assert f"warning: {run.name} is left out" in capsys.readouterr().err
    text = (finished.folder / "report.md").read_text()
    assert f"| {run.name} is left out" in text.partition("## Left out")[2]
    assert "| chunk_size-full_seed-2 | 60.00 |" in text


def test_memory_is_that_of_the_gpu_where_there_is_one(sweep):
    finish(sweep.runs[0], 50.0, host_peak_bytes=3 * 2**30, device_peak_bytes=10 * 2**30)
    (row,) = sweep_table.collect(sweep)
    assert row.mean("peak_memory_gb") == 10


def test_a_picture_for_every_field_but_the_seed(finished):
    rows = sweep_table.collect(finished)
    (path,) = sweep_table.draw(finished, rows, {"paper": 63.79})
    assert path == finished.folder / "chunk_size.png"
    height, width, _ = imread(path).shape
    assert width > 2 * height


def test_a_picture_without_speeds_has_the_metric(sweep):
    finish(sweep.runs[0], 50.0, speeds=())
    (path,) = sweep_table.draw(sweep, sweep_table.collect(sweep), {})
    height, width, _ = imread(path).shape
    assert width < 1.5 * height


def test_a_sweep_has_its_table_and_picture_on_the_page(finished):
    sweep_table.draw(finished, sweep_table.collect(finished), {})
    assert main(["report", str(finished.folder)]) == 0
    page, markdown = ((finished.folder / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "Sweep sweep: toy/listops" in page
    assert page.count("data:image/png;base64,") == 1
    assert "4 of 4 runs done." in markdown
    assert "| 64 | 52.00 | 2.83 | 2 |" in markdown
    assert "| chunk_size-full_seed-2 | 60.00 |" in markdown

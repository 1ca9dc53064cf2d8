"""The record of a run: whole lines beside other writers and kills, and what reading makes of them."""

import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from megalodon_tasks.errors import UserError
from megalodon_tasks.runs import record
from tests.runs.records import result, start, write_record

ROOT = Path(__file__).resolve().parents[2]


def line(step, event="train_inner", **values):
    return {"event": event, "step": step, "epoch": 1, **values}


def write_metrics(folder, *lines):
    for fields in lines:
        record.append(folder / "metrics.jsonl", fields)


def test_a_run_has_its_series_results_and_settings(tmp_path):
    config = {"task": {"_name": "lra_text"}, "checkpoint": {"best_checkpoint_metric": "ppl"}}
    write_metrics(
        tmp_path,
        start(config=config),
        line(5, loss=2.5, host_peak_bytes=7),
        line(6, "valid", split="dev", loss=2.25),
        line(6, "valid", split="test", loss=3.0),
        line(6, "train", loss=2.4, host_peak_bytes=9),
    )
    run = record.read_run(tmp_path)
    assert (run.train_inner[5]["loss"], run.train[6]["loss"]) == (2.5, 2.4)
    assert list(run.valid) == ["dev", "test"]
    assert run.validation[6]["loss"] == 2.25
    assert (run.benchmark, run.metric, run.updates) == ("lra_text", "ppl", 6)
    assert run.peak_memory == 9
    record.append(tmp_path / "results.jsonl", result(value=1.0))
    record.append(tmp_path / "results.jsonl", result(value=2.0))
    run = record.read_run(tmp_path)
    assert [one["value"] for one in run.results] == [1.0, 2.0]
    assert (run.benchmark, run.metric) == ("lra/listops", "accuracy")


def test_updates_that_are_trained_again_replace_the_first_ones(tmp_path):
    write_metrics(
        tmp_path, start(), line(5, loss=3), line(6, "valid", split="valid", loss=3),
        line(10, loss=9), line(12, "valid", split="valid", loss=9), line(15, loss=9),
        start(6), line(10, loss=1), line(10, loss=2),
    )  # fmt: skip
    run = record.read_run(tmp_path)
    assert {step: fields["loss"] for step, fields in run.train_inner.items()} == {5: 3, 10: 2}
    assert list(run.validation) == [6]


@pytest.mark.parametrize("cut", ['{"event": "trai', '{"event": "train", "config": {"a": 1}'])
def test_a_line_that_a_kill_cut_short_is_ignored(tmp_path, cut):
    write_metrics(tmp_path, start(), line(5, loss=3))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(cut)
    assert list(record.read_run(tmp_path).train_inner) == [5]
    write_metrics(tmp_path, start(5), line(10, loss=2))
    assert list(record.read_run(tmp_path).train_inner) == [5, 10]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense\n", r"metrics\.jsonl, line 1: not a JSON object: 'nonsense'"),
        ('{"event": "other", "step": 1}\n', r"metrics\.jsonl, line 1: not a line of metrics"),
        ('{"event": "train"}\n', r"metrics\.jsonl, line 1: not a line of metrics"),
        ("", "nothing is recorded yet"),
        ('{"event": "sta', "nothing is recorded yet"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path, text, message):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        record.read_run(tmp_path)


def test_another_format_version_is_refused_with_the_version_that_wrote_it(tmp_path):
    write_metrics(tmp_path, start(format=99, versions={"megalodon_tasks": "7.0"}))
    with pytest.raises(UserError, match=r"line 1: format 99; this version reads format 1.*7\.0"):
        record.read_run(tmp_path)


@pytest.mark.parametrize("left", ["checkpoint_last.pt", "results.jsonl"])
def test_a_run_of_an_earlier_version_is_refused(tmp_path, left):
    folder = tmp_path / "runs" / "old"
    folder.mkdir(parents=True)
    write_record(tmp_path / "runs" / "new", train=[{"step": 1}])
    (folder / "train.log").write_text("[train][INFO] - epoch 001 | loss 2 | num_updates 6\n")
    record.append(folder / left, result())
    for read in (lambda: record.read_run(folder), lambda: record.find_runs([tmp_path])):
        with pytest.raises(UserError, match=r"old: an earlier version trained this run"):
            read()
    write_metrics(folder, start(6))  # resumed
    assert [run.name for run in record.find_runs([tmp_path])] == ["new", "old"]


def test_a_folder_without_runs_is_refused(tmp_path):
    for read in (lambda: record.read_run(tmp_path), lambda: record.find_runs([tmp_path])):
        with pytest.raises(UserError, match=r"holds (neither )?metrics\.jsonl n?or results\.jsonl"):
            read()
    # failed before its first update
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / "train.log").write_text("there is no such data\n")
    write_record(tmp_path / "good", train=[{"step": 1}])
    assert [run.name for run in record.find_runs([tmp_path])] == ["good"]


def test_what_json_cannot_hold_is_null_with_its_reason(tmp_path):
    values = {"loss": math.nan, "ppl": math.inf, "best": -math.inf, "lr": 0.5}
    write_metrics(tmp_path, start(), line(5, nested={"loss": math.nan}, **values))
    text = (tmp_path / "metrics.jsonl").read_text().splitlines()[1]
    plain = json.loads(text, parse_constant=pytest.fail)
    assert [plain[name] for name in values] == [None, None, None, 0.5]
    assert plain["not_finite"] == {"loss": "nan", "ppl": "inf", "best": "-inf"}
    found = record.read_run(tmp_path).train_inner[5]
    assert math.isnan(found["loss"])
    assert math.isnan(found["nested"]["loss"])
    assert (found["ppl"], found["best"]) == (math.inf, -math.inf)


def test_what_json_cannot_hold_in_a_list_is_null_with_its_reason(tmp_path):
    write_metrics(tmp_path, start(config={"optimization": {"lr": [0.1, math.nan]}}))
    text = (tmp_path / "metrics.jsonl").read_text()
    plain = json.loads(text, parse_constant=pytest.fail)["config"]["optimization"]
    assert plain == {"lr": [0.1, None], "not_finite": {"lr[1]": "nan"}}
    record.append(tmp_path / "results.jsonl", result(changed_settings={"a": [[math.inf], 2]}))
    (line,) = record.read_run(tmp_path).results
    assert line["changed_settings"] == {"a": [[None], 2]}
    assert '"not_finite": {"a[0][0]": "inf"}' in (tmp_path / "results.jsonl").read_text()


def test_lines_of_many_writers_stay_whole(tmp_path):
    def write(name):
        for number in range(50):
            record.append(tmp_path / "lines", {"name": name, "number": number, "text": "x" * 500})

    writers = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines = map(json.loads, (tmp_path / "lines").read_text().splitlines())
    written = sorted((fields["name"], fields["number"]) for fields in lines)
    assert written == [(name, number) for name in range(4) for number in range(50)]


def test_two_processes_may_write_one_file(tmp_path):
    code = (
        "import sys; from pathlib import Path; from megalodon_tasks.runs import record\n"
        "for n in range(200): record.append(Path('lines'), {'name': sys.argv[1], 'text': 'x' * n})"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", code, name], cwd=tmp_path, env=environment)
        for name in "ab"
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    lines = [json.loads(text) for text in (tmp_path / "lines").read_text().splitlines()]
    for name in "ab":
        lengths = [len(fields["text"]) for fields in lines if fields["name"] == name]
        assert lengths == list(range(200))


def test_one_write_reaches_the_disk(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(record.os, "fsync", lambda descriptor: order.append("fsync"))
    write = os.write
    monkeypatch.setattr(record.os, "write", lambda d, b: (order.append("write"), write(d, b))[1])
    record.append(tmp_path / "results.jsonl", {"value": 1})
    assert order == ["write", "fsync"]

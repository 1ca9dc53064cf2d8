"""Training writes its record through fairseq's progress bars."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from fairseq.logging import metrics, progress_bar

from megalodon_tasks.runs import record
from tests import toy_plugin
from tests.toy_plugin import runs

VALUES = {"loss", "accuracy", "lr", "gnorm", "wps", "samples_per_second", "host_peak_bytes", "wall"}


def lines_of(folder, event):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == event]


@pytest.mark.parametrize("log_format", ["none", "simple", "json", "tqdm"])
def test_every_log_format_has_the_same_record(tmp_path, log_format):
    logs = ["--log-format", log_format, "--tensorboard-logdir", str(tmp_path / "board")]
    runs.train(tmp_path / "run", *logs, "--max-epoch", "2", "--valid-subset", "valid,test")
    run = record.read_run(tmp_path / "run")
    assert (list(run.train_inner), list(run.train)) == ([5, 10], [6, 12])
    assert {split: list(points) for split, points in run.valid.items()} == {
        "valid": [6, 12], "test": [6, 12],
    }  # fmt: skip
    assert [line["epoch"] for line in run.train_inner.values()] == [1, 2]
    for line in (*run.train_inner.values(), *run.train.values()):
        assert line.keys() >= VALUES
        assert all(isinstance(v, int | float) for k, v in line.items() if k != "event")
        assert line["host_peak_bytes"] > 10**7
        assert line["samples_per_second"] * line["wpb"] == pytest.approx(line["wps"] * 6)
    assert run.validation[12]["best_accuracy"] >= run.validation[12]["accuracy"]
    assert (run.benchmark, run.metric) == ("toy", "accuracy")
    assert run.start["config"]["optimization"]["max_epoch"] == 2
    assert run.start["params"] == 64
    assert {"fairseq", "torch", "megalodon_tasks", "python"} == run.start["versions"].keys()


def test_a_resumed_run_continues_its_record(tmp_path):
    runs.train(tmp_path / "parts", "--max-epoch", "1")
    runs.train(tmp_path / "other", "--max-epoch", "1")
    runs.train(tmp_path / "parts", "--max-epoch", "3")
    assert [line["step"] for line in lines_of(tmp_path / "parts", "start")] == [0, 6]
    assert len(lines_of(tmp_path / "other", "start")) == len(lines_of(tmp_path / "other", "train"))
    runs.train(tmp_path / "whole", "--max-epoch", "3")
    parts, whole = (record.read_run(tmp_path / name) for name in ("parts", "whole"))
    for series in ("train_inner", "train", "validation"):
        losses = [{s: x["loss"] for s, x in getattr(run, series).items()} for run in (parts, whole)]
        assert losses[0] == losses[1]
        assert losses[0]


def with_time_trained(folder, seconds):
    state = torch.load(folder / "checkpoint_last.pt")
    state["extra_state"]["previous_training_time"] = seconds
    torch.save(state, folder / "checkpoint_last.pt")


@pytest.mark.parametrize(
    "first", [("--max-epoch", "1"), ("--max-update", "4", "--save-interval-updates", "4")]
)
def test_a_resumed_run_counts_the_seconds_of_all_attempts(tmp_path, first):
    runs.train(tmp_path, *first)
    with_time_trained(tmp_path, 5000.0)
    runs.train(tmp_path, "--max-epoch", "2")
    (_, start) = lines_of(tmp_path, "start")
    walls = [x["wall"] for x in lines_of(tmp_path, "train_inner") if x["step"] > start["step"]]
    assert walls
    assert min(walls) >= 5000


def test_the_seconds_of_another_run_are_not_counted(tmp_path):
    runs.train(tmp_path / "first", "--max-epoch", "1")
    with_time_trained(tmp_path / "first", 5000.0)
    checkpoint = str(tmp_path / "first" / "checkpoint_last.pt")
    runs.train(tmp_path / "second", "--finetune-from-model", checkpoint, "--max-epoch", "1")
    assert max(line["wall"] for line in lines_of(tmp_path / "second", "train_inner")) < 5000


def test_a_resumed_run_of_an_earlier_version_starts_its_record(tmp_path):
    runs.train(tmp_path, "--max-epoch", "1")
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "train.log").write_text("[train][INFO] - epoch 001 | loss 2 | num_updates 6\n")
    runs.train(tmp_path, "--max-epoch", "2")
    run = record.read_run(tmp_path)
    assert (run.start["step"], list(run.train), list(run.train_inner)) == (6, [12], [10])


def test_a_loss_that_is_not_finite_is_recorded_as_such(tmp_path, monkeypatch):
    def reduce_metrics(outputs):
        metrics.log_scalar("loss", math.nan)
        metrics.log_scalar("accuracy", torch.tensor(25.0))

    monkeypatch.setattr(toy_plugin.ToyCriterion, "reduce_metrics", reduce_metrics)
    runs.train(tmp_path, "--max-epoch", "1")
    (line,) = lines_of(tmp_path, "valid")
    assert (line["loss"], line["not_finite"], line["accuracy"]) == (None, {"loss": "nan"}, 25.0)
    assert math.isnan(record.read_run(tmp_path).validation[6]["loss"])


def test_a_full_disk_does_not_stop_training(tmp_path, monkeypatch, caplog):
    def fail(file, line):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record, "append", fail)
    runs.train(tmp_path, "--max-epoch", "1")
    assert runs.state_of(tmp_path)["updates"] == 6
    assert "metrics.jsonl: a line is missing, it could not be written ([Errno 28]" in caplog.text


def test_the_peak_of_a_gpu_is_the_largest_of_all_updates(tmp_path, monkeypatch):
    # what fairseq logs after each update, and what torch has counted since
    free, since = iter([60.0, 20.0, 50.0]), iter([5, 7, 90, 7])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: next(since) * 2**30)
    total = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: total)
    bar = progress_bar.progress_bar(
        range(3), log_format="none", epoch=1, aim_param_checkpoint_dir=str(tmp_path)
    )
    peaks = []
    with metrics.aggregate("train_inner"):
        for _ in bar:
            metrics.log_scalar("gb_free", next(free), weight=0, round=1)
            if len(peaks) == 0:
                bar.log({"loss": 1.0}, tag="train_inner", step=1)
                peaks.append(lines_of(tmp_path, "train_inner")[-1]["device_peak_bytes"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 0)
    bar.print({"loss": 1.0}, tag="train", step=3)
    peaks.append(lines_of(tmp_path, "train")[-1]["device_peak_bytes"])
    assert peaks == [20 * 2**30, 90 * 2**30]


def test_other_commands_of_fairseq_record_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bar = progress_bar.progress_bar(range(3), log_format="none", prefix="valid on 'test' subset")
    assert list(bar) == [0, 1, 2]
    bar.print({"loss": 1.0}, tag="test", step=3)
    assert list(tmp_path.iterdir()) == []

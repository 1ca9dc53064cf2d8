"""Evaluating a checkpoint: the numbers, the record, the comparison, the errors."""

import csv
import json

import pytest
import torch

import megalodon_tasks
from megalodon_tasks.cli.main import INTERRUPTED, main
from megalodon_tasks.errors import UserError
from megalodon_tasks.evaluation import checkpoint as checkpoints
from megalodon_tasks.evaluation import classifier
from tests import toy_plugin
from tests.toy_plugin import runs

RECORDED = {
    "benchmark", "split", "metric", "value", "loss", "n", "best_constant", "checkpoint", "update",
    "epoch", "params", "chunk_size", "seed", "date", "device", "versions", "commit",
    "task_overrides", "time_step", "files", "evaluation_chunk_size", "data", "normalisation",
    "training", "precision", "changed_settings", "compared_with", "comparable",
}  # fmt: skip


def records(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def by_hand(checkpoint, split):
    """Accuracy, loss in bits and best constant answer, item by item."""
    state = torch.load(checkpoint)
    model = toy_plugin.ToyModel(6, 0.0).eval()
    model.load_state_dict(state["model"])
    task = toy_plugin.ToyTask(None)
    task.load_dataset(split)
    data = task.dataset(split)
    batch = data.collater([data[i] for i in range(len(data))])
    logits = model(**batch["net_input"])
    correct = (logits.argmax(-1) == batch["target"]).float().mean().item()
    loss = torch.nn.functional.cross_entropy(logits, batch["target"]).item()
    constant = batch["target"].bincount().max().item() / len(data)
    return 100 * correct, loss / torch.tensor(2.0).log().item(), 100 * constant


@pytest.mark.parametrize(("split", "batch_size"), [("test", None), ("valid", 7), ("test", 1)])
def test_numbers_equal_those_by_hand(run_copy, split, batch_size):
    batch = [] if batch_size is None else ["--batch-size", str(batch_size)]
    checkpoint = run_copy / "checkpoint_best.pt"
    assert main(["evaluate", str(checkpoint), "--split", split, "--cpu", *batch]) == 0
    (record,) = records(run_copy)
    accuracy, loss, constant = by_hand(checkpoint, split)
    assert record["value"] == pytest.approx(accuracy, abs=1e-3)
    assert record["loss"] == pytest.approx(loss, abs=1e-4)
    assert record["best_constant"] == pytest.approx(constant)
    assert record["n"] == toy_plugin.SIZES[split]


@pytest.mark.parametrize("option", ["--max-tokens", "--max-tokens-valid"])
def test_a_limit_in_tokens_holds_in_evaluation_too(tmp_path, monkeypatch, option):
    at = runs.SETTINGS.index("--batch-size")
    settings = runs.SETTINGS[:at] + runs.SETTINGS[at + 2 :]
    monkeypatch.setattr(runs, "SETTINGS", [*settings, "--max-tokens", "64"])
    runs.train(tmp_path, "--max-epoch", "1", option, "24")
    sizes, collate = [], toy_plugin.ToyDataset.collater

    def collater(self, items):
        sizes.append(len(items))
        return collate(self, items)

    monkeypatch.setattr(toy_plugin.ToyDataset, "collater", collater)
    assert main(["evaluate", str(tmp_path / "checkpoint_best.pt"), "--cpu"]) == 0
    assert max(sizes) == 3
    sizes.clear()
    assert (
        main(["evaluate", str(tmp_path / "checkpoint_best.pt"), "--cpu", "--batch-size", "7"]) == 0
    )
    assert max(sizes) == 7


def test_the_record_says_what_was_evaluated(run_copy):
    main(["evaluate", str(run_copy / "checkpoint_last.pt"), "--cpu"])
    (record,) = records(run_copy)
    assert record.keys() == RECORDED
    expected = {
        "benchmark": "toy", "split": "test", "metric": "accuracy", "checkpoint": "checkpoint_last.pt",
        "update": 20, "epoch": 4, "params": 64, "chunk_size": 4,
        "evaluation_chunk_size": 4, "seed": 3,
    }  # fmt: skip
    assert {name: record[name] for name in expected} == expected
    assert record["versions"]["torch"] == torch.__version__
    assert record["versions"]["megalodon_tasks"] == megalodon_tasks.__version__


def test_a_checkpoint_between_epochs_counts_the_finished_ones(run_copy):
    main(["evaluate", str(run_copy / "checkpoint2.pt"), "--cpu"])
    assert (records(run_copy)[0]["epoch"], records(run_copy)[0]["update"]) == (2, 12)


def test_records_are_added_and_the_checkpoint_is_relative_to_them(run_copy, tmp_path):
    file = tmp_path / "all" / "results.jsonl"
    for name in ("best", "last"):
        main(["evaluate", str(run_copy / f"checkpoint_{name}.pt"), "--results", str(file), "--cpu"])
    paths = [record["checkpoint"] for record in records(file.parent)]
    assert paths == [f"../a run's folder/checkpoint_{name}.pt" for name in ("best", "last")]


def test_prints_the_result_beside_the_published_ones(run_copy, capsys):
    main(["evaluate", str(run_copy / "checkpoint_best.pt"), "--recipe", "lra/listops", "--cpu"])
    lines = capsys.readouterr().out.splitlines()
    title, ours, constant, full, chunked = lines[:5]
    peers = {line.split("  ")[1].strip(): line.split()[-6:] for line in lines if "table 6" in line}
    assert {"Transformer", "S4", "Mega", "Mega-chunk"} <= peers.keys()
    assert title.startswith("lra/listops: accuracy on test (10 items, loss ")
    assert ours.split()[:3] == ["this", "checkpoint", f"{records(run_copy)[0]['value']:.2f}"]
    assert constant.split() == ["best", "constant", "answer", "40.00"]
    assert full.split()[:2] == ["lra/listops", "63.79"]
    assert chunked.split()[:2] == ["lra/listops-chunk128", "62.23"]
    assert lines[-1] == f"recorded in {run_copy / 'results.jsonl'}"


def test_data_replaces_the_folder_of_training(run_copy, tmp_path):
    checkpoint = run_copy / "checkpoint_best.pt"
    trained = checkpoints.load(checkpoint, tmp_path, torch.device("cpu"))
    assert trained.cfg.task.data == str(tmp_path)
    assert not trained.model.training


def test_another_chunk_size_is_recorded_beside_that_of_training(run_copy):
    main(["evaluate", str(run_copy / "checkpoint_best.pt"), "--cpu", "--chunk-size", "9"])
    (record,) = records(run_copy)
    assert (record["chunk_size"], record["evaluation_chunk_size"]) == (4, 9)


@pytest.mark.parametrize("size", ["0", "-1", "half", "1.5"])
@pytest.mark.parametrize("command", ["evaluate", "evaluate-lm"])
def test_a_chunk_size_that_is_none_is_named(run_copy, size, command, capsys):
    with pytest.raises(SystemExit):
        main([command, str(run_copy / "checkpoint_best.pt"), f"--chunk-size={size}"])
    expected = f"argument --chunk-size: {size} must be a number of steps from 1 on, or full"
    assert expected in capsys.readouterr().err


def test_a_chunk_size_for_a_model_without_chunks_is_named(run_copy):
    state = torch.load(run_copy / "checkpoint_best.pt")
    del state["cfg"]["model"]["chunk_size"]
    torch.save(state, run_copy / "checkpoint_best.pt")
    with pytest.raises(UserError, match="--chunk-size 9: the model toy has no attention chunks"):
        main(["evaluate", str(run_copy / "checkpoint_best.pt"), "--chunk-size", "9"])


def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.pt: there is no such checkpoint"):
        main(["evaluate", str(tmp_path / "nowhere.pt")])


def test_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / "checkpoint_best.pt").write_bytes(b"PK half")
    with pytest.raises(UserError, match="checkpoint_best.pt: the checkpoint is truncated"):
        main(["evaluate", str(tmp_path / "checkpoint_best.pt")])


def test_a_model_that_the_code_builds_otherwise_is_named(run_copy):
    state = torch.load(run_copy / "checkpoint_best.pt")
    state["model"]["more"] = torch.ones(1)
    torch.save(state, run_copy / "checkpoint_best.pt")
    with pytest.raises(UserError, match=r"(?s)does not fit the model .*more"):
        main(["evaluate", str(run_copy / "checkpoint_best.pt")])
    assert not (run_copy / "results.jsonl").exists()


def test_unknown_metric_is_named_with_those_that_there_are(run_copy):
    state = torch.load(run_copy / "checkpoint_best.pt")
    state["cfg"]["checkpoint"]["best_checkpoint_metric"] = "f1"
    torch.save(state, run_copy / "checkpoint_best.pt")
    with pytest.raises(
        UserError, match="metric='f1' is not logged by the criterion, which logs acc"
    ):
        main(["evaluate", str(run_copy / "checkpoint_best.pt")])


def test_ctrl_c_records_nothing(run_copy, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(classifier, "predict", interrupted)
    assert main(["evaluate", str(run_copy / "checkpoint_best.pt")]) == INTERRUPTED
    assert "interrupted; nothing was recorded" in capsys.readouterr().err
    assert not (run_copy / "results.jsonl").exists()


def test_files_of_the_answers_are_written_and_recorded(run_copy, capsys):
    names = {
        "predictions": "predictions.csv",
        "confusion": "confusion.png",
        "by_class": "accuracy_by_class.csv",
        "by_length": "accuracy_by_length.csv",
    }
    files = [
        word
        for option, name in names.items()
        for word in (f"--{option.replace('_', '-')}", str(run_copy / name))
    ]
    assert main(["evaluate", str(run_copy / "checkpoint_best.pt"), "--cpu", *files]) == 0
    (record,) = records(run_copy)
    assert record["files"] == names
    with (run_copy / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == toy_plugin.SIZES["test"]
    hits = sum(int(row["correct"]) for row in rows)
    assert record["value"] == pytest.approx(100 * hits / len(rows), abs=1e-3)
    for name in ("accuracy_by_class.csv", "accuracy_by_length.csv"):
        with (run_copy / name).open(newline="") as file:
            groups = list(csv.DictReader(file))
        assert sum(int(group["items"]) for group in groups) == len(rows)
        assert sum(int(group["correct"]) for group in groups) == hits
    assert "95 % interval" in capsys.readouterr().out


def test_a_field_of_the_task_can_have_another_value(run_copy, tmp_path):
    words = ["--task-override", f"data={tmp_path}"]
    main(["evaluate", str(run_copy / "checkpoint_best.pt"), "--cpu", *words])
    assert records(run_copy)[0]["task_overrides"] == {"data": str(tmp_path)}
    overrides = {"data": "/elsewhere"}
    checkpoint = run_copy / "checkpoint_best.pt"
    trained = checkpoints.load(checkpoint, task_overrides=overrides)
    assert trained.task.cfg.data == "/elsewhere"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task-override", "dat=x"], "the task toy has no field 'dat'; there is data"),
        (["--task-override", "data"], "--task-override data: write KEY=VALUE"),
        (["--task-override", "data=[1"], r"--task-override data=\[1: its value is not YAML"),
        (["--time-step", "2"], "--time-step 2: ToyModel has no time step to change"),
    ],
)
def test_settings_that_make_no_sense_are_refused(run_copy, words, message):
    with pytest.raises(UserError, match=message):
        main(["evaluate", str(run_copy / "checkpoint_best.pt"), "--cpu", *words])
    assert not (run_copy / "results.jsonl").exists()

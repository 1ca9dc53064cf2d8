"""Training logs in both of fairseq's forms, and the picture of one."""

import json

import pytest

from megalodon_tasks.errors import UserError
from megalodon_tasks.runs import plot, training_log

# An epoch, its validation, and a run that is killed, goes on, repeats a line, and is killed in a line.
SIMPLE_EVENTS = [
    ("fairseq.trainer", "begin training epoch 1"),
    ("train_inner", "epoch 001:      5 / 6 loss=2.5, accuracy=20, lr=1e-05, num_updates=5, wall=3"),
    ("valid", "epoch 001 | valid on 'valid' subset | loss 2.25 | accuracy 25.5 | num_updates 6"),
    ("train", "epoch 001 | loss 2.4 | num_updates 6 | lr 1e-05 | loss_scale None"),
    ("train_inner", "epoch 002:      4 / 6 loss=9, num_updates=10"),
    ("train_inner", "epoch 002:      4 / 6 loss=1.5, num_updates=10"),
    ("train_inner", "epoch 002:      6 / 6 los"),
]
JSON_EVENTS = [
    ("fairseq.trainer", "begin training epoch 1"),
    (
        "train_inner",
        '{"epoch": 1, "update": 0.8, "loss": "2.5", "lr": "1e-05", "num_updates": "5"}',
    ),
    (
        "valid",
        '{"epoch": 1, "valid_loss": "2.25", "valid_accuracy": "25.5", "valid_num_updates": "6"}',
    ),
    (
        "train",
        '{"epoch": 1, "train_loss": "2.4", "train_num_updates": "6", "train_loss_scale": null}',
    ),
    ("train_inner", '{"epoch": 2, "loss": "9", "num_updates": "10"}'),
    ("train_inner", '{"epoch": 2, "loss": "1.5", "num_updates": "10"}'),
    ("train_inner", '{"epoch": 2, "los'),
]
HYDRA = "[2026-01-01 10:00:01,000][{}][INFO] - {}\n"
COMMAND_LINE = "2026-01-01 10:00:01 | INFO | {} | {}\n"


def text_of(form, events):
    return "".join(form.format(name, message) for name, message in events)


SIMPLE = text_of(HYDRA, SIMPLE_EVENTS)


@pytest.mark.parametrize("form", [HYDRA, COMMAND_LINE], ids=["hydra", "command_line"])
@pytest.mark.parametrize("lines", [SIMPLE_EVENTS, JSON_EVENTS], ids=["simple", "json"])
def test_reads_each_event_once_and_the_last_line_of_several(tmp_path, form, lines):
    (tmp_path / "train.log").write_text(text_of(form, lines))
    events = training_log.read(tmp_path / "train.log")
    assert {tag: list(points) for tag, points in events.items()} == {
        "train_inner": [5, 10], "valid": [6], "train": [6],
    }  # fmt: skip
    assert events["train_inner"][10]["loss"] == 1.5
    assert events["train_inner"][5]["lr"] == 1e-5
    valid = events["valid"][6]
    assert (valid["loss"], valid["accuracy"]) == (2.25, 25.5)
    assert events["train"][6]["epoch"] == 1
    assert "loss_scale" not in events["train"][6]


@pytest.mark.parametrize("content", [None, "", "nothing of interest\n"])
def test_a_log_without_losses_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "train.log").write_text(content)
    with pytest.raises(UserError, match="train.log: "):
        plot.main([str(tmp_path)])


def test_draws_a_picture(tmp_path, capsys):
    (tmp_path / "train.log").write_text(SIMPLE)
    assert plot.main([str(tmp_path)]) == 0
    picture = tmp_path / "training_curve.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"wrote {picture}\n"


def test_the_best_constant_answer_is_that_of_the_last_evaluation(tmp_path):
    assert plot.best_constant(tmp_path) is None
    lines = [json.dumps({"best_constant": value}) for value in (10.0, 11.5)]
    (tmp_path / "results.jsonl").write_text("\n".join(lines) + "\n")
    assert plot.best_constant(tmp_path) == 11.5


def test_a_curve_without_accuracy_can_be_drawn(tmp_path):
    (tmp_path / "train.log").write_text("[train][INFO] - epoch 001 | loss 2 | num_updates 6\n")
    output = tmp_path / "other.png"
    plot.main([str(tmp_path), "--output", str(output)])
    assert output.exists()


def test_a_language_model_has_perplexity_in_place_of_accuracy(tmp_path, monkeypatch):
    lines = [
        f"[valid][INFO] - epoch 001 | loss {9 - n} | ppl {2 ** (9 - n)} | num_updates {n}\n"
        for n in (3, 6)
    ]
    (tmp_path / "train.log").write_text("".join(lines))
    labels = []
    monkeypatch.setattr(plot.Axes, "set_ylabel", lambda axes, label: labels.append(label))
    plot.main([str(tmp_path)])
    assert labels == ["loss (bits)", "perplexity per token"]

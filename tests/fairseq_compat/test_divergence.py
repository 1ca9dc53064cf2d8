"""Numbers that are not finite: named, never learned, never saved as a checkpoint, skipped if allowed."""

import inspect
import json
import logging
import math
import shutil

import pytest
import torch
from fairseq.trainer import Trainer

from megalodon_tasks.cli.main import main
from megalodon_tasks.errors import UserError
from tests import toy_plugin
from tests.cli.language_models import write_checkpoint, write_corpus
from tests.toy_plugin import runs

BAD = float("nan")


def at_update(monkeypatch, updates, spoil):
    """Call ``spoil(trainer)`` in the step that makes each of ``updates``, counted over all attempts."""
    step, made = Trainer.train_step, []

    def train_step(self, samples, *more):
        made.append(self.get_num_updates())
        spoiled = spoil(self) if len(made) in updates else None
        try:
            return step(self, samples, *more)
        finally:
            if spoiled is not None:
                spoiled.remove()

    monkeypatch.setattr(Trainer, "train_step", train_step)


def output(module):
    return lambda trainer: getattr(trainer.get_model(), module).register_forward_hook(
        lambda *call: call[2] * BAD
    )


def gradient(trainer):
    return trainer.get_model().embed.weight.register_hook(lambda gradient: gradient * math.inf)


def loss(trainer):
    return trainer.criterion.register_forward_hook(lambda *call: (call[2][0] * 1e39, *call[2][1:]))


def infinite_loss_with_a_gradient(trainer):
    return trainer.criterion.register_forward_hook(
        lambda *call: (call[2][0] + torch.tensor(math.inf), *call[2][1:])
    )


def rate(trainer):
    def set_again(*call):
        trainer.optimizer.set_lr(1e39)

    return trainer.criterion.register_forward_hook(set_again)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The state after 4 updates."""
    folder = tmp_path_factory.mktemp("whole")
    runs.train(folder, "--save-interval-updates", "4", "--max-update", "4")
    return folder


CASES = {
    "embed": (
        output("embed"),
        "a loss is not finite; first module with such an output: embed (Emb",
    ),
    "out": (output("out"), "a loss is not finite; first module with such an output: out (Linear)"),
    "gradient": (
        gradient,
        "a gradient is not finite; outputs are finite; first gradient that is not: of embed.weight",
    ),
    "loss": (
        loss,
        "a loss is not finite; the output of the model is finite, the loss of it is not",
    ),
    "infinite": (infinite_loss_with_a_gradient, "a loss is not finite"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_run_ends_and_names_update_module_and_items(whole, tmp_path, monkeypatch, case):
    spoil, message = CASES[case]
    with monkeypatch.context() as patch:
        at_update(patch, {6}, spoil)
        with pytest.raises(UserError) as caught:
            runs.train(tmp_path / "run", "--save-interval-updates", "4")
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'run'}: training diverged at update 6: {message}")
    assert "the last good checkpoint is checkpoint_last.pt (update 4)" in text
    assert "the state is in diverged.pt" in text
    items = text.split("items of the batch: ")[1].split(";")[0].split(", ")
    assert len(set(map(int, items))) == 6
    runs.assert_equal(runs.state_of(tmp_path / "run")["model"], runs.state_of(whole)["model"])
    assert not (tmp_path / "run" / "crash.pt").exists()
    bad = torch.load(tmp_path / "run" / "diverged.pt")
    assert bad["extra_state"]["diverged"] == 6
    with pytest.raises(UserError, match="of a run that diverged at update 6"):
        main(["evaluate", str(tmp_path / "run" / "diverged.pt"), "--cpu"])
    assert ("train_inner", 20) in runs.train(tmp_path / "run", "--save-interval-updates", "4")


@pytest.mark.parametrize(("interval", "last"), [("6", 0), ("4", 4)])
def test_parameters_are_checked_before_they_are_saved(tmp_path, monkeypatch, interval, last):
    """The update before a save, and one in between, whose trace the next update finds."""
    at_update(monkeypatch, {6}, rate)
    with pytest.raises(UserError) as caught:
        runs.train(tmp_path, "--save-interval-updates", interval)
    text = str(caught.value)
    assert "training diverged at update 6: a parameter is not finite; parameter scale is" in text
    assert len(text.split("items of the batch: ")[1].split(";")[0].split(", ")) == 6
    assert (tmp_path / "checkpoint_last.pt").exists() == bool(last)
    if not last:
        assert "no checkpoint was written before" in text
    else:
        assert runs.state_of(tmp_path)["updates"] == last
    assert not torch.load(tmp_path / "diverged.pt")["model"]["embed.weight"].isfinite().all()


def test_items_with_a_bad_input_are_named(tmp_path, monkeypatch):
    collate = toy_plugin.ToyDataset.collater

    def collater(self, items):
        sample = collate(self, items)
        if sample and self.augment:
            weights = torch.ones(len(items))
            weights[sample["id"] == 17] = BAD
            sample["net_input"]["weights"] = weights
        return sample

    forward = toy_plugin.ToyModel.forward

    def weighted(self, inputs, lengths, weights=None):
        scores = forward(self, inputs, lengths)
        return scores if weights is None else scores * weights[:, None]

    monkeypatch.setattr(toy_plugin.ToyDataset, "collater", collater)
    monkeypatch.setattr(toy_plugin.ToyModel, "forward", weighted)
    with pytest.raises(UserError, match="the input of item 17 is not finite"):
        runs.train(tmp_path)


def test_some_updates_may_be_skipped(tmp_path, monkeypatch, caplog):
    at_update(monkeypatch, {5, 9}, output("embed"))
    with caplog.at_level(logging.WARNING):
        runs.train(tmp_path, "--skip-nonfinite", "2")
    assert runs.state_of(tmp_path)["updates"] == 20
    assert "update 5: a loss is not finite; skipped, number 1 of at most 2" in caplog.text
    assert "update 8: a loss is not finite; skipped, number 2 of at most 2" in caplog.text
    assert "items of the batch: " in caplog.text
    assert torch.load(tmp_path / "checkpoint_last.pt")["extra_state"]["skipped_nonfinite"] == 2
    assert not (tmp_path / "diverged.pt").exists()


def test_skipped_updates_are_counted_over_all_starts_of_a_run(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at_update(patch, {2}, gradient)
        runs.train(tmp_path, "--skip-nonfinite", "1", "--max-update", "6")
    at_update(monkeypatch, {2}, gradient)
    with pytest.raises(UserError, match="update 8: a gradient .*; 1 updates were skipped before"):
        runs.train(tmp_path, "--skip-nonfinite", "1")


def test_fairseq_alone_saves_what_is_not_finite(tmp_path, monkeypatch):
    for name in ("train_step", "clip_grad_norm"):
        monkeypatch.setattr(Trainer, name, inspect.unwrap(getattr(Trainer, name)))
    at_update(monkeypatch, {6}, rate)
    runs.train(tmp_path, "--max-update", "6")
    assert not runs.state_of(tmp_path)["model"]["embed.weight"].isfinite().all()


@pytest.mark.parametrize("value", [BAD, math.inf])
def test_a_model_with_such_weights_is_not_evaluated(whole, tmp_path, value):
    path = shutil.copy(whole / "checkpoint_last.pt", tmp_path)
    state = torch.load(path)
    state["model"]["out.bias"][1] = value
    torch.save(state, path)
    for command in ("evaluate", "inspect"):
        with pytest.raises(UserError, match="out.bias holds numbers that are not finite"):
            main([command, str(path)])
    assert not (tmp_path / "results.jsonl").exists()


@pytest.mark.parametrize("value", [BAD, -math.inf])
def test_nor_one_with_such_outputs(whole, tmp_path, monkeypatch, value):
    path = shutil.copy(whole / "checkpoint_last.pt", tmp_path)
    forward = toy_plugin.ToyModel.forward

    def spoiled(self, inputs, lengths):
        scores = forward(self, inputs, lengths)
        scores[0, 0] = value
        return scores

    monkeypatch.setattr(toy_plugin.ToyModel, "forward", spoiled)
    with pytest.raises(UserError, match="the output of the model is not finite for a batch with"):
        main(["evaluate", str(path), "--cpu"])
    assert not (tmp_path / "results.jsonl").exists()


def test_nor_a_language_model(tmp_path, monkeypatch):
    data = write_corpus(tmp_path / "corpus")
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, data)
    state = torch.load(path)
    # finite itself, but not what is computed with it
    state["model"]["decoder.lm.output.weight"].fill_(3e38)
    torch.save(state, path)
    for command in ("evaluate-lm", "evaluate", "sample"):
        with pytest.raises(UserError, match="not finite"):
            main([command, str(path), "--cpu"])
    assert not (tmp_path / "results.jsonl").exists()


def test_the_record_of_a_diverged_run_is_json(tmp_path, monkeypatch):
    at_update(monkeypatch, {3}, output("out"))
    with pytest.raises(UserError):
        runs.train(tmp_path, "--log-interval", "1")
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))

"""Signals in training: it saves, ends with the status that schedulers expect, and resumes exactly."""

import logging
import os
import signal

import pytest
import torch
from fairseq.trainer import Trainer

from megalodon_tasks import signals
from megalodon_tasks.fairseq_compat import last_checkpoint
from megalodon_tasks.signals import exit_status, interruptible, is_interruption
from tests.toy_plugin import runs


@pytest.fixture(autouse=True)
def _apart(monkeypatch):
    """Signals of one test are not repetitions of those of the test before."""
    monkeypatch.setattr(signals, "_last", -10.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, runs.train(folder)


def updates_of(folder):
    return torch.load(folder / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"]


def signal_at(monkeypatch, update, *numbers):
    step = Trainer.train_step

    def train_step(self, *args, **kwargs):
        if self.get_num_updates() + 1 == update:
            for number in numbers:
                os.kill(os.getpid(), number)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train_step", train_step)


# within the first epoch, before and after its end, within a later one
@pytest.mark.parametrize(
    ("number", "update"),
    [(signal.SIGTERM, 1), (signal.SIGINT, 6), (signal.SIGUSR1, 7), (signal.SIGTERM, 14)],
)
def test_saves_ends_and_resumes_as_if_nothing_had_been(
    whole, tmp_path, monkeypatch, caplog, number, update
):
    events, before = {}, signal.getsignal(number)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        signal_at(patch, update, number)
        with pytest.raises(SystemExit) as ended:
            runs.train(tmp_path, events=events)
    assert ended.value.code == 128 + number
    assert f"ended by {number.name} after update {update}: saved" in caplog.text
    assert updates_of(tmp_path) == update
    assert signal.getsignal(number) == before
    runs.train(tmp_path, events=events)
    # the line of an epoch that ends with the signal comes after it
    assert events.keys() >= whole[1].keys() - {("train", 6)}
    assert events.items() <= whole[1].items()
    for name in ("checkpoint_last.pt", "checkpoint_best.pt"):
        runs.assert_equal(runs.state_of(tmp_path, name), runs.state_of(whole[0], name))


def test_a_signal_that_comes_twice_at_once_is_one(tmp_path, monkeypatch):
    signal_at(monkeypatch, 3, signal.SIGINT, signal.SIGINT)
    with pytest.raises(SystemExit):
        runs.train(tmp_path)
    assert updates_of(tmp_path) == 3


def test_a_second_one_ends_it_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "REPEAT_SECONDS", 0.0)
    signal_at(monkeypatch, 3, signal.SIGUSR1, signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        runs.train(tmp_path)
    assert ended.value.code == 143
    assert not (tmp_path / "checkpoint_last.pt").exists()


def test_a_run_that_is_complete_ends_as_such(tmp_path, monkeypatch):
    signal_at(monkeypatch, 6, signal.SIGTERM)
    runs.train(tmp_path, "--max-update", "6")
    assert updates_of(tmp_path) == 6


def test_fairseq_alone_saves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(last_checkpoint, "install_in", lambda train: None)
    for name in ("train", "validate_and_save"):
        function = getattr(runs.fairseq_train, name)
        while any("last_checkpoint" in patch for patch in getattr(function, "patched_by", ())):
            function = function.__wrapped__
        monkeypatch.setattr(runs.fairseq_train, name, function)
    signal_at(monkeypatch, 3, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        runs.train(tmp_path)
    assert not (tmp_path / "checkpoint_last.pt").exists()


def test_ctrl_c_interrupts_once_even_where_it_was_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt), interruptible():
            os.kill(os.getpid(), signal.SIGINT)
        with interruptible():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_which_statuses_are_interruptions():
    assert exit_status(signal.SIGTERM) == 143
    assert all(map(is_interruption, (130, 143, 138, -9, -15)))
    assert not any(map(is_interruption, (0, 1, 2, 127)))

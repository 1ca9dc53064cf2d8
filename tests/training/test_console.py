"""What the terminal shows of all that is logged."""

import io
import logging

import pytest
from fairseq.logging import progress_bar

from megalodon_tasks.training.console import FILE_ONLY, ConsoleHandler, TerminalBar


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(progress_bar, "TqdmProgressBar", progress_bar.TqdmProgressBar)
    return ConsoleHandler(io.StringIO())


def shown(terminal, name, level, message, **extra):
    record = logging.makeLogRecord(
        {"name": name, "levelno": level, "levelname": logging.getLevelName(level), "msg": message}
    )
    vars(record).update(extra)
    terminal.handle(record)
    return terminal.stream.getvalue()


@pytest.mark.parametrize(
    ("name", "level", "message"),
    [
        ("fairseq_cli.train", logging.INFO, "{'_name': None}"),
        ("fairseq.tasks.fairseq_task", logging.INFO, "can_reuse_epoch_itr = True"),
    ],
)
def test_notices_of_fairseq_are_left_to_the_log(terminal, name, level, message):
    assert shown(terminal, name, level, message) == ""


@pytest.mark.parametrize(
    ("name", "level", "message", "line"),
    [
        ("valid", logging.INFO, "epoch 001 | loss 2", "valid | epoch 001 | loss 2\n"),
        ("fairseq.trainer", logging.INFO, "Loaded checkpoint x", "trainer | Loaded checkpoint x\n"),
        ("fairseq.tasks", logging.WARNING, "5 samples", "tasks | warning: 5 samples\n"),
        ("megalodon_tasks.training.optimizer", logging.INFO, "never", "optimizer | never\n"),
    ],
)
def test_losses_checkpoints_and_warnings_are_shown(terminal, name, level, message, line):
    clock, rest = shown(terminal, name, level, message).split(" ", 1)
    assert len(clock) == len("10:00:00")
    assert rest == line


def test_lines_for_the_file_alone_are_not_shown(terminal):
    assert shown(terminal, "train_inner", logging.INFO, "loss 2", **FILE_ONLY) == ""


def test_the_bar_logs_exact_positions_and_few_statistics(terminal, caplog, capsys):
    assert progress_bar.TqdmProgressBar is TerminalBar
    with caplog.at_level(logging.INFO):
        bar = TerminalBar(range(10), epoch=2)
        for item in bar:
            if item == 6:
                bar.log({"loss": 1.23456, "wps": 9.0, "num_updates": 17}, tag="train_inner")
                bar.tqdm.refresh()
    (record,) = [r for r in caplog.records if r.name == "train_inner"]
    assert record.getMessage() == "epoch 002:      7 / 10 loss=1.23456, wps=9, num_updates=17"
    assert "loss=1.235, update=17]" in capsys.readouterr().err

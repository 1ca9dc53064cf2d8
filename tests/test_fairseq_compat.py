"""Each patch of fairseq: that it works, and that fairseq still fails without it."""

import collections
import inspect
import io
import logging
import os
import pickle
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from fairseq.logging import progress_bar
from fairseq.trainer import Trainer
from omegaconf import OmegaConf

from megalodon_tasks import fairseq_compat
from megalodon_tasks.errors import UserError
from megalodon_tasks.fairseq_compat import (
    atomic_files,
    jobs,
    last_checkpoint,
    safe_globals,
    third_party_warnings,
)
from megalodon_tasks.files import sole_writer
from tests.toy_plugin import ToyTask, runs


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A run that nothing disturbed: its folder and its losses."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, runs.train(folder, "--save-interval-updates", "4")


@pytest.fixture
def run_copy(whole_run, tmp_path):
    """A folder of one's own with the files of the undisturbed run."""
    shutil.copytree(whole_run[0], tmp_path / "run", ignore=shutil.ignore_patterns(".lock"))
    return tmp_path / "run"


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program catches it."""


def kill_while_writing(monkeypatch, victim, at_save):
    """Die half-way through ``victim`` when checkpoints are written for the ``at_save``-th time."""
    saves = []
    torch_save, copy, rename = torch.save, shutil.copyfileobj, os.replace

    def save(obj, file, *args, **kwargs):
        saves.append(file)
        if victim == "first file" and len(saves) == at_save:
            buffer = io.BytesIO()
            torch_save(obj, buffer)
            file.write(buffer.getvalue()[: buffer.tell() // 2])
            file.flush()
            raise Killed
        torch_save(obj, file, *args, **kwargs)

    def copyfileobj(source, target, *args):
        if len(saves) == at_save and Path(target.name).name == f"{victim}.tmp":
            target.write(source.read(1000))
            target.flush()
            raise Killed
        copy(source, target, *args)

    def replace(source, target):
        if len(saves) == at_save and victim == f"name of {Path(target).name}":
            raise Killed
        rename(source, target)

    monkeypatch.setattr(checkpoint_utils.torch, "save", save)
    monkeypatch.setattr(atomic_files.shutil, "copyfileobj", copyfileobj)
    monkeypatch.setattr(atomic_files.os, "replace", replace)


VICTIMS = ["first file", "checkpoint_best.pt", "checkpoint_last.pt", "name of checkpoint_last.pt"]


# saves come at updates 4, 6 (end of the epoch), 8, 12 ...; the first one has nothing to go back to
@pytest.mark.parametrize("at_save", [1, 2, 4])
@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_while_writing_goes_on_as_if_nothing_had_been(
    whole_run, tmp_path, monkeypatch, victim, at_save
):
    events = {}
    with monkeypatch.context() as patch:
        kill_while_writing(patch, victim, at_save)
        killed = False
        try:
            runs.train(tmp_path, "--save-interval-updates", "4", events=events)
        except Killed:
            killed = True
    # a save that is not the best so far has no copy named best
    assert killed or victim == "checkpoint_best.pt"
    assert bool(list(tmp_path.glob("*.tmp"))) == killed
    for path in tmp_path.glob("*.pt"):
        torch.load(path)
    runs.train(tmp_path, "--save-interval-updates", "4", events=events)
    whole, whole_events = whole_run
    assert events == whole_events
    names = sorted(path.name for path in whole.glob("*.pt*"))
    assert sorted(path.name for path in tmp_path.glob("*.pt*")) == names
    for name in ("checkpoint_last.pt", "checkpoint_best.pt"):
        runs.assert_equal(runs.state_of(tmp_path, name), runs.state_of(whole, name))


@pytest.mark.parametrize("stop", [5, 6, 7, 12, 13])
def test_stopped_between_updates_goes_on_exactly(whole_run, tmp_path, monkeypatch, stop):
    """Stops at any update: within an epoch, at its end, between two lines of the log."""
    events, step = {}, Trainer.train_step

    def train_step(self, *args, **kwargs):
        if self.get_num_updates() == stop:
            raise Killed
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        with pytest.raises(Killed):
            runs.train(tmp_path, "--save-interval-updates", "4", events=events)
    runs.train(tmp_path, "--save-interval-updates", "4", events=events)
    assert events == whole_run[1]
    runs.assert_equal(runs.state_of(tmp_path), runs.state_of(whole_run[0]))


@pytest.mark.parametrize("stop", [2, 5, 7, 13])
def test_a_task_may_keep_its_last_checkpoint_fresh(whole_run, tmp_path, monkeypatch, stop):
    """Written at every update and killed: resumes from there, and validates no more often."""
    monkeypatch.setattr(ToyTask, "saves_last_often", True, raising=False)
    monkeypatch.setattr(last_checkpoint, "SECONDS", 0.0)
    monkeypatch.setattr(last_checkpoint, "SHARE", 1e9)
    events, step, seen = {}, Trainer.train_step, []

    def train_step(self, *args, **kwargs):
        seen.append(self.get_num_updates())
        if seen.count(stop) == 1 and seen[-1] == stop:
            raise Killed
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    with pytest.raises(Killed):
        runs.train(tmp_path, "--save-interval-updates", "4", events=events)
    seen_before = len(seen)
    runs.train(tmp_path, "--save-interval-updates", "4", events=events)
    assert seen[seen_before] == stop
    assert events == whole_run[1]
    runs.assert_equal(runs.state_of(tmp_path), runs.state_of(whole_run[0]))


def test_running_averages_are_lost_at_an_epoch_start_in_fairseq_alone(
    whole_run, tmp_path, monkeypatch
):
    monkeypatch.setattr(jobs, "_restore_running_averages", lambda cfg, extra_state: None)
    events = runs.train(tmp_path, "--max-epoch", "1", "--save-interval-updates", "4")
    runs.train(tmp_path, "--save-interval-updates", "4", events=events)
    assert events["train_inner", 10] != whole_run[1]["train_inner", 10]
    assert events["train_inner", 15] == whole_run[1]["train_inner", 15]


def test_the_copy_of_fairseq_writes_in_place(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    inode = target.stat().st_ino
    PathManager.copy.__wrapped__(str(source), str(target), overwrite=True)
    assert target.stat().st_ino == inode
    assert PathManager.copy(str(source), str(target), overwrite=True)
    assert target.stat().st_ino != inode
    assert target.read_bytes() == b"new"
    assert not PathManager.copy(str(source), str(target))


def test_a_checkpoint_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(atomic_files.os, "fsync", lambda descriptor: order.append("fsync"))
    monkeypatch.setattr(PathManager, "rename", lambda *paths: order.append("rename"))
    checkpoint_utils.torch_persistent_save({}, str(tmp_path / "checkpoint1.pt"))
    assert order == ["fsync", "rename"]


def test_leftovers_are_removed_and_nothing_else(run_copy, caplog):
    (run_copy / "checkpoint3.pt.tmp").write_bytes(b"half")
    (run_copy / "notes.tmp").write_text("mine")
    with caplog.at_level(logging.INFO):
        runs.train(run_copy)
    assert not (run_copy / "checkpoint3.pt.tmp").exists()
    assert (run_copy / "notes.tmp").exists()
    assert "removed checkpoint3.pt.tmp" in caplog.text


def test_a_second_run_in_the_same_folder_is_refused(run_copy):
    with sole_writer(run_copy), pytest.raises(UserError, match="another process is writing to"):
        runs.train(run_copy)


def test_a_finished_run_stays_as_it_is(run_copy, caplog):
    before = runs.state_of(run_copy)
    with caplog.at_level(logging.INFO):
        assert runs.train(run_copy) == {}
    assert "this run is finished (20 of 20 updates)" in caplog.text
    runs.assert_equal(runs.state_of(run_copy), before)
    assert ("train_inner", 25) in runs.train(run_copy, "--max-update", "25")


@pytest.mark.parametrize("epochs", ["1", "2"])
def test_a_run_that_has_made_its_epochs_is_finished(run_copy, caplog, epochs):
    before = runs.state_of(run_copy)
    with caplog.at_level("INFO"):
        runs.train(run_copy, "--max-update", "0", "--total-num-update", "20", "--max-epoch", epochs)
    assert f"this run is finished (3 of {epochs} epochs)" in caplog.text
    runs.assert_equal(runs.state_of(run_copy), before)


def test_fairseq_alone_trains_a_finished_run_further(run_copy, monkeypatch):
    monkeypatch.setattr(jobs, "_skip_if_finished", lambda trainer, next_epoch: None)
    runs.train(run_copy)
    assert runs.state_of(run_copy)["updates"] == 21


def test_jobs_in_one_process_do_not_inherit_the_best(tmp_path):
    checkpoint_utils.save_checkpoint.best = 1000.0  # as a better job before would leave it
    runs.fairseq_train.should_stop_early.best = 1000.0
    runs.fairseq_train.should_stop_early.num_runs = 1
    runs.train(tmp_path, "--max-epoch", "2", "--patience", "2")
    assert (tmp_path / "checkpoint_best.pt").exists()
    assert runs.state_of(tmp_path)["best"] <= 100
    assert runs.state_of(tmp_path)["updates"] == 12


def test_fairseq_alone_lets_jobs_inherit_the_best(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "_forget_last_job", lambda cfg: None)
    checkpoint_utils.save_checkpoint.best = 1000.0
    runs.train(tmp_path, "--max-epoch", "1")
    assert not (tmp_path / "checkpoint_best.pt").exists()
    assert runs.state_of(tmp_path)["best"] == 1000.0


def lines_of(log):
    return [line for line in log.read_text().splitlines() if line.startswith('{"epoch"')]


def test_log_file_has_each_line_once(tmp_path):
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    runs.train(tmp_path / "a", "--max-epoch", "3", "--log-file", str(first))
    counts = collections.Counter(lines_of(first))
    assert len(counts) >= 6
    assert set(counts.values()) == {1}
    lines = lines_of(first)
    runs.train(tmp_path / "b", "--max-epoch", "1", "--log-file", str(second))
    runs.train(tmp_path / "c", "--max-epoch", "1")
    assert lines_of(first) == lines
    assert len(lines_of(second)) == len(set(lines_of(second))) > 0


def test_log_file_of_fairseq_alone_repeats_lines(tmp_path, monkeypatch):
    stock = inspect.unwrap(progress_bar.progress_bar)
    monkeypatch.setattr(progress_bar, "progress_bar", stock)
    runs.train(tmp_path, "--max-epoch", "3", "--log-file", str(tmp_path / "log"))
    assert max(collections.Counter(lines_of(tmp_path / "log")).values()) > 1
    fairseq_compat.install()
    runs.train(tmp_path)  # closes the handlers


def test_unknown_metric_is_named_with_those_that_there_are(tmp_path):
    with pytest.raises(UserError, match="'f1' is not logged in validation; choose one of accuracy"):
        runs.train(tmp_path, "--best-checkpoint-metric", "f1")


def test_unknown_metric_is_a_bare_key_error_in_fairseq_alone(tmp_path, monkeypatch):
    runs.train(tmp_path / "first", "--max-epoch", "1")
    stock = runs.fairseq_train.get_valid_stats.__wrapped__
    monkeypatch.setattr(runs.fairseq_train, "get_valid_stats", stock)
    monkeypatch.setattr(jobs, "_forget_last_job", lambda cfg: None)
    with pytest.raises(KeyError, match="'f1'"):
        runs.train(tmp_path / "second", "--best-checkpoint-metric", "f1")


@pytest.mark.parametrize("damage", ["half", "empty", "garbage"])
def test_damaged_checkpoint_is_named_with_an_older_one(run_copy, damage):
    last = run_copy / "checkpoint_last.pt"
    content = last.read_bytes()
    last.write_bytes({"half": content[: len(content) // 2], "empty": b"", "garbage": b"x"}[damage])
    os.utime(run_copy / "checkpoint3.pt", (2**31, 2**31))
    (run_copy / "checkpoint2.pt").write_bytes(b"also broken")
    with pytest.raises(UserError) as caught:
        runs.train(run_copy)
    message = str(caught.value)
    assert (
        f"{last}: the checkpoint is truncated or damaged ({last.stat().st_size} bytes)" in message
    )
    assert f"cp {run_copy / 'checkpoint3.pt'} {last}" in message
    shutil.copy(run_copy / "checkpoint3.pt", last)
    runs.train(run_copy)


def test_damaged_checkpoint_without_another(run_copy):
    for path in run_copy.glob("*.pt"):
        path.write_bytes(b"x")
    with pytest.raises(UserError, match="no whole one is beside it"):
        runs.train(run_copy)


class Unwanted:
    """Something that a checkpoint must not bring along: it makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("unwanted", [Unwanted, Path])
def test_a_checkpoint_that_could_run_code_is_refused(run_copy, tmp_path, unwanted):
    trap = tmp_path / "trap"
    torch.save({"model": {}, "extra": unwanted(trap)}, run_copy / "checkpoint_last.pt")
    with pytest.raises(UserError, match=r"holds [\w.]+\.\w+ besides tensors .* could run code"):
        runs.train(run_copy)
    assert not trap.exists()


def test_a_file_that_is_no_checkpoint_is_named(run_copy):
    torch.save({"weight": torch.ones(2)}, run_copy / "checkpoint_last.pt")
    with pytest.raises(UserError, match="not a training checkpoint of fairseq"):
        runs.train(run_copy)


def test_checkpoint_of_another_architecture_says_what_differs(run_copy):
    with pytest.raises(UserError) as caught:
        runs.train(run_copy, "--arch", "toy_wide")
    message = str(caught.value)
    assert f"{run_copy / 'checkpoint_last.pt'}: this checkpoint is of another arch" in message
    assert "arch is toy in the checkpoint, toy_wide in the model" in message
    assert "dim is 6 in the checkpoint, 9 in the model" in message
    assert (
        "size mismatch for embed.weight: copying a param with shape torch.Size([5, 6])" in message
    )
    assert 'Missing key(s) in state_dict: "extra"' in message


def test_surplus_tensors_are_named_and_long_lists_cut(run_copy):
    state = torch.load(run_copy / "checkpoint_last.pt")
    state["model"].update({f"old{i}": torch.ones(1) for i in range(70)})
    torch.save(state, run_copy / "checkpoint_last.pt")
    match = r"architecture. Unexpected key\(s\) in state_dict: .*\"old12\".* \[\.\.\.\]"
    with pytest.raises(UserError, match=match):
        runs.train(run_copy)


def test_another_optimizer_is_said_in_one_message(run_copy):
    with pytest.raises(UserError, match="Optimizer does not match"):
        runs.train(run_copy, "--optimizer", "sgd")


def test_fairseq_alone_does_not_say_what_differs(run_copy, monkeypatch):
    stock = inspect.unwrap(checkpoint_utils.load_checkpoint_to_cpu)
    monkeypatch.setattr(Trainer, "load_checkpoint", inspect.unwrap(Trainer.load_checkpoint))
    with pytest.raises(Exception, match="ensure that the architectures match") as caught:
        runs.train(run_copy, "--arch", "toy_wide")
    assert "embed" not in str(caught.value)
    (run_copy / "checkpoint_last.pt").write_bytes(b"")
    with pytest.raises(EOFError):
        stock(str(run_copy / "checkpoint_last.pt"))


@pytest.fixture
def no_safe_globals():
    known = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.add_safe_globals(known)


def broadcast(state):
    """What the other processes get when the first one has loaded a checkpoint."""
    tensors, buffer = [], io.BytesIO()
    torch.save(distributed_utils._split_tensors_from_obj(state, tensors), buffer)
    buffer.seek(0)
    return distributed_utils._put_tensors_in_obj(torch.load(buffer), tensors)


def test_a_loaded_checkpoint_can_be_broadcast(whole_run):
    state = checkpoint_utils.load_checkpoint_to_cpu(str(whole_run[0] / "checkpoint_last.pt"))
    received = broadcast(state)
    assert received["cfg"] == state["cfg"]
    runs.assert_equal(received["model"], dict(state["model"]))


def test_a_loaded_checkpoint_can_not_be_broadcast_by_fairseq_alone(whole_run, no_safe_globals):
    state = checkpoint_utils.load_checkpoint_to_cpu(str(whole_run[0] / "checkpoint_last.pt"))
    with pytest.raises(pickle.UnpicklingError, match="Unsupported global"):
        broadcast(state)
    safe_globals.install()
    broadcast(state)


def test_install_twice_changes_nothing():
    def functions():
        return (
            PathManager.copy,
            checkpoint_utils.load_checkpoint,
            checkpoint_utils.load_checkpoint_to_cpu,
            checkpoint_utils._torch_persistent_save,
            Trainer.load_checkpoint,
            progress_bar.progress_bar,
            sys.excepthook,
        )

    before = functions()
    fairseq_compat.install()
    assert functions() == before
    assert all(hasattr(function, "__wrapped__") for function in before[:-1])


def test_known_warnings_are_silent_and_others_are_not():
    with warnings.catch_warnings(record=True) as shown:
        warnings.resetwarnings()
        third_party_warnings.install()
        for message, category in third_party_warnings.KNOWN:
            warnings.warn(f"\nsomething {message} more\nand more", category, stacklevel=1)
        assert shown == []
        warnings.warn("the learning rate is odd", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in shown] == ["the learning rate is odd"]


# those that need a GPU, another model or another command
RARE = (
    *("GradScaler", "key_padding_mask", "change working directory", "jit.script", "pin_memory"),
    *("torch.distributed is disabled", "complex operators"),
)


def test_fairseq_still_causes_the_known_warnings(tmp_path):
    with warnings.catch_warnings(record=True) as shown:
        warnings.resetwarnings()
        runs.train(tmp_path, "--max-epoch", "1")
    texts = "\n".join(str(warning.message) for warning in shown)
    silent = [known for known, _ in third_party_warnings.KNOWN if known not in texts]
    assert [known for known in silent if not any(rare in known for rare in RARE)] == []


def test_omegaconf_settings_survive_weights_only(tmp_path):
    settings = OmegaConf.create({"a": [1, {"b": None}], "c": "${a}"})
    torch.save(settings, tmp_path / "file")
    assert torch.load(tmp_path / "file") == settings

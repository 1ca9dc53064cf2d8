"""Disks that are full, read-only or gone, and damage that keeps the size: one message, nothing lost."""

import errno
import io
import os
import shutil
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils

from megalodon_tasks.cli.main import main
from megalodon_tasks.errors import UserError
from megalodon_tasks.fairseq_compat import atomic_files
from tests.toy_plugin import runs

EACH = ("--save-interval-updates", "4")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, runs.train(folder, *EACH)


def fail_after(monkeypatch, saves, failure):
    """Let each save after the first ``saves`` write half of the file and fail."""
    save, made = torch.save, []

    def failing(obj, file, *args, **kwargs):
        made.append(file)
        if len(made) > saves:
            buffer = io.BytesIO()
            save(obj, buffer)
            file.write(buffer.getvalue()[: buffer.tell() // 2])
            raise failure
        save(obj, file, *args, **kwargs)

    monkeypatch.setattr(checkpoint_utils.torch, "save", failing)


FAILURES = {
    "full": OSError(errno.ENOSPC, "No space left on device"),
    "torch's own words": RuntimeError(
        "PytorchStreamWriter failed writing file data/3: file write failed"
    ),
    "no byte fits": RuntimeError(
        "[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"
    ),
    "read-only": OSError(errno.EROFS, "Read-only file system"),
    "broken": OSError(errno.EIO, "Input/output error"),
}


@pytest.mark.parametrize(
    "failure",
    ["full", "torch's own words", "no byte fits"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("read-only", "broken")],
)
def test_a_disk_that_refuses_ends_the_run_which_resumes(whole, tmp_path, monkeypatch, failure):
    events = {}
    with monkeypatch.context() as patch:
        fail_after(patch, 2, FAILURES[failure])
        with pytest.raises(UserError, match="the checkpoint could not be written") as caught:
            runs.train(tmp_path, *EACH, events=events)
    assert str(caught.value).startswith(f"{tmp_path / 'checkpoint_2_8.pt'}: ")
    assert not list(tmp_path.glob("*.tmp"))
    for path in tmp_path.glob("*.pt"):
        torch.load(path)
    assert runs.state_of(tmp_path)["updates"] == 6
    runs.train(tmp_path, *EACH, events=events)
    assert events == whole[1]
    runs.assert_equal(runs.state_of(tmp_path), runs.state_of(whole[0]))


def test_a_full_disk_while_the_copies_are_made(whole, tmp_path, monkeypatch):
    copy = shutil.copyfileobj

    def full(source, target, *args):
        if "checkpoint_last" in target.name and (tmp_path / "checkpoint2.pt").exists():
            target.write(source.read(1000))
            raise OSError(errno.ENOSPC, "No space left on device")
        copy(source, target, *args)

    with monkeypatch.context() as patch:
        patch.setattr(atomic_files.shutil, "copyfileobj", full)
        with pytest.raises(
            UserError, match=r"checkpoint_last.pt: the checkpoint could .*No space left"
        ):
            runs.train(tmp_path, *EACH)
    assert not list(tmp_path.glob("*.tmp"))
    assert runs.state_of(tmp_path)["updates"] == 8
    runs.train(tmp_path, *EACH)
    runs.assert_equal(runs.state_of(tmp_path), runs.state_of(whole[0]))


@pytest.mark.parametrize("name", ["checkpoint_last.pt", "checkpoint_best.pt"])
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (Path.mkdir, "a folder"),
        (os.mkfifo, "a pipe or a device"),
        (lambda path: path.symlink_to("missing.pt"), "a link that leads nowhere"),
        (lambda path: path.symlink_to(path), "a link that leads nowhere"),
    ],
)
def test_what_is_no_file_in_a_checkpoint_s_place_is_named_at_the_start(tmp_path, name, make, what):
    make(tmp_path / name)
    with pytest.raises(UserError, match=f"{tmp_path / name} is {what}, where a checkpoint"):
        runs.train(tmp_path)


def test_a_file_where_the_folder_belongs_is_named(tmp_path):
    (tmp_path / "run").touch()
    for folder in (tmp_path / "run", tmp_path / "run" / "below"):
        with pytest.raises(UserError, match=f"{tmp_path / 'run'}.*: no checkpoint can be written"):
            runs.train(folder)


def becomes_a_file(run):
    run.rename(run.with_name("away"))
    run.touch()


def vanishes(run):
    run.rename(run.with_name("away"))


@pytest.mark.parametrize("changes", [becomes_a_file, vanishes])
def test_a_folder_that_is_gone_is_named_and_the_run_resumes_in_it(
    whole, tmp_path, monkeypatch, changes
):
    run, step = tmp_path / "run", runs.fairseq_train.Trainer.train_step

    def train_step(self, *args, **kwargs):
        if self.get_num_updates() == 5:
            changes(run)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(runs.fairseq_train.Trainer, "train_step", train_step)
        with pytest.raises(UserError, match=f"{run}: no checkpoint can be written there"):
            runs.train(run, *EACH)
    run.unlink(missing_ok=True)
    (tmp_path / "away").rename(run)
    runs.train(run, *EACH)
    runs.assert_equal(runs.state_of(run), runs.state_of(whole[0]))


def damage(path, part):
    """Change one byte in the middle of a tensor, or of the settings; the size stays."""
    content = bytearray(path.read_bytes())
    at = content.index(b"data.pkl") + 200 if part == "settings" else len(content) // 2
    content[at] ^= 0x55
    path.write_bytes(content)


@pytest.mark.parametrize("part", ["tensor", "settings"])
def test_a_changed_byte_in_a_checkpoint_is_found_before_a_number_is_made(whole, tmp_path, part):
    run = shutil.copytree(whole[0], tmp_path / "run", ignore=shutil.ignore_patterns(".lock"))
    damage(run / "checkpoint_last.pt", part)
    damage(run / "checkpoint3.pt", part)
    os.utime(run / "checkpoint3.pt", (2**31, 2**31))
    os.utime(run / "checkpoint2.pt", (2**31 - 9, 2**31 - 9))
    message = (
        "the checkpoint is damaged: the checksum of .* the newest whole one .* is checkpoint2.pt"
    )
    with pytest.raises(UserError, match=message):
        main(["evaluate", str(run / "checkpoint_last.pt"), "--cpu"])
    with pytest.raises(UserError, match=message):
        runs.train(run, "--max-update", "30")
    assert not (run / "results.jsonl").exists()


def test_torch_alone_does_not_find_it(whole, tmp_path):
    path = shutil.copy(whole[0] / "checkpoint_last.pt", tmp_path)
    content = bytearray(tmp_path.joinpath("checkpoint_last.pt").read_bytes())
    at = content.index(torch.load(path)["model"]["out.weight"].numpy().tobytes())
    content[at + 2] ^= 0x55
    tmp_path.joinpath("checkpoint_last.pt").write_bytes(content)
    changed, before = torch.load(path), torch.load(whole[0] / "checkpoint_last.pt")
    assert not torch.equal(changed["model"]["out.weight"], before["model"]["out.weight"])
    with pytest.raises(UserError, match="the checksum of"):
        checkpoint_utils.load_checkpoint_to_cpu(str(path))

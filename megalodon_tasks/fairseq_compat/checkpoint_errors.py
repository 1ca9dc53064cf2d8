"""Explain why a checkpoint cannot be used: which file, what is wrong with it, what to do.

fairseq passes on whatever ``torch.load`` raises (checkpoint_utils.py:340), and damage inside a tensor is
not noticed at all.  For a model that does not
fit it says "please ensure that the architectures match" (trainer.py:597), not what differs.
"""

import os
import pickle
import re
import shlex
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils
from fairseq.trainer import Trainer

from megalodon_tasks.errors import UserError, user_errors
from megalodon_tasks.fairseq_compat.patching import wrap
from megalodon_tasks.files import archive_fault

# Differences of settings and tensors that a message lists, and characters of each.
LISTED, LINE_LENGTH = 10, 200


def install() -> None:
    """Explain unreadable files wherever fairseq loads one, and unfit models where it resumes."""
    wrap(checkpoint_utils, "load_checkpoint_to_cpu", _with_file_errors)
    wrap(Trainer, "load_checkpoint", _with_model_errors)


# what torch.load and fairseq's upgrade of old checkpoints raise for files of all kinds
READING_ERRORS = (EOFError, KeyError, OSError, RuntimeError, TypeError, pickle.UnpicklingError)


@user_errors()
def _with_file_errors(stock: Callable, path: str, *args: Any, **kwargs: Any) -> dict:
    if (fault := archive_fault(path)) is not None:
        raise UserError(f"{path}: the checkpoint is damaged: {fault}; {_remedy(Path(path))}")
    try:
        return stock(path, *args, **kwargs)
    except FileNotFoundError:
        raise
    except READING_ERRORS as error:
        reason = _why_unusable(path, error)
        if reason is None:
            raise
        raise UserError(f"{path}: {reason}") from error


def _why_unusable(path: str, error: Exception) -> str | None:
    refused = re.search(r"unsupported global:? (?:GLOBAL )?([\w.]+)", str(error), re.IGNORECASE)
    if not is_whole(path) or "PytorchStreamReader" in str(error):
        size = os.path.getsize(path)
        return f"the checkpoint is truncated or damaged ({size} bytes); {_remedy(Path(path))}"
    if refused:
        return (
            f"holds {refused[1]} besides tensors and settings and is not loaded, since that could "
            "run code; use a checkpoint that a training run of this project wrote"
        )
    if isinstance(error, (KeyError, TypeError, pickle.UnpicklingError)):
        return (
            f"not a training checkpoint of fairseq ({type(error).__name__} while reading it); "
            "name a file that a training run wrote, such as checkpoint_best.pt"
        )
    return None


def _remedy(damaged: Path) -> str:
    others = (p for p in _newest_first(damaged.parent) if p != damaged and is_whole(p))
    other = next((p for p in others if archive_fault(p) is None), None)
    if other is None:
        return "no whole one is beside it: restore it from a copy, or delete it to start again"
    copy = f"cp {shlex.quote(str(other))} {shlex.quote(str(damaged))}"
    return f"the newest whole one beside it is {other.name}; to resume from that: {copy}"


def is_whole(path: str | os.PathLike) -> bool:
    """Return whether the checkpoint was written to its end (torch writes zip archives)."""
    return zipfile.is_zipfile(path)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint*.pt"), key=lambda p: p.stat().st_mtime, reverse=True)


def _with_model_errors(
    stock: Callable, self: Trainer, filename: str, *args: Any, **kwargs: Any
) -> Any:
    try:
        return stock(self, filename, *args, **kwargs)
    except UserError:
        raise
    except AssertionError as error:  # criterion or optimizer of another class, trainer.py:610
        if "does not match" not in str(error):
            raise
        raise UserError(f"{filename}: {error}") from error
    except Exception as error:
        if not str(error).startswith("Cannot load model parameters"):
            raise
        raise _misfit(self, filename, error) from error


def _misfit(trainer: Trainer, filename: str, error: Exception) -> BaseException:
    mismatch = error.__context__ or error
    title, *tensors = str(mismatch).splitlines()
    if "loading state_dict" not in title:
        return mismatch
    saved = checkpoint_utils.load_checkpoint_to_cpu(filename)["cfg"]["model"]
    settings = [
        f"{'arch' if name == '_name' else name} is {value} in the checkpoint, "
        f"{trainer.cfg.model.get(name)} in the model"
        for name, value in sorted(saved.items())
        if value != trainer.cfg.model.get(name)
    ]
    lines = [*settings, *(textwrap.shorten(line, LINE_LENGTH) for line in tensors)]
    more = f"; and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
    return UserError(
        f"{filename}: this checkpoint is of another architecture. {'; '.join(lines[:LISTED])}{more}. "
        "Give the model the settings of the checkpoint, or train into another folder "
        "(checkpoint.save_dir, --save-dir)"
    )

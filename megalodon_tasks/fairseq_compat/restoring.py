"""Start from the checkpoint that the settings name, or refuse; and count no scores of another run.

fairseq starts from random weights where ``checkpoint.restore_file`` does not exist (trainer.py:475 only
logs it).  From another run's file it takes over that run's best score
(checkpoint_utils.py:283), so that the new run keeps no best checkpoint until it beats it, and the time
that it trained, which counts towards ``optimization.stop_time_hours`` (trainer.py:623).
"""

import ast
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from fairseq.file_io import PathManager

from megalodon_tasks.errors import UserError
from megalodon_tasks.fairseq_compat.best_checkpoint import forget_scores
from megalodon_tasks.fairseq_compat.checkpoint_errors import READING_ERRORS

LAST = "checkpoint_last.pt"  # fairseq's default of checkpoint.restore_file
_RESETS = ("reset_optimizer", "reset_lr_scheduler", "reset_meters", "reset_dataloader")


def check_settings(cfg: Any, suffix: str, schedule: str) -> None:
    """Refuse settings that fairseq ends on with a traceback, or passes over.

    cfg: the section ``checkpoint``.  suffix: of the names of its files.  schedule: the name of the
    learning-rate scheduler.  Raises :class:`UserError`.
    """
    _check_overrides(cfg.optimizer_overrides, schedule)
    for name in ("checkpoint_last", "checkpoint_best"):
        path = Path(cfg.save_dir, f"{name}{suffix}.pt")
        if os.path.lexists(path) and not os.path.isfile(path):
            found = "a folder" if path.is_dir() else "a pipe or a device"
            found = "a link that leads nowhere" if path.is_symlink() else found
            raise UserError(f"{path} is {found}, where a checkpoint is to be written; move it away")
    restored, finetuned = cfg.restore_file != LAST, cfg.finetune_from_model is not None
    if restored and finetuned:
        raise UserError(
            f"checkpoint.restore_file={cfg.restore_file} and checkpoint.finetune_from_model="
            f"{cfg.finetune_from_model} both name the checkpoint to start from; leave out one of them"
        )
    resets = [name for name in _RESETS if cfg[name]]
    if finetuned and resets:
        raise UserError(
            f"checkpoint.{resets[0]} does not go with checkpoint.finetune_from_model, which takes only "
            "the weights and resets all else; leave it out"
        )
    if restored:
        _check_file("restore_file", cfg.restore_file.replace(".pt", f"{suffix}.pt"), cfg.save_dir)
    elif not _has_last(cfg, suffix):
        for name in ("continue_once", "finetune_from_model"):
            if cfg.get(name) is not None:
                _check_file(name, cfg[name], cfg.save_dir)


def _check_overrides(text: str, schedule: str) -> None:
    try:
        overrides = dict(ast.literal_eval(text))
    except (ValueError, TypeError, SyntaxError):
        raise UserError(
            f"checkpoint.optimizer_overrides={text!r} is not a dictionary; "
            "write \"{'weight_decay': 0.1}\""
        ) from None
    if "lr" in overrides and schedule != "reduce_lr_on_plateau":
        raise UserError(
            f"checkpoint.optimizer_overrides={text!r}: the scheduler {schedule} sets the learning rate "
            "at each update; set optimization.lr, which takes effect on resuming"
        )


def _check_file(name: str, value: str, save_dir: str) -> None:
    if PathManager.isfile(value):
        return
    near = Path(save_dir, value)
    advice = f"did you mean {near}?" if near.is_file() else "name a checkpoint, or leave it out"
    raise UserError(f"checkpoint.{name}={value}: there is no such file; {advice}")


def check_vocabulary(path: str, model: Any) -> None:
    """Refuse a checkpoint to start from whose tokens have other numbers than those of the data.

    fairseq compares the shapes of tensors only.  model: the settings of the new model.  Checkpoints and
    models that do not record their vocabulary pass.  Raises :class:`UserError`.
    """
    try:
        saved = torch.load(path, map_location="cpu", mmap=True)["cfg"]["model"]
    except READING_ERRORS:
        return  # fairseq reads the file next, and its error is explained there
    known, found = _vocabulary(saved), _vocabulary(model)
    if None not in (known, found) and known != found:
        raise UserError(
            f"checkpoint.finetune_from_model={path}: the checkpoint was trained with the vocabulary "
            f"{known}, the data has {found} (how many symbols, and a digest of them in their order): "
            "prepare the data with the vocabulary of the checkpoint"
        )


def _vocabulary(model: Any) -> str | None:
    """Return what the settings of a model record; those of an old-style model are a namespace."""
    settings = vars(model) if isinstance(model, Namespace) else model
    return settings.get("vocabulary")


def is_another_run(cfg: Any, suffix: str) -> bool:
    """Return whether training starts from a checkpoint outside its own ``save_dir``."""
    if cfg.restore_file == LAST:
        return not _has_last(cfg, suffix)
    return Path(cfg.restore_file).resolve().parent != Path(cfg.save_dir).resolve()


def _has_last(cfg: Any, suffix: str) -> bool:
    return PathManager.isfile(str(Path(cfg.save_dir, LAST.replace(".pt", f"{suffix}.pt"))))


def start_counting(trainer: Any) -> None:
    """Drop what a checkpoint of another run says about that run's scores and time."""
    forget_scores()
    trainer._previous_training_time = 0

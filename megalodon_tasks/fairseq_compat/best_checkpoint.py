"""Count every validation for ``checkpoint_best.pt`` and for early stopping.

``validate_and_save`` hands a score to ``save_checkpoint`` only where it also saves
(fairseq_cli/train.py:470): with ``validate_interval_updates``, or a ``validate_interval`` below
``save_interval``, the scores in between are lost, and the best checkpoint is only the best of those
moments.  The patch writes ``checkpoint_best.pt`` after each validation that is better.  Besides:

* a score that is NaN becomes the best score, and whatever comes next replaces the best checkpoint
  (checkpoint_utils.py:45): it counts as no score here, and as a bad one for ``checkpoint.patience``;
* the count of ``checkpoint.patience`` starts again when a run resumes (fairseq_cli/train.py:246): it is
  stored in the checkpoint;
* a run without any score ends without a word about the checkpoint that evaluation asks for.
"""

import logging
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

from fairseq import checkpoint_utils
from fairseq.trainer import Trainer
from omegaconf import OmegaConf

from megalodon_tasks.fairseq_compat.patching import training_modules, wrap

logger = logging.getLogger(__name__)

PATIENCE = "patience"  # in a checkpoint's extra_state: the state of should_stop_early
_PATIENCE_STATE = ("best", "num_runs")

# writes checkpoint_best.pt and no other checkpoint
_ONLY_BEST = {"no_epoch_checkpoints": True, "no_last_checkpoints": True, "save_interval_updates": 0}


def install() -> None:
    """Patch what writes checkpoints."""
    wrap(checkpoint_utils, "save_checkpoint", _without_nan)
    wrap(Trainer, "save_checkpoint", _with_patience)


def install_in(train: ModuleType) -> None:
    """Patch fairseq's training module."""
    wrap(train, "validate_and_save", _with_every_score)
    wrap(train, "should_stop_early", _with_nan_as_worst)
    wrap(train, "train", _with_notice)


def forget_scores() -> None:
    """Forget the best score and the count of ``checkpoint.patience`` of the last job or run."""
    vars(checkpoint_utils.save_checkpoint).pop("best", None)
    for name in _PATIENCE_STATE:
        _patience().pop(name, None)


def restore_patience(extra_state: dict[str, Any]) -> None:
    """Continue the count of ``checkpoint.patience`` of the run that resumes."""
    _patience().update(extra_state.get(PATIENCE, {}))


def warn_without_best(cfg: Any) -> None:
    """Say that a run which ends here has no best checkpoint, if that is so."""
    if cfg.checkpoint.no_save or hasattr(checkpoint_utils.save_checkpoint, "best"):
        return
    names = ("disable_validation", "validate_interval", "validate_after_updates")
    settings = ", ".join(f"dataset.{name}={cfg.dataset[name]}" for name in names)
    logger.warning(
        f"{cfg.checkpoint.save_dir}: there is no best checkpoint, since no validation gave a score "
        f"({settings}); evaluate checkpoint_last.pt, or train with validations"
    )


def _patience() -> dict[str, Any]:
    train = training_modules()
    return vars(train[0].should_stop_early) if train else {}


def _without_nan(
    stock: Callable, cfg: Any, trainer: Any, epoch_itr: Any, val_loss: float | None
) -> Any:
    if val_loss is not None:
        trainer.scored_at = trainer.get_num_updates()
        val_loss = None if math.isnan(val_loss) else val_loss
    return stock(cfg, trainer, epoch_itr, val_loss)


def _with_every_score(
    stock: Callable, cfg: Any, trainer: Any, task: Any, epoch_itr: Any, *more: Any
) -> tuple:
    scores, stopping = stock(cfg, trainer, task, epoch_itr, *more)
    scored = getattr(trainer, "scored_at", None) == trainer.get_num_updates()
    if scores[0] is not None and not scored:
        only_best = OmegaConf.merge(cfg.checkpoint, _ONLY_BEST)
        checkpoint_utils.save_checkpoint(only_best, trainer, epoch_itr, scores[0])
    return scores, stopping


def _with_nan_as_worst(stock: Callable, cfg: Any, valid_loss: float | None) -> bool:
    if valid_loss is not None and math.isnan(valid_loss):
        valid_loss = -math.inf if cfg.checkpoint.maximize_best_checkpoint_metric else math.inf
    return stock(cfg, valid_loss)


def _with_patience(
    stock: Callable, self: Trainer, filename: str, extra_state: dict[str, Any]
) -> str | None:
    patience = {k: v for k, v in _patience().items() if k in _PATIENCE_STATE}
    return stock(self, filename, extra_state | {PATIENCE: patience})


def _with_notice(stock: Callable, cfg: Any, trainer: Any, task: Any, epoch_itr: Any) -> tuple:
    scores, stopping = stock(cfg, trainer, task, epoch_itr)
    last_epoch = cfg.optimization.max_epoch or math.inf
    stopped = stopping or trainer.get_lr() <= cfg.optimization.stop_min_lr
    if trainer.data_parallel_rank == 0 and (stopped or epoch_itr.next_epoch_idx > last_epoch):
        warn_without_best(cfg)
    return scores, stopping

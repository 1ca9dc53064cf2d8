"""Gather the state of a task from all processes before a checkpoint is written.

``save_checkpoint`` runs on all processes at the same moment but asks only the one that writes for the
state of the task (checkpoint_utils.py:48): what the others hold, such as the state of their rows of
text, would be lost.  The patch first calls ``gather_for_checkpoint`` on each process, if the task has
it.
"""

from collections.abc import Callable
from typing import Any

from fairseq import checkpoint_utils

from megalodon_tasks.fairseq_compat.patching import wrap


def install() -> None:
    """Patch ``save_checkpoint``."""
    wrap(checkpoint_utils, "save_checkpoint", _after_gathering)


def _after_gathering(stock: Callable, cfg: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
    gather = getattr(trainer.task, "gather_for_checkpoint", None)
    if gather is not None and not cfg.no_save:
        gather()
    return stock(cfg, trainer, *args, **kwargs)

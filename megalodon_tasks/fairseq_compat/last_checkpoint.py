"""Write ``checkpoint_last`` between validations: every few seconds, and when a signal asks for the end.

``validate_and_save`` writes within an epoch only where it also validates (fairseq_cli/train.py:446),
which on a long benchmark costs far more than the write, and a signal ends fairseq where it stands: what
was trained since the last checkpoint is lost.

For a task with ``saves_last_often`` the patch writes ``checkpoint_last`` every few seconds, in at most
2 % of the time, and no other checkpoint.  And it notes SIGINT, SIGTERM and SIGUSR1 from the first epoch
to the last.  Once the update (and a validation, if one runs) is made, it writes ``checkpoint_last`` and
ends the process with 128 + the number of the signal, so that a scheduler does not take the run for
finished.  A second one ends it at once, without saving.

All of several processes must save at the same moment, so they exchange two numbers after every update:
the signal that any of them got, and whether the first one, by its clock, finds a write due.
"""

import contextlib
import logging
import math
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils

from megalodon_tasks.fairseq_compat.patching import wrap
from megalodon_tasks.signals import STOPPING, exit_status, handled, is_repeated

logger = logging.getLogger(__name__)

SECONDS = 5.0  # between two writes, at least
SHARE = 0.02  # of the time, at most

_due = 0.0  # on the monotonic clock, when the next write is due
_received = 0  # the number of the signal that asks this process to stop


class _Handlers(contextlib.ExitStack):
    """The handlers that were there before, for the end of the training."""

    listening = False


_handlers = _Handlers()


def install_in(train: ModuleType) -> None:
    """Patch fairseq's training module, whose ``validate_and_save`` is called after every update."""
    wrap(train, "train", _listening)
    wrap(train, "validate_and_save", _then_save)


def _note(number: int, frame: FrameType | None) -> None:
    global _received
    if is_repeated():
        return
    if _received:
        sys.exit(exit_status(number))
    _received = number
    name = signal.Signals(number).name
    logger.warning(f"{name}: saving after this update, then ending; another one ends at once")


def _listening(stock: Callable, cfg: Any, trainer: Any, task: Any, epoch_itr: Any) -> tuple:
    global _received
    if not _handlers.listening:
        _handlers.enter_context(handled(_note, *STOPPING))
        _handlers.listening = True
    more = False
    try:
        result = stock(cfg, trainer, task, epoch_itr)
        # between two epochs too: the signal is then noted for the next update
        last_epoch = cfg.optimization.max_epoch or math.inf
        more = not result[1] and epoch_itr.next_epoch_idx <= last_epoch
    finally:
        if not more:
            _received = 0
            _handlers.listening = False
            _handlers.close()
    return result


def _then_save(
    stock: Callable,
    cfg: Any,
    trainer: Any,
    task: Any,
    epoch_itr: Any,
    valid_subsets: list,
    end_of_epoch: bool,
) -> tuple:
    result = stock(cfg, trainer, task, epoch_itr, valid_subsets, end_of_epoch)
    often = getattr(task, "saves_last_often", False) and not end_of_epoch
    number, is_due = _agreed(trainer, often and time.monotonic() >= _due)
    if result[1]:  # the training ends by itself
        return result
    if number:
        _save_and_end(cfg, trainer, epoch_itr, number)
    if is_due:
        _save_quietly(cfg, trainer, epoch_itr)
    return result


def _agreed(trainer: Any, is_due: bool) -> tuple[int, bool]:
    """Return the signal that any process got, 0 if none did, and whether the first one finds it due."""
    if trainer.data_parallel_world_size == 1:
        return _received, is_due
    own = [_received, is_due and trainer.data_parallel_rank == 0]
    numbers = torch.tensor(own, dtype=torch.int64, device=trainer.device)
    group = trainer.data_parallel_process_group
    number, due = distributed_utils.all_reduce(numbers, group=group, op="max").tolist()
    return number, bool(due)


def _save_and_end(cfg: Any, trainer: Any, epoch_itr: Any, number: int) -> None:
    checkpoint_utils.save_checkpoint(cfg.checkpoint, trainer, epoch_itr, None)
    saved = "saved; the same command continues there"
    if cfg.checkpoint.no_save:
        saved = "nothing was saved (checkpoint.no_save)"
    name, updates = signal.Signals(number).name, trainer.get_num_updates()
    logger.warning(f"ended by {name} after update {updates}: {saved}")
    raise SystemExit(exit_status(number))


def _save_quietly(cfg: Any, trainer: Any, epoch_itr: Any) -> None:
    global _due
    start, disabled = time.monotonic(), logging.root.manager.disable
    logging.disable(logging.INFO)  # a line for each of these writes would flood the log
    try:
        checkpoint_utils.save_checkpoint(cfg.checkpoint, trainer, epoch_itr, None)
    finally:
        logging.disable(disabled)
    now = time.monotonic()
    _due = now + max(SECONDS, (now - start) / SHARE)

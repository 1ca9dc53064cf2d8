"""Save and end when a scheduler asks for it, or Ctrl-C does.

fairseq dies where it stands: what was trained since the last checkpoint is lost.  The patch notes
SIGINT, SIGTERM and SIGUSR1 from the first epoch to the last.  Once the update (and a validation, if one
runs) is made, it writes ``checkpoint_last.pt`` and ends the process with 128 + the number of the signal,
so that a scheduler does not take the run for finished.  A second one ends it at once, without saving.
With several processes one needs to get the signal: they ask each other after every update.
"""

import contextlib
import logging
import math
import signal
import sys
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils

from megalodon_tasks.fairseq_compat.patching import replace
from megalodon_tasks.signals import STOPPING, exit_status, handled, is_repeated

logger = logging.getLogger(__name__)

_received = 0  # the number of the signal that asks this process to stop


class _Handlers(contextlib.ExitStack):
    """The handlers that were there before, for the end of the training."""

    listening = False


_handlers = _Handlers()


def install_in(train: ModuleType) -> None:
    """Patch fairseq's training module."""
    replace(train, "train", _listening)
    replace(train, "validate_and_save", _then_stop)


def _note(number: int, frame: FrameType | None) -> None:
    global _received
    if is_repeated():
        return
    if _received:
        sys.exit(exit_status(number))
    _received = number
    name = signal.Signals(number).name
    logger.warning(f"{name}: saving after this update, then ending; another one ends at once")


def _listening(stock: Callable) -> Callable:
    def train(cfg: Any, trainer: Any, task: Any, epoch_itr: Any) -> tuple:
        global _received
        if not _handlers.listening:
            _received = 0
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
                _handlers.listening = False
                _handlers.close()
        return result

    return train


def _requested(trainer: Any) -> int:
    """Return the signal that this or another process got; 0 if none did."""
    if trainer.data_parallel_world_size == 1:
        return _received
    number = torch.tensor([_received], dtype=torch.int64, device=trainer.device)
    group = trainer.data_parallel_process_group
    return int(distributed_utils.all_reduce(number, group=group, op="max").item())


def _then_stop(stock: Callable) -> Callable:
    def validate_and_save(
        cfg: Any, trainer: Any, task: Any, epoch_itr: Any, valid_subsets: list, end_of_epoch: bool
    ) -> tuple:
        result = stock(cfg, trainer, task, epoch_itr, valid_subsets, end_of_epoch)
        number = _requested(trainer)
        if number and not result[1]:
            checkpoint_utils.save_checkpoint(cfg.checkpoint, trainer, epoch_itr, None)
            saved = "nothing was saved (checkpoint.no_save)"
            if not cfg.checkpoint.no_save:
                saved = "saved; the same command continues there"
            name, updates = signal.Signals(number).name, trainer.get_num_updates()
            logger.warning(f"ended by {name} after update {updates}: {saved}")
            raise SystemExit(exit_status(number))
        return result

    return validate_and_save

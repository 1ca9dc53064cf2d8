"""Write ``checkpoint_last`` between validations too, so that a killed run loses seconds, not an epoch.

``validate_and_save`` writes within an epoch only where it also validates (fairseq_cli/train.py:446),
which on a long benchmark costs far more than the write.  For a task with ``saves_last_often`` the patch
writes ``checkpoint_last`` every few seconds, in at most 2 % of the time, and no other checkpoint.  Of
several processes the first decides by its clock, because all of them must save at the same moment.
"""

import logging
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils

from megalodon_tasks.fairseq_compat.patching import replace

SECONDS = 5.0  # between two writes, at least
SHARE = 0.02  # of the time, at most


def install(train: ModuleType) -> None:
    """Patch ``validate_and_save`` of fairseq's training module, which is called every update."""
    replace(train, "validate_and_save", _with_fresh_last)


def _with_fresh_last(stock: Callable) -> Callable:
    due = 0.0

    def validate_and_save(
        cfg: Any, trainer: Any, task: Any, epoch_itr: Any, valid_subsets: list, end_of_epoch: bool
    ) -> tuple:
        nonlocal due
        result = stock(cfg, trainer, task, epoch_itr, valid_subsets, end_of_epoch)
        stopping = result[1]
        start = time.monotonic()
        possible = getattr(task, "saves_last_often", False) and not end_of_epoch and not stopping
        if possible and _agreed(start >= due, trainer):
            disabled = logging.root.manager.disable
            logging.disable(logging.INFO)  # a line for each of these writes would flood the log
            try:
                checkpoint_utils.save_checkpoint(cfg.checkpoint, trainer, epoch_itr, None)
            finally:
                logging.disable(disabled)
            now = time.monotonic()
            due = now + max(SECONDS, (now - start) / SHARE)
        return result

    return validate_and_save


def _agreed(decision: bool, trainer: Any) -> bool:
    """Return the decision of the first process."""
    if trainer.data_parallel_world_size == 1:
        return decision
    agreed = torch.tensor([decision], dtype=torch.uint8, device=trainer.device)
    distributed_utils.broadcast(agreed, 0, trainer.data_parallel_process_group)
    return bool(agreed)

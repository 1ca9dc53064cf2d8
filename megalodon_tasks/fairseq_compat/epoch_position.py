"""Resume within an epoch exactly where it stopped, or refuse; never skip or repeat items in silence.

A checkpoint stores how many batches of the epoch a process has read (data/iterators.py:452), and a
resumed run skips as many of its own.  With another ``dataset.batch_size``, seed, data or number of
processes these are other items.  The patch stores a digest of the epoch's batches beside the count.  If
only the number of processes differs, it converts the count; if the batches differ, it refuses.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from fairseq.data.iterators import EpochBatchIterator

from megalodon_tasks.errors import UserError
from megalodon_tasks.fairseq_compat.patching import replace

REMEDY = (
    "Resume with the settings and data that it was trained with until the epoch ends, or set "
    "checkpoint.reset_dataloader=true to start with the first epoch's data again"
)


def install() -> None:
    """Patch the state of fairseq's iterator over epochs."""
    replace(EpochBatchIterator, "state_dict", _with_digest)
    replace(EpochBatchIterator, "load_state_dict", _with_check)


def _with_digest(stock: Callable) -> Callable:
    def state_dict(self: EpochBatchIterator) -> dict[str, Any]:
        state = stock(self)
        if state["iterations_in_epoch"] > 0:
            state |= {
                "batches": _digest(self),
                "number_of_batches": len(self.frozen_batches),
                "largest_batch": max(map(len, self.frozen_batches)),
                "processes": self.num_shards,
            }
        return state

    return state_dict


def _with_check(stock: Callable) -> Callable:
    def load_state_dict(self: EpochBatchIterator, state_dict: dict[str, Any]) -> None:
        if "batches" in state_dict:
            self.epoch = state_dict["epoch"]
            state_dict = state_dict | {"iterations_in_epoch": _position(self, state_dict)}
        stock(self, state_dict)

    return load_state_dict


def _position(iterator: Any, saved: dict[str, Any]) -> int:
    """Return how many batches of the epoch each process of this run has to skip."""
    where = f"the checkpoint was written within epoch {saved['epoch']}, "
    if _digest(iterator) != saved["batches"]:
        now = iterator.frozen_batches
        raise UserError(
            f"{where}which had {saved['number_of_batches']} batches of up to {saved['largest_batch']} "
            f"items in an order that the seed decides; now it has {len(now)} of up to "
            f"{max(map(len, now))}, or others (dataset.batch_size, dataset.max_tokens, common.seed, "
            f"task.data): items would be left out or read twice. {REMEDY}"
        )
    read, processes = saved["iterations_in_epoch"] * saved["processes"], iterator.num_shards
    if read % processes:
        raise UserError(
            f"{where}after {read} batches on {saved['processes']} processes, which are not a whole "
            f"number on each of {processes}: items would be left out or read twice. Use a number of "
            f"processes that divides {read}. {REMEDY}"
        )
    return read // processes


def _digest(iterator: Any) -> str:
    """Digest what is read in the epoch and in which order, over all processes; once per epoch."""
    batches = iterator.frozen_batches
    known = getattr(iterator, "_digested", None)
    if known is None or known[0] is not batches:
        digest = hashlib.sha256(repr((iterator.seed, iterator.disable_shuffling)).encode())
        if iterator.grouped_shuffling:
            digest.update(repr(iterator.num_shards).encode())
        for batch in batches:
            entries = np.asarray(batch, dtype=np.int64)
            digest.update(repr(entries.shape).encode() + entries.tobytes())
        known = iterator._digested = (batches, digest.hexdigest()[:16])
    return known[1]

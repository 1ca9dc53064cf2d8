"""Resume within an epoch exactly where it stopped, or refuse; never skip or repeat items in silence.

A checkpoint stores how many batches of the epoch a process has read (data/iterators.py:452), and a
resumed run skips as many of its own.  With another ``dataset.batch_size``, seed, data or number of
processes these are other items.  The patch stores a digest of the epoch's batches beside the count.

* If only the number of processes differs, it converts the count.
* If the batches are of another size but hold the same items in the same order, the epoch keeps the
  order in which the batches that it began with were shuffled, and this order is cut into batches of the
  new size, provided that what was read is a whole number of these.
* Otherwise it refuses.
"""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fairseq.data import data_utils
from fairseq.data.iterators import EpochBatchIterator

from megalodon_tasks.errors import UserError
from megalodon_tasks.fairseq_compat.patching import wrap

REMEDY = (
    "Resume with the settings and data that it was trained with until the epoch ends, or set "
    "checkpoint.reset_dataloader=true to start with the first epoch's data again"
)
Batches = Sequence[Sequence[Any]]


@dataclass(frozen=True)
class _Continued:
    """The batches of an epoch that began with batches of another size.

    first: what a checkpoint says of the batches that it began with.  batches: all of the epoch, in
    order, those that were read included.
    """

    epoch: int
    first: dict[str, Any]
    batches: Batches


def install() -> None:
    """Patch the state of fairseq's iterator over epochs, and the order in which it reads."""
    wrap(EpochBatchIterator, "state_dict", _with_digest)
    wrap(EpochBatchIterator, "load_state_dict", _with_check)
    wrap(EpochBatchIterator, "ordered_batches", _with_continued_order)


def _with_digest(stock: Callable, self: EpochBatchIterator) -> dict[str, Any]:
    state = stock(self)
    if state["iterations_in_epoch"] > 0:
        continued = _continued(self, state["epoch"])
        if continued is None:
            state |= _described(self, self.frozen_batches)
        else:
            state |= continued.first | {"cut_in": len(continued.batches[0])}
        state["processes"] = self.num_shards
    return state


def _with_check(stock: Callable, self: Any, state_dict: dict[str, Any]) -> None:
    self._continued_epoch = None
    if "batches" in state_dict:
        self.epoch = state_dict["epoch"]
        state_dict = state_dict | {"iterations_in_epoch": _position(self, state_dict)}
    stock(self, state_dict)


def _with_continued_order(
    stock: Callable, self: Any, epoch: int, fix_batches_to_gpus: bool, shuffle: bool
) -> list[Any]:
    continued = _continued(self, epoch)
    if continued is None:
        return stock(self, epoch, fix_batches_to_gpus, shuffle)
    own, self._frozen_batches = self._frozen_batches, continued.batches
    try:
        return stock(self, epoch, fix_batches_to_gpus, False)
    finally:
        self._frozen_batches = own


def _continued(iterator: Any, epoch: int) -> _Continued | None:
    found = getattr(iterator, "_continued_epoch", None)
    return found if found is not None and found.epoch == epoch else None


def _position(iterator: Any, saved: dict[str, Any]) -> int:
    """Return how many batches of the epoch each process of this run has to skip."""
    read, processes = saved["iterations_in_epoch"] * saved["processes"], iterator.num_shards
    if "cut_in" in saved or _digest(iterator, iterator.frozen_batches) != saved["batches"]:
        read = _continue_order(iterator, saved, read)
    if read % processes:
        raise UserError(
            f"{_where(saved)}after {read} batches, saved by {saved['processes']} processes, which are "
            f"not a whole number on each of {processes}: items would be left out or read twice. Use a "
            f"number of processes that divides {read}. {REMEDY}"
        )
    return read // processes


def _where(saved: dict[str, Any]) -> str:
    return f"the checkpoint was written within epoch {saved['epoch']}, "


def _continue_order(iterator: Any, saved: dict[str, Any], read: int) -> int:
    """Let ``iterator`` keep the order of items of the epoch; return how many batches to skip.

    read: the batches that all processes read of it before.
    """
    now = iterator.frozen_batches
    size = max(map(len, now))
    order = _order_of_items(iterator, saved)
    if order is None:
        raise UserError(
            f"{_where(saved)}which had {saved['number_of_batches']} batches of up to "
            f"{saved['largest_batch']} items in an order that the seed decides; now it has {len(now)} "
            f"of up to {size}, or others (dataset.batch_size, dataset.max_tokens, common.seed, "
            f"task.data): items would be left out or read twice. {REMEDY}"
        )
    seen = len(list(itertools.chain(*order[:read])))
    if "cut_in" in saved:
        seen = read * saved["cut_in"]
    if seen % size:
        raise UserError(
            f"{_where(saved)}after {seen} items, which are no whole number of batches of {size} "
            f"(dataset.batch_size): items would be left out or read twice. Use a batch size that "
            f"divides {seen}. {REMEDY}"
        )
    first = {key: saved[key] for key in ("batches", "number_of_batches", "largest_batch")}
    batches = _cut(list(itertools.chain(*order)), size)
    iterator._continued_epoch = _Continued(saved["epoch"], first, batches)
    return seen // size


def _order_of_items(iterator: Any, saved: dict[str, Any]) -> list[Sequence[Any]] | None:
    """Return the batches that the epoch began with, in the order in which they were read.

    None where they cannot be had from those of now: other items, another seed, other groups.
    """
    now = iterator.frozen_batches
    items = list(itertools.chain(*now))
    began = list(now)
    if _digest(iterator, now) != saved["batches"]:
        began = _cut(items, saved["largest_batch"])
    same = _digest(iterator, began) == saved["batches"]
    if not same or iterator.grouped_shuffling or not _even(now):
        return None
    if saved["shuffle"]:
        with data_utils.numpy_seed(iterator.seed + saved["epoch"]):
            np.random.shuffle(began)
    return began


def _even(batches: Batches) -> bool:
    """Return whether all batches but the last are of one size."""
    return len({len(batch) for batch in batches[:-1]} | {max(map(len, batches))}) == 1


def _cut(items: list[Any], size: int) -> list[Sequence[Any]]:
    return [items[first : first + size] for first in range(0, len(items), size)]


def _described(iterator: Any, batches: Batches) -> dict[str, Any]:
    return {
        "batches": _digest(iterator, batches),
        "number_of_batches": len(batches),
        "largest_batch": max(map(len, batches)),
    }


def _digest(iterator: Any, batches: Batches) -> str:
    """Digest what is read in the epoch and in which order, over all processes; once per epoch."""
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

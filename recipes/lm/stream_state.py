"""The model's state between updates when training on streams, and its place in checkpoints."""

import logging
from typing import Any

import torch
from torch import distributed

from megalodon_tasks.models.state import (
    Carried,
    StackState,
    batch_size,
    map_state,
    state_from_plain,
    state_to_plain,
)

logger = logging.getLogger(__name__)


class StreamState:
    """The state of the rows of this process.  It starts from nothing in each epoch."""

    def __init__(self) -> None:
        self.carried = Carried()
        self._gathered: list[object] | None = None
        self._restored = self._dropped = False

    def before(self, sample: dict[str, Any]) -> Carried:
        """Return the place from which the model takes its state, and where it leaves the next."""
        if sample["begins"]:
            self.carried = Carried()
            return self.carried
        if _rows(self.carried.state) != len(sample["target"]):
            if not self._dropped:
                logger.warning(
                    "training resumes in the middle of an epoch, but the checkpoint has no state for "
                    "the rows (it is of another number of rows or processes): they continue without "
                    "context"
                )
            self.carried = Carried()
        self._dropped = False
        self._to_device(sample["target"].device)
        return self.carried

    def after(self, sample: dict[str, Any]) -> None:
        """Drop the state at the end of an epoch: the next one starts elsewhere."""
        if sample["ends"]:
            self.carried = Carried()

    def drop(self) -> None:
        """Forget the state, which is spoiled: the rows continue without context."""
        self.carried, self._dropped = Carried(), True

    def _to_device(self, device: torch.device) -> None:
        if self._restored and self.carried.state is not None:
            self.carried = Carried(map_state(self.carried.state, lambda t: t.to(device)))
        self._restored = False

    def gather(self) -> None:
        """Bring the states of all processes to each of them; all must call it at the same time."""
        own = _to_plain(self.carried.state)
        self._gathered = [own]
        if distributed.is_available() and distributed.is_initialized():
            self._gathered = [None] * distributed.get_world_size()
            distributed.all_gather_object(self._gathered, own)

    def to_plain(self) -> dict[str, Any]:
        """Return the gathered states, one per process, as values that a checkpoint may hold."""
        if self._gathered is None:
            self.gather()
        gathered, self._gathered = self._gathered, None
        return {"states": gathered}

    def restore(self, saved: dict[str, Any]) -> None:
        """Take this process's part of what :meth:`to_plain` returned, if their number is the same."""
        states, rank, world = saved["states"], 0, 1
        if distributed.is_available() and distributed.is_initialized():
            rank, world = distributed.get_rank(), distributed.get_world_size()
        if len(states) == world:
            self.carried = Carried(_from_plain(states[rank]))
            self._restored = True


def _rows(state: object) -> int:
    if state is None:
        return 0
    return batch_size(state) if isinstance(state, StackState) else len(state)


def _to_plain(state: object) -> object:
    if state is None:
        return None
    if isinstance(state, StackState):
        return state_to_plain(map_state(state, torch.Tensor.cpu))
    return [_to_plain(row) for row in state]


def _from_plain(plain: object) -> object:
    if plain is None:
        return None
    if isinstance(plain, dict):
        return state_from_plain(plain)
    return tuple(_from_plain(row) for row in plain)

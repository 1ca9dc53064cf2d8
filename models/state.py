"""What is carried along the sequence, explicitly, at every level.

A state holds what the next piece of the sequence needs: the CEMA state, the moments of the timestep
norm, and the keys and values of the attention chunk in progress.  Its size does not grow with the number
of steps read, unless attention is full.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from megalodon_tasks.cuda_ops import ChunkAttentionState, TimestepNormState


class BlockState(NamedTuple):
    """State of one block.

    norm: moments of the norm before attention.  cema: (B, D, N) complex.  attention: open chunk, or the
    window of a Transformer, which has nothing else.
    """

    norm: TimestepNormState | None
    cema: torch.Tensor | None
    attention: ChunkAttentionState


class StackState(NamedTuple):
    """State of a stack: one entry per block, and the moments of the norm at the end if it has any."""

    blocks: tuple[BlockState, ...]
    norm: TimestepNormState | None


def map_state(state: StackState, function: Callable[[torch.Tensor], torch.Tensor]) -> StackState:
    """Apply ``function`` to each tensor of a state, or of a tuple of states; None stays None."""

    def walk(item: object) -> object:
        if item is None:
            return None
        if isinstance(item, torch.Tensor):
            return function(item)
        children = [walk(child) for child in item]
        return type(item)(*children) if hasattr(item, "_fields") else tuple(children)

    return walk(state)


def detach_state(state: StackState) -> StackState:
    """Cut the graph: the next piece does not back-propagate into these values."""
    return map_state(state, torch.Tensor.detach)


def reorder_state(state: StackState, order: torch.Tensor) -> StackState:
    """Select rows of the batch.  order: (new batch,) int64; repeats are allowed (beam search)."""
    return map_state(state, lambda tensor: tensor.index_select(0, order))


def join_states(states: Sequence[StackState]) -> StackState:
    """Concatenate states along the batch.  Their open chunks must be equally long.

    Optional parts that only some of them have (padding of the open chunk, low bits of the mean) are
    zeros in the others.
    """
    return _join(states)


def _join(items: Sequence) -> object:
    present = [item for item in items if item is not None]
    if not present:
        return None
    if isinstance(present[0], torch.Tensor):
        filled = [torch.zeros_like(present[0]) if item is None else item for item in items]
        return torch.cat(filled)
    children = [_join(column) for column in zip(*items, strict=True)]
    return type(items[0])(*children) if hasattr(items[0], "_fields") else tuple(children)


def split_state(state: StackState) -> list[StackState]:
    """Return one state of batch 1 per row, the inverse of :func:`join_states`."""
    return [
        map_state(state, lambda tensor, row=row: tensor[row : row + 1])
        for row in range(batch_size(state))
    ]


def batch_size(state: StackState) -> int:
    """Count the rows of the batch."""
    return state.blocks[0].attention.key.shape[0]


def open_steps(state: StackState | None) -> int:
    """Count the steps that attention holds: of its open chunk or window, or all that were read."""
    return 0 if state is None else state.blocks[0].attention.key.shape[1]


def state_to_plain(state: StackState) -> dict[str, object]:
    """Convert to dicts, lists and tensors, which ``torch.load(weights_only=True)`` reads back."""
    blocks = [
        {name: _plain(part) for name, part in block._asdict().items()} for block in state.blocks
    ]
    return {"blocks": blocks, "norm": _plain(state.norm)}


def _plain(part: object) -> object:
    return part._asdict() if hasattr(part, "_asdict") else part


def state_from_plain(plain: dict[str, object]) -> StackState:
    """Convert back what :func:`state_to_plain` returned."""
    blocks = tuple(
        BlockState(
            _moments(block["norm"]), block["cema"], ChunkAttentionState(**block["attention"])
        )
        for block in plain["blocks"]
    )
    return StackState(blocks, _moments(plain["norm"]))


def _moments(plain: dict[str, torch.Tensor] | None) -> TimestepNormState | None:
    return None if plain is None else TimestepNormState(**plain)


class Carried:
    """States that models leave for the next piece of a stream, cut from the graph.

    It travels inside a fairseq batch, because there the criterion takes the model's return value.  Each
    model of an ensemble has a state of its own.  ``initial``: where a model starts that has left none,
    a StackState or one per row; None at the start of the stream.
    """

    def __init__(self, initial: object = None) -> None:
        self._initial = initial
        self._states: dict[torch.nn.Module, object] = {}

    @property
    def state(self) -> object:
        """The state of the only model."""
        return next(iter(self._states.values()), self._initial)

    def get(self, model: torch.nn.Module) -> object:
        """Return the state from which ``model`` continues."""
        return self._states.get(model, self._initial)

    def put(self, model: torch.nn.Module, state: object) -> None:
        """Replace the state of ``model``."""
        self._states[model] = detach_state(state)

    def replace(self, function: Callable[[object], object]) -> None:
        """Replace the state of each model by ``function`` of it."""
        for model, state in self._states.items():
            self._states[model] = function(state)

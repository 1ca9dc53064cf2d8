"""What is carried along the sequence, explicitly, at every level.

A state holds what the next piece of the sequence needs: the CEMA state, the moments of the timestep
norm, and keys and values of the attention chunk in progress.  Its size does not grow with the length
that has been read, unless attention is full.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from megalodon_tasks.cuda_ops import ChunkAttentionState, TimestepNormState


class BlockState(NamedTuple):
    """State of one block.

    norm: moments of the norm before attention.  cema: (B, D, N) complex.  attention: open chunk.
    """

    norm: TimestepNormState
    cema: torch.Tensor
    attention: ChunkAttentionState


class StackState(NamedTuple):
    """State of a stack: one entry per block, and the moments of the norm at the end."""

    blocks: tuple[BlockState, ...]
    norm: TimestepNormState


def map_state(state: StackState, function: Callable[[torch.Tensor], torch.Tensor]) -> StackState:
    """The same state with ``function`` applied to each tensor in it (None stays None)."""

    def walk(item: object) -> object:
        if item is None:
            return None
        if isinstance(item, torch.Tensor):
            return function(item)
        children = [walk(child) for child in item]
        return type(item)(*children) if hasattr(item, "_fields") else tuple(children)

    return walk(state)


def detach_state(state: StackState) -> StackState:
    """Cut the graph: the next piece starts from these values without back-propagating into them."""
    return map_state(state, torch.Tensor.detach)


def reorder_state(state: StackState, order: torch.Tensor) -> StackState:
    """Select rows of the batch.  ``order``: (new batch,) int64; repeats are allowed (beam search)."""
    return map_state(state, lambda tensor: tensor.index_select(0, order))

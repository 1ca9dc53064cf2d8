"""Run a causal stack over documents packed in rows, each as if it were a sequence of its own.

At the start of a document everything is reset: CEMA state, norm statistics, the attention chunk and with
it the rotary positions.  The ops do not know about documents; here each row is cut at the starts, the
pieces become rows of their own, and the outputs return to where the pieces came from.  So the result
equals that of separate calls, at the cost of some padding: pieces of similar length run together, padded
to at most twice their length.  Legend: B batch, L length, D dim, N steps, R rows of a group.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from megalodon_tasks.models.state import StackState, join_states, open_steps, split_state

# One state per row of the batch, since rows may stand at different steps of their chunk.
RowStates = tuple[StackState | None, ...]


class Piece(NamedTuple):
    """Steps ``start`` to ``stop`` of a row, all of one document.

    state: that of the steps before, for the first piece of a row that continues a document.
    needs_state: whether the state after the piece is returned.
    """

    row: int
    start: int
    stop: int
    state: StackState | None
    needs_state: bool

    @property
    def length(self) -> int:
        return self.stop - self.start

    @property
    def group(self) -> tuple:
        """A key that is equal for pieces that can be computed together.

        Padding after a piece does not change its outputs, but it changes the state after it, and all
        rows of a call must stand at the same step of their chunk.
        """
        length = self.length if self.needs_state else 1 << (self.length - 1).bit_length()
        return self.needs_state, length, self.state is None, open_steps(self.state)


def run_documents(
    stack: nn.Module,
    x_BLD: torch.Tensor,
    starts_BL: torch.Tensor,
    padding_mask_BL: torch.Tensor | None = None,
    states: StackState | RowStates | None = None,
    return_state: bool = True,
) -> tuple[torch.Tensor, RowStates | None]:
    """Run ``stack`` over each of the documents packed in ``x_BLD``.

    starts: (B, L) bool, True at the first step of a document.  A row that does not begin with one
    continues from its entry of ``states``.  padding_mask: (B, L) bool, True at padding, which may only
    follow a row's last document.  Returns (B, L, D), zero at padding, and the state of each row after
    its last real step (None unless ``return_state``); a row of padding only retains its state.

    Raises ``ValueError`` for padding before a document's end or states of another batch.
    """
    states = _row_states(states, x_BLD.shape[0])
    lengths = _real_lengths(padding_mask_BL, x_BLD)
    groups: dict[tuple, list[Piece]] = defaultdict(list)
    for piece in _cut(starts_BL, lengths, states, return_state):
        groups[piece.group].append(piece)
    new_states = list(states)
    y_ND = x_BLD.new_zeros(x_BLD.shape[0] * x_BLD.shape[1], x_BLD.shape[2])
    for pieces in groups.values():
        at_N, rows_ND, state = _run(stack, x_BLD, pieces)
        y_ND = y_ND.index_copy(0, at_N, rows_ND.to(y_ND.dtype))
        if pieces[0].needs_state:
            for piece, row_state in zip(pieces, split_state(state), strict=True):
                new_states[piece.row] = row_state
    return y_ND.view_as(x_BLD), tuple(new_states) if return_state else None


def _run(
    stack: nn.Module, x_BLD: torch.Tensor, pieces: list[Piece]
) -> tuple[torch.Tensor, torch.Tensor, StackState]:
    """Run pieces as one batch.  Returns the flat positions of their steps, their outputs, the state."""
    longest = max(piece.length for piece in pieces)
    device, length = x_BLD.device, x_BLD.shape[1]
    start_R1 = torch.tensor(
        [[p.row * length + p.start] for p in pieces], dtype=torch.int64, device=device
    )
    length_R1 = torch.tensor([[p.length] for p in pieces], dtype=torch.int64, device=device)
    step_L = torch.arange(longest, device=device)
    real_RL = step_L < length_R1
    at_RL = torch.where(real_RL, start_R1 + step_L, start_R1)
    padding_RL = None if all(p.length == longest for p in pieces) else ~real_RL
    state = None if pieces[0].state is None else join_states([piece.state for piece in pieces])
    y_RLD, state = stack(x_BLD.flatten(0, 1)[at_RL], padding_RL, state)
    return at_RL[real_RL], y_RLD[real_RL], state


def _cut(
    starts_BL: torch.Tensor, lengths: list[int], states: RowStates, return_state: bool
) -> list[Piece]:
    pieces = []
    for row, (starts_L, length) in enumerate(zip(starts_BL.cpu(), lengths, strict=True)):
        starts = starts_L[:length].nonzero()[:, 0].tolist()
        continues = bool(length) and (not starts or starts[0] > 0)
        edges = [0] * continues + starts + [length] * bool(length)
        for start, stop in zip(edges, edges[1:], strict=False):
            state = states[row] if start == 0 and continues else None
            pieces.append(Piece(row, start, stop, state, return_state and stop == length))
    return pieces


def _real_lengths(padding_mask_BL: torch.Tensor | None, x_BLD: torch.Tensor) -> list[int]:
    batch, length = x_BLD.shape[:2]
    if padding_mask_BL is None:
        return [length] * batch
    lengths_B = (~padding_mask_BL).sum(1)
    step_L = torch.arange(length, device=padding_mask_BL.device)
    misplaced = (padding_mask_BL != (step_L >= lengths_B[:, None])).any(1).nonzero()[:, 0]
    if len(misplaced):
        raise ValueError(
            f"row {int(misplaced[0])} has padding before its last real step; "
            "pad packed documents at the end of the row only"
        )
    return lengths_B.tolist()


def _row_states(states: StackState | Sequence | None, batch: int) -> RowStates:
    if states is None:
        return (None,) * batch
    if isinstance(states, StackState):
        states = split_state(states)
    if len(states) != batch:
        raise ValueError(
            f"got {len(states)} states, one per row of an earlier batch, for {batch} rows; "
            "pass the states of the same rows"
        )
    return tuple(states)

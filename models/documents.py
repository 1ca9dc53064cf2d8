"""Documents packed in one row, each computed as if it stood alone.

At a document's start everything begins anew: CEMA state, norm statistics, the attention chunk and with
it the rotary positions.  The ops know nothing of that; here each row is cut at the starts, the pieces
become rows of their own, and the outputs go back where the pieces came from.  So the result is that of
separate calls, at the cost of some padding: pieces of similar length run together, padded to at most
twice their length.  Legend: B batch, L length, D dim, N steps, R rows of a group.
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
    """Steps ``start`` to ``stop`` of a row, of one document.

    ``carried``: the state of what came before, for a row's first piece.  ``keep``: the state after it is
    wanted.
    """

    row: int
    start: int
    stop: int
    carried: StackState | None
    keep: bool

    @property
    def length(self) -> int:
        return self.stop - self.start

    @property
    def group(self) -> tuple:
        """Pieces that are equal in this can be computed together.

        Padding comes after a piece and leaves its outputs alone, but not the state after it; and the
        chunks of all rows of a call end together.
        """
        length = self.length if self.keep else 1 << (self.length - 1).bit_length()
        return self.keep, length, self.carried is None, open_steps(self.carried)


def isolated(
    stack: nn.Module,
    x_BLD: torch.Tensor,
    starts_BL: torch.Tensor,
    padding_mask_BL: torch.Tensor | None = None,
    states: RowStates | None = None,
    keep_states: bool = True,
) -> tuple[torch.Tensor, RowStates | None]:
    """``stack`` over documents packed in rows, each on its own.

    starts: (B, L) bool, True at the first step of a document.  A row that does not begin with one goes
    on with its entry of ``states``.  padding_mask: (B, L) bool, True at padding, which follows a row's
    last document.  Returns (B, L, D), zero at padding, and the state of each row after its last real
    step (None with ``keep_states`` False); a row of padding alone keeps the state that it had.

    Raises ``ValueError`` for padding before a document's end or states of another batch.
    """
    states = _checked_states(states, x_BLD.shape[0])
    lengths = _real_lengths(padding_mask_BL, x_BLD)
    pieces = _cut(starts_BL, lengths, states, keep_states)
    groups: dict[tuple, list[Piece]] = defaultdict(list)
    for piece in pieces:
        groups[piece.group].append(piece)
    new_states = list(states)
    y_ND = x_BLD.new_zeros(x_BLD.shape[0] * x_BLD.shape[1], x_BLD.shape[2])
    for group in groups.values():
        at_N, rows_RLD, state = _run(stack, x_BLD, group)
        y_ND = y_ND.index_copy(0, at_N, rows_RLD.to(y_ND.dtype))
        if group[0].keep:
            for piece, row_state in zip(group, split_state(state), strict=True):
                new_states[piece.row] = row_state
    return y_ND.view_as(x_BLD), tuple(new_states) if keep_states else None


def _run(
    stack: nn.Module, x_BLD: torch.Tensor, group: list[Piece]
) -> tuple[torch.Tensor, torch.Tensor, StackState]:
    """The pieces as one batch: where their steps stand in the packed batch, their outputs, the state."""
    longest = max(piece.length for piece in group)
    device, length = x_BLD.device, x_BLD.shape[1]
    start_R1 = torch.tensor([[p.row * length + p.start] for p in group], device=device)
    length_R1 = torch.tensor([[p.length] for p in group], device=device)
    step_L = torch.arange(longest, device=device)
    real_RL = step_L < length_R1
    at_RL = torch.where(real_RL, start_R1 + step_L, start_R1)
    padded_RL = None if all(p.length == longest for p in group) else ~real_RL
    carried = None
    if group[0].carried is not None:
        carried = join_states([piece.carried for piece in group])
    y_RLD, state = stack(x_BLD.flatten(0, 1)[at_RL], padded_RL, carried)
    return at_RL[real_RL], y_RLD[real_RL], state


def _cut(
    starts_BL: torch.Tensor, lengths: list[int], states: RowStates, keep_states: bool
) -> list[Piece]:
    pieces = []
    for row, (starts_L, length) in enumerate(zip(starts_BL.cpu(), lengths, strict=True)):
        at = starts_L[:length].nonzero()[:, 0].tolist()
        goes_on = bool(length) and (not at or at[0] > 0)
        edges = [0] * goes_on + at + [length] * bool(length)
        for start, stop in zip(edges, edges[1:], strict=False):
            carried = states[row] if start == 0 and goes_on else None
            pieces.append(Piece(row, start, stop, carried, keep_states and stop == length))
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


def _checked_states(states: Sequence | None, batch: int) -> RowStates:
    if states is None:
        return (None,) * batch
    if isinstance(states, StackState):
        states = split_state(states)
    if len(states) != batch:
        raise ValueError(f"{len(states)} states were carried, one per row, but {batch} rows follow")
    return tuple(states)

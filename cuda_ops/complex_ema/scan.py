"""The scan over blocks of a sequence: the change of layout, and the states between the blocks.

Letters as in ``block_product.py``.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch

from megalodon_tasks.cuda_ops.complex_ema.block_operators import BlockOperators

# Input numbers of a segment: what a pass over it reads and writes should stay in the caches.
_SEGMENT = 1 << 19
# With fewer rows than this a product is bound by reading its matrix.
_LEAST_ROWS = 64
# Blocks whose states are summed without going through double precision.
_GROUP = 8
# Numbers between the rows of a buffer, so that their distance is not a multiple of a page: such rows
# share few lines of the cache.
_GAP = 16


class Segment(NamedTuple):
    """Blocks that are worked on together: the steps from ``start`` to ``stop``, which is excluded."""

    index: int
    start: int
    stop: int
    blocks: int


class Rows:
    """The change of layout: from (B, L, D) to a buffer (D, R, W) that holds ``[states | inputs]``.

    The rows of the buffer are block by block, and within a block the batch.
    """

    def __init__(
        self, operators: BlockOperators, source_BLD: torch.Tensor, padding_mask: torch.Tensor | None
    ) -> None:
        self.operators = operators
        self.source = source_BLD
        self.padding_mask = padding_mask
        self.segments = _segments(*source_BLD.shape, operators.block)
        self._buffer = operators.kernel.new_empty(0)

    def ordered(self, reverse: bool) -> Iterable[Segment]:
        """Return the segments from the first to the last, or in reverse."""
        return reversed(self.segments) if reverse else self.segments

    def columns(self, direction: int) -> slice:
        """Return the columns of the buffer with the states of one direction."""
        order = self.operators.decay.shape[2]
        return slice(2 * order * direction, 2 * order * (direction + 1))

    def by_block(self, rows: torch.Tensor, segment: Segment) -> torch.Tensor:
        """View (D, R, any) as (D, blocks, B, any), without the row of zeros."""
        batch = len(self.source)
        return rows[:, : segment.blocks * batch].unflatten(1, (segment.blocks, batch))

    def states_of(self, buffer: torch.Tensor, segment: Segment) -> torch.Tensor:
        """View the states (D, blocks, B, K) in ``buffer``."""
        return self.by_block(buffer, segment)[..., : self.operators.states]

    def fill(self, segment: Segment, states_DIBK: torch.Tensor | None) -> torch.Tensor:
        """Return the buffer, with the inputs of the segment and, if given, these states."""
        buffer = self._reuse(_odd(segment.blocks * len(self.source)))
        if states_DIBK is not None:
            self.states_of(buffer, segment).copy_(states_DIBK)
        # Read in order first: a copy that transposes would wait for each line of memory.
        steps = self.source[:, segment.start : segment.stop].to(buffer.dtype, copy=True)
        if self.padding_mask is not None:
            steps.masked_fill_(self.padding_mask[:, segment.start : segment.stop, None], 0.0)
        inputs = self.by_block(buffer, segment)[..., self.operators.states :]
        inputs[:, -1, :, steps.shape[1] - (segment.blocks - 1) * self.operators.block :] = 0.0
        for part, source_part in _views(inputs, steps):
            part.copy_(source_part)
        return buffer

    def _reuse(self, rows: int) -> torch.Tensor:
        """Return (D, R, W) with the channels of a row together, so that copies read whole lines."""
        dim, width = len(self.operators.kernel), self.operators.states + self.operators.block
        if self._buffer.shape != (dim, rows, width):
            pitch = dim * width + _GAP
            memory = self.operators.kernel.new_empty(rows * pitch)
            self._buffer = memory.as_strided((dim, rows, width), (width, pitch, 1))
            self._buffer[:, -1] = 0.0
        return self._buffer

    def write_outputs(self, segment: Segment, rows: torch.Tensor, target_BLD: torch.Tensor) -> None:
        """Write the outputs (D, R, c) of a segment to ``target``."""
        target_BLD = target_BLD[:, segment.start : segment.stop]
        for part, target_part in _views(self.by_block(rows, segment), target_BLD):
            target_part.copy_(part)


class BlockScan:
    """Iterate over the segments of ``source`` and yield each with its filled buffer (D, R, W).

    Separate passes compute the states of all directions but the last before; the order is that of the
    last direction.  The next segment may overwrite the buffer.

    Args:
        operators: the map.
        source_BLD: its input, any real floating dtype, taken as zero where ``padding_mask`` is True.
        padding_mask: bool (B, L) or None.
        state_DBN: complex128, the state before the first block of the only direction; None is zeros.
        into_last_DBK: added to what the last block writes; None is nothing.

    After the iteration ``carry`` holds the state (D, B, N) after the last block of each direction.
    """

    def __init__(
        self,
        operators: BlockOperators,
        source_BLD: torch.Tensor,
        padding_mask: torch.Tensor | None,
        state_DBN: torch.Tensor | None = None,
        into_last_DBK: torch.Tensor | None = None,
    ) -> None:
        self.operators = operators
        self.rows = Rows(operators, source_BLD, padding_mask)
        self.into_last = into_last_DBK
        decay = torch.view_as_complex(operators.decay)
        dim, directions, order = decay.shape
        if state_DBN is None:
            state_DBN = decay.new_zeros(dim, len(source_BLD), order)
        self.carry = [state_DBN] * directions
        most = max(_group(segment.blocks) for segment in self.rows.segments)
        self._powers = [_powers(decay[:, direction], most) for direction in range(directions)]
        # Spread out over the batch, so that a step multiplies long runs of numbers.
        self._decays = [
            one.to(operators.kernel.dtype.to_complex())[:, None, None].repeat(
                1, 1, len(source_BLD), 1
            )
            for one in decay.unbind(1)
        ]

    def __iter__(self) -> Iterator[tuple[Segment, torch.Tensor]]:
        passes = self.operators.reverse or (False,)
        states: dict[int, torch.Tensor] = {}
        for direction, reverse in enumerate(passes):
            for segment in self.rows.ordered(reverse):
                buffer = self.rows.fill(segment, states.pop(segment.index, None))
                if self.operators.reverse:
                    self._scan(segment, buffer, direction)
                if direction == len(passes) - 1:
                    yield segment, buffer
                else:
                    states[segment.index] = self.rows.states_of(buffer, segment).clone()

    def _scan(self, segment: Segment, buffer: torch.Tensor, direction: int) -> None:
        """Fill in the states of one direction and move ``carry`` to the other side of the segment.

        Within a group of blocks the states are summed from zero in the working precision.  What is
        passed from group to group is complex128, so that no error of the decay grows along the sequence.
        """
        reverse, columns = self.operators.reverse[direction], self.rows.columns(direction)
        sums = torch.bmm(buffer[..., self.operators.states :], self.operators.write[..., columns])
        sums = self.rows.by_block(sums, segment)
        if self.into_last is not None and segment.index == len(self.rows.segments) - 1:
            sums[:, -1] += self.into_last[..., columns]
        size = _group(segment.blocks)
        groups = (-1, size)
        sums = _complex(sums).unflatten(1, groups)
        states = _complex(self.rows.by_block(buffer, segment)[..., columns]).unflatten(1, groups)
        powers = self._powers[direction]
        decay = self._decays[direction]
        for previous, current in pairwise(_order(size, reverse)):
            sums[:, :, current].addcmul_(sums[:, :, previous], decay)
        carries = self._between_groups(sums[:, :, 0 if reverse else -1], powers[:, size], direction)
        states[:, :, -1 if reverse else 0] = carries
        passed = powers[:, 1:size].to(sums.dtype)[:, None]
        torch.addcmul(
            sums[:, :, 1:] if reverse else sums[:, :, :-1],
            passed.flip(2) if reverse else passed,
            carries[:, :, None],
            out=states[:, :, :-1] if reverse else states[:, :, 1:],
        )

    def _between_groups(
        self, sums_DIBN: torch.Tensor, decay_D1N: torch.Tensor, direction: int
    ) -> torch.Tensor:
        """Compute the states before each of I groups, from what each adds to the state after it."""
        states = sums_DIBN.to(decay_D1N.dtype, copy=True)
        carry = self.carry[direction]
        for group in _order(states.shape[1], self.operators.reverse[direction]):
            after = torch.addcmul(states[:, group], decay_D1N, carry)
            states[:, group] = carry
            carry = after
        self.carry[direction] = carry
        return states.to(sums_DIBN.dtype)


def _complex(pairs: torch.Tensor) -> torch.Tensor:
    return torch.view_as_complex(pairs.unflatten(-1, (-1, 2)))


def _order(count: int, reverse: bool) -> range:
    return range(count - 1, -1, -1) if reverse else range(count)


def _group(blocks: int) -> int:
    """Return the number of blocks of a group of a segment."""
    return blocks if blocks < 2 * _GROUP else _GROUP


def _powers(decay_DN: torch.Tensor, count: int) -> torch.Tensor:
    """Return decay**0 .. decay**count as (D, count + 1, 1, N)."""
    repeated = decay_DN[:, None, None].repeat(1, count + 1, 1, 1)
    repeated[:, 0] = 1.0
    return repeated.cumprod(1)


def _odd(rows: int) -> int:
    """Return an odd number >= ``rows``: channels a power of two apart would share few cache lines."""
    return rows | 1


def _segments(batch: int, length: int, dim: int, block: int) -> list[Segment]:
    """Divide a sequence into segments of as many blocks as fit, in whole groups or a single one."""
    batch = max(batch, 1)
    total = -(-length // block)
    most = max(_SEGMENT // (batch * dim * block), _LEAST_ROWS // batch, 1)
    segments: list[Segment] = []
    first = 0
    while first < total:
        blocks = min(total - first, most)
        blocks = blocks // _group(blocks) * _group(blocks)
        start, stop = first * block, min(length, (first + blocks) * block)
        segments.append(Segment(len(segments), start, stop, blocks))
        first += blocks
    return segments


def _views(
    rows_DIBC: torch.Tensor, steps_BLD: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield pairs of views on the same steps of the two tensors: whole blocks, then a partial one."""
    block = rows_DIBC.shape[3]
    full, tail = divmod(steps_BLD.shape[1], block)
    if full:
        whole = steps_BLD[:, : full * block].unflatten(1, (full, block))
        yield rows_DIBC[:, :full], whole.permute(3, 1, 0, 2)
    if tail:
        yield rows_DIBC[:, full, :, :tail], steps_BLD[:, full * block :].permute(2, 0, 1)

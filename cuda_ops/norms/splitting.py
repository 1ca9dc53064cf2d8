"""Walking through a large tensor in pieces that stay in the cache, with reused room to work in."""

from typing import NamedTuple

import torch

# Elements of a piece: enough to keep the cores busy, few enough to stay in the cache.
PIECE = 1 << 20

# Parts that the time of one long row is summed in, each by one thread.
_PARTS = 16


class Piece(NamedTuple):
    """A contiguous part of a (batch, length, dim) tensor: several whole rows or a part of one."""

    rows: slice
    times: slice
    is_last: bool  # of its rows

    @property
    def index(self) -> tuple[slice, slice]:
        return self.rows, self.times


class Workspace:
    """Room to compute a result (batch, length, dim) piece by piece in the type ``wide``.

    It is the result itself where that has the type.  A fresh tensor for every step of every piece
    would cost more than the arithmetic, because the allocator returns memory to the system.
    """

    def __init__(self, result: torch.Tensor, wide: torch.dtype) -> None:
        batch, length, dim = result.shape
        self.result = result
        self.wide = wide
        steps = min(length, max(1, PIECE // dim))
        rows = min(batch, max(1, PIECE // (length * dim)))
        self.pieces_by_rows = [
            [
                Piece(slice(b, b + rows), slice(t, t + steps), t + steps >= length)
                for t in range(0, length, steps)
            ]
            for b in range(0, batch, rows)
        ]
        self._shape = rows, steps, dim
        self._rooms: dict[str, torch.Tensor] = {}

    @property
    def pieces(self) -> list[Piece]:
        """All pieces, those of the same rows one after the other in time."""
        return [piece for pieces in self.pieces_by_rows for piece in pieces]

    def room(
        self, name: str, piece: Piece, width: int | None = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """Scratch of the piece's shape, or of another last axis; the same name is the same memory."""
        if name not in self._rooms:
            rows, steps, dim = self._shape
            self._rooms[name] = self.result.new_empty(
                rows, steps, width or dim, dtype=dtype or self.wide
            )
        batch, length, _ = self.result[piece.index].shape
        return self._rooms[name][:batch, :length]

    def result_of(self, piece: Piece) -> torch.Tensor:
        """Where to compute the piece of the result; pass it to ``store`` when it is done."""
        if self.result.dtype == self.wide:
            return self.result[piece.index]
        return self.room("result", piece)

    def kept_of_last(self, piece: Piece) -> torch.Tensor:
        """Where to compute what is used again of the last piece of its rows alone.

        That of the other pieces goes to scratch, which stays in the cache, and not through the result.
        """
        return self.result_of(piece) if piece.is_last else self.room("passing", piece)

    def store(self, piece: Piece, computed: torch.Tensor) -> None:
        if self.result.dtype != self.wide:
            self.result[piece.index] = computed

    def load(
        self, name: str, piece: Piece, source: torch.Tensor, padded_N: torch.Tensor | None
    ) -> torch.Tensor:
        """The piece of ``source`` in the type ``wide``, zero at padding; not to be written to."""
        part = source[piece.index]
        if part.dtype == self.wide and padded_N is None:
            return part
        return mask_(self.room(name, piece).copy_(part), padded_N)


def sum_over_time(x_BLD: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Sum (batch, length, dim) over time, (batch, dim); every thread the steps that it also writes.

    PyTorch divides a sum by its outputs: of a single row it gives each thread some features of all the
    steps, or one thread everything.  Elementwise operations divide by steps, so that the numbers would
    cross from core to core each time, at five times the cost where the cores share no cache.
    """
    _, length, dim = x_BLD.shape
    if length * dim <= PIECE // 2:  # rows of this size share a piece and are divided themselves
        return x_BLD.sum(1, dtype=dtype)
    whole = length - length % _PARTS
    sum_BD = x_BLD[:, :whole].unflatten(1, (_PARTS, length // _PARTS)).sum(2, dtype=dtype).sum(1)
    return sum_BD if whole == length else sum_BD.add_(x_BLD[:, whole:].sum(1, dtype=dtype))


def padded_steps(padding_mask: torch.Tensor | None, piece: Piece) -> torch.Tensor | None:
    """Which steps of a piece, counted through its rows, are padding; None is none."""
    if padding_mask is None:
        return None
    return padding_mask[piece.index].flatten().nonzero()[:, 0]


def mask_(tensor_BLD: torch.Tensor, padded_N: torch.Tensor | None) -> torch.Tensor:
    """Fill the padded steps with zeros in place; None is no padding.

    Writing these rows alone takes a fraction of the time of ``masked_fill_`` over all.
    """
    if padded_N is not None:
        tensor_BLD.view(-1, tensor_BLD.shape[-1])[padded_N] = 0.0
    return tensor_BLD

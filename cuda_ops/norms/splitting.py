"""Split the work on a large tensor into tiles that stay in the cache, and reuse the working memory."""

from typing import NamedTuple

import torch

# Elements of a tile: enough to keep the cores busy, few enough to stay in the cache.
TILE_ELEMENTS = 1 << 20

# Parts into which the time of one long row is divided to sum it, each for one thread.
_PARTS = 16


class Tile(NamedTuple):
    """A contiguous part of a (batch, length, dim) tensor: several whole rows or a part of one."""

    rows: slice
    times: slice
    is_last: bool  # of its rows

    @property
    def index(self) -> tuple[slice, slice]:
        return self.rows, self.times


def steps_of_a_tile(length: int, dim: int) -> int:
    """Return how many steps of a sequence fit in a tile."""
    return min(length, max(1, TILE_ELEMENTS // dim))


class Workspace:
    """Memory to compute a result (batch, length, dim) tile by tile in the dtype ``wide``.

    It is the result itself where that has the dtype.  A new tensor for every step of every tile
    would cost more than the arithmetic, because the allocator returns memory to the system.
    """

    def __init__(self, result: torch.Tensor, wide: torch.dtype) -> None:
        batch, length, dim = result.shape
        self.result = result
        self.wide = wide
        self.steps = steps = steps_of_a_tile(length, dim)
        rows = min(batch, max(1, TILE_ELEMENTS // (length * dim)))
        self.tiles_by_rows = [
            [
                Tile(slice(b, b + rows), slice(t, t + steps), t + steps >= length)
                for t in range(0, length, steps)
            ]
            for b in range(0, batch, rows)
        ]
        self._shape = rows, steps, dim
        self._buffers: dict[str, torch.Tensor] = {}

    @property
    def tiles(self) -> list[Tile]:
        """All tiles, those of the same rows one after the other in time."""
        return [tile for tiles in self.tiles_by_rows for tile in tiles]

    def buffer(
        self, name: str, tile: Tile, width: int | None = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """Return scratch of the tile's shape, or with another last axis; one memory per name."""
        if name not in self._buffers:
            rows, steps, dim = self._shape
            self._buffers[name] = self.result.new_empty(
                rows, steps, width or dim, dtype=dtype or self.wide
            )
        batch, length, _ = self.result[tile.index].shape
        return self._buffers[name][:batch, :length]

    def target(self, tile: Tile) -> torch.Tensor:
        """Return where to compute the tile of the result; pass it to ``store`` when it is done."""
        if self.result.dtype == self.wide:
            return self.result[tile.index]
        return self.buffer("result", tile)

    def last_or_scratch(self, tile: Tile) -> torch.Tensor:
        """Return where to compute values that are used again only for the last tile of its rows.

        Those of other tiles go to scratch, which stays in the cache, instead of to the result.
        """
        return self.target(tile) if tile.is_last else self.buffer("other", tile)

    def store(self, tile: Tile, computed: torch.Tensor) -> None:
        """Write the tile to the result, unless it was computed there."""
        if self.result.dtype != self.wide:
            self.result[tile.index] = computed

    def load(
        self, name: str, tile: Tile, source: torch.Tensor, padded_N: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the tile of ``source`` in the dtype ``wide``, zero at padding; do not write to it."""
        part = source[tile.index]
        if part.dtype == self.wide and padded_N is None:
            return part
        return zero_padded_(self.buffer(name, tile).copy_(part), padded_N)


def sum_over_time(x_BLD: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Sum (batch, length, dim) over time; every thread sums the steps that it also writes elsewhere.

    PyTorch divides a sum by its outputs: for a single row it gives each thread some features of all
    steps, or one thread everything.  It divides elementwise operations by steps, so that the numbers
    would move from core to core each time, at five times the cost where cores share no cache.
    """
    _, length, dim = x_BLD.shape
    if (
        length * dim <= TILE_ELEMENTS // 2
    ):  # rows of this size share a tile and are divided themselves
        return x_BLD.sum(1, dtype=dtype)
    whole = length - length % _PARTS
    sum_BD = x_BLD[:, :whole].unflatten(1, (_PARTS, length // _PARTS)).sum(2, dtype=dtype).sum(1)
    return sum_BD if whole == length else sum_BD.add_(x_BLD[:, whole:].sum(1, dtype=dtype))


def padded_steps(padding_mask: torch.Tensor | None, tile: Tile) -> torch.Tensor | None:
    """Return which steps of a tile, counted through its rows, are padding; None if none is."""
    if padding_mask is None:
        return None
    return padding_mask[tile.index].flatten().nonzero()[:, 0]


def zero_padded_(tensor_BLD: torch.Tensor, padded_N: torch.Tensor | None) -> torch.Tensor:
    """Fill the padded steps with zeros in place; None is no padding.

    Writing only these steps takes a fraction of the time of ``masked_fill_`` over all.
    """
    if padded_N is not None:
        tensor_BLD.view(-1, tensor_BLD.shape[-1])[padded_N] = 0.0
    return tensor_BLD

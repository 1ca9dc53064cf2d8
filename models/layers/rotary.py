"""Rotary position embedding that restarts at each attention chunk.

Source: Su et al., arXiv 2104.09864.  Adjacent dimensions form the pairs, as in the released code.
Attention never crosses a chunk, so positions count from the start of the chunk and the table is as long
as one chunk.  Legend: B batch, L length, H heads, K key width per head.
"""

import torch
from torch import nn


class RotaryEmbedding(nn.Module):
    """Rotate pairs of query and key dimensions by an angle proportional to the position."""

    def __init__(self, dim: int, base: float) -> None:
        super().__init__()
        self.dim = dim
        self.base = base
        self.time_step = 1  # positions per step
        self._table: torch.Tensor | None = None
        self._table_step = 1

    def _turns(self, length: int, like: torch.Tensor) -> torch.Tensor:
        """Return exp(i * position * frequency), (length, K/2) complex, from a cached table."""
        table = self._table
        stale = table is None or table.device != like.device or table.dtype != like.dtype
        if stale or table.shape[0] < length or self._table_step != self.time_step:
            # Angles in double precision: at long positions float32 loses whole degrees.
            exponent = torch.arange(0, self.dim, 2, dtype=torch.float64) / self.dim
            position = torch.arange(length, dtype=torch.float64) * self.time_step
            angle = position[:, None] * self.base**-exponent
            table = torch.polar(torch.ones_like(angle), angle).to(like.device, like.dtype)
            self._table, self._table_step = table, self.time_step
        return table[:length]

    def forward(self, x_BLHK: torch.Tensor, offset: int, chunk_size: int | None) -> torch.Tensor:
        """Rotate (B, L, H, K).  offset: steps of the open chunk (or sequence) already read."""
        length = x_BLHK.shape[1]
        period = chunk_size or offset + length
        wide = x_BLHK if x_BLHK.dtype == torch.float64 else x_BLHK.float()
        pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
        turns = self._turns(min(period, offset + length), like=pairs)
        if offset + length > period:
            position = torch.arange(offset, offset + length, device=x_BLHK.device) % period
            turns = turns[position]
        else:
            turns = turns[offset:]
        turned = torch.view_as_real(pairs * turns[:, None, :]).flatten(-2)
        return turned.to(x_BLHK.dtype)

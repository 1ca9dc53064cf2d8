"""Rotary position embedding that restarts at each attention chunk.

Source: Su et al., arXiv 2104.09864.  Adjacent dimensions form the pairs, as in the released code.
Attention never crosses a chunk, so positions count from the start of the chunk and the table is as long
as one chunk.  Legend: B batch, L length, H heads, K key width per head.
"""

import torch
from torch import nn

from megalodon_tasks.cuda_ops.transforms import data_is_at_hand


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
        if not data_is_at_hand(x_BLHK):
            return self._rotate_traced(x_BLHK, offset, period)
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

    def _rotate_traced(self, x_BLHK: torch.Tensor, offset: int, period: int) -> torch.Tensor:
        """Rotate without a cached table and in real numbers, which compilers fuse and ONNX has."""
        wide = x_BLHK if x_BLHK.dtype == torch.float64 else x_BLHK.float()
        steps_L = torch.arange(offset, offset + wide.shape[1], device=wide.device) % period
        exponent = torch.arange(0, self.dim, 2, dtype=torch.float64, device=wide.device) / self.dim
        angle = (steps_L * self.time_step).double()[:, None] * self.base**-exponent
        cos, sin = (part.to(wide.dtype)[:, None] for part in (angle.cos(), angle.sin()))
        even, odd = wide.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
        return turned.flatten(-2).to(x_BLHK.dtype)

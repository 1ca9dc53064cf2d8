"""Rotary position embedding that restarts at each attention chunk.

Source: Su et al., arXiv 2104.09864.  Adjacent dimensions form the pairs, as in the released code.
Attention never crosses a chunk, so positions count from the start of the chunk.
Legend: B batch, L length, H heads, K key width per head.
"""

import math

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

    def turns(self, start: int, length: int, like: torch.Tensor) -> torch.Tensor:
        """Return exp(i * position * frequency), (length, K/2), of the steps from ``start``.

        It has the device of ``like`` and its dtype, complex64 or complex128.  The table is the product
        of a coarse and a fine one, about 2 sqrt(length) rows, so that it can be computed for each call.
        """
        fine = math.isqrt(length)
        coarse = -(-length // fine)
        step = torch.arange(fine + coarse, dtype=torch.float64, device=like.device)
        step[fine:] = start + fine * (step[fine:] - fine)
        # Angles in double precision: at long positions float32 loses whole degrees.
        pair = torch.arange(0, self.dim, 2, dtype=torch.float64, device=like.device)
        angle = (step * self.time_step)[:, None] * self.base ** (-pair / self.dim)
        factors = torch.complex(angle.cos(), angle.sin()).to(like.dtype)
        return (factors[fine:, None] * factors[:fine]).flatten(0, 1)[:length]

    def forward(self, x_BLHK: torch.Tensor, offset: int, chunk_size: int | None) -> torch.Tensor:
        """Rotate (B, L, H, K).  offset: steps of the open chunk (or sequence) already read."""
        length = x_BLHK.shape[1]
        if not data_is_at_hand(x_BLHK):
            return self._rotate_traced(x_BLHK, offset, chunk_size or offset + length)
        wide = x_BLHK if x_BLHK.dtype == torch.float64 else x_BLHK.float()
        pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
        if chunk_size is None or offset + length <= chunk_size:
            turns = self.turns(offset, length, like=pairs)
        else:
            position = torch.arange(offset, offset + length, device=x_BLHK.device) % chunk_size
            turns = self.turns(0, chunk_size, like=pairs)[position]
        turned = torch.view_as_real(pairs * turns[:, None, :]).flatten(-2)
        return turned.to(x_BLHK.dtype)

    def _rotate_traced(self, x_BLHK: torch.Tensor, offset: int, period: int) -> torch.Tensor:
        """Rotate in real numbers, which compilers fuse and ONNX has."""
        wide = x_BLHK if x_BLHK.dtype == torch.float64 else x_BLHK.float()
        steps_L = torch.arange(offset, offset + wide.shape[1], device=wide.device) % period
        exponent = torch.arange(0, self.dim, 2, dtype=torch.float64, device=wide.device) / self.dim
        angle = (steps_L * self.time_step).double()[:, None] * self.base**-exponent
        cos, sin = (part.to(wide.dtype)[:, None] for part in (angle.cos(), angle.sin()))
        even, odd = wide.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
        return turned.flatten(-2).to(x_BLHK.dtype)

"""What causal chunk attention carries along the sequence."""

from typing import NamedTuple

import torch


class ChunkAttentionState(NamedTuple):
    """Keys and values of the chunk in progress: T steps of it, 0 <= T < chunk_size.

    T is any number under full attention, where the whole past is one chunk.  A chunk that is just full
    is done with and leaves T = 0.  ``key`` and ``value`` are differentiable, in and out.
    """

    key: torch.Tensor  # (B, T, H, K)
    value: torch.Tensor  # (B, T, H, V)
    padding_mask: torch.Tensor | None = None  # (B, T) bool, True at padding

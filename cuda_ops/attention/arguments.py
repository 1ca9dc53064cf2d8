"""The arguments of both attentions, and the state that chunk attention carries along the sequence."""

from typing import NamedTuple

import torch


class ChunkAttentionState(NamedTuple):
    """Keys and values of the chunk in progress: T steps of it, 0 <= T < chunk_size.

    Under full attention the whole past is one chunk, and T is any number.  A chunk that has just been
    completed leaves T = 0.  ``key`` and ``value`` are differentiable, in and out.
    """

    key: torch.Tensor  # (B, T, H, K)
    value: torch.Tensor  # (B, T, H, V)
    padding_mask: torch.Tensor | None = None  # (B, T) bool, True at padding


class ChunkAttentionCall(NamedTuple):
    """Arguments of :func:`chunk_attention`, which describes them, as backends receive them: checked."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    chunk_size: int | None
    causal: bool
    dropout_p: float
    padding_mask: torch.Tensor | None
    state: ChunkAttentionState | None


class CrossAttentionCall(NamedTuple):
    """Arguments of :func:`cross_attention`, which describes them, as backends receive them: checked."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    dropout_p: float
    padding_mask: torch.Tensor | None

"""The arguments of both attentions; the state that chunk attention carries, and its open chunk in it."""

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


def extend(
    state: ChunkAttentionState | None,
    k_BLHK: torch.Tensor,
    v_BLHV: torch.Tensor,
    padding_mask: torch.Tensor | None,
) -> ChunkAttentionState:
    """Append new steps to the open chunk, in the dtypes of ``k`` and ``v``.

    The mask is None where neither part has one.  Without a state nothing is copied.
    """
    if state is None or state.key.shape[1] == 0:
        return ChunkAttentionState(k_BLHK, v_BLHV, padding_mask)
    key = torch.cat([state.key.to(k_BLHK.dtype), k_BLHK], dim=1)
    value = torch.cat([state.value.to(v_BLHV.dtype), v_BLHV], dim=1)
    if state.padding_mask is None and padding_mask is None:
        return ChunkAttentionState(key, value)
    masks = [
        steps.new_zeros(steps.shape[:2], dtype=torch.bool) if mask is None else mask
        for mask, steps in ((state.padding_mask, state.key), (padding_mask, k_BLHK))
    ]
    return ChunkAttentionState(key, value, torch.cat(masks, dim=1))


def take_open(seen: ChunkAttentionState, chunk_size: int | None) -> ChunkAttentionState:
    """Return the unfinished chunk of ``seen``, which starts with a chunk.

    Padded steps are set to zero, whatever they held.
    """
    steps = seen.key.shape[1]
    start = 0 if chunk_size is None else steps - steps % chunk_size
    key, value = seen.key[:, start:], seen.value[:, start:]
    if seen.padding_mask is None:
        # A copy, which does not keep the whole sequence alive.
        return ChunkAttentionState(key.clone(), value.clone()) if start else seen
    mask = seen.padding_mask[:, start:].clone()
    padded = mask[:, :, None, None]
    return ChunkAttentionState(key.masked_fill(padded, 0.0), value.masked_fill(padded, 0.0), mask)

"""Calls of the Triton backends at the sizes of the recipes, for counting what their kernels take.

``dim`` selects the widths of a preset (``models/presets.py``).  Widths from 512 on are those of language
models: causal, with a state, without padding.  The narrower ones are those of encoders, with padding.
"""

import importlib
from collections.abc import Callable

import torch

from megalodon_tasks.cuda_ops.attention.arguments import ChunkAttentionCall, CrossAttentionCall
from megalodon_tasks.cuda_ops.complex_ema.arguments import CemaCall
from megalodon_tasks.cuda_ops.norms.arguments import NormCall, TimestepNormState

# Speech base, Path-X, speech big, Image, enwik8, WikiText-103.
DIMS = (60, 64, 72, 160, 512, 1024)
# Widths of keys and values.
_ATTENTION = {60: (30, 120), 64: (32, 128), 72: (36, 144), 160: (96, 320)}
_ATTENTION |= {512: (128, 1024), 1024: (256, 2048)}
_ORDER = 16
_OPS = "megalodon_tasks.cuda_ops"


def _causal(dim: int) -> bool:
    return dim >= 512


def _leaf(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, requires_grad=dtype.is_floating_point)


def _mask(batch: int, length: int, causal: bool) -> torch.Tensor | None:
    return None if causal else torch.zeros(batch, length, dtype=torch.bool)


def cema(batch: int, length: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """Call cema: with a state if causal, else in both directions."""
    run = importlib.import_module(f"{_OPS}.complex_ema.triton_op").cema_triton
    causal = _causal(dim)
    rows = dim if causal else 2 * dim
    shapes = [(rows, _ORDER, 1), (rows, _ORDER, 1), (rows, 1, 1), (rows, _ORDER, 2), (dim, 1)]
    leaves = [_leaf(batch, length, dim, dtype=dtype), *(_leaf(*shape) for shape in shapes)]
    state = torch.zeros(batch, dim, _ORDER, dtype=torch.complex64) if causal else None
    return run(CemaCall(*leaves, state, _mask(batch, length, causal), not causal))[0]


def _norm(batch: int, length: int, dim: int, dtype: torch.dtype) -> tuple:
    """Return the arguments of both norms: groups of 32 features if causal, else of one feature."""
    tensors = _leaf(batch, length, dim, dtype=dtype), _leaf(dim), _leaf(dim)
    groups = dim // 32 if _causal(dim) else dim
    return *tensors, groups, 1e-5, _mask(batch, length, _causal(dim))


def timestep_norm(batch: int, length: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """Call timestep_norm, with a state."""
    run = importlib.import_module(f"{_OPS}.norms.timestep.triton_op").timestep_norm_triton
    *tensors, groups, eps, mask = _norm(batch, length, dim, dtype)
    count = torch.zeros(batch, dtype=torch.int64)
    state = TimestepNormState(count, _leaf(batch, groups), _leaf(batch, groups))
    return run(NormCall(*tensors, groups, eps, mask, state))[0]


def sequence_norm(batch: int, length: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """Call sequence_norm."""
    run = importlib.import_module(f"{_OPS}.norms.sequence.triton_op").sequence_norm_triton
    return run(NormCall(*_norm(batch, length, dim, dtype)))


def chunk_attention(batch: int, length: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """Call chunk_attention, with DropKey if causal."""
    run = importlib.import_module(f"{_OPS}.attention.triton_op").chunk_attention_triton
    causal, (key, value) = _causal(dim), _ATTENTION[dim]
    tensors = [_leaf(batch, length, 1, width, dtype=dtype) for width in (key, key, value)]
    chunk, dropout_p = min(length, 2048), 0.1 if causal else 0.0
    mask = _mask(batch, length, causal)
    return run(ChunkAttentionCall(*tensors, chunk, causal, dropout_p, mask, None))[0]


def cross_attention(batch: int, length: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """Call cross_attention on as many keys as queries, with DropKey and padding of the keys."""
    run = importlib.import_module(f"{_OPS}.attention.triton_op").cross_attention_triton
    key, value = _ATTENTION[dim]
    tensors = [_leaf(batch, length, 1, width, dtype=dtype) for width in (key, key, value)]
    return run(CrossAttentionCall(*tensors, 0.1, _mask(batch, length, causal=False)))


CALLS: dict[str, Callable[[int, int, int, torch.dtype], torch.Tensor]] = {
    "cema": cema,
    "timestep_norm": timestep_norm,
    "sequence_norm": sequence_norm,
    "chunk_attention": chunk_attention,
    "cross_attention": cross_attention,
}


def forward_and_backward(op: str, batch: int, length: int, dim: int, dtype: torch.dtype) -> None:
    """Run an op and its backward on zeros."""
    y = CALLS[op](batch, length, dim, dtype)
    torch.autograd.backward(y, torch.zeros_like(y))

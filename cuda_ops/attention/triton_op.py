"""The ``triton`` backend of both attentions: the kernels as differentiable operators of PyTorch.

Saved for the backward are the inputs, y and one number per query and head.  No sum crosses programs, so
that results repeat bit for bit.  The open chunk is put before the new steps outside the operators, where
autograd follows it.
"""

from typing import NamedTuple

import torch

from megalodon_tasks.cuda_ops.attention.arguments import (
    ChunkAttentionCall,
    ChunkAttentionState,
    CrossAttentionCall,
    extend,
    take_open,
)
from megalodon_tasks.cuda_ops.attention.triton_launch import CROSS, Launches, OperatorArguments
from megalodon_tasks.cuda_ops.operator import DifferentiableOperator, empty_like
from megalodon_tasks.cuda_ops.triton_helpers import dense_features, mask_bytes


def chunk_attention_triton(
    call: ChunkAttentionCall,
) -> tuple[torch.Tensor, ChunkAttentionState | None]:
    """Compute :func:`chunk_attention` in Triton, for float32, bfloat16 or float16.

    DropKey's mask is a function of one number drawn from the default generator of the device, so that a
    seed repeats it; it is not the mask that other backends draw under that seed.
    """
    q, k, v, chunk_size, causal, dropout_p, padding_mask, state = call
    seen = extend(state, k, v, padding_mask)
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    inputs = (tensor.to(dtype) for tensor in (q, seen.key, seen.value))
    seed = draw_seed(q.device) if dropout_p > 0.0 else None
    chunk = seen.key.shape[1] if chunk_size is None else chunk_size
    y, _ = chunk_attention_op(*inputs, seen.padding_mask, seed, chunk, causal, dropout_p)
    return y.to(v.dtype), take_open(seen, chunk_size) if causal else None


def cross_attention_triton(call: CrossAttentionCall) -> torch.Tensor:
    """Compute :func:`cross_attention` in Triton, for float32, bfloat16 or float16.

    DropKey's mask is drawn as in :func:`chunk_attention_triton`.
    """
    q, k, v, dropout_p, padding_mask = call
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    inputs = (tensor.to(dtype) for tensor in (q, k, v))
    seed = draw_seed(q.device) if dropout_p > 0.0 else None
    y, _ = chunk_attention_op(*inputs, padding_mask, seed, CROSS, False, dropout_p)
    return y.to(v.dtype)


def draw_seed(device: torch.device) -> torch.Tensor:
    """Draw the seed of DropKey for one call: a random number (1,) that stays on the device."""
    return torch.randint(2**62, (1,), dtype=torch.int64, device=device)


class _Results(NamedTuple):
    y: torch.Tensor  # (B, L, H, V)
    lse: torch.Tensor  # (B, H, L) float32, log2 sum exp of the scores


def _allocate(call: OperatorArguments) -> _Results:
    batch, length, heads, _ = call.q.shape
    y = call.q.new_empty(batch, length, heads, call.v.shape[3])
    return _Results(y, call.q.new_empty(batch, heads, length, dtype=torch.float32))


def _launches(call: OperatorArguments) -> Launches:
    q, k, v = map(dense_features, call[:3])
    return Launches(OperatorArguments(q, k, v, mask_bytes(call.padding_mask), *call[4:]))


def _forward(call: OperatorArguments) -> _Results:
    results = _allocate(call)
    with torch.cuda.device_of(call.q):
        _launches(call).forward(*results)
    return results


def _backward(
    call: OperatorArguments, grads: list[torch.Tensor], saved: list[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    grad, (y, lse) = dense_features(grads[0]), saved
    grad_q, grad_k, grad_v = map(empty_like, call[:3])
    with torch.cuda.device_of(call.q):
        launches = _launches(call)
        known = (grad, lse, launches.delta(y, grad))
        launches.grad_queries(known, grad_q)
        launches.grad_keys(known, grad_k, grad_v)
    return grad_q, grad_k, grad_v


chunk_attention_op = DifferentiableOperator(
    "chunk_attention",
    OperatorArguments,
    _Results,
    forward=_forward,
    fake=_allocate,
    backward=_backward,
    differentiable=("y",),
    saved=("y", "lse"),
    gradients=("q", "k", "v"),
).register()

"""Chunk attention's ``triton`` backend: the kernels as two operators of PyTorch, with gradients.

Saved for the backward are the inputs, y and one number per query and head.  No sum crosses programs, so
that results repeat bit for bit.  The open chunk is put before the new steps outside the operators, where
autograd follows it.
"""

from typing import Optional

import torch

from megalodon_tasks.cuda_ops.attention.open_chunk import extend, keep_open
from megalodon_tasks.cuda_ops.attention.state import ChunkAttentionState
from megalodon_tasks.cuda_ops.attention.triton_launch import Call


def chunk_attention_triton(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    chunk_size: int | None,
    causal: bool,
    dropout_p: float,
    padding_mask: torch.Tensor | None,
    state: ChunkAttentionState | None,
) -> tuple[torch.Tensor, ChunkAttentionState | None]:
    """:func:`chunk_attention` in Triton, for float32, bfloat16 or float16.

    DropKey's mask is a function of one number drawn from the default generator of the device, so that a
    seed repeats it; it is not the mask that other backends draw under that seed.
    """
    seen = extend(state, k, v, padding_mask)
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    inputs = (tensor.to(dtype) for tensor in (q, seen.key, seen.value))
    seed = draw_seed(q.device) if dropout_p > 0.0 else None
    chunk = seen.key.shape[1] if chunk_size is None else chunk_size
    y, _ = chunk_attention_op(*inputs, seen.padding_mask, seed, chunk, causal, dropout_p)
    return y.to(v.dtype), keep_open(seen, chunk_size) if causal else None


def draw_seed(device: torch.device) -> torch.Tensor:
    """What a call draws for DropKey: a random number (1,) that stays on the device."""
    return torch.randint(2**62, (1,), dtype=torch.int64, device=device)


@torch.library.custom_op("megalodon_tasks::chunk_attention", mutates_args=())
def chunk_attention_op(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    padding_mask: Optional[torch.Tensor],
    seed: Optional[torch.Tensor],
    chunk: int,
    causal: bool,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """q (B, L, H, K), k (B, S, H, K), v (B, S, H, V) of one dtype, mask (B, S).

    The last L of the S steps are the queries.  Returns y (B, L, H, V) and, for the backward,
    ``log2 sum exp`` of the scores (B, H, L).
    """
    q, k, v = (_last_axis_dense(tensor) for tensor in (q, k, v))
    y = q.new_empty(*q.shape[:3], v.shape[3])
    lse = q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)
    with torch.cuda.device_of(q):
        Call(q, k, v, _as_bytes(padding_mask), seed, chunk, causal, dropout_p).forward(y, lse)
    return y, lse


@chunk_attention_op.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    padding_mask: Optional[torch.Tensor],
    seed: Optional[torch.Tensor],
    chunk: int,
    causal: bool,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    y = q.new_empty(*q.shape[:3], v.shape[3])
    return y, q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)


@torch.library.custom_op("megalodon_tasks::chunk_attention_backward", mutates_args=())
def chunk_attention_backward_op(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    padding_mask: Optional[torch.Tensor],
    seed: Optional[torch.Tensor],
    y: torch.Tensor,
    lse: torch.Tensor,
    chunk: int,
    causal: bool,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v."""
    grad, q, k, v = (_last_axis_dense(tensor) for tensor in (grad, q, k, v))
    grads = tuple(_like(tensor) for tensor in (q, k, v))
    with torch.cuda.device_of(q):
        call = Call(q, k, v, _as_bytes(padding_mask), seed, chunk, causal, dropout_p)
        known = (grad, lse, call.delta(y, grad))
        call.grad_queries(known, grads[0])
        call.grad_keys(known, *grads[1:])
    return grads


@chunk_attention_backward_op.register_fake
def _(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    padding_mask: Optional[torch.Tensor],
    seed: Optional[torch.Tensor],
    y: torch.Tensor,
    lse: torch.Tensor,
    chunk: int,
    causal: bool,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _like(q), _like(k), _like(v)


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:
    *tensors, ctx.chunk, ctx.causal, ctx.dropout_p = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(
    ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor | None, _: None
) -> tuple[torch.Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    grads = chunk_attention_backward_op(
        grad, *ctx.saved_tensors, ctx.chunk, ctx.causal, ctx.dropout_p
    )
    return *grads, None, None, None, None, None


chunk_attention_op.register_autograd(_backward, setup_context=_setup_context)


def _last_axis_dense(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _as_bytes(mask: torch.Tensor | None) -> torch.Tensor | None:
    return None if mask is None else mask.contiguous().view(torch.uint8)

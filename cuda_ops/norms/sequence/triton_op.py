"""Sequence norm's ``triton`` backend: the kernels as two operators of PyTorch, with gradients.

Saved for the backward are the inputs and the moments of each sequence and group.  Sums over programs
are taken in a fixed order, so that results repeat bit for bit.
"""

from typing import Optional

import torch
import triton

from megalodon_tasks.cuda_ops.norms.sequence import triton_kernels as kernels
from megalodon_tasks.cuda_ops.norms.triton_launch import (
    Plan,
    as_bytes,
    block_moments,
    last_axis_dense,
    plan_for,
    total_moments,
)


def sequence_norm_triton(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    num_groups: int,
    *,
    eps: float,
    padding_mask: torch.Tensor | None,
) -> torch.Tensor:
    """:func:`sequence_norm` in Triton, for x in float32, bfloat16 or float16."""
    return sequence_norm_op(x, scale, bias, padding_mask, num_groups, eps)[0]


@torch.library.custom_op("megalodon_tasks::sequence_norm", mutates_args=())
def sequence_norm_op(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    padding_mask: Optional[torch.Tensor],
    groups: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y, contiguous; and for the backward real steps (B,) and moments (3, B, G)."""
    x, plan, mask = last_axis_dense(x), plan_for(x, groups), as_bytes(padding_mask)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    with torch.cuda.device_of(x):
        count, total = total_moments(plan, *block_moments(plan, x, mask))
        kernels.sequence_norm_kernel[_grid(plan)](
            x,
            scale.contiguous(),
            bias.contiguous(),
            mask,
            total,
            y,
            stride_b=x.stride(0),
            stride_l=x.stride(1),
            **_shared(plan, eps),
        )
    return y, count, total


@sequence_norm_op.register_fake
def _(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    padding_mask: Optional[torch.Tensor],
    groups: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    count = x.new_empty(x.shape[0], dtype=torch.int64)
    return y, count, x.new_empty(3, x.shape[0], groups, dtype=torch.float32)


@torch.library.custom_op("megalodon_tasks::sequence_norm_backward", mutates_args=())
def sequence_norm_backward_op(
    grad: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    padding_mask: Optional[torch.Tensor],
    count: torch.Tensor,
    total: torch.Tensor,
    groups: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, scale and bias."""
    x, grad, plan = last_axis_dense(x), last_axis_dense(grad), plan_for(x, groups)
    scale, mask = scale.contiguous(), as_bytes(padding_mask)
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    partial = total.new_empty(plan.batch, plan.runs, 2, plan.dim)
    strides = dict(zip(("stride_b", "stride_l"), x.stride(), strict=False))
    strides |= dict(zip(("grad_stride_b", "grad_stride_l"), grad.stride(), strict=False))
    shared = {**strides, **_shared(plan, eps)}
    with torch.cuda.device_of(x):
        rows, columns = plan.batch * plan.runs, _grid(plan)[1]
        kernels.sequence_norm_sums_kernel[(rows, columns)](
            x, grad, mask, total, partial, blocks=plan.blocks_per_program, **shared
        )
        sums_B2D = partial.sum(1)
        elements = count.clamp(min=1) * plan.features
        means_B2G = (sums_B2D * scale.float()).unflatten(-1, (groups, -1)).sum(-1)
        means_B2G = means_B2G / elements[:, None, None]
        kernels.sequence_norm_backward_kernel[_grid(plan)](
            x, grad, scale, mask, total, means_B2G, grad_x, **shared
        )
    grad_scale, grad_bias = sums_B2D.sum(0)
    return grad_x, grad_scale.to(scale.dtype, copy=True), grad_bias.to(bias.dtype, copy=True)


@sequence_norm_backward_op.register_fake
def _(
    grad: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    padding_mask: Optional[torch.Tensor],
    count: torch.Tensor,
    total: torch.Tensor,
    groups: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    like_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    return like_x, scale.new_empty(scale.shape), bias.new_empty(bias.shape)


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:
    x, scale, bias, padding_mask, groups, eps = inputs
    _, count, total = output
    ctx.save_for_backward(x, scale, bias, padding_mask, count, total)
    ctx.groups, ctx.eps = groups, eps
    ctx.mark_non_differentiable(total)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor | None, *_: None
) -> tuple[torch.Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    grads = sequence_norm_backward_op(grad, *ctx.saved_tensors, ctx.groups, ctx.eps)
    return *grads, None, None, None


sequence_norm_op.register_autograd(_backward, setup_context=_setup_context)


def _tile_features(plan: Plan) -> int:
    return plan.tile_groups * triton.next_power_of_2(plan.features)


def _grid(plan: Plan) -> tuple[int, int]:
    return (plan.batch * plan.blocks, triton.cdiv(plan.dim, _tile_features(plan)))


def _shared(plan: Plan, eps: float) -> dict[str, float]:
    """Arguments that all kernels of the op take."""
    constants = {name: plan.constants[name] for name in ("J", "BT", "num_warps")}
    constants["BD"] = _tile_features(plan)
    plane = plan.batch * plan.groups
    return {"eps": eps, "plane": plane, **plan.sizes, **constants}

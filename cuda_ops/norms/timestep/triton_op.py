"""Timestep norm's ``triton`` backend: the kernels as two operators of PyTorch, with gradients.

Saved for the backward are the inputs and, per block of time, the moments before it; everything that
has a value per step is computed again.  Sums over programs are taken in a fixed order, so that results
repeat bit for bit.
"""

from typing import Optional

import torch

from megalodon_tasks.cuda_ops.norms.timestep import triton_kernels as kernels
from megalodon_tasks.cuda_ops.norms.timestep.state import TimestepNormState
from megalodon_tasks.cuda_ops.norms.triton_launch import (
    Plan,
    as_bytes,
    block_moments,
    last_axis_dense,
    moments_before,
    plan_for,
    scan_grid,
    scan_tile,
)


def timestep_norm_triton(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    num_groups: int,
    *,
    eps: float,
    state: TimestepNormState | None,
    padding_mask: torch.Tensor | None,
) -> tuple[torch.Tensor, TimestepNormState]:
    """:func:`timestep_norm` in Triton, for x in float32, bfloat16 or float16."""
    past = (None, None, None, None)
    if state is not None:
        low = torch.zeros_like(state.mean) if state.mean_low is None else state.mean_low
        past = (state.count, state.mean.float(), low.float().detach(), state.var.float())
    y, count, mean, low, var, _, _ = timestep_norm_op(
        x, scale, bias, *past, padding_mask, num_groups, eps
    )
    return y, TimestepNormState(count, mean, var, low.detach())


@torch.library.custom_op("megalodon_tasks::timestep_norm", mutates_args=())
def timestep_norm_op(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    count: Optional[torch.Tensor],
    mean: Optional[torch.Tensor],
    mean_low: Optional[torch.Tensor],
    var: Optional[torch.Tensor],
    padding_mask: Optional[torch.Tensor],
    groups: int,
    eps: float,
) -> tuple[
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
]:
    """y, contiguous; count, mean, mean_low and var after the last step; and for the backward steps and
    moments before each block, which are empty if there is one block."""
    x, plan, mask = last_axis_dense(x), plan_for(x, groups), as_bytes(padding_mask)
    state = _contiguous(count, mean, mean_low, var)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    end_count = torch.empty(plan.batch, dtype=torch.int64, device=x.device)
    end = torch.empty(3, plan.batch, groups, dtype=torch.float32, device=x.device)
    before, prefix = end_count.new_empty(0), end.new_empty(0)
    with torch.cuda.device_of(x):
        if plan.blocks > 1:
            before, prefix = moments_before(plan, *block_moments(plan, x, mask), state)
        kernels.timestep_norm_kernel[plan.grid](
            x,
            scale.contiguous(),
            bias.contiguous(),
            mask,
            *state,
            *_if_any(before, prefix),
            y,
            end_count,
            end,
            stride_b=x.stride(0),
            stride_l=x.stride(1),
            eps=eps,
            plane=plan.plane,
            end_plane=plan.batch * groups,
            **plan.sizes,
            **plan.constants,
        )
    return y, end_count, *(plane.clone() for plane in end), before, prefix


@timestep_norm_op.register_fake
def _(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    count: Optional[torch.Tensor],
    mean: Optional[torch.Tensor],
    mean_low: Optional[torch.Tensor],
    var: Optional[torch.Tensor],
    padding_mask: Optional[torch.Tensor],
    groups: int,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    plan = plan_for(x, groups)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    moments = (x.new_empty(plan.batch, groups, dtype=torch.float32) for _ in range(3))
    blocks = (plan.batch, plan.blocks) if plan.blocks > 1 else (0,)
    prefix = (3, *blocks, groups) if plan.blocks > 1 else (0,)
    return (
        y,
        x.new_empty(plan.batch, dtype=torch.int64),
        *moments,
        x.new_empty(blocks, dtype=torch.int64),
        x.new_empty(prefix, dtype=torch.float32),
    )


@torch.library.custom_op("megalodon_tasks::timestep_norm_backward", mutates_args=())
def timestep_norm_backward_op(
    grad: torch.Tensor,
    grad_mean: Optional[torch.Tensor],
    grad_var: Optional[torch.Tensor],
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    state: list[torch.Tensor],
    padding_mask: Optional[torch.Tensor],
    end: list[torch.Tensor],
    before: torch.Tensor,
    prefix: torch.Tensor,
    groups: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, scale and bias, and of mean and var (2, B, G), empty without a state.

    ``state`` is empty or count, mean, mean_low, var; ``end`` the first three after the last step.
    """
    x, grad, plan = last_axis_dense(x), last_axis_dense(grad), plan_for(x, groups)
    scale, mask = scale.contiguous(), as_bytes(padding_mask)
    past = _contiguous(*state) if state else (None, None, None, None)
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    known = (mask, *past, *_if_any(before, prefix))
    strides = dict(zip(("stride_b", "stride_l"), x.stride(), strict=False))
    strides |= dict(zip(("grad_stride_b", "grad_stride_l"), grad.stride(), strict=False))
    shared = {"eps": eps, "plane": plan.plane, **strides, **plan.sizes, **plan.constants}
    lines = prefix.new_empty(3, plan.batch, plan.blocks, groups)
    partial = prefix.new_empty(plan.batch * plan.runs, 2, plan.dim)
    with torch.cuda.device_of(x):
        kernels.timestep_norm_lines_kernel[(plan.batch * plan.runs, plan.columns)](
            x, grad, scale, *known, lines, partial, blocks=plan.blocks_per_program, **shared
        )
        later, grad_start = _carry(plan, lines, end, _contiguous(grad_mean, grad_var), past)
        kernels.timestep_norm_backward_kernel[plan.grid](
            x, grad, scale, *known, later, grad_x, **shared
        )
    grad_scale, grad_bias = partial.sum(0)
    return (
        grad_x,
        grad_scale.to(scale.dtype, copy=True),
        grad_bias.to(bias.dtype, copy=True),
        grad_start,
    )


def _carry(
    plan: Plan,
    lines: torch.Tensor,
    end: list[torch.Tensor],
    grads: tuple[torch.Tensor | None, ...],
    state: tuple[torch.Tensor | None, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shift and slope behind each block (2, B, N, G), and the gradients of the state (2, B, G)."""
    end_count, *end_mean = end
    later = torch.empty_like(lines[:2])
    no_state = state[0] is None
    grad_start = lines.new_empty((0,) if no_state else (2, plan.batch, plan.groups))
    kernels.timestep_norm_carry_kernel[scan_grid(plan)](
        lines,
        end_count,
        torch.stack(end_mean),
        *grads,
        *state[:3],
        later,
        None if no_state else grad_start,
        N=plan.blocks,
        G=plan.groups,
        plane=plan.plane,
        end_plane=plan.batch * plan.groups,
        J=plan.features,
        **scan_tile(plan),
    )
    return later, grad_start


@timestep_norm_backward_op.register_fake
def _(
    grad: torch.Tensor,
    grad_mean: Optional[torch.Tensor],
    grad_var: Optional[torch.Tensor],
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    state: list[torch.Tensor],
    padding_mask: Optional[torch.Tensor],
    end: list[torch.Tensor],
    before: torch.Tensor,
    prefix: torch.Tensor,
    groups: int,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    like_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    of_state = prefix.new_empty((2, x.shape[0], groups) if state else (0,))
    return like_x, scale.new_empty(scale.shape), bias.new_empty(bias.shape), of_state


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:
    x, scale, bias, *state, padding_mask, groups, eps = inputs
    _, count, mean, low, _, before, prefix = output
    ctx.save_for_backward(x, scale, bias, padding_mask, count, mean, low, before, prefix, *state)
    ctx.groups, ctx.eps = groups, eps
    ctx.mark_non_differentiable(low, prefix)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: torch.autograd.function.FunctionCtx,
    grad: torch.Tensor | None,
    _: None,
    grad_mean: torch.Tensor | None,
    __: None,
    grad_var: torch.Tensor | None,
    *___: None,
) -> tuple[torch.Tensor | None, ...]:
    x, scale, bias, padding_mask, *end, before, prefix = ctx.saved_tensors[:9]
    state = [tensor for tensor in ctx.saved_tensors[9:] if tensor is not None]
    grad_x, grad_scale, grad_bias, of_state = timestep_norm_backward_op(
        torch.zeros_like(x) if grad is None else grad,
        grad_mean,
        grad_var,
        x,
        scale,
        bias,
        state,
        padding_mask,
        end,
        before,
        prefix,
        ctx.groups,
        ctx.eps,
    )
    of_mean, of_var = of_state if state else (None, None)
    return grad_x, grad_scale, grad_bias, None, of_mean, None, of_var, None, None, None


timestep_norm_op.register_autograd(_backward, setup_context=_setup_context)


def _contiguous(*tensors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)


def _if_any(before: torch.Tensor, prefix: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """What comes before each block, or Nones where one block starts from the state itself."""
    return (before, prefix) if before.numel() else (None, None)

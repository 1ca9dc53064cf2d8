"""Timestep norm's ``triton`` backend: the kernels as differentiable operators of PyTorch.

Saved for the backward are the inputs and, per block of time, the moments before it; everything that
has a value per step is computed again.  Sums over programs are taken in a fixed order, so that results
repeat bit for bit.
"""

from typing import NamedTuple

import torch

from megalodon_tasks.cuda_ops.norms.arguments import NormCall, TimestepNormState
from megalodon_tasks.cuda_ops.norms.timestep import triton_kernels as kernels
from megalodon_tasks.cuda_ops.norms.triton_launch import (
    Plan,
    block_moments,
    moments_before,
    plan_for,
    scan_grid,
    scan_tile,
)
from megalodon_tasks.cuda_ops.operator import DifferentiableOperator, contiguous, empty_like
from megalodon_tasks.cuda_ops.triton_helpers import (
    dense_features,
    mask_bytes,
)


def timestep_norm_triton(call: NormCall) -> tuple[torch.Tensor, TimestepNormState]:
    """Compute :func:`timestep_norm` in Triton, for x in float32, bfloat16 or float16."""
    x, scale, bias, num_groups, eps, padding_mask, state = call
    past = (None, None, None, None)
    if state is not None:
        low = torch.zeros_like(state.mean) if state.mean_low is None else state.mean_low
        past = (state.count, state.mean.float(), low.float().detach(), state.var.float())
    y, count, mean, low, var, _, _ = timestep_norm_op(
        x, scale, bias, *past, padding_mask, num_groups, eps
    )
    return y, TimestepNormState(count, mean, var, low.detach())


class _Arguments(NamedTuple):
    """The moments before the first step are all given, or all None."""

    x: torch.Tensor  # (B, L, D)
    scale: torch.Tensor  # (D,)
    bias: torch.Tensor  # (D,)
    count: torch.Tensor | None  # (B,) int64
    mean: torch.Tensor | None  # (B, G) float32, as the next two
    mean_low: torch.Tensor | None
    var: torch.Tensor | None
    padding_mask: torch.Tensor | None  # (B, L)
    groups: int
    eps: float

    @property
    def state(self) -> tuple[torch.Tensor | None, ...]:
        """The moments before the first step as the kernels take them."""
        return contiguous(*self[3:7])


class _Results(NamedTuple):
    """``before`` and ``prefix`` are saved for the backward, and empty if there is one block."""

    y: torch.Tensor  # (B, L, D), contiguous
    count: torch.Tensor  # (B,) int64, after the last step, as the next three
    mean: torch.Tensor  # (B, G)
    mean_low: torch.Tensor
    var: torch.Tensor
    before: torch.Tensor  # (B, N) int64, steps before each block
    prefix: torch.Tensor  # (3, B, N, G), moments before each block


def _allocate(call: _Arguments) -> _Results:
    plan = plan_for(call.x, call.groups)
    moments = (call.x.new_empty(plan.batch, plan.groups, dtype=torch.float32) for _ in range(3))
    blocks, prefix = (0,), (0,)
    if plan.blocks > 1:
        blocks, prefix = (plan.batch, plan.blocks), (3, plan.batch, plan.blocks, plan.groups)
    return _Results(
        empty_like(call.x),
        call.x.new_empty(plan.batch, dtype=torch.int64),
        *moments,
        call.x.new_empty(blocks, dtype=torch.int64),
        call.x.new_empty(prefix, dtype=torch.float32),
    )


def _forward(call: _Arguments) -> _Results:
    x, mask = dense_features(call.x), mask_bytes(call.padding_mask)
    plan, state, y = plan_for(x, call.groups), call.state, empty_like(x)
    count = torch.empty(plan.batch, dtype=torch.int64, device=x.device)
    end = torch.empty(3, plan.batch, plan.groups, dtype=torch.float32, device=x.device)
    before, prefix = count.new_empty(0), end.new_empty(0)
    with torch.cuda.device_of(x):
        if plan.blocks > 1:
            before, prefix = moments_before(plan, *block_moments(plan, x, mask), state)
        kernels.timestep_norm_kernel[plan.grid](
            x,
            *contiguous(call.scale, call.bias),
            mask,
            state,
            *_if_any(before, prefix),
            y,
            count,
            end,
            strides=x.stride()[:2],
            eps=call.eps,
            plane=plan.plane,
            end_plane=plan.batch * plan.groups,
            **plan.sizes,
            **plan.constants,
        )
    return _Results(y, count, *(plane.clone() for plane in end), before, prefix)


def _backward(
    call: _Arguments, grads: list[torch.Tensor | None], saved: list[torch.Tensor]
) -> tuple[torch.Tensor | None, ...]:
    x, mask, *end = dense_features(call.x), mask_bytes(call.padding_mask), *saved[:3]
    grad = torch.zeros_like(x) if grads[0] is None else dense_features(grads[0])
    plan, (scale,), (before, prefix) = plan_for(x, call.groups), contiguous(call.scale), saved[3:]
    known = (mask, call.state, *_if_any(before, prefix))
    strides = {"strides": x.stride()[:2], "grad_strides": grad.stride()[:2]}
    shared = {"eps": call.eps, "plane": plan.plane, **strides, **plan.sizes, **plan.constants}
    grad_x = empty_like(x)
    lines = prefix.new_empty(3, plan.batch, plan.blocks, plan.groups)
    partial = prefix.new_empty(plan.batch * plan.runs, 2, plan.dim)
    with torch.cuda.device_of(x):
        kernels.timestep_norm_lines_kernel[(plan.batch * plan.runs * plan.columns,)](
            x, grad, scale, *known, lines, partial, blocks=plan.blocks_per_program, **shared
        )
        later, grad_start = _carry(plan, lines, end, contiguous(*grads[1:]), call.state)
        kernels.timestep_norm_backward_kernel[plan.grid](
            x, grad, scale, *known, later, grad_x, **shared
        )
    grad_scale, grad_bias = partial.sum(0)
    grad_scale = grad_scale.to(scale.dtype, copy=True)
    return grad_x, grad_scale, grad_bias.to(call.bias.dtype, copy=True), *grad_start


def _carry(
    plan: Plan,
    lines: torch.Tensor,
    end: list[torch.Tensor],
    grads: tuple[torch.Tensor | None, ...],
    state: tuple[torch.Tensor | None, ...],
) -> tuple[torch.Tensor, tuple[torch.Tensor | None, torch.Tensor | None]]:
    """Return shift and slope after each block (2, B, N, G), and the gradients of the state, if any."""
    end_count, *end_mean = end
    later, grad_start = torch.empty_like(lines[:2]), (None, None)
    if state[0] is not None:
        shape = plan.batch, plan.groups
        grad_start = lines.new_empty(shape), lines.new_empty(shape)
    kernels.timestep_norm_carry_kernel[scan_grid(plan)](
        lines,
        end_count,
        torch.stack(end_mean),
        grads,
        state,
        later,
        grad_start,
        N=plan.blocks,
        G=plan.groups,
        plane=plan.plane,
        end_plane=plan.batch * plan.groups,
        J=plan.features,
        **scan_tile(plan),
    )
    return later, grad_start


timestep_norm_op = DifferentiableOperator(
    "timestep_norm",
    _Arguments,
    _Results,
    forward=_forward,
    fake=_allocate,
    backward=_backward,
    differentiable=("y", "mean", "var"),
    saved=("count", "mean", "mean_low", "before", "prefix"),
    gradients=("x", "scale", "bias", "mean", "var"),
).register()


def _if_any(before: torch.Tensor, prefix: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """Return what comes before each block, or Nones where one block starts from the state itself."""
    return (before, prefix) if before.numel() else (None, None)

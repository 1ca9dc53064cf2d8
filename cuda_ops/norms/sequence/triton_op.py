"""Sequence norm's ``triton`` backend: the kernels as differentiable operators of PyTorch.

Saved for the backward are the inputs and the moments of each sequence and group.  Sums over programs
are taken in a fixed order, so that results repeat bit for bit.
"""

from typing import NamedTuple

import torch
import triton

from megalodon_tasks.cuda_ops.norms.arguments import NormCall, SequenceNormArguments
from megalodon_tasks.cuda_ops.norms.sequence import triton_kernels as kernels
from megalodon_tasks.cuda_ops.norms.triton_launch import (
    Plan,
    block_moments,
    plan_for,
    total_moments,
)
from megalodon_tasks.cuda_ops.operator import DifferentiableOperator, contiguous, empty_like
from megalodon_tasks.cuda_ops.triton_helpers import (
    dense_features,
    mask_bytes,
)


def sequence_norm_triton(call: NormCall) -> torch.Tensor:
    """Compute :func:`sequence_norm` in Triton, for x in float32, bfloat16 or float16."""
    return sequence_norm_op(*SequenceNormArguments.of(call))[0]


class _Results(NamedTuple):
    y: torch.Tensor  # (B, L, D), contiguous
    count: torch.Tensor  # (B,) int64, real steps
    total: torch.Tensor  # (3, B, G) float32: mean, its low part, variance


def _allocate(call: SequenceNormArguments) -> _Results:
    count = call.x.new_empty(call.x.shape[0], dtype=torch.int64)
    total = call.x.new_empty(3, call.x.shape[0], call.groups, dtype=torch.float32)
    return _Results(empty_like(call.x), count, total)


def _forward(call: SequenceNormArguments) -> _Results:
    x, mask, plan = (
        dense_features(call.x),
        mask_bytes(call.padding_mask),
        plan_for(call.x, call.groups),
    )
    y = empty_like(x)
    with torch.cuda.device_of(x):
        count, total = total_moments(plan, *block_moments(plan, x, mask))
        kernels.sequence_norm_kernel[_grid(plan, plan.blocks)](
            x,
            *contiguous(call.scale, call.bias),
            mask,
            total,
            y,
            **_shared(plan, call.eps, strides=x),
        )
    return _Results(y, count, total)


def _backward(
    call: SequenceNormArguments, grads: list[torch.Tensor], saved: list[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    x, grad, plan = dense_features(call.x), dense_features(grads[0]), plan_for(call.x, call.groups)
    (scale,), mask, (count, total) = contiguous(call.scale), mask_bytes(call.padding_mask), saved
    grad_x = empty_like(x)
    partial = total.new_empty(plan.batch, plan.runs, 2, plan.dim)
    shared = _shared(plan, call.eps, strides=x, grad_strides=grad)
    with torch.cuda.device_of(x):
        kernels.sequence_norm_sums_kernel[_grid(plan, plan.runs)](
            x, grad, mask, total, partial, blocks=plan.blocks_per_program, **shared
        )
        sums_B2D = partial.sum(1)
        elements = count.clamp(min=1) * plan.features
        means_B2G = (sums_B2D * scale.float()).unflatten(-1, (plan.groups, -1)).sum(-1)
        means_B2G = means_B2G / elements[:, None, None]
        kernels.sequence_norm_backward_kernel[_grid(plan, plan.blocks)](
            x, grad, scale, mask, total, means_B2G, grad_x, **shared
        )
    grad_scale, grad_bias = sums_B2D.sum(0)
    return grad_x, grad_scale.to(scale.dtype, copy=True), grad_bias.to(call.bias.dtype, copy=True)


sequence_norm_op = DifferentiableOperator(
    "sequence_norm",
    SequenceNormArguments,
    _Results,
    forward=_forward,
    fake=_allocate,
    backward=_backward,
    differentiable=("y",),
    saved=("count", "total"),
    gradients=("x", "scale", "bias"),
).register()


def _tile_features(plan: Plan) -> int:
    return plan.tile_groups * triton.next_power_of_2(plan.features)


def _grid(plan: Plan, rows: int) -> tuple[int]:
    """Return the grid for ``rows`` programs along the time of a sequence."""
    return (plan.batch * rows * triton.cdiv(plan.dim, _tile_features(plan)),)


def _shared(plan: Plan, eps: float, **strided: torch.Tensor) -> dict[str, object]:
    """Return arguments that all kernels of the op take, and the strides of tensors by name."""
    constants = {name: plan.constants[name] for name in ("J", "BT", "num_warps")}
    constants["BD"] = _tile_features(plan)
    strides = {name: tensor.stride()[:2] for name, tensor in strided.items()}
    return {"eps": eps, "plane": plan.batch * plan.groups, **strides, **plan.sizes, **constants}

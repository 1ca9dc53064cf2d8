"""CEMA's ``triton`` backend: the kernels as differentiable operators of PyTorch.

Forward, per direction: tables of powers, what each segment adds to the state, the states carried from
segment to segment, the outputs.  Saved are the inputs and what the segments add.  Backward, in the other
order: one pass over inputs and gradients finds the sums over pairs of steps of a segment, from which the
gradients of the coefficients follow, and what the segment adds to the adjoint state; carrying that from
segment to segment, with what was saved, adds the pairs of steps of different segments; a last pass
computes the gradient of x.  Sums over programs are taken in a fixed order, so that results repeat bit
for bit.

Complex numbers enter and leave the operators as pairs of float32.  The coefficients are computed outside
of them, in float64, where autograd differentiates them.
"""

from typing import NamedTuple

import torch

from megalodon_tasks.cuda_ops.complex_ema.arguments import CemaCall
from megalodon_tasks.cuda_ops.complex_ema.coefficients import Coefficients, coefficients, power
from megalodon_tasks.cuda_ops.complex_ema.triton_launch import Direction, Plan, plan_for
from megalodon_tasks.cuda_ops.operator import DifferentiableOperator, contiguous, empty_like
from megalodon_tasks.cuda_ops.triton_helpers import (
    dense_features,
    mask_bytes,
)


def cema_triton(call: CemaCall) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute :func:`cema` in Triton, for x in float32, bfloat16 or float16; states are complex64."""
    state = call.state
    pairs = None if state is None else torch.view_as_real(state.to(torch.complex64).resolve_conj())
    coeffs, omega_D = coefficients(*call.logits), call.omega[:, 0]
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in coeffs)
    y_BLD, last, _ = cema_op(
        call.x, *coeffs, omega_D, pairs, call.padding_mask, call.bidirectional, save
    )
    return y_BLD, None if call.bidirectional else torch.view_as_complex(last)


class _Arguments(NamedTuple):
    """Coefficients are float64, (D, N) or, with both directions, (2D, N)."""

    x: torch.Tensor  # (B, L, D)
    p: torch.Tensor
    log_radius: torch.Tensor
    angle: torch.Tensor
    eta_re: torch.Tensor
    eta_im: torch.Tensor
    omega: torch.Tensor  # (D,)
    state: torch.Tensor | None  # (B, D, N, 2) float32
    padding_mask: torch.Tensor | None  # (B, L)
    bidirectional: bool
    save: bool  # whether the backward will ask for gradients of coefficients


class _Results(NamedTuple):
    y: torch.Tensor  # (B, L, D), contiguous
    last: torch.Tensor  # (B, D, N, 2) float32, the state after step L; empty if bidirectional
    ends: torch.Tensor  # float32, what segments add to states in each direction, if saved


def _carries(call: _Arguments, plan: Plan) -> bool:
    """Return whether states pass into a segment or out of the last one."""
    return not call.bidirectional or plan.segments > 1


def _allocate(call: _Arguments) -> _Results:
    plan, new = plan_for(call.x, call.p.shape[1]), call.x.new_empty
    last = (0,) if call.bidirectional else (plan.batch, plan.dim, plan.order, 2)
    ends = (0,)
    if call.save and _carries(call, plan):
        ends = (1 + call.bidirectional, *plan.ends_shape(2))
    return _Results(
        empty_like(call.x), new(last, dtype=torch.float32), new(ends, dtype=torch.float32)
    )


def _forward(call: _Arguments) -> _Results:
    x, plan, directions = _prepare(call)
    results = _allocate(call)
    last = results.last
    with torch.cuda.device_of(x):
        for k, direction in enumerate(directions):
            carried = None
            if _carries(call, plan):
                carried = last.new_empty(plan.ends_shape(1))
                ends = results.ends[k] if call.save else carried
                direction.ends(x, ends)
                final = direction.carry(ends, carried, *contiguous(call.state))
                last = last if call.bidirectional else final
            direction.output(x, results.y, carried, adjoint=False)
    return results._replace(last=last)


def _backward(
    call: _Arguments, grads: list[torch.Tensor | None], saved: list[torch.Tensor]
) -> list[torch.Tensor | None]:
    x, plan, directions = _prepare(call)
    grad = torch.zeros_like(x) if grads[0] is None else dense_features(grads[0])
    state, grad_last = contiguous(call.state, None if call.bidirectional else grads[1])
    grad_x, grad_state, grad_omega, parts = empty_like(x), None, None, []
    with torch.cuda.device_of(x):
        for k, direction in enumerate(directions):
            x_ends = saved[0][k] if saved[0].numel() else None
            carried = ends = None
            if plan.segments > 1 or state is not None or grad_last is not None:
                ends = saved[0].new_empty(plan.ends_shape(2))
            sums = direction.sums(x, grad, ends)
            if ends is not None:
                conj_last = None if grad_last is None else _conj(grad_last)
                carried, before, totals, across = direction.carry_back(ends, x_ends, conj_last)
                if across is not None:
                    sums[:, -across.shape[2] :] += across.sum(0)
            direction.output(grad, grad_x, carried, adjoint=True)
            part, by_omega = direction.gradients(sums)
            if not direction.backward:
                grad_omega = by_omega.to(call.omega.dtype)
            if state is not None:
                grad_state = _conj(before)
                part = _add_state_in(part, direction.coeffs, state, *totals)
            if grad_last is not None and x_ends is not None:
                part = _add_state_out(part, direction, x_ends, state, grad_last)
            parts.append(part)
    # Without saved ends the gradients of the coefficients are incomplete, and nobody asked for them.
    coeffs = parts[0] if len(parts) == 1 else [torch.cat(p) for p in zip(*parts, strict=True)]
    return [grad_x, *coeffs, grad_omega, grad_state]


cema_op = DifferentiableOperator(
    "cema",
    _Arguments,
    _Results,
    forward=_forward,
    fake=_allocate,
    backward=_backward,
    differentiable=("y", "last"),
    saved=("ends",),
    gradients=("x", *Coefficients._fields, "omega", "state"),
).register()


def _prepare(call: _Arguments) -> tuple[torch.Tensor, Plan, list[Direction]]:
    """Return what the kernels can address, and one :class:`Direction` or two."""
    x, (omega,), coeffs = dense_features(call.x), contiguous(call.omega), contiguous(*call[1:6])
    mask, plan, dim = mask_bytes(call.padding_mask), plan_for(x, coeffs[0].shape[1]), x.shape[2]
    with torch.cuda.device_of(x):
        directions = [
            Direction(
                plan,
                Coefficients(*coeffs).rows(k * dim, (k + 1) * dim),
                omega,
                mask,
                backward=k == 1,
            )
            for k in range(1 + call.bidirectional)
        ]
    return x, plan, directions


def _conj(pairs: torch.Tensor) -> torch.Tensor:
    # Not times a new tensor (1, -1), whose copy from the host a GPU would wait for, and not Tensor.conj,
    # which only sets a flag: compiled graphs run operators without what resolves such flags.
    return torch.stack([pairs[..., 0], -pairs[..., 1]], dim=-1)


def _wide(pairs: torch.Tensor) -> torch.Tensor:
    return torch.view_as_complex(pairs.double())


def _add_state_in(
    part: Coefficients,
    coeffs: Coefficients,
    state: torch.Tensor,
    final: torch.Tensor,
    final_log: torch.Tensor,
) -> Coefficients:
    """Add what the state before the first step contributes through the outputs.

    ``y_t`` contains ``Re sum eta q**(t + 1) s_0``; ``final`` is ``sum q**(t + 1) grad_t`` and
    ``final_log`` its derivative along log q.
    """
    eta = torch.complex(coeffs.eta_re, coeffs.eta_im)
    by_eta = (_wide(final) * _wide(state)).sum(0)
    by_log = eta * (_wide(final_log) * _wide(state)).sum(0)
    return Coefficients(
        part.p,
        part.log_radius + by_log.real,
        part.angle - by_log.imag,
        part.eta_re + by_eta.real,
        part.eta_im - by_eta.imag,
    )


def _add_state_out(
    part: Coefficients,
    direction: Direction,
    x_ends: torch.Tensor,
    state: torch.Tensor | None,
    grad_last: torch.Tensor,
) -> Coefficients:
    """Add what the coefficients contribute through ``s_L = q**L s_0 + p sum q**(L - 1 - t) x_t``."""
    coeffs, length = direction.coeffs, direction.plan.length
    from_x, from_x_log = (_wide(total) for total in direction.total(x_ends))
    weight = _wide(_conj(grad_last))
    by_log = (weight * coeffs.p * from_x_log).sum(0)
    if state is not None:
        decay = length * power(coeffs.log_radius, coeffs.angle, length)
        by_log = by_log + decay * (weight * _wide(state)).sum(0)
    return part._replace(
        p=part.p + (weight * from_x).sum(0).real,
        log_radius=part.log_radius + by_log.real,
        angle=part.angle - by_log.imag,
    )

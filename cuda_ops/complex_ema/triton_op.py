"""CEMA's ``triton`` backend: the kernels as two operators of PyTorch, with gradients.

Forward, per direction: tables of powers, what each segment adds to the state, the states carried from
segment to segment, the outputs.  Only the inputs are saved.  Backward runs the same kernels in the other
order for the gradient of x, and one more for the sums from which the gradients of the coefficients
follow; sums over programs are taken in a fixed order, so that results repeat bit for bit.

``torch.compile`` sees two opaque operators, ``megalodon_tasks::cema`` and its backward.  Complex numbers
cross that border as pairs of float32, and the coefficients, in float64, belong to autograd.
"""

from typing import Optional

import torch

from megalodon_tasks.cuda_ops.complex_ema.coefficients import Coefficients, coefficients, power
from megalodon_tasks.cuda_ops.complex_ema.triton_launch import Direction, Plan, plan_for


def cema_triton(
    x_BLD: torch.Tensor,
    alpha: torch.Tensor,
    delta: torch.Tensor,
    theta: torch.Tensor,
    gamma: torch.Tensor,
    omega: torch.Tensor,
    *,
    state: torch.Tensor | None = None,
    padding_mask: torch.Tensor | None = None,
    bidirectional: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """:func:`cema` in Triton, for x in float32, bfloat16 or float16; states are complex64."""
    pairs = None if state is None else torch.view_as_real(state.to(torch.complex64).resolve_conj())
    y_BLD, last = cema_op(
        x_BLD,
        *coefficients(alpha, delta, theta, gamma),
        omega[:, 0],
        pairs,
        padding_mask,
        bidirectional,
    )
    return y_BLD, None if bidirectional else torch.view_as_complex(last)


@torch.library.custom_op("megalodon_tasks::cema", mutates_args=())
def cema_op(
    x: torch.Tensor,
    p: torch.Tensor,
    log_radius: torch.Tensor,
    angle: torch.Tensor,
    eta_re: torch.Tensor,
    eta_im: torch.Tensor,
    omega: torch.Tensor,
    state: Optional[torch.Tensor],
    padding_mask: Optional[torch.Tensor],
    bidirectional: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x (B, L, D), coefficients float64 (D, N) or (2D, N), state (B, D, N, 2) or None.

    Returns y, contiguous, and the state after the last step, which is empty if ``bidirectional``.
    """
    coeffs = Coefficients(p, log_radius, angle, eta_re, eta_im)
    x, plan, directions = _prepare(x, coeffs, omega, padding_mask, bidirectional)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    last = x.new_empty(0, dtype=torch.float32)
    with torch.cuda.device_of(x):
        for direction in directions:
            carried = None
            if plan.segments > 1 or not bidirectional:
                carried, _ = direction.ends(x, adjoint=False, with_log=False)
                weight = (direction.coeffs.p, None)
                last = direction.carry(carried, carried, weight, _contiguous(state))
            direction.output(x, y, carried, adjoint=False)
    return y, last.new_empty(0) if bidirectional else last


@cema_op.register_fake
def _(
    x: torch.Tensor,
    p: torch.Tensor,
    log_radius: torch.Tensor,
    angle: torch.Tensor,
    eta_re: torch.Tensor,
    eta_im: torch.Tensor,
    omega: torch.Tensor,
    state: Optional[torch.Tensor],
    padding_mask: Optional[torch.Tensor],
    bidirectional: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (0,) if bidirectional else (x.shape[0], x.shape[2], p.shape[1], 2)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, x.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("megalodon_tasks::cema_backward", mutates_args=())
def cema_backward_op(
    grad: torch.Tensor,
    grad_last: Optional[torch.Tensor],
    x: torch.Tensor,
    p: torch.Tensor,
    log_radius: torch.Tensor,
    angle: torch.Tensor,
    eta_re: torch.Tensor,
    eta_im: torch.Tensor,
    omega: torch.Tensor,
    state: Optional[torch.Tensor],
    padding_mask: Optional[torch.Tensor],
    bidirectional: bool,
) -> tuple[
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
]:
    """Gradients of x, the five coefficients, omega and the state (empty without a state)."""
    coeffs = Coefficients(p, log_radius, angle, eta_re, eta_im)
    x, plan, directions = _prepare(x, coeffs, omega, padding_mask, bidirectional)
    grad = _last_axis_dense(grad)
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    grad_state, grad_omega, parts = omega.new_empty(0, dtype=torch.float32), omega, []
    state, grad_last = _contiguous(state), _contiguous(grad_last)
    with torch.cuda.device_of(x):
        for direction in directions:
            carried = ends = ends_log = None
            if plan.segments > 1 or state is not None or grad_last is not None:
                ends, ends_log = direction.ends(grad, adjoint=True, with_log=True)
                carried = torch.empty_like(ends)
                weight = (direction.coeffs.eta_re, direction.coeffs.eta_im)
                conj_last = None if grad_last is None else _conj(grad_last)
                before = direction.carry(ends, carried, weight, conj_last)
                finals = direction.carry_log(ends, ends_log)
            direction.output(grad, grad_x, carried, adjoint=True)
            del carried
            part, of_omega = direction.gradients(x, grad, ends, ends_log)
            if not direction.backward:
                grad_omega = of_omega.to(omega.dtype)
            if state is not None:
                grad_state = _conj(before)
                part = _add_state_in(part, direction.coeffs, state, *finals)
            if grad_last is not None:
                part = _add_state_out(part, direction, x, state, grad_last)
            parts.append(part)
    grads = parts[0] if len(parts) == 1 else [torch.cat(pair) for pair in zip(*parts, strict=True)]
    return grad_x, *grads, grad_omega, grad_state


@cema_backward_op.register_fake
def _(
    grad: torch.Tensor,
    grad_last: Optional[torch.Tensor],
    x: torch.Tensor,
    p: torch.Tensor,
    log_radius: torch.Tensor,
    angle: torch.Tensor,
    eta_re: torch.Tensor,
    eta_im: torch.Tensor,
    omega: torch.Tensor,
    state: Optional[torch.Tensor],
    padding_mask: Optional[torch.Tensor],
    bidirectional: bool,
) -> tuple[torch.Tensor, ...]:
    def like(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(tensor, memory_format=torch.contiguous_format)

    of_state = omega.new_empty((0,) if state is None else state.shape, dtype=torch.float32)
    coeffs = (p, log_radius, angle, eta_re, eta_im)
    return like(x), *(like(tensor) for tensor in coeffs), like(omega), of_state


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:
    *tensors, bidirectional = inputs
    ctx.save_for_backward(*tensors)
    ctx.bidirectional = bidirectional
    ctx.set_materialize_grads(False)


def _backward(
    ctx: torch.autograd.function.FunctionCtx,
    grad: torch.Tensor | None,
    grad_last: torch.Tensor | None,
) -> tuple[torch.Tensor | None, ...]:
    x, *others = ctx.saved_tensors
    if ctx.bidirectional:
        grad_last = None
    if grad is None:
        grad = torch.zeros_like(x)
    *grads, grad_state = cema_backward_op(grad, grad_last, x, *others, ctx.bidirectional)
    return *grads, grad_state if others[-2] is not None else None, None, None


cema_op.register_autograd(_backward, setup_context=_setup_context)


def _prepare(
    x: torch.Tensor,
    coeffs: Coefficients,
    omega: torch.Tensor,
    padding_mask: torch.Tensor | None,
    bidirectional: bool,
) -> tuple[torch.Tensor, Plan, list[Direction]]:
    """What the kernels can address, and one :class:`Direction` or two."""
    x, omega = _last_axis_dense(x), omega.contiguous()
    coeffs = Coefficients(*(tensor.contiguous() for tensor in coeffs))
    mask = None if padding_mask is None else padding_mask.contiguous().view(torch.uint8)
    plan, dim = plan_for(x, coeffs.p.shape[1]), x.shape[2]
    with torch.cuda.device_of(x):
        directions = [
            Direction(plan, coeffs.rows(k * dim, (k + 1) * dim), omega, mask, backward=k == 1)
            for k in range(1 + bidirectional)
        ]
    return x, plan, directions


def _last_axis_dense(x_BLD: torch.Tensor) -> torch.Tensor:
    return x_BLD if x_BLD.stride(2) == 1 else x_BLD.contiguous()


def _contiguous(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _conj(pairs: torch.Tensor) -> torch.Tensor:
    return pairs * pairs.new_tensor([1.0, -1.0])


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
    of_eta = (_wide(final) * _wide(state)).sum(0)
    of_log = eta * (_wide(final_log) * _wide(state)).sum(0)
    return Coefficients(
        part.p,
        part.log_radius + of_log.real,
        part.angle - of_log.imag,
        part.eta_re + of_eta.real,
        part.eta_im - of_eta.imag,
    )


def _add_state_out(
    part: Coefficients,
    direction: Direction,
    x: torch.Tensor,
    state: torch.Tensor | None,
    grad_last: torch.Tensor,
) -> Coefficients:
    """Add what the coefficients contribute through ``s_L = q**L s_0 + p sum q**(L - 1 - t) x_t``."""
    coeffs, length = direction.coeffs, direction.plan.length
    finals = direction.carry_log(*direction.ends(x, adjoint=False, with_log=True))
    from_x, from_x_log = (_wide(final) for final in finals)
    weight = _wide(grad_last).conj()
    of_log = (weight * coeffs.p * from_x_log).sum(0)
    if state is not None:
        decay = length * power(coeffs.log_radius, coeffs.angle, length)
        of_log = of_log + decay * (weight * _wide(state)).sum(0)
    return part._replace(
        p=part.p + (weight * from_x).sum(0).real,
        log_radius=part.log_radius + of_log.real,
        angle=part.angle - of_log.imag,
    )

"""Coefficients of CEMA and their powers, from its logits.

These are small tensors (channels x order x a block), so they are computed in double precision: after t
steps an error of the angle has grown t times, and a decay next to one needs every digit of its distance
from one.  Only tables of finished powers are rounded to the working precision.
"""

import math
from typing import NamedTuple

import torch

from megalodon_tasks.cuda_ops.operator import DifferentiableOperator
from megalodon_tasks.cuda_ops.transforms import plain_is_needed

# Replaces a radius of zero, so that 0 * log(radius) stays finite.
_SMALLEST = 1e-300


class Coefficients(NamedTuple):
    """The p, q and eta of :func:`cema`, float64, each (D, N); q as log of its radius, and its angle."""

    p: torch.Tensor
    log_radius: torch.Tensor
    angle: torch.Tensor
    eta_re: torch.Tensor
    eta_im: torch.Tensor

    def rows(self, start: int, stop: int) -> "Coefficients":
        """Return the coefficients of the channels start..stop, for one direction of two."""
        return Coefficients(*(tensor[start:stop] for tensor in self))


def coefficients(
    alpha_DN1: torch.Tensor,
    delta_DN1: torch.Tensor,
    theta_D11: torch.Tensor,
    gamma_DN2: torch.Tensor,
) -> Coefficients:
    """Compute the coefficients of equation 2 of arXiv 2404.08801 from logits of any real dtype."""
    order = alpha_DN1.shape[1]
    p = torch.sigmoid(alpha_DN1[:, :, 0].double())
    radius = 1 - p * torch.sigmoid(delta_DN1[:, :, 0].double())
    k = torch.arange(1, order + 1, dtype=torch.float64, device=p.device)
    angle = k * torch.sigmoid(theta_D11[:, :, 0].double()) * (2 * math.pi / order)
    eta_re, eta_im = (gamma_DN2.double() / math.sqrt(order)).unbind(-1)
    return Coefficients(p, radius.clamp_min(_SMALLEST).log(), angle, eta_re, eta_im)


def power(log_radius: torch.Tensor, angle: torch.Tensor, exponent: int) -> torch.Tensor:
    """Return q**exponent, complex128, in the shape of ``log_radius``."""
    # not torch.polar, whose gradient divides by the radius: infinite where that is subnormal
    return torch.view_as_complex(power_pairs(log_radius, angle, exponent))


def power_pairs(log_radius: torch.Tensor, angle: torch.Tensor, exponent: int) -> torch.Tensor:
    """Return q**exponent as pairs of float64, in the shape of ``log_radius`` and (2,)."""
    radius, turned = (exponent * log_radius).exp(), exponent * angle
    return torch.stack([radius * turned.cos(), radius * turned.sin()], dim=-1)


def times(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Multiply complex numbers that are pairs (..., 2) of real ones."""
    left_re, left_im = left.unbind(-1)
    right_re, right_im = right.unbind(-1)
    product = left_re * right_re - left_im * right_im, left_re * right_im + left_im * right_re
    return torch.stack(product, dim=-1)


def powers(
    log_radius_DN: torch.Tensor, angle_DN: torch.Tensor, count: int, dtype: torch.dtype
) -> torch.Tensor:
    """Return q**0 .. q**(count - 1) as pairs (D, count, N, 2) in ``dtype``."""
    call = _Arguments(log_radius_DN, angle_DN, count, dtype == torch.float64)
    return _plain_powers(call)[0] if plain_is_needed() else cema_powers_op(*call)


class _Arguments(NamedTuple):
    log_radius: torch.Tensor  # (D, N) float64
    angle: torch.Tensor  # (D, N) float64
    count: int
    wide: bool  # whether the table is float64 and not float32


class _Results(NamedTuple):
    table: torch.Tensor  # (D, count, N, 2)


def _plain_powers(call: _Arguments) -> tuple[torch.Tensor]:
    """Compute the outer product of a fine and a coarse table, 2 sqrt(count) exponentials."""
    fine = max(1, math.isqrt(call.count))
    coarse = -(-call.count // fine)
    steps = torch.arange(coarse * fine, dtype=torch.float64, device=call.angle.device)[:, None]
    log_radius, angle = call.log_radius[:, None], call.angle[:, None]
    fine_DTN2 = power_pairs(log_radius, angle, steps[:fine])
    coarse_DIN2 = power_pairs(log_radius, angle, steps[::fine])
    table = times(coarse_DIN2[:, :, None], fine_DTN2[:, None]).flatten(1, 2)[:, : call.count]
    return (table.to(torch.float64 if call.wide else torch.float32),)


def _allocate_powers(call: _Arguments) -> _Results:
    dim, order = call.angle.shape
    dtype = torch.float64 if call.wide else torch.float32
    return _Results(call.angle.new_empty(dim, call.count, order, 2, dtype=dtype))


def _powers_backward(
    call: _Arguments, grads: list[torch.Tensor], saved: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute ``d q**t = t q**t (d log_radius + i d angle)``."""
    table_re, table_im = saved[0].unbind(-1)
    grad_re, grad_im = grads[0].unbind(-1)
    steps_T = torch.arange(call.count, dtype=table_re.dtype, device=table_re.device)
    products = (
        table_re * grad_re + table_im * grad_im,
        table_re * grad_im - table_im * grad_re,
    )
    return tuple((steps_T @ product).double() for product in products)


cema_powers_op = DifferentiableOperator(
    "cema_powers",
    _Arguments,
    _Results,
    forward=_plain_powers,
    fake=_allocate_powers,
    backward=_powers_backward,
    differentiable=("table",),
    saved=("table",),
    gradients=("log_radius", "angle"),
    plain=_plain_powers,
).register()

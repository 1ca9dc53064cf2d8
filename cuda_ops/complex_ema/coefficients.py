"""Coefficients of CEMA and their powers, from its logits.

These are small tensors (channels x order x a block), so they are computed in double precision: after t
steps an error of the angle has grown t times, and a decay next to one needs every digit of its distance
from one.  Only tables of finished powers are rounded to the working precision.
"""

import math
from typing import NamedTuple

import torch

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
    return torch.polar((exponent * log_radius).exp(), exponent * angle)


def powers(
    log_radius_DN: torch.Tensor, angle_DN: torch.Tensor, count: int, dtype: torch.dtype
) -> torch.Tensor:
    """Return q**0 .. q**(count - 1) as (D, count, N), complex with parts in ``dtype``."""
    return _Powers.apply(log_radius_DN, angle_DN, count, dtype.to_complex())


class _Powers(torch.autograd.Function):
    """The table is the outer product of a fine and a coarse one, 2 sqrt(count) exponentials.

    Backward: ``d q**t = t q**t (d log_radius + i d angle)``.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        log_radius: torch.Tensor,
        angle: torch.Tensor,
        count: int,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        fine = max(1, math.isqrt(count))
        coarse = -(-count // fine)
        steps = torch.arange(fine + coarse, dtype=torch.float64, device=angle.device)[:, None]
        steps[fine:] = fine * (steps[fine:] - fine)
        radius, turned = (log_radius[:, None] * steps).exp(), angle[:, None] * steps
        factors = torch.complex(radius * turned.cos(), radius * turned.sin())
        table = factors[:, fine:, None] * factors[:, None, :fine]
        result = table.flatten(1, 2)[:, :count].to(dtype)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        (result,) = ctx.saved_tensors
        steps = torch.arange(result.shape[1], dtype=result.real.dtype, device=result.device)
        products = torch.view_as_real(result.conj() * grad).flatten(2)
        sums = torch.bmm(steps.expand(len(products), 1, -1), products)[:, 0].double()
        along, across = sums.unflatten(1, (-1, 2)).unbind(2)
        return along, across, None, None

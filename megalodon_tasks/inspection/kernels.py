"""Kernels and rates of CEMA layers.  Legend: D channels, N components, T steps."""

from dataclasses import dataclass

import torch

from megalodon_tasks.cuda_ops.complex_ema.coefficients import coefficients
from megalodon_tasks.models.layers.cema import ComplexEMA


@dataclass(frozen=True)
class Kernels:
    """lags: (T,) steps, negative where the later step acts on the earlier one.  values: (D, T), what an
    input adds to the output that many steps later.  decay, period: (rows, N), in steps; the share of a
    component falls to 1/e after ``decay`` steps, and turns once in ``period`` steps.
    """

    lags: torch.Tensor
    values: torch.Tensor
    decay: torch.Tensor
    period: torch.Tensor


@torch.no_grad()
def kernels(layer: ComplexEMA, reach: int) -> Kernels:
    """The response of ``layer`` to an impulse, ``reach`` steps far, and the rates behind it."""
    before = reach if layer.bidirectional else 0
    impulse = layer.omega.new_zeros(1, before + reach + 1, layer.dim)
    impulse[:, before] = 1.0
    response, _ = layer(impulse)
    found = coefficients(layer.alpha, layer.delta, layer.theta, layer.gamma)
    return Kernels(
        lags=torch.arange(-before, reach + 1),
        values=response[0].T,
        decay=-1 / found.log_radius,
        period=2 * torch.pi / found.angle,
    )


def spread(values_DT: torch.Tensor, count: int) -> list[int]:
    """``count`` channels from the shortest to the longest memory, evenly by rank.

    Memory: the mean distance of the lags, weighted by the kernel's squares.
    """
    energy = values_DT.double() ** 2
    center = energy.argmax(1, keepdim=True)
    distance = (torch.arange(energy.shape[1]) - center).abs()
    memory = (energy * distance).sum(1) / energy.sum(1).clamp_min(1e-30)
    order = memory.argsort()
    places = torch.linspace(0, len(order) - 1, min(count, len(order))).round().long()
    return order[places].tolist()

"""One step of the recurrence, for decoding."""

import torch

from megalodon_tasks.cuda_ops.complex_ema.coefficients import Coefficients, power


def single_step(
    x_BLD: torch.Tensor,
    coeffs: Coefficients,
    omega_D1: torch.Tensor,
    state: torch.Tensor | None,
    padding_mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Equation 1 of README.md for L = 1; ``state`` and the one returned are complex128 (B, D, N)."""
    x_BD1 = x_BLD.transpose(1, 2).double()
    if padding_mask is not None:
        x_BD1 = x_BD1.masked_fill(padding_mask[:, :, None], 0.0)
    if state is None:
        state = torch.zeros_like(coeffs.p, dtype=torch.complex128)
    state = power(coeffs.log_radius, coeffs.angle, 1) * state + coeffs.p * x_BD1
    y_BD = (coeffs.eta_re * state.real - coeffs.eta_im * state.imag).sum(-1)
    y_BLD = torch.addcmul(y_BD, omega_D1[:, 0].double(), x_BD1[:, :, 0])[:, None]
    if padding_mask is not None:
        y_BLD = y_BLD.masked_fill(padding_mask[:, :, None], 0.0)
    return y_BLD.to(x_BLD.dtype), state

"""One step of the recurrence, for a sequence of one step."""

import torch

from megalodon_tasks.cuda_ops.complex_ema.arguments import CemaCall
from megalodon_tasks.cuda_ops.complex_ema.coefficients import Coefficients, power


def single_step(call: CemaCall, coeffs: Coefficients) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute equation 1 of README.md for L = 1; the returned state is complex128 (B, D, N)."""
    x_BD1, padding_mask = call.x.transpose(1, 2).double(), call.padding_mask
    if padding_mask is not None:
        x_BD1 = x_BD1.masked_fill(padding_mask[:, :, None], 0.0)
    if call.state is None:
        state = torch.zeros_like(coeffs.p, dtype=torch.complex128)
    else:
        state = call.state.to(torch.complex128)
    state = power(coeffs.log_radius, coeffs.angle, 1) * state + coeffs.p * x_BD1
    y_BD = (coeffs.eta_re * state.real - coeffs.eta_im * state.imag).sum(-1)
    y_BLD = torch.addcmul(y_BD, call.omega[:, 0].double(), x_BD1[:, :, 0])[:, None]
    if padding_mask is not None:
        y_BLD = y_BLD.masked_fill(padding_mask[:, :, None], 0.0)
    return y_BLD.to(call.x.dtype), state

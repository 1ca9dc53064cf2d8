"""CEMA as the authors compute it without their CUDA kernels: a competitor, not a backend.

The kernel comes from all powers of q, one by one, the convolution from ``rfft`` and ``irfft`` of twice
the length, and every gradient from autograd, as in ``fft_conv`` of
https://github.com/XuezheMax/megalodon.  The code is this project's own.  It holds complex tensors of
(D, N, L), gives no state, and takes no care of saturated logits; ``cuda_ops/complex_ema/fft.py`` is the
same convolution made as good as it gets.
"""

import math

import torch


def authors_cema(
    x_BLD: torch.Tensor,
    alpha_DN1: torch.Tensor,
    delta_DN1: torch.Tensor,
    theta_D11: torch.Tensor,
    gamma_DN2: torch.Tensor,
    omega_D1: torch.Tensor,
    *,
    padding_mask: torch.Tensor | None = None,
    bidirectional: bool = False,
) -> tuple[torch.Tensor, None]:
    """Equations 2 and 3 of arXiv 2404.08801; arguments, shapes and y as those of :func:`cema`.

    Computes in float32 and returns ``(y, None)``, so that it may stand in for the op in a layer that
    carries no state.
    """
    length, dim = x_BLD.shape[1:]
    x_BDL = x_BLD.transpose(1, 2).float()
    if padding_mask is not None:
        x_BDL = x_BDL.masked_fill(padding_mask[:, None], 0.0)
    kernel_DL = powers_kernel(alpha_DN1, delta_DN1, theta_D11, gamma_DN2, length)
    taps = kernel_DL[:dim]
    if bidirectional:
        # What follows the current step is in the part of the kernel that wraps around.
        behind = kernel_DL[dim:, : length - 1].flip(1)
        taps = torch.cat([taps, taps.new_zeros(dim, 1), behind], dim=1)
    size = 2 * length
    spectrum = torch.fft.rfft(x_BDL, size) * torch.fft.rfft(taps, size)
    y_BDL = torch.fft.irfft(spectrum, size)[:, :, :length] + omega_D1.float() * x_BDL
    y_BLD = y_BDL.transpose(1, 2).to(x_BLD.dtype)
    if padding_mask is not None:
        y_BLD = y_BLD.masked_fill(padding_mask[:, :, None], 0.0)
    return y_BLD, None


def powers_kernel(
    alpha_DN1: torch.Tensor,
    delta_DN1: torch.Tensor,
    theta_D11: torch.Tensor,
    gamma_DN2: torch.Tensor,
    length: int,
) -> torch.Tensor:
    """(D, L) float32: ``Re sum_n eta_n p_n q_n**t`` from the (D, N, L) powers themselves."""
    order = alpha_DN1.shape[1]
    p = torch.sigmoid(alpha_DN1.float())
    radius = 1.0 - p * torch.sigmoid(delta_DN1.float())
    k_N1 = torch.arange(1, order + 1, dtype=torch.float32, device=p.device)[:, None]
    angle = k_N1 * torch.sigmoid(theta_D11.float()) * (2.0 * math.pi / order)
    steps_L = torch.arange(length, dtype=torch.float32, device=p.device)
    powers_DNL = torch.exp(torch.complex(radius.log(), angle) * steps_L)
    eta_DN = torch.view_as_complex(gamma_DN2.float().contiguous()) / math.sqrt(order)
    return torch.einsum("dn,dnl->dl", eta_DN * p[:, :, 0], powers_DNL).real

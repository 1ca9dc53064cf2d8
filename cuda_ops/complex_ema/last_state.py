"""CEMA over pieces of a sequence that are computed at the same time, on several devices.

CEMA's state is affine in the state before it, ``s_after = q**L s_before + s_piece``.  So each device
computes ``s_piece`` from its own steps first, and combines those of the devices before it into the state
that its piece starts from.  Legend: B batch, L length of a piece, D dim, N components, R pieces,
T blocks of c steps.
"""

import math

import torch

from megalodon_tasks.cuda_ops.autocast import without_autocast
from megalodon_tasks.cuda_ops.complex_ema.block_operators import write_matrix
from megalodon_tasks.cuda_ops.complex_ema.coefficients import coefficients, powers


@without_autocast
def last_state(
    x_BLD: torch.Tensor, logits: tuple[torch.Tensor, ...], padding_mask_BL: torch.Tensor | None
) -> torch.Tensor:
    """Return the state after the last step of ``x`` from a state of zeros, without any output.

    ``s_L = sum_t q**(L - t) p x_t``: a matrix product over the steps of a block, then a sum over blocks.
    About sqrt(L) steps make a block, so that both tables of powers are small.

    x: (B, L, D) float.  logits: alpha, delta, theta and gamma of :func:`cema`, causal.
    padding_mask: (B, L) bool, True at padding.  Returns (B, D, N), complex128 if x is float64, else
    complex64, differentiable in x and the logits.
    """
    dtype = torch.float64 if x_BLD.dtype == torch.float64 else torch.float32
    batch, length, dim = x_BLD.shape
    coeffs = coefficients(*logits)
    block = max(8, math.isqrt(length))
    blocks = -(-length // block)
    if padding_mask_BL is not None:
        x_BLD = x_BLD.masked_fill(padding_mask_BL[..., None], 0.0)
    # Zeros before the first step leave a state of zeros as it is.
    whole_BLD = torch.nn.functional.pad(x_BLD.to(dtype), (0, 0, blocks * block - length, 0))
    inputs_DRC = whole_BLD.view(batch * blocks, block, dim).permute(2, 0, 1)
    within = powers(coeffs.log_radius, coeffs.angle, block, dtype)
    sums_DRK = torch.bmm(inputs_DRC, write_matrix(coeffs, within, reverse=False))
    sums_DBTN = torch.view_as_complex(sums_DRK.view(dim, batch, blocks, -1, 2))
    across_DTN = torch.view_as_complex(
        powers(block * coeffs.log_radius, block * coeffs.angle, blocks, torch.float64)
    )
    state_DBN = (sums_DBTN * across_DTN.flip(1)[:, None]).sum(2)
    return state_DBN.transpose(0, 1).to(dtype.to_complex())


def state_before(
    pieces_RBDN: torch.Tensor,
    piece: int,
    length: int,
    logits: tuple[torch.Tensor, ...],
    first_BDN: torch.Tensor | None,
) -> torch.Tensor:
    """Return the state (B, D, N) before a piece, from the last states of all R pieces.

    pieces: what :func:`last_state` returned for each piece.  piece: index of the piece that starts from
    the result.  length: steps of each piece.  first: the state before the first piece; None is zeros.
    """
    coeffs = coefficients(*logits)
    decays_DRN = torch.view_as_complex(
        powers(length * coeffs.log_radius, length * coeffs.angle, piece + 1, torch.float64)
    )
    weights_RDN = decays_DRN[:, :piece].flip(1).transpose(0, 1)
    # A sum over no pieces is part of the graph too: other devices wait for its gradient, which is zero.
    state_BDN = (pieces_RBDN[:piece] * weights_RDN[:, None]).sum(0)
    if first_BDN is not None:
        state_BDN = state_BDN + decays_DRN[:, piece] * first_BDN
    return state_BDN.to(pieces_RBDN.dtype)

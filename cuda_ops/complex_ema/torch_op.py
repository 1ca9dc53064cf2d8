"""CEMA's ``torch`` backend: matrix products over blocks, on any device.

Autograd differentiates what does not grow with the sequence, from the logits to the matrices of a block;
``block_product.py`` has the rest.
"""

import torch

from megalodon_tasks.cuda_ops.autocast import without_autocast
from megalodon_tasks.cuda_ops.complex_ema.arguments import CemaCall
from megalodon_tasks.cuda_ops.complex_ema.block_operators import block_operators, write_matrix
from megalodon_tasks.cuda_ops.complex_ema.block_product import block_product
from megalodon_tasks.cuda_ops.complex_ema.coefficients import (
    Coefficients,
    coefficients,
    power_pairs,
    powers,
    times,
)
from megalodon_tasks.cuda_ops.complex_ema.single_step import single_step

# Longer blocks cost more multiplications per step, shorter ones more states.
_BLOCK = 64


@without_autocast
def cema_torch(
    call: CemaCall, block: int | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute :func:`cema` in blocks of ``block`` steps, an even number; None chooses by the length."""
    x_BLD, state, bidirectional = call.x, call.state, call.bidirectional
    dtype = torch.float64 if x_BLD.dtype == torch.float64 else torch.float32
    coeffs = coefficients(*call.logits)
    length, dim = x_BLD.shape[1:]
    # A program that is exported holds real numbers only.
    if length == 1 and not bidirectional and not torch.compiler.is_exporting():
        y_BLD, state = single_step(call, coeffs)
        return y_BLD, torch.view_as_complex(torch.view_as_real(state).to(dtype))
    block = block or block_length(length)
    parts = [coeffs.rows(0, dim), coeffs.rows(dim, 2 * dim)] if bidirectional else [coeffs]
    tables = [powers(part.log_radius, part.angle, block + 1, dtype) for part in parts]
    carries = length > block or state is not None
    operators = block_operators(parts, tables, call.omega.to(dtype), carries)
    if state is not None:
        state = torch.view_as_real(state.resolve_conj()).double().transpose(0, 1)
    y_BLD, last_DBW = block_product(x_BLD, operators, state, call.padding_mask)
    if bidirectional:
        return y_BLD, None
    steps = length - (length - 1) // block * block
    pairs = _final_state(last_DBW.split([operators.states, block], dim=2), coeffs, tables[0], steps)
    return y_BLD, torch.view_as_complex(pairs.to(dtype))


def block_length(length: int) -> int:
    """Choose the steps of a block: near 64, and so that the last block is nearly full."""
    blocks = max(1, round(length / _BLOCK))
    return -(-length // (8 * blocks)) * 8


def _final_state(
    last_block: tuple[torch.Tensor, torch.Tensor],
    coeffs: Coefficients,
    table_DTN2: torch.Tensor,
    steps: int,
) -> torch.Tensor:
    """Compute the state (B, D, N, 2) after ``steps`` steps of the last block."""
    states_DBK, inputs_DBC = last_block
    write = write_matrix(coeffs, table_DTN2[:, :steps], reverse=False)
    pairs_DBN2 = torch.bmm(inputs_DBC[..., :steps], write).unflatten(2, (-1, 2))
    if states_DBK.shape[2]:
        decay_DN2 = power_pairs(coeffs.log_radius, coeffs.angle, steps)
        pairs_DBN2 = pairs_DBN2 + times(decay_DN2[:, None], states_DBK.unflatten(2, (-1, 2)))
    return pairs_DBN2.transpose(0, 1).contiguous()

"""The product over blocks in plain PyTorch: what transforms, second derivatives and exports need.

It holds all blocks at once and is slower than ``block_product.py``, whose letters it uses.
"""

import torch
from torch.nn import functional as F

from megalodon_tasks.cuda_ops.complex_ema.coefficients import times


def plain_product(
    x_BLD: torch.Tensor,
    kernel: torch.Tensor,
    write: torch.Tensor,
    read: torch.Tensor,
    decay: torch.Tensor,
    state_DBN2: torch.Tensor | None,
    padding_mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute what :func:`block_product` returns."""
    x, length, block = x_BLD, x_BLD.shape[1], read.shape[2]
    if padding_mask is not None:
        x = x.masked_fill(padding_mask[:, :, None], 0.0)
    missing = -length % block
    rows = F.pad(x.to(kernel.dtype).permute(2, 0, 1), (0, missing)).unflatten(2, (-1, block))
    step = torch.arange(block, device=x.device)
    toeplitz = kernel[:, block - 1 + step - step[:, None]]
    y_DBIC = _each_row(rows, toeplitz)
    if decay.shape[1]:
        sums = _each_row(rows, write).unflatten(3, (decay.shape[1], -1, 2)).unbind(3)
        before = [_states_before(sums[0], decay[:, 0], state_DBN2)]
        if len(sums) == 2:
            before.append(_states_before(sums[1].flip(2), decay[:, 1], None).flip(2))
        states = torch.stack(before, dim=3).flatten(3)
        y_DBIC = y_DBIC + _each_row(states, read)
        rows = torch.cat([states, rows], dim=3)
    y_BLD = y_DBIC.flatten(2)[:, :, :length].permute(1, 2, 0).to(x_BLD.dtype)
    if padding_mask is not None:
        y_BLD = y_BLD.masked_fill(padding_mask[:, :, None], 0.0)
    return y_BLD, rows[:, :, -1]


def _each_row(rows_DBIC: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    return torch.bmm(rows_DBIC.flatten(1, 2), matrix).unflatten(1, rows_DBIC.shape[1:3])


def _states_before(
    sums: torch.Tensor, decay_DN2: torch.Tensor, state_DBN2: torch.Tensor | None
) -> torch.Tensor:
    """Return the states before each block, from what each block adds, both (D, B, I, N, 2).

    After a round of ``step`` blocks, a block holds what the last ``2 step`` blocks add: log2 I rounds.
    """
    decay = decay_DN2[:, None, None]
    if state_DBN2 is None:
        first = torch.zeros_like(sums[:, :, :1])
    else:
        first = state_DBN2[:, :, None].to(sums.dtype)
    states = torch.cat([first, sums[:, :, :-1]], dim=2)
    step = 1
    while step < sums.shape[2]:
        passed = times(decay.to(sums.dtype), states[:, :, :-step])
        states = states + F.pad(passed, (0, 0, 0, 0, step, 0))
        decay, step = times(decay, decay), 2 * step
    return states

"""The matrices that map inputs and states of a block of CEMA, from the coefficients.

Letters as in ``block_product.py``.
"""

from typing import NamedTuple

import torch

from megalodon_tasks.cuda_ops.complex_ema.coefficients import (
    Coefficients,
    power_pairs,
    times,
)


class BlockOperators(NamedTuple):
    """A linear map along time, cut into blocks.

    kernel: (D, 2c - 1); entry ``c - 1 + j`` is what an input adds to the output j steps later.
    write: (D, c, K), from the inputs of a block to the states after it.
    read: (D, K, c), from the states before a block to its outputs.
    decay: (D, G, N, 2) float64 pairs, the share of a state that passes through a block.
    reverse: for each of the G directions, whether it runs from the last block to the first.

    Real and imaginary parts alternate in K.  The real tensors are of the working dtype: float64 for a
    float64 input, float32 otherwise.
    """

    kernel: torch.Tensor
    write: torch.Tensor
    read: torch.Tensor
    decay: torch.Tensor
    reverse: tuple[bool, ...]

    @property
    def block(self) -> int:
        """The number of steps of a block, c."""
        return self.read.shape[2]

    @property
    def states(self) -> int:
        """The number of real columns of the states, K."""
        return self.read.shape[1]

    def adjoint(self) -> "BlockOperators":
        """Return the operators of gradients, from outputs to inputs."""
        reverse = tuple(not direction for direction in self.reverse)
        decay = torch.stack([self.decay[..., 0], -self.decay[..., 1]], dim=-1)
        return BlockOperators(self.kernel.flip(1), self.read.mT, self.write.mT, decay, reverse)

    def matrix(self) -> torch.Tensor:
        """Return the matrix (D, W, c) from the rows of a buffer to outputs."""
        return torch.cat([self.read, self.kernel.unfold(1, self.block, 1).flip(1)], dim=1)


def block_operators(
    parts: list[Coefficients], tables: list[torch.Tensor], omega_D1: torch.Tensor, carries: bool
) -> BlockOperators:
    """Compute the matrices of a block from the coefficients of each direction and their powers 0..c.

    Unless they carry states from block to block (``carries``), they have no directions.
    """
    block = tables[0].shape[1] - 1
    dim, order = parts[0].p.shape
    kernels = [_kernel(part, table) for part, table in zip(parts, tables, strict=True)]
    negative = omega_D1.new_zeros(dim, block - 1)
    if len(parts) == 2:
        negative = kernels[1][:, : block - 1].flip(1)
    kernel = torch.cat([negative, kernels[0][:, :1] + omega_D1, kernels[0][:, 1:]], dim=1)
    if not carries:
        nothing = kernel.new_empty(dim, block, 0)
        decay = parts[0].p.new_empty(dim, 0, order, 2)
        return BlockOperators(kernel, nothing, nothing.mT, decay, ())
    reverse = (False, True)[: len(parts)]
    each = list(zip(parts, tables, reverse, strict=True))
    return BlockOperators(
        kernel,
        torch.cat([write_matrix(part, table[:, :-1], back) for part, table, back in each], dim=2),
        torch.cat([_read_matrix(part, table, back) for part, table, back in each], dim=2).mT,
        torch.stack([power_pairs(part.log_radius, part.angle, block) for part in parts], dim=1),
        reverse,
    )


def _kernel(coeffs: Coefficients, table_DTN2: torch.Tensor) -> torch.Tensor:
    """Return (D, c): Re sum_n eta_n p_n q_n**t, what a step adds to the output t steps later."""
    weights = torch.stack([coeffs.p * coeffs.eta_re, -coeffs.p * coeffs.eta_im], dim=2)
    weights = weights.to(table_DTN2.dtype).flatten(1)[:, :, None]
    return torch.bmm(table_DTN2[:, :-1].flatten(2), weights)[:, :, 0]


def write_matrix(coeffs: Coefficients, table_DTN2: torch.Tensor, reverse: bool) -> torch.Tensor:
    """Return (D, T, 2N): p q**(T - 1 - t), what step t adds to the state after T steps."""
    table_DTN2 = table_DTN2 if reverse else table_DTN2.flip(1)
    return (coeffs.p.to(table_DTN2.dtype)[:, None, :, None] * table_DTN2).flatten(2)


def _read_matrix(coeffs: Coefficients, table_DTN2: torch.Tensor, reverse: bool) -> torch.Tensor:
    """Return (D, c, 2N): what the states before a block add to its output t, Re sum eta q**(t + 1).

    Backward in time the exponents fall, and are one less because the current step counts once.
    The minus sign is that of the product of two imaginary parts.
    """
    table_DTN2 = table_DTN2[:, :-1].flip(1) if reverse else table_DTN2[:, 1:]
    eta = torch.stack([coeffs.eta_re, coeffs.eta_im], dim=-1).to(table_DTN2.dtype)
    read_re, read_im = times(eta[:, None], table_DTN2).unbind(-1)
    return torch.stack([read_re, -read_im], dim=-1).flatten(2)

"""Matrix products over blocks of the sequence, with a hand-written backward: most of the work of CEMA.

A block of c steps is one row of a matrix per channel.  A Toeplitz matrix maps the inputs of a row to its
outputs; earlier rows act on it through the carried states.  States and inputs are beside each other in
one buffer ``[states | inputs]``, so that one product gives the outputs.  The adjoint has the same form
with the roles exchanged, and the product of the two buffers holds the gradients of all coefficients.
README.md has the derivation.

Letters: B batch, L length, D channels, N order, G directions, c steps of a block, R rows of a buffer
(blocks x batch, and one of zeros if that is even), K = 2NG real columns of the states, W = K + c.
"""

from typing import NamedTuple

import torch

from megalodon_tasks.cuda_ops.complex_ema.block_operators import BlockOperators
from megalodon_tasks.cuda_ops.complex_ema.plain_product import plain_product
from megalodon_tasks.cuda_ops.complex_ema.scan import BlockScan, Rows, Segment
from megalodon_tasks.cuda_ops.operator import DifferentiableOperator, empty_like
from megalodon_tasks.cuda_ops.transforms import plain_is_needed


def block_product(
    x_BLD: torch.Tensor,
    operators: BlockOperators,
    state_DBN2: torch.Tensor | None,
    padding_mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply ``operators`` to ``x`` along time.

    Args:
        x_BLD: input, any real floating dtype; zero where ``padding_mask`` is True.
        operators: the map.
        state_DBN2: pairs of float64, the state before the first block, for operators of one forward
            direction.
        padding_mask: bool (B, L); the output is zero where it is True.

    Returns:
        the output (B, L, D) in the dtype of ``x``, and (D, B, W) the states before the last block and
        its inputs, with zeros after the end of the sequence.
    """
    tensors = operators[:4]
    if plain_is_needed():
        return plain_product(x_BLD, *tensors, state_DBN2, padding_mask)
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    y_BLD, last_DBW, _ = cema_torch_op(x_BLD, *tensors, state_DBN2, padding_mask, save)
    return y_BLD, last_DBW


class _Arguments(NamedTuple):
    """The tensors of :class:`BlockOperators` are its fields of the same names."""

    x: torch.Tensor  # (B, L, D)
    kernel: torch.Tensor
    write: torch.Tensor
    read: torch.Tensor
    decay: torch.Tensor
    state: torch.Tensor | None  # (D, B, N, 2) float64
    padding_mask: torch.Tensor | None  # (B, L)
    save: bool  # whether the backward will ask for gradients of the operators

    @property
    def operators(self) -> BlockOperators:
        """The map, forward."""
        return BlockOperators(*(t.contiguous() for t in self[1:5]), _reverse(self.decay))


class _Results(NamedTuple):
    y: torch.Tensor  # (B, L, D)
    last: torch.Tensor  # (D, B, W)
    states: torch.Tensor  # (D, blocks, B, K), those before each block, if saved


def _reverse(decay: torch.Tensor) -> tuple[bool, ...]:
    return (False, True)[: decay.shape[1]]


def _allocate(call: _Arguments) -> _Results:
    batch, length, dim = call.x.shape
    _, states, block = call.read.shape
    saved = (dim, -(-length // block), batch, states) if call.save else (0,)
    new = call.kernel.new_empty
    return _Results(empty_like(call.x), new(dim, batch, states + block), new(saved))


def _forward(call: _Arguments) -> _Results:
    operators, results = call.operators, _allocate(call)
    matrix = operators.matrix()
    state = None if call.state is None else torch.view_as_complex(call.state.contiguous())
    scan = BlockScan(operators, call.x, call.padding_mask, state)
    last = len(scan.rows.segments) - 1
    for segment, buffer in scan:
        scan.rows.write_outputs(segment, torch.bmm(buffer, matrix), results.y)
        if call.save:
            _part(results.states, segment, operators).copy_(scan.rows.states_of(buffer, segment))
        if segment.index == last:
            results.last.copy_(scan.rows.by_block(buffer, segment)[:, -1])
    _mask_(results.y, call.padding_mask)
    return results


def _part(states: torch.Tensor, segment: Segment, operators: BlockOperators) -> torch.Tensor:
    return states.narrow(1, segment.start // operators.block, segment.blocks)


def _backward(
    call: _Arguments, grads: list[torch.Tensor | None], saved: list[torch.Tensor]
) -> tuple[torch.Tensor | None, ...]:
    grad_BLD, grad_last_DBW = grads
    if grad_BLD is None:
        grad_BLD = torch.zeros_like(call.x)
    operators = call.operators
    adjoint = operators.adjoint()
    grad_states, grad_inputs = None, None
    if grad_last_DBW is not None:
        grad_states, grad_inputs = grad_last_DBW.split([operators.states, operators.block], dim=2)
    scan = BlockScan(adjoint, grad_BLD, call.padding_mask, into_last_DBK=grad_states)
    inputs = Rows(operators, call.x, call.padding_mask) if call.save else None
    width = operators.states + operators.block
    moments = call.kernel.new_zeros(len(call.kernel), width, width)
    grad_x = empty_like(call.x)
    matrix = adjoint.matrix()
    last = len(scan.rows.segments) - 1
    for segment, buffer in scan:
        product = torch.bmm(buffer, matrix)
        if grad_inputs is not None and segment.index == last:
            scan.rows.by_block(product, segment)[:, -1] += grad_inputs
        scan.rows.write_outputs(segment, product, grad_x)
        if inputs is not None:
            rows = inputs.fill(segment, _part(saved[0], segment, operators))
            moments.baddbmm_(rows.mT, buffer)
    _mask_(grad_x, call.padding_mask)
    grad_state = None if call.state is None else torch.view_as_real(scan.carry[0])
    # Without saved states, gradients of the operators are zeros that nobody asked for.
    return grad_x, *_operator_gradients(operators, moments), grad_state


cema_torch_op = DifferentiableOperator(
    "cema_torch",
    _Arguments,
    _Results,
    forward=_forward,
    fake=_allocate,
    backward=_backward,
    differentiable=("y", "last"),
    saved=("states",),
    gradients=("x", "kernel", "write", "read", "decay", "state"),
    plain=lambda call: plain_product(*call[:7]),
).register()


def _mask_(tensor_BLD: torch.Tensor, padding_mask: torch.Tensor | None) -> None:
    if padding_mask is not None:
        tensor_BLD.masked_fill_(padding_mask[:, :, None], 0.0)


def _operator_gradients(
    operators: BlockOperators, moments: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Compute gradients of kernel, write, read and decay from ``moments`` (D, W, W).

    ``moments`` is the sum over the rows of [states | inputs]^T [their gradients' states | gradients].
    """
    dim, states, block = operators.read.shape
    _, directions, order, _ = operators.decay.shape
    by_states, by_inputs = moments.split([states, block], dim=1)
    # Row i of the Toeplitz matrix starts at entry c - 1 - i of the kernel: turned upside down and with
    # rows of 2c - 1, entries of the kernel stand below each other.
    skewed = moments.new_zeros(dim, block, 2 * block)
    skewed[:, :, :block] = by_inputs[:, :, states:].flip(1)
    skewed = skewed.flatten(1)[:, : block * (2 * block - 1)].unflatten(1, (block, 2 * block - 1))
    pairs = by_states[:, :, :states].reshape(dim, directions * order, 2, directions * order, 2)
    pairs = pairs.diagonal(dim1=1, dim2=3).to(torch.float64)
    decay = torch.complex(pairs[:, 0, 0] + pairs[:, 1, 1], pairs[:, 0, 1] - pairs[:, 1, 0])
    return (
        skewed.sum(1),
        by_inputs[:, :, :states].clone(memory_format=torch.contiguous_format),
        by_states[:, :, states:].clone(memory_format=torch.contiguous_format),
        torch.view_as_real(decay.unflatten(1, (directions, order))),
    )

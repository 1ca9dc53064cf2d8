"""Matrix products over blocks of the sequence, with a hand-written backward: most of the work of CEMA.

A block of c steps is one row of a matrix per channel.  A Toeplitz matrix maps the inputs of a row to its
outputs; earlier rows act on it through the carried states.  States and inputs are beside each other in
one buffer ``[states | inputs]``, so that one product gives the outputs.  The adjoint has the same form
with the roles exchanged, and the product of the two buffers holds the gradients of all coefficients.
README.md has the derivation.

Letters: B batch, L length, D channels, N order, G directions, c steps of a block, R rows of a buffer
(blocks x batch, and one of zeros if that is even), K = 2NG real columns of the states, W = K + c.
"""

import torch

from megalodon_tasks.cuda_ops.complex_ema.block_operators import BlockOperators
from megalodon_tasks.cuda_ops.complex_ema.scan import BlockScan, Rows


def block_product(
    x_BLD: torch.Tensor,
    operators: BlockOperators,
    state_DBN: torch.Tensor | None,
    padding_mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply ``operators`` to ``x`` along time.

    Args:
        x_BLD: input, any real floating dtype; zero where ``padding_mask`` is True.
        operators: the map.
        state_DBN: complex128 state before the first block, for operators of one forward direction.
        padding_mask: bool (B, L); the output is zero where it is True.

    Returns:
        the output (B, L, D) in the dtype of ``x``, and (D, B, W) the states before the last block and
        its inputs, with zeros after the end of the sequence.
    """
    tensors = (operators.kernel, operators.write, operators.read, operators.decay)
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return _BlockProduct.apply(x_BLD, state_DBN, *tensors, padding_mask, operators.reverse, save)


class _BlockProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x_BLD: torch.Tensor,
        state_DBN: torch.Tensor | None,
        kernel: torch.Tensor,
        write: torch.Tensor,
        read: torch.Tensor,
        decay: torch.Tensor,
        padding_mask: torch.Tensor | None,
        reverse: tuple[bool, ...],
        save: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        operators = BlockOperators(kernel, write, read, decay, reverse)
        matrix = operators.matrix()
        scan = BlockScan(operators, x_BLD, padding_mask, state_DBN)
        y_BLD = torch.empty_like(x_BLD, memory_format=torch.contiguous_format)
        saved_states = [None] * len(scan.rows.segments)
        for segment, buffer in scan:
            scan.rows.write_outputs(segment, torch.bmm(buffer, matrix), y_BLD)
            if save:
                saved_states[segment.index] = scan.rows.states_of(buffer)
            if segment.index == len(saved_states) - 1:
                last_DBW = scan.rows.by_block(buffer, segment)[:, -1].clone()
        _mask_(y_BLD, padding_mask)
        ctx.set_materialize_grads(False)
        ctx.reverse, ctx.like = reverse, (x_BLD.shape, x_BLD.dtype, x_BLD.device)
        inputs = x_BLD if save else None
        ctx.save_for_backward(kernel, write, read, decay, padding_mask, inputs, *saved_states)
        return y_BLD, last_DBW

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx,
        grad_BLD: torch.Tensor | None,
        grad_last_DBW: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, ...]:
        kernel, write, read, decay, padding_mask, x_BLD, *saved_states = ctx.saved_tensors
        shape, dtype, device = ctx.like
        if grad_BLD is None:
            grad_BLD = torch.zeros(shape, dtype=dtype, device=device)
        operators = BlockOperators(kernel, write, read, decay, ctx.reverse)
        adjoint = operators.adjoint()
        grad_states, grad_inputs = None, None
        if grad_last_DBW is not None:
            grad_states, grad_inputs = grad_last_DBW.split(
                [operators.states, operators.block], dim=2
            )
        scan = BlockScan(adjoint, grad_BLD, padding_mask, into_last_DBK=grad_states)
        inputs = None if x_BLD is None else Rows(operators, x_BLD, padding_mask)
        grad_x = moments = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.empty(shape, dtype=dtype, device=device)
            matrix = adjoint.matrix()
        for segment, buffer in scan:
            if grad_x is not None:
                product = torch.bmm(buffer, matrix)
                if grad_inputs is not None and segment.index == len(saved_states) - 1:
                    scan.rows.by_block(product, segment)[:, -1] += grad_inputs
                scan.rows.write_outputs(segment, product, grad_x)
            if inputs is not None:
                rows = inputs.fill(segment, saved_states[segment.index]).mT
                if moments is None:
                    moments = torch.bmm(rows, buffer)
                else:
                    moments.baddbmm_(rows, buffer)
        if grad_x is not None:
            _mask_(grad_x, padding_mask)
        grads = (None,) * 4 if moments is None else _operator_gradients(operators, moments)
        grad_state = scan.carry[0] if ctx.needs_input_grad[1] else None
        return grad_x, grad_state, *grads, None, None, None


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
    _, directions, order = operators.decay.shape
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
        by_inputs[:, :, :states],
        by_states[:, :, states:],
        decay.unflatten(1, (directions, order)),
    )

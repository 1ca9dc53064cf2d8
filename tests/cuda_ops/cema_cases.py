"""Inputs for the tests of CEMA, and one call of it with all its gradients."""

from dataclasses import dataclass

import torch

from megalodon_tasks.cuda_ops import cema
from megalodon_tasks.cuda_ops.complex_ema.arguments import CemaCall
from megalodon_tasks.cuda_ops.complex_ema.torch_op import cema_torch

PARAMETERS = ("alpha", "delta", "theta", "gamma", "omega")


@dataclass(frozen=True)
class Case:
    batch: int = 2
    length: int = 70
    dim: int = 3
    order: int = 4
    bidirectional: bool = False
    with_state: bool = False
    padded: float = 0.0

    def inputs(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, torch.Tensor]:
        """Random tensors by the names of the arguments; exact in ``dtype``, the same for all."""
        draw = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=draw).to(torch.bfloat16).to(dtype)

        rows = 2 * self.dim if self.bidirectional else self.dim
        named = {
            "x": normal(self.batch, self.length, self.dim),
            "alpha": normal(rows, self.order, 1),
            "delta": normal(rows, self.order, 1),
            "theta": normal(rows, 1, 1),
            "gamma": normal(rows, self.order, 2),
            "omega": normal(self.dim, 1),
        }
        if self.with_state:
            state = complex_normal(draw, self.batch, self.dim, self.order)
            named["state"] = state.to(torch.complex128) if dtype == torch.float64 else state
        if self.padded:
            noise = torch.rand(self.batch, self.length, generator=draw)
            named["padding_mask"] = noise < self.padded
        return named


def complex_normal(draw: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=draw, dtype=torch.complex64)


def in_blocks(bidirectional=False, state=None, padding_mask=None, block=None, **tensors):
    """Backend ``torch`` in blocks of a given length."""
    return cema_torch(
        CemaCall(**tensors, state=state, padding_mask=padding_mask, bidirectional=bidirectional),
        block,
    )


def cast(inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Copies in ``dtype``; states in complex128 for float64 and complex64 otherwise."""
    wide = torch.complex128 if dtype == torch.float64 else torch.complex64

    def one(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.bool:
            return tensor
        return tensor.detach().to(wide if tensor.is_complex() else dtype, copy=True)

    return {name: one(tensor) for name, tensor in inputs.items()}


def outputs_and_gradients(
    inputs: dict[str, torch.Tensor],
    backend: str | None,
    bidirectional: bool = False,
    function=cema,
    seed: int = 1,
    **options,
) -> dict[str, torch.Tensor]:
    """y, the returned state, and the gradients of a random linear function of both."""
    leaves = {
        name: tensor if tensor.dtype == torch.bool else tensor.detach().clone().requires_grad_()
        for name, tensor in inputs.items()
    }
    if backend is not None:
        options["backend"] = backend
    y, state = function(**leaves, bidirectional=bidirectional, **options)
    draw = torch.Generator().manual_seed(seed)
    # Exact in 16 bits, so that all dtypes start from the same gradient.
    weights = torch.randn(y.shape, generator=draw).to(torch.bfloat16)
    loss = (y.double() * weights).sum()
    found = {"y": y.detach()}
    if state is not None:
        loss = loss + (state * complex_normal(draw, *state.shape)).real.sum()
        found["returned state"] = state.detach()
    loss.backward()
    for name, leaf in leaves.items():
        if leaf.requires_grad:
            found[f"gradient of {name}"] = leaf.grad
    return found

"""The root-mean-square norm against PyTorch's in float64, forward and backward."""

import pytest
import torch
from torch.nn import functional as F

from megalodon_tasks.models.layers.rms_norm import rms_norm

EPS = 1e-5
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def close(found, expected, dtype):
    error = (found.double() - expected).norm() / expected.norm()
    assert found.dtype == dtype
    assert error < TOLERANCE[dtype], error


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (2, 37, 16), (5, 160)], ids=str)
@pytest.mark.parametrize("weighted", [True, False])
def test_equals_pytorch(shape, weighted, dtype):
    torch.manual_seed(0)
    tensors = [torch.randn(shape, dtype=torch.float64).to(dtype)]
    tensors += [torch.randn(shape[-1], dtype=torch.float64).to(dtype)] if weighted else []
    grad = torch.randn(shape, dtype=torch.float64).to(dtype)
    ours = [tensor.clone().requires_grad_() for tensor in tensors]
    theirs = [tensor.double().requires_grad_() for tensor in tensors]
    y = rms_norm(ours[0], ours[1] if weighted else None, EPS)
    wanted = F.rms_norm(theirs[0], shape[-1:], theirs[1] if weighted else None, EPS)
    close(y, wanted, dtype)
    found = torch.autograd.grad(y, ours, grad)
    for gradient, expected in zip(
        found, torch.autograd.grad(wanted, theirs, grad.double()), strict=True
    ):
        close(gradient, expected, dtype)


def test_gradients_that_nobody_wants_and_views_that_are_not_contiguous():
    x = torch.randn(3, 8, 5, dtype=torch.float64)
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    y = rms_norm(x.transpose(1, 2), weight, EPS)
    (found,) = torch.autograd.grad(y.transpose(1, 2).sum(), weight)
    (expected,) = torch.autograd.grad(F.rms_norm(x.mT, (8,), weight, EPS).sum(), weight)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("size", [0.0, 1e-20, 1e15])
def test_numbers_far_from_one(size):
    torch.manual_seed(0)
    x = (size * torch.randn(2, 4)).requires_grad_()
    wide = x.detach().double().requires_grad_()
    grad = torch.randn(2, 4)
    y, wanted = rms_norm(x, None, EPS), F.rms_norm(wide, (4,), None, EPS)
    torch.testing.assert_close(y.double(), wanted, atol=0, rtol=1e-5)
    (found,) = torch.autograd.grad(y, x, grad)
    (expected,) = torch.autograd.grad(wanted, wide, grad.double())
    torch.testing.assert_close(found.double(), expected, atol=1e-6 * expected.norm(), rtol=1e-5)

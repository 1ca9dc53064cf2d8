"""PyTorch's default dtype changes no op: no tensor is made in it."""

import contextlib

import pytest
import torch

from tests.cuda_ops.cases import (
    CARRYING,
    FLOAT,
    TYPICAL,
    Attention,
    Cema,
    SequenceNorm,
    TimestepNorm,
    cast,
    each,
    evaluate,
    gradients,
)

DOUBLE = torch.float64


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def assert_default_dtype_changes_nothing(case, backend, dtype, default):
    truth = evaluate(case, backend, dtype)
    with default_dtype(default):
        found = evaluate(case, backend, dtype)
    for tensors, true_tensors in zip(found, truth, strict=True):
        for name, tensor in tensors.items():
            assert tensor.dtype == true_tensors[name].dtype
            assert torch.equal(tensor, true_tensors[name]), name


@each(
    [
        *(*TYPICAL, *CARRYING),
        *(Cema(2, 130, "random", True), Cema(2, 130, bidirectional=True), Cema(2, 1, state=True)),
        *(TimestepNorm(2, 30, "left", True), SequenceNorm(2, 30, "right")),
        *(Attention(causal=False), Attention(mask="random", dropout_p=0.3)),
    ],
    "triton",
)
@pytest.mark.parametrize("default", [DOUBLE, torch.bfloat16])
def test_the_default_dtype_changes_nothing(case, backend, dtype, default):
    assert_default_dtype_changes_nothing(case, backend, dtype, default)


@each(
    [*CARRYING, SequenceNorm(2, 9), Cema(2, 9, bidirectional=True)],
    *("reference", "torch", "native", "fft"),
)
def test_the_default_dtype_changes_nothing_of_kernels(case, backend, dtype):
    assert_default_dtype_changes_nothing(case, backend, dtype, torch.bfloat16)


@each(CARRYING, "reference", "triton")
@pytest.mark.parametrize("default", [DOUBLE, torch.bfloat16])
def test_the_default_dtype_changes_no_gradient_of_the_state(case, backend, dtype, default):
    """That is, where only the state is in the loss."""
    leaves = cast(case, case.leaves(), dtype)
    found = []
    for kind in (FLOAT, default):
        with default_dtype(kind):
            y, state = case.call(leaves, None, case.initial_state(leaves), backend)
            outputs = case.outputs(y, state)
            outputs.pop("y")
            found.append(gradients(outputs, leaves))
    assert all(torch.equal(found[0][name], found[1][name]) for name in leaves)

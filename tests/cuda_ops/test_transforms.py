"""Second derivatives, transforms of torch.func, lazy views: right, or refused by name."""

import functools

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from megalodon_tasks.cuda_ops import BackendUnavailable, chunk_attention
from tests.cuda_ops.cases import (
    TYPICAL,
    Attention,
    Cema,
    RmsNorm,
    SequenceNorm,
    TimestepNorm,
    assert_close,
    assert_equal_calls,
    cast,
    each,
    gradients,
    randn,
)

DOUBLE = torch.float64
AUTOGRAD = "reference", "fused"  # backends that autograd differentiates

TWICE = [
    Cema(2, 9, dim=2, order=2, state=True),
    Cema(2, 9, "random", dim=1, order=2, bidirectional=True),
    Cema(2, 3, dim=1, order=2, bidirectional=True),
    *(TimestepNorm(2, 4, mask, True, dim=4, groups=2) for mask in ("none", "random")),
    *(SequenceNorm(2, 4, mask, dim=4, groups=2) for mask in ("none", "random")),
    RmsNorm(2, 2, dim=3),
]


@each(TWICE, *AUTOGRAD, "fft", dtypes=(DOUBLE,))
def test_second_derivatives(case, backend, dtype):
    leaves = cast(case, case.leaves(), dtype)

    def run(*tensors):
        named = dict(zip(leaves, tensors, strict=True))
        y, state = case.call(named, case.padding(), case.initial_state(named), backend)
        return tuple(out for out in case.outputs(y, state).values() if out.requires_grad)

    assert torch.autograd.gradgradcheck(run, tuple(leaves.values()))


SHORT = (
    Cema(1, 5, state=True),
    Cema(1, 5, bidirectional=True),
    TimestepNorm(1, 5, state=True),
    SequenceNorm(1, 5),
    Attention(1, 5),
)


@each(SHORT, *AUTOGRAD, "torch")
def test_second_derivatives_are_refused_where_there_is_no_formula(case, backend, dtype):
    """Also where the engine visits only what leads to given inputs."""
    leaves = cast(case, case.leaves(), dtype)
    outputs = case.outputs(*case.call(leaves, case.padding(), case.initial_state(leaves), backend))
    loss = sum(out.square().sum() for out in outputs.values() if out.requires_grad)
    timed = [leaves[name] for name in case.timed]
    for grad, leaf in zip(torch.autograd.grad(loss, timed, create_graph=True), timed, strict=True):
        with pytest.raises(RuntimeError, match="no second derivative.*use_backend"):
            torch.autograd.grad(grad.abs().sum(), leaf, retain_graph=True)


def test_second_derivatives_of_attention():
    """PyTorch's own kernel has none and says so; its plain form has."""
    case = Attention(2, 9, "random", True, chunk_size=6)
    leaves = cast(case, case.leaves(), DOUBLE)
    with sdpa_kernel(SDPBackend.MATH):
        products = []
        for backend in ("reference", "torch"):
            y, _ = case.call(leaves, case.padding(), case.initial_state(leaves), backend)
            grads = torch.autograd.grad(y.square().sum(), list(leaves.values()), create_graph=True)
            weighted = sum((grad * randn(*grad.shape, seed=30)).sum() for grad in grads)
            products.append(torch.autograd.grad(weighted, list(leaves.values())))
    for found, truth in zip(*reversed(products), strict=True):
        assert_close("second derivative", found, truth, 1e-10)
    q = leaves["q"]
    y, _ = chunk_attention(q, q, q, chunk_size=4, causal=True, backend="torch")
    (grad,) = torch.autograd.grad(y.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="derivative for .* is not implemented"):
        torch.autograd.grad(grad.sum(), q)


TRANSFORMED = [
    Cema(2, 21, "random", True),
    Cema(2, 100, "random", bidirectional=True),
    Cema(2, 1, state=True),
    TimestepNorm(2, 20, "random", True),
    SequenceNorm(2, 20, "random"),
    RmsNorm(),
    Attention(2, 21, "random", state=True),
]


@pytest.mark.parametrize("case", TRANSFORMED, ids=str)
def test_transforms_of_torch_func(case):
    """By default and by the name ``torch``: tangents, and gradients of each sample."""
    leaves = cast(case, case.leaves(), DOUBLE)
    start, padding = case.initial_state(leaves), case.padding()

    def run(*tensors, backend=None):
        named = dict(zip(leaves, tensors, strict=True))
        if case.op == "chunk_attention":
            state = start._replace(key=named["old key"], value=named["old value"])
        else:
            state = case.initial_state(named)
        outputs = case.outputs(*case.call(named, padding, state, backend))
        return tuple(out for name, out in outputs.items() if name not in ("count", "mask"))

    values = tuple(leaf.detach() for leaf in leaves.values())
    tangents = tuple(value * randn(1, seed=50 + i) for i, value in enumerate(values))
    found = torch.func.jvp(run, values, tangents)
    truth = torch.func.jvp(functools.partial(run, backend="reference"), values, tangents)
    for out, true_out in zip(found[0] + found[1], truth[0] + truth[1], strict=True):
        assert_close("output or tangent", out, true_out, 1e-9)

    def loss(*tensors):
        return sum(out.square().sum() for out in run(*tensors, backend="torch"))

    stacked = tuple(torch.stack([value, 2 * value]) for value in values)
    positions = tuple(range(len(values)))
    found = torch.vmap(torch.func.grad(loss, positions))(*stacked)
    for sample in range(2):
        parts = [part[sample].clone().requires_grad_() for part in stacked]
        truth = torch.autograd.grad(loss(*parts), parts, materialize_grads=True)
        for grads, true_grad in zip(found, truth, strict=True):
            assert_close("gradient of a sample", grads[sample], true_grad, 1e-9)


@each(TYPICAL, "reference", "fused", "torch")
def test_transforms_are_refused_where_there_are_no_rules(case, backend, dtype):
    leaves = cast(case, case.leaves(), dtype)
    x = leaves[case.timed[0]].detach()

    def run(value):
        return case.call(leaves | {case.timed[0]: value}, None, None, backend)[0]

    for transform in (
        torch.vmap,
        torch.func.grad,
        lambda f: lambda t: torch.func.jvp(f, (t,), (t,)),
    ):
        with pytest.raises(
            BackendUnavailable, match=r"no rules for torch.func .*usable: .*'torch'"
        ):
            transform(run)(x[None] if transform is torch.vmap else x)
    with forward_ad.dual_level(), pytest.raises(BackendUnavailable, match="forward-mode"):
        run(forward_ad.make_dual(x, x))


@each([*TYPICAL[2:], Cema(mask="random", state=True), Cema(1, 1, state=True)], "triton")
def test_negative_and_conjugate_views(case, backend, dtype):
    plain = cast(case, case.leaves(), dtype)
    lazy = {
        name: torch.conj(leaf.conj_physical()) if leaf.is_complex() else torch._neg_view(-leaf)
        for name, leaf in plain.items()
    }
    calls = []
    for leaves in (plain, lazy):
        outputs = case.outputs(
            *case.call(leaves, case.padding(), case.initial_state(leaves), backend)
        )
        calls.append((outputs, gradients(outputs, plain)))
    assert_equal_calls(*reversed(calls), 1e-6, 1e-6)

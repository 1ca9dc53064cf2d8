"""Numbers that break careless code, for every op and backend, forward and backward.

What concerns one op alone (saturated logits, jumps, DropKey, splits, tiles) is in that op's own tests.
"""

import pytest
import torch
import torch.nn.functional as F

from megalodon_tasks.cuda_ops import (
    TimestepNormState,
    cema,
    chunk_attention,
    dispatch,
    sequence_norm,
    timestep_norm,
)
from tests.cuda_ops.compare import BACKWARD, FORWARD, assert_close
from tests.cuda_ops.norm_cases import two_pass

GROUPS = 3
FLOAT = torch.float32
NAMES = "x", "scale", "bias"
EVERY = [(op, backend) for op, table in dispatch.BACKENDS.items() for backend in table]
# The reference in float64 is what the others are compared with.
FAST = [(op, backend) for op, backend in EVERY if backend != "reference"]
NORMS = [(op, backend) for op, backend in FAST if op.endswith("norm")]


def randn(*shape, seed):
    """Exact in bfloat16, so that every dtype starts from the same numbers."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw).bfloat16().double()


def data(op, batch=2, length=21):
    """The tensors of ``op`` that have a batch, by name."""
    if op == "chunk_attention":
        return {name: randn(batch, length, 1, 4, seed=i) for i, name in enumerate("qkv")}
    return {"x": randn(batch, length, 6, seed=0)}


def weights(op):
    """The tensors of ``op`` that have none."""
    if op == "chunk_attention":
        return {}
    if op == "cema":
        shapes = {"alpha": (6, 2, 1), "delta": (6, 2, 1), "theta": (6, 1, 1)}
        shapes |= {"gamma": (6, 2, 2), "omega": (6, 1)}
        return {n: randn(*shape, seed=3 + i) for i, (n, shape) in enumerate(shapes.items())}
    return {"scale": 1 + randn(6, seed=3) / 2, "bias": randn(6, seed=4)}


def call(op, backend, tensors, **options):
    """The outputs of ``op`` that are no copies of its inputs, by name."""
    if op == "cema":
        y, state = cema(**tensors, backend=backend, **options)
        return {"y": y, "state": torch.view_as_real(state)}
    if op == "timestep_norm":
        y, state = timestep_norm(**tensors, num_groups=GROUPS, backend=backend, **options)
        return {"y": y, "mean": state.mean, "var": state.var}
    if op == "sequence_norm":
        return {"y": sequence_norm(**tensors, num_groups=GROUPS, backend=backend, **options)}
    options = {"chunk_size": 8, "causal": True} | options
    return {"y": chunk_attention(**tensors, backend=backend, **options)[0]}


def evaluate(op, backend, dtype, tensors, rows=slice(None), **options):
    """Outputs and gradients by name, for a loss that weighs everything, of some rows of the batch."""
    leaves = {name: tensor.to(dtype).requires_grad_() for name, tensor in tensors.items()}
    outputs = call(op, backend, leaves, **options)
    loss = sum(
        (out.double() * randn(4, *out.shape[1:], seed=20 + i)[rows][: len(out)]).sum()
        for i, out in enumerate(outputs.values())
    )
    grads = torch.autograd.grad(loss, leaves.values())
    return outputs, dict(zip(leaves, grads, strict=True))


def assert_like_reference(op, backend, dtype, tensors, gradients=None):
    """Against the reference in float64; gradients are measured against the largest of the call, and
    may be off by ``gradients`` instead of what is usual for ``dtype``."""
    rounded = {name: tensor.to(dtype).double() for name, tensor in tensors.items()}
    truth, true_grads = evaluate(op, "reference", torch.float64, rounded)
    outputs, grads = evaluate(op, backend, dtype, rounded)
    for name, value in outputs.items():
        assert_close(name, value, truth[name], FORWARD[dtype])
    largest = max(grad.norm() for grad in true_grads.values())
    for name, grad in grads.items():
        assert grad.isfinite().all(), f"gradient of {name} is not finite"
        error = ((grad.double() - true_grads[name]).norm() / largest).item()
        assert error <= (gradients or BACKWARD[dtype]), (
            f"gradient of {name}: relative error {error:.1e}"
        )


@pytest.mark.parametrize(("op", "backend"), EVERY)
def test_a_row_is_what_it_is_alone(op, backend):
    """A batch of one, and beside it rows of NaN and of huge numbers."""
    tensors = data(op, batch=4)
    for tensor in tensors.values():
        tensor[[0, 3]], tensor[1] = torch.nan, 1e15
    rows = slice(2, 3)
    together, grads = evaluate(op, backend, FLOAT, tensors | weights(op))
    alone = {name: tensor[rows] for name, tensor in tensors.items()}
    truth, true_grads = evaluate(op, backend, FLOAT, alone | weights(op), rows=rows)
    for name, value in truth.items():
        assert_close(name, together[name][rows], value, 1e-6)
    for name in tensors:
        assert_close(f"gradient of {name}", grads[name][rows], true_grads[name], 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("op", "backend"), EVERY)
def test_half_inputs(op, backend, dtype):
    assert_like_reference(op, backend, dtype, data(op) | weights(op))


# Of values around 1e4, float32 keeps 1e-3 of the differences that weights have their gradients from:
# u . (v_j - y_i) in equation 5 of attention/README.md.
FAR = {"chunk_attention": 5e-3}


@pytest.mark.parametrize("value", [0.0, 3.0, -0.1, 1e4])
@pytest.mark.parametrize(("op", "backend"), FAST)
def test_constant_inputs(op, backend, value):
    """Norms divide a variance of zero, attention sees equal scores."""
    constant = {name: torch.full_like(tensor, value) for name, tensor in data(op).items()}
    for name in constant.keys() & {"q", "k"}:
        constant[name] = constant[name].clamp(max=1.0)
    gradients = FAR.get(op) if value == 1e4 else None
    assert_like_reference(op, backend, FLOAT, constant | weights(op), gradients)


@pytest.mark.parametrize(("op", "backend"), FAST)
def test_mean_of_ten_thousand_and_deviation_of_one(op, backend):
    """The numbers that are averaged: x, or the values of attention."""
    tensors = data(op)
    for name in tensors.keys() & {"x", "v"}:
        tensors[name] = 1e4 + tensors[name]
    assert_like_reference(op, backend, FLOAT, tensors | weights(op), FAR.get(op))


@pytest.mark.parametrize(("op", "backend"), EVERY)
def test_rows_of_padding_and_nan_in_it(op, backend):
    mask = torch.zeros(3, 21, dtype=torch.bool)
    mask[0], mask[1, 15:], mask[2, 3:9] = True, True, True
    tensors = data(op, batch=3)
    clean = evaluate(op, backend, FLOAT, tensors | weights(op), padding_mask=mask)
    for tensor in tensors.values():
        tensor[mask] = torch.nan
    dirty = evaluate(op, backend, FLOAT, tensors | weights(op), padding_mask=mask)
    assert not dirty[0]["y"][mask].any()
    assert not any(dirty[1][name][mask].any() for name in tensors)
    for clean_side, dirty_side in zip(clean, dirty, strict=True):
        for name, value in clean_side.items():
            assert value.isfinite().all(), name
            assert torch.equal(dirty_side[name], value), name


@pytest.mark.parametrize("moments", [0.0, 5.0])
@pytest.mark.parametrize("backend", dispatch.BACKENDS["timestep_norm"])
def test_a_state_that_saw_nothing_is_no_state(backend, moments):
    """Whatever its moments say.  (Of the other ops: test_cema.py, test_chunk_attention.py.)"""
    shape, tensors = (2, GROUPS), data("timestep_norm") | weights("timestep_norm")
    empty = torch.zeros(2, dtype=torch.int64)
    state = TimestepNormState(empty, *(torch.full(shape, moments) for _ in range(2)))
    truth, true_grads = evaluate("timestep_norm", backend, FLOAT, tensors)
    found, grads = evaluate("timestep_norm", backend, FLOAT, tensors, state=state)
    for name, value in (truth | true_grads).items():
        # The reference starts from the given mean, and loses a digit on the way from it.
        assert_close(name, (found | grads)[name], value, 1e-5)


def at_once(op, x, scale, bias):
    """Either norm by sums over the whole sequence, which autograd differentiates."""
    if op == "timestep_norm":
        return two_pass(x, GROUPS) * scale + bias
    return F.group_norm(x.transpose(1, 2), GROUPS, scale, bias).transpose(1, 2)


LONG = [
    pytest.param(op, backend, length, marks=marks)
    for op, backend in NORMS
    for length, marks in (
        # The interpreter would take minutes for a million steps; blocks are of 512.
        ((1 << 13, ()), (1 << 17, pytest.mark.slow))
        if backend == "triton"
        else ((1 << 16, ()), (1_000_000, pytest.mark.slow))
    )
]


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize(("op", "backend", "length"), LONG)
def test_long_runs_of_norms(op, backend, length, offset):
    x = (offset + randn(1, length, 6, seed=1)).float()
    grad_y = randn(1, length, 6, seed=2)

    def run(function, dtype):
        leaf, scale, bias = (t.to(dtype).requires_grad_() for t in (x, *weights(op).values()))
        y = function(leaf, scale, bias)
        return y, *torch.autograd.grad(y, (leaf, scale, bias), grad_y.to(dtype))

    found = run(lambda *t: call(op, backend, dict(zip(NAMES, t, strict=True)))["y"], FLOAT)
    truth = run(lambda *t: at_once(op, *t), torch.float64)
    for name, value, true, tolerance in zip(
        ("y", *NAMES), found, truth, (1e-5, 1e-4, 1e-4, 1e-4), strict=True
    ):
        assert_close(name, value, true, tolerance)
    last = slice(-1000, None)
    assert_close("last of y", found[0][:, last], truth[0][:, last], 1e-5)
    assert_close("last of the gradient", found[1][:, last], truth[1][:, last], 1e-4)


@pytest.mark.parametrize(
    ("backend", "length"),
    [
        ("torch", 1 << 20),
        # Chunks do not know of each other: more of them tell the interpreter nothing new.
        ("triton", 1 << 9),
    ],
)
def test_long_runs_of_attention(backend, length):
    """The last chunks of a long sequence, against the reference on these chunks alone."""
    leaves = [
        tensor.float().requires_grad_() for tensor in data("chunk_attention", 1, length).values()
    ]
    options, last = {"chunk_size": 64, "causal": True}, slice(length - 3 * 64, None)
    y, state = chunk_attention(*leaves, **options, backend=backend)
    assert state.key.shape[1] == 0
    grad_y = randn(*y.shape, seed=9).float()
    grads = torch.autograd.grad(y, leaves, grad_y)
    pieces = [leaf.detach()[:, last].double().requires_grad_() for leaf in leaves]
    truth, _ = chunk_attention(*pieces, **options, backend="reference")
    true_grads = torch.autograd.grad(truth, pieces, grad_y[:, last].double())
    assert_close("y", y[:, last], truth, 1e-5)
    for name, grad, true_grad in zip("qkv", grads, true_grads, strict=True):
        assert_close(f"gradient of {name}", grad[:, last], true_grad, 1e-4)


@pytest.mark.parametrize("backend", dispatch.BACKENDS["chunk_attention"])
def test_saturated_scores(backend):
    """Weights of one key: exp overflows float32 unless the largest score is taken off first."""
    tensors = data("chunk_attention")
    tensors["q"] = 30 * tensors["q"]
    truth, true_grads = evaluate("chunk_attention", "reference", torch.float64, tensors)
    outputs, grads = evaluate("chunk_attention", backend, FLOAT, tensors)
    # Scores of some hundreds are known to 1e-5 in float32, and so are the weights.
    assert_close("y", outputs["y"], truth["y"], 1e-4)
    for name, grad in grads.items():
        assert_close(f"gradient of {name}", grad, true_grads[name], 1e-3)

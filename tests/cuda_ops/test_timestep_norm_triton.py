"""The Triton kernels of timestep_norm where they could go wrong: edges of blocks, what is carried over
them, cancellation, strides, registration."""

import importlib

import pytest
import torch

from megalodon_tasks.cuda_ops import BackendUnavailable, TimestepNormState, timestep_norm
from tests.cuda_ops.compare import assert_close
from tests.cuda_ops.triton_cases import (
    assert_compiles_whole,
    assert_like_reference,
    evaluate,
    randn,
    some_padding,
)

# The package's name `timestep_norm` is the function, so that modules below it are reached by name.
LAUNCH = importlib.import_module("megalodon_tasks.cuda_ops.norms.triton_launch")
OP = importlib.import_module("megalodon_tasks.cuda_ops.norms.timestep.triton_op")
STEPS = 8


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Blocks of eight steps of four features; two to a tile of the scan over blocks, several to a
    program that sums over steps."""
    monkeypatch.setattr(LAUNCH, "WIDTH", 4)
    monkeypatch.setattr(LAUNCH, "ELEMENTS", 4 * STEPS)
    monkeypatch.setattr(LAUNCH, "SCAN_ELEMENTS", 4)
    monkeypatch.setattr(LAUNCH, "PROGRAMS", 4)


def leaves(batch, length, dim, groups, *, state=False):
    tensors = {
        "x": randn(batch, length, dim),
        "scale": 1 + randn(dim, seed=1) / 2,
        "bias": randn(dim, seed=2),
    }
    if state:
        tensors["mean"], tensors["var"] = (
            randn(batch, groups, seed=3),
            randn(batch, groups).square(),
        )
    return tensors


def norm(groups, mask=None, count=None):
    """The op as a function of a backend, a device and tensors by name."""

    def run(backend, device, x, scale, bias, mean=None, var=None):
        state = None
        if mean is not None:
            # The first sequence has seen nothing, whatever its moments say.
            steps = torch.arange(len(x)) * 3 if count is None else count
            state = TimestepNormState(steps.to(device), mean, var)
        y, end = timestep_norm(
            x,
            scale,
            bias,
            groups,
            state=state,
            padding_mask=None if mask is None else mask.to(device),
            backend=backend,
        )
        return {"y": y, "mean": end.mean, "var": end.var}

    return run


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [1, 7, STEPS, STEPS + 1, 3 * STEPS, 29])
@pytest.mark.parametrize(("dim", "groups"), [(6, 3), (5, 5)])
def test_matches_reference(device, dim, groups, length, masked, state):
    mask = some_padding(2, length) if masked else None
    assert_like_reference(norm(groups, mask), leaves(2, length, dim, groups, state=state), device)


@pytest.mark.parametrize(("dim", "groups"), [(6, 1), (12, 4), (4, 1), (3, 1)])
def test_wide_groups(device, dim, groups):
    assert_like_reference(norm(groups, some_padding(2, 19)), leaves(2, 19, dim, groups), device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wide", [("mean", "var"), ("mean", "var", "scale", "bias")])
def test_half_types(device, dtype, wide):
    tensors = leaves(2, 21, 6, 3, state=True)
    assert_like_reference(norm(3, some_padding(2, 21)), tensors, device, dtype, wide)


@pytest.mark.parametrize("state", [False, True])
def test_far_from_zero(device, state):
    """Mean 1e4 and deviation 1: the gradient through the variance is where squares would cancel."""
    tensors = leaves(2, 45, 6, 3, state=state)
    tensors["x"] = 1e4 + tensors["x"]
    if state:
        # Exact in float32, as the state's mean alone could not hold more.
        tensors["mean"] = 1e4 + tensors["mean"].round()
    assert_like_reference(norm(3), tensors, device)


@pytest.mark.parametrize("quiet", [1, 3, 11])
def test_a_jump_leaves_what_was_before_it_exact(device, quiet):
    """A mean that serves a whole block would spoil the steps before a jump inside it."""
    tensors = leaves(1, 20, 4, 2)
    tensors["x"] = tensors["x"] / 100
    tensors["x"][:, quiet:] += 1e4
    truth = norm(2)("reference", "cpu", **tensors)["y"]
    narrow = {name: leaf.float().to(device) for name, leaf in tensors.items()}
    y = norm(2)("triton", device, **narrow)["y"].cpu()
    # float32 rounds x itself before the jump by little and after it by the deviation's 1e-5.
    assert_close("before", y[:, :quiet], truth[:, :quiet], 1e-5)
    assert_close("after", y[:, quiet:], truth[:, quiet:], 1e-4)


@pytest.mark.parametrize("value", [0.0, 3.0, 1e4, -0.1])
def test_constant_input_gives_the_bias(device, value):
    tensors = leaves(1, 20, 6, 3)
    tensors["x"] = torch.full((1, 20, 6), value)
    tensors = {name: leaf.float().to(device) for name, leaf in tensors.items()}
    outputs, grads = evaluate(lambda **all_: norm(3)("triton", device, **all_), tensors)
    assert_close("y", outputs["y"], tensors["bias"].expand(1, 20, 6), 1e-4)
    assert all(grad.isfinite().all() for grad in grads.values())


@pytest.mark.parametrize("cuts", [(1, 2, 3), (8,), (5, 16)])
def test_pieces_with_the_state_carried_are_the_whole(device, cuts):
    x, scale, bias = randn(2, 27, 6).float().to(device), torch.ones(6), torch.zeros(6)
    x = x + 1e4
    arguments = scale.to(device), bias.to(device), 3
    mask = some_padding(2, 27).to(device)
    whole, end = timestep_norm(x, *arguments, padding_mask=mask, backend="triton")
    state, pieces = None, []
    for start, stop in zip((0, *cuts), (*cuts, 27), strict=True):
        y, state = timestep_norm(
            x[:, start:stop],
            *arguments,
            state=state,
            padding_mask=mask[:, start:stop],
            backend="triton",
        )
        pieces.append(y)
    assert_close("y", torch.cat(pieces, 1), whole, 1e-5)
    assert torch.equal(state.count, end.count)
    assert_close(
        "mean", state.mean.double() + state.mean_low, end.mean.double() + end.mean_low, 1e-9
    )
    assert_close("var", state.var, end.var, 1e-5)


def test_nan_at_padding_does_not_spread(device):
    mask = some_padding(3, 19).to(device)
    tensors = {name: leaf.float().to(device) for name, leaf in leaves(3, 19, 6, 3).items()}
    clean = evaluate(lambda **all_: norm(3, mask)("triton", device, **all_), tensors)
    poison = torch.where(mask[..., None], torch.nan, 0.0)

    def poisoned(x, **others):
        return norm(3, mask)("triton", device, x + poison, **others)

    dirty = evaluate(poisoned, tensors)
    for clean_side, dirty_side in zip(clean, dirty, strict=True):
        for name, value in clean_side.items():
            assert torch.equal(value, dirty_side[name]), name
    assert not clean[0]["y"][mask].any()


def test_a_nan_gradient_at_padding_does_not_spread(device):
    mask = some_padding(2, 19).to(device)
    x = randn(2, 19, 6).float().to(device).requires_grad_()
    scale, bias = torch.ones(6, device=device), torch.zeros(6, device=device)
    y, _ = timestep_norm(x, scale, bias, 3, padding_mask=mask, backend="triton")
    (grad,) = torch.autograd.grad(y, x, torch.where(mask[..., None], torch.nan, 1.0).expand_as(y))
    assert grad.isfinite().all()
    assert not grad[mask].any()


def test_any_memory_layout(device):
    tensors = leaves(2, 17, 6, 3)
    time_first = tensors["x"].transpose(0, 1).contiguous().transpose(0, 1)
    features_first = tensors["x"].transpose(1, 2).contiguous().transpose(1, 2)
    truth, _ = assert_like_reference(norm(3), tensors, device)
    for x in (time_first, features_first):
        got, _ = assert_like_reference(norm(3), tensors | {"x": x}, device)
        assert torch.equal(got["y"], truth["y"])


def test_result_does_not_depend_on_the_tile(monkeypatch, device):
    tensors = {name: leaf.float().to(device) for name, leaf in leaves(2, 27, 6, 3).items()}
    small = evaluate(lambda **all_: norm(3)("triton", device, **all_), tensors)
    monkeypatch.setattr(LAUNCH, "ELEMENTS", 8192)
    large = evaluate(lambda **all_: norm(3)("triton", device, **all_), tensors)
    for small_side, large_side in zip(small, large, strict=True):
        for name, value in small_side.items():
            assert_close(name, value, large_side[name], 1e-5)


def test_results_repeat(device):
    tensors = {name: leaf.float().to(device) for name, leaf in leaves(2, 27, 6, 3).items()}
    runs = [evaluate(lambda **all_: norm(3)("triton", device, **all_), tensors) for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("length", [5, 20])
@pytest.mark.parametrize("state", [False, True])
def test_operators_are_registered(device, length, state):
    tensors = [leaf.float().to(device) for leaf in leaves(2, length, 6, 3, state=state).values()]
    x, scale, bias, *moments = (tensor.requires_grad_() for tensor in tensors)
    past = (None,) * 4
    if state:
        mean, var = moments
        past = torch.arange(2, device=device), mean, torch.zeros_like(mean), var
    mask = some_padding(2, length).to(device)
    torch.library.opcheck(OP.timestep_norm_op, (x, scale, bias, *past, mask, 3, 1e-5))


@pytest.mark.parametrize("length", [5, 20])
def test_torch_compile_takes_the_whole_graph(device, length):
    tensors = {
        n: leaf.float().to(device) for n, leaf in leaves(2, length, 6, 3, state=True).items()
    }
    count = torch.arange(2, device=device)
    assert_compiles_whole(norm(3, count=count), tensors, device)


def test_float64_is_refused(device):
    x = torch.zeros(1, 2, 4, dtype=torch.float64, device=device)
    with pytest.raises(BackendUnavailable, match="float64"):
        timestep_norm(x, x[0, 0], x[0, 0], 2, backend="triton")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 32, 1024])
def test_tiles_as_they_are(monkeypatch, groups, dtype):
    monkeypatch.undo()
    wide = ("mean", "var", "scale", "bias")
    tensors = leaves(2, 700, 1024, groups, state=True)
    assert_like_reference(norm(groups, some_padding(2, 700)), tensors, "cuda", dtype, wide)

"""The Triton kernels of sequence_norm where they could go wrong: edges of blocks, cancellation,
strides, registration."""

import importlib

import pytest
import torch

from megalodon_tasks.cuda_ops import BackendUnavailable, sequence_norm
from tests.cuda_ops.compare import assert_close
from tests.cuda_ops.triton_cases import (
    assert_compiles_whole,
    assert_like_reference,
    evaluate,
    randn,
    some_padding,
)

# The package's name `sequence_norm` is the function, so that modules below it are reached by name.
LAUNCH = importlib.import_module("megalodon_tasks.cuda_ops.norms.triton_launch")
OP = importlib.import_module("megalodon_tasks.cuda_ops.norms.sequence.triton_op")
STEPS = 8


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Blocks of eight steps of four features; two to a tile of the scan over blocks, several to a
    program that sums over steps."""
    monkeypatch.setattr(LAUNCH, "WIDTH", 4)
    monkeypatch.setattr(LAUNCH, "ELEMENTS", 4 * STEPS)
    monkeypatch.setattr(LAUNCH, "SCAN_ELEMENTS", 4)
    monkeypatch.setattr(LAUNCH, "PROGRAMS", 4)


def leaves(batch, length, dim):
    return {
        "x": randn(batch, length, dim),
        "scale": 1 + randn(dim, seed=1) / 2,
        "bias": randn(dim, seed=2),
    }


def norm(groups, mask=None):
    """The op as a function of a backend, a device and tensors by name."""

    def run(backend, device, x, scale, bias):
        padding = None if mask is None else mask.to(device)
        return {"y": sequence_norm(x, scale, bias, groups, padding_mask=padding, backend=backend)}

    return run


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [1, 7, STEPS, STEPS + 1, 3 * STEPS, 29])
@pytest.mark.parametrize(("dim", "groups"), [(6, 3), (5, 5), (12, 2)])
def test_matches_reference(device, dim, groups, length, masked):
    mask = some_padding(2, length) if masked else None
    assert_like_reference(norm(groups, mask), leaves(2, length, dim), device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wide", [(), ("scale", "bias")])
def test_half_types(device, dtype, wide):
    tensors = leaves(2, 21, 6)
    assert_like_reference(norm(3, some_padding(2, 21)), tensors, device, dtype, wide)


@pytest.mark.parametrize("masked", [False, True])
def test_far_from_zero(device, masked):
    tensors = leaves(2, 45, 6)
    tensors["x"] = 1e4 + tensors["x"]
    assert_like_reference(norm(3, some_padding(2, 45) if masked else None), tensors, device)


@pytest.mark.parametrize("value", [0.0, 3.0, 1e4, -0.1])
def test_constant_input_gives_the_bias(device, value):
    tensors = leaves(1, 20, 6) | {"x": torch.full((1, 20, 6), value)}
    tensors = {name: leaf.float().to(device) for name, leaf in tensors.items()}
    outputs, grads = evaluate(lambda **all_: norm(3)("triton", device, **all_), tensors)
    assert_close("y", outputs["y"], tensors["bias"].expand(1, 20, 6), 1e-4)
    assert all(grad.isfinite().all() for grad in grads.values())


def test_nan_at_padding_does_not_spread(device):
    mask = some_padding(3, 19).to(device)
    poison = torch.where(mask[..., None], torch.nan, 0.0)
    tensors = {name: leaf.float().to(device) for name, leaf in leaves(3, 19, 6).items()}
    leaf = tensors["x"].requires_grad_()
    others = tensors["scale"], tensors["bias"], 3
    clean = sequence_norm(leaf, *others, padding_mask=mask, backend="triton")
    dirty = sequence_norm(leaf + poison, *others, padding_mask=mask, backend="triton")
    assert torch.equal(dirty, clean)
    assert not dirty[mask].any()
    weight = randn(3, 19, 6, seed=4).float().to(device)
    (clean_grad,) = torch.autograd.grad(clean, leaf, weight)
    (dirty_grad,) = torch.autograd.grad(dirty, leaf, weight + poison)
    assert torch.equal(dirty_grad, clean_grad)
    assert not dirty_grad[mask].any()


def test_any_memory_layout(device):
    tensors = leaves(2, 17, 6)
    time_first = tensors["x"].transpose(0, 1).contiguous().transpose(0, 1)
    features_first = tensors["x"].transpose(1, 2).contiguous().transpose(1, 2)
    for x in (time_first, features_first):
        assert_like_reference(norm(3), tensors | {"x": x}, device)


def test_results_repeat_and_do_not_depend_on_the_tile(monkeypatch, device):
    tensors = {name: leaf.float().to(device) for name, leaf in leaves(2, 50, 6).items()}
    first, again = (
        evaluate(lambda **all_: norm(3)("triton", device, **all_), tensors) for _ in range(2)
    )
    monkeypatch.setattr(LAUNCH, "ELEMENTS", 8192)
    large = evaluate(lambda **all_: norm(3)("triton", device, **all_), tensors)
    for side, again_side, large_side in zip(first, again, large, strict=True):
        for name, value in side.items():
            assert torch.equal(again_side[name], value), name
            assert_close(name, large_side[name], value, 1e-5)


@pytest.mark.parametrize("length", [5, 20])
def test_operators_are_registered(device, length):
    tensors = [leaf.float().to(device).requires_grad_() for leaf in leaves(2, length, 6).values()]
    mask = some_padding(2, length).to(device)
    torch.library.opcheck(OP.sequence_norm_op, (*tensors, mask, 3, 1e-5))


def test_torch_compile_takes_the_whole_graph(device):
    tensors = {name: leaf.float().to(device) for name, leaf in leaves(2, 20, 6).items()}
    assert_compiles_whole(norm(3), tensors, device)


def test_float64_is_refused(device):
    x = torch.zeros(1, 2, 4, dtype=torch.float64, device=device)
    with pytest.raises(BackendUnavailable, match="float64"):
        sequence_norm(x, x[0, 0], x[0, 0], 2, backend="triton")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 32, 1024])
def test_tiles_as_they_are(monkeypatch, groups, dtype):
    monkeypatch.undo()
    tensors, mask = leaves(2, 700, 1024), some_padding(2, 700)
    assert_like_reference(norm(groups, mask), tensors, "cuda", dtype, ("scale", "bias"))

"""The norms: group norm of PyTorch, far from zero, jumps, parts of the work, long sequences, errors."""

import pytest
import torch
import torch.nn.functional as F

from megalodon_tasks.cuda_ops import TimestepNormState, rms_norm, sequence_norm, timestep_norm
from megalodon_tasks.cuda_ops.norms import splitting
from tests.cuda_ops.cases import (
    FLOAT,
    RmsNorm,
    SequenceNorm,
    TimestepNorm,
    assert_close,
    assert_equal_calls,
    assert_matches_reference,
    cast,
    each,
    evaluate,
    randn,
)

NORMS = {"timestep_norm": timestep_norm, "sequence_norm": sequence_norm}


def at_once(case, x, scale, bias):
    """Either norm over time by sums over the whole sequence, which autograd differentiates."""
    if case.op == "sequence_norm":
        return F.group_norm(x.transpose(1, 2), case.groups, scale, bias).transpose(1, 2)
    x_BLGJ = x.unflatten(-1, (case.groups, -1))
    x_BLGJ = x_BLGJ - x_BLGJ.mean((1, 3), keepdim=True)
    steps = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[None, :, None]
    mean = x_BLGJ.mean(-1).cumsum(1) / steps
    square = x_BLGJ.square().mean(-1).cumsum(1) / steps - mean.square()
    normed = (x_BLGJ - mean[..., None]) / (square.clamp(min=0) + 1e-5).sqrt()[..., None]
    return normed.flatten(2) * scale + bias


@each([SequenceNorm(2, 9, groups=groups) for groups in (1, 3, 6)])
def test_sequence_norm_is_group_norm(case, backend, dtype):
    leaves = cast(case, case.leaves(), dtype)
    y, _ = case.call(leaves, None, None, backend)
    assert_close("y", y, at_once(case, *leaves.values()), 1e-6)


@each([TimestepNorm(2, 9)])
def test_each_step_is_group_norm_of_its_prefix(case, backend, dtype):
    x, scale, bias = cast(case, case.leaves(), dtype).values()
    y, _ = timestep_norm(x, scale, bias, 3, backend=backend)
    for length in range(1, 10):
        prefix = F.group_norm(x[:, :length].transpose(1, 2), 3, scale, bias)
        assert_close(f"step {length}", y[:, length - 1], prefix[..., -1], 1e-5)


@pytest.mark.parametrize("elements", [4, 30, 90, 200])
@pytest.mark.parametrize(
    "case",
    [
        *(TimestepNorm(3, 13, mask, True) for mask in ("none", "left", "random")),
        *(SequenceNorm(3, n, m) for n in (13, 53) for m in ("none", "left", "right", "random")),
    ],
    ids=str,
)
def test_torch_result_does_not_depend_on_the_size_of_parts(monkeypatch, case, elements):
    monkeypatch.setattr(splitting, "TILE_ELEMENTS", elements)
    leaves = case.leaves()
    leaves["x"] += 5
    for dtype in (torch.float64, FLOAT, torch.bfloat16):
        assert_matches_reference(case, "torch", dtype, leaves)


@each([TimestepNorm(2, 300, dim=8, groups=2)], "reference", "triton")
def test_single_steps_far_from_zero(case, backend, dtype):
    x = (1e4 + randn(2, 300, 8)).float()
    scale, bias = torch.ones(8), torch.zeros(8)
    state, outputs = None, []
    for step in x.unbind(1):
        y, state = timestep_norm(step[:, None], scale, bias, 2, state=state, backend=backend)
        outputs.append(y)
    assert_close("y", torch.cat(outputs, 1), at_once(case, x.double(), scale, bias), 1e-5)


@each([TimestepNorm(2, 27)], "reference")
@pytest.mark.parametrize("sizes", [[1, 2, 3, 21], [8, 19], [5, 16, 6]], ids=str)
def test_parts_far_from_zero_keep_the_mean(case, backend, dtype, sizes):
    leaves = case.leaves()
    leaves["x"] += 1e4
    whole, parts = (evaluate(case, backend, dtype, leaves, sizes=s)[0] for s in (None, sizes))
    assert_close("y", parts["y"], whole["y"], 1e-5)
    assert_close("mean", parts["mean"], whole["mean"], 1e-9)
    assert_close("var", parts["var"], whole["var"], 1e-5)


@each([TimestepNorm(1, 20, dim=4, groups=2)], "reference")
@pytest.mark.parametrize("quiet", [1, 3, 11])
def test_a_jump_leaves_what_was_before_it_exact(case, backend, dtype, quiet):
    """A mean that serves a whole block would spoil the steps before a jump inside it."""
    leaves = case.leaves()
    leaves["x"] /= 128
    leaves["x"][:, quiet:] += 1e4
    leaves["x"] = leaves["x"].float().double()
    truth = evaluate(case, "reference", torch.float64, leaves)[0]["y"]
    y = evaluate(case, backend, dtype, leaves)[0]["y"]
    # float32 rounds x itself before the jump by little and after it by the deviation's 1e-5.
    assert_close("before", y[:, :quiet], truth[:, :quiet], 1e-5)
    assert_close("after", y[:, quiet:], truth[:, quiet:], 1e-4)


@each([TimestepNorm(1, 4000, dim=8, groups=2)], "reference", "triton")
def test_first_steps_far_from_the_others(case, backend, dtype):
    leaves = cast(case, case.leaves(), dtype)
    x = leaves["x"].detach()
    x[:, :2] += 1e4
    y, _ = case.call(leaves | {"x": x}, None, None, backend)
    truth = at_once(case, x.double(), leaves["scale"], leaves["bias"])
    assert_close("y", y, truth, 1e-4)
    assert_close("later y", y[:, 2000:], truth[:, 2000:], 1e-4)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize(
    ("kind", "backend", "length"),
    [
        pytest.param(kind, backend, length, marks=marks)
        for kind in (SequenceNorm, TimestepNorm)
        for backend, length, marks in (
            ("torch", 1 << 16, ()),
            ("torch", 1_000_000, pytest.mark.slow),
            # The interpreter would take minutes for more.
            ("triton", 1 << 10, ()),
            ("triton", 1 << 13, pytest.mark.slow),
        )
    ],
)
def test_long_sequences(kind, backend, length, offset):
    case = kind(1, length)
    leaves = case.leaves()
    leaves["x"] = (leaves["x"] + offset).float().double()
    grad_y = randn(1, length, 6, seed=2)

    def run(function, dtype):
        tensors = cast(case, leaves, dtype)
        y = function(tensors)
        return y, *torch.autograd.grad(y, list(tensors.values()), grad_y.to(dtype))

    found = run(lambda tensors: case.call(tensors, None, None, backend)[0], FLOAT)
    truth = run(lambda tensors: at_once(case, *tensors.values()), torch.float64)
    for name, value, true in zip(("y", *leaves), found, truth, strict=True):
        assert_close(name, value, true, 1e-5 if name == "y" else 1e-4)
    last = slice(-1000, None)
    assert_close("last of y", found[0][:, last], truth[0][:, last], 1e-5)
    assert_close("last of the gradient", found[1][:, last], truth[1][:, last], 1e-4)


@pytest.mark.parametrize("kind", [SequenceNorm, TimestepNorm])
@pytest.mark.parametrize("backend", ["triton"])
def test_result_does_not_depend_on_the_tile(monkeypatch, backend, device, kind):
    from megalodon_tasks.cuda_ops.norms import triton_launch

    small = evaluate(kind(2, 50), backend, device=device)
    monkeypatch.setattr(triton_launch, "ELEMENTS", 8192)
    assert_equal_calls(evaluate(kind(2, 50), backend, device=device), small, 1e-5, 1e-5)


@each([RmsNorm(2, 1, dim=4, weighted=False)])
@pytest.mark.parametrize("size", [0.0, 1e-20, 1e15])
def test_rms_norm_of_numbers_far_from_one(case, backend, dtype, size):
    leaves = {"x": size * randn(2, 1, 4)}
    truth = evaluate(case, "fused", torch.float64, cast(case, leaves, dtype))
    assert_equal_calls(evaluate(case, backend, dtype, leaves), truth, 1e-5, 1e-5)


GOOD = {"x": torch.zeros(2, 5, 6), "scale": torch.ones(6), "bias": torch.ones(6), "num_groups": 3}
STATE = TimestepNormState(torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3), torch.zeros(2, 3))


@pytest.mark.parametrize("op", NORMS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 6)}, r"x has shape \(2, 6\).*\(batch, length, dim\)"),
        ({"x": torch.zeros(2, 5, 6, dtype=torch.int64)}, "x has dtype torch.int64"),
        ({"scale": torch.ones(5)}, r"scale has shape \(5,\), expected \(6\)"),
        ({"bias": torch.ones(1, 6)}, r"bias has shape \(1, 6\)"),
        ({"num_groups": 4}, "num_groups=4 does not divide dim 6"),
        ({"num_groups": 0}, "num_groups=0"),
        ({"padding_mask": torch.zeros(2, 4, dtype=torch.bool)}, r"padding_mask has shape \(2, 4\)"),
        ({"padding_mask": torch.zeros(2, 5)}, "padding_mask has dtype torch.float32"),
        ({"backend": "nosuch"}, "'nosuch' is not one of"),
        ({"state": STATE._replace(mean=torch.zeros(2, 2))}, r"state.mean has shape \(2, 2\)"),
        ({"state": STATE._replace(count=torch.zeros(2))}, "state.count has dtype"),
    ],
)
def test_errors_name_the_argument(op, change, message):
    if "state" in change and op == "sequence_norm":
        pytest.skip("it has no state")
    with pytest.raises(ValueError, match=f"{op}: .*{message}"):
        NORMS[op](**GOOD | change)


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (torch.zeros(2, 6, dtype=torch.int64), None, "x has dtype torch.int64"),
        (torch.zeros(2, 6), torch.ones(5), r"weight has shape \(5,\), expected \(6\)"),
        (torch.zeros(2, 6), torch.ones(6).long(), "weight has dtype torch.int64"),
        (torch.zeros(2, 6), torch.ones(6, device="meta"), "weight is on meta but x is on cpu"),
    ],
)
def test_errors_of_rms_norm(x, weight, message):
    with pytest.raises(ValueError, match=f"rms_norm: {message}"):
        rms_norm(x, weight)

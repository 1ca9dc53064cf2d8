"""timestep_norm: every backend against the float64 reference, and the promises of its contract."""

import pytest
import torch
import torch.nn.functional as F

from megalodon_tasks.cuda_ops import TimestepNormState, timestep_norm
from megalodon_tasks.cuda_ops.norms import splitting
from tests.cuda_ops.compare import BACKWARD, FORWARD, assert_close
from tests.cuda_ops.norm_cases import make_mask, randn, two_pass

FAST = ["torch"]
BACKENDS = ["reference", *FAST]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def make_state(batch, groups, dtype=torch.float32):
    count = torch.arange(batch) * 3  # the first row has seen nothing
    return TimestepNormState(
        count, randn(batch, groups, seed=3, dtype=dtype), randn(batch, groups, seed=4).square()
    )


def evaluate(backend, dtype, x, groups, *, mask=None, state=None, wide_parameters=False):
    """Outputs and all gradients, by name; the same random loss for every backend and dtype."""
    parameter_dtype = torch.float32 if wide_parameters else dtype
    dim, batch = x.shape[-1], x.shape[0]
    if mask is not None:
        x = x.masked_fill(mask[..., None], torch.nan)
    leaves = {
        "x": x.to(dtype),
        "scale": (1 + randn(dim, seed=1) / 2).to(dtype).to(parameter_dtype),
        "bias": randn(dim, seed=2, dtype=dtype).to(parameter_dtype),
    }
    if state is not None:
        state_dtype = torch.promote_types(dtype, torch.float32)
        leaves |= {"mean": state.mean.to(state_dtype), "var": state.var.to(state_dtype)}
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in leaves.items()}
    if state is not None:
        state = TimestepNormState(state.count, leaves["mean"], leaves["var"])
    y, end = timestep_norm(
        leaves["x"],
        leaves["scale"],
        leaves["bias"],
        groups,
        state=state,
        padding_mask=mask,
        backend=backend,
    )
    assert y.dtype == dtype
    assert end.mean.dtype == end.var.dtype == torch.promote_types(dtype, torch.float32)
    loss = (y.double() * randn(*y.shape, seed=5)).sum()
    loss = loss + (end.mean * randn(batch, groups, seed=6)).sum()
    loss = loss + (end.var * randn(batch, groups, seed=8)).sum()
    loss.backward()
    outputs = {"y": y, "state.mean": end.mean.double() + end.mean_low, "state.var": end.var}
    return outputs, {name: leaf.grad for name, leaf in leaves.items()}, end.count


def compare(backend, dtype, x, groups, **arguments):
    rounded = x.to(dtype).double()
    truth, true_grads, true_count = evaluate(
        "reference", torch.float64, rounded, groups, **arguments
    )
    outputs, grads, count = evaluate(backend, dtype, rounded, groups, **arguments)
    assert torch.equal(count, true_count)
    for name, value in outputs.items():
        assert_close(name, value, truth[name], FORWARD[dtype])
    for name, value in grads.items():
        assert_close(f"gradient of {name}", value, true_grads[name], BACKWARD[dtype])


@pytest.mark.parametrize("mask", ["none", "right", "left", "middle", "row"])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize(
    ("length", "dim", "groups"), [(1, 12, 2), (7, 4, 1), (33, 6, 2), (12, 5, 5)]
)
@pytest.mark.parametrize("backend", FAST)
def test_matches_reference(backend, length, dim, groups, with_state, mask):
    state = make_state(3, groups) if with_state else None
    padding = make_mask(mask, 3, length)
    for dtype in (torch.float64, torch.float32):
        compare(backend, dtype, randn(3, length, dim), groups, mask=padding, state=state)


@pytest.mark.parametrize("wide_parameters", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", FAST)
def test_half_types(backend, dtype, wide_parameters):
    x = randn(2, 40, 12)
    padding, state = make_mask("middle", 2, 40), make_state(2, 3, dtype)
    outputs, grads, _ = evaluate(
        "reference", torch.float64, x.to(dtype), 3, mask=padding, state=state
    )
    got, got_grads, _ = evaluate(
        backend, dtype, x, 3, mask=padding, state=state, wide_parameters=wide_parameters
    )
    tolerance = 2e-2
    for name, value in (got | got_grads).items():
        assert_close(name, value, (outputs | grads)[name], tolerance)


@pytest.mark.parametrize("elements", [4, 30, 70, 200])
@pytest.mark.parametrize("mask", ["none", "left", "row"])
def test_torch_result_does_not_depend_on_the_piece_size(monkeypatch, elements, mask):
    monkeypatch.setattr(splitting, "PIECE", elements)
    padding = make_mask(mask, 3, 13)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        compare("torch", dtype, randn(3, 13, 6) + 5, 3, mask=padding, state=make_state(3, 3))


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("backend", FAST)
def test_gradcheck(backend, with_mask):
    mask = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 1]], dtype=torch.bool) if with_mask else None
    count = torch.tensor([0, 5])

    def outputs(x, scale, bias, mean, var):
        state = TimestepNormState(count, mean, var.square())
        y, end = timestep_norm(
            x, scale, bias, 2, state=state, padding_mask=mask, backend=backend, eps=1e-3
        )
        return y, end.mean, end.var

    shapes = [(2, 4, 4), (4,), (4,), (2, 2), (2, 2)]
    leaves = [
        randn(*shape, seed=i, dtype=torch.float64).requires_grad_()
        for i, shape in enumerate(shapes)
    ]
    assert torch.autograd.gradcheck(outputs, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_step_is_group_norm_of_its_prefix(backend):
    x, scale, bias = randn(2, 9, 6), randn(6, seed=1), randn(6, seed=2)
    y, _ = timestep_norm(x, scale, bias, 3, backend=backend)
    for length in range(1, 10):
        prefix = F.group_norm(x[:, :length].transpose(1, 2), 3, scale, bias, eps=1e-5)
        assert_close(f"step {length}", y[:, length - 1], prefix[..., -1], 1e-5)


@pytest.mark.parametrize("sizes", [[1] * 12, [5, 7], [3, 1, 8], [11, 1]])
@pytest.mark.parametrize("mask", ["none", "left", "middle"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_split_equals_whole(backend, sizes, mask):
    padding = make_mask(mask, 2, 12)
    masks = [None] * len(sizes) if padding is None else padding.split(sizes, dim=1)

    def run(lengths, mask_pieces):
        x = randn(2, 12, 6, dtype=torch.float64).requires_grad_()
        scale, bias = randn(6, seed=1).double(), randn(6, seed=2).double()
        state, outputs = None, []
        for piece, mask_piece in zip(x.split(lengths, dim=1), mask_pieces, strict=True):
            y, state = timestep_norm(
                piece, scale, bias, 3, state=state, padding_mask=mask_piece, backend=backend
            )
            outputs.append(y)
        y = torch.cat(outputs, dim=1)
        loss = (y * randn(*y.shape, seed=5)).sum() + (state.mean * state.var).sum()
        loss.backward()
        return y, state, x.grad

    whole_y, whole_state, whole_grad = run([12], [padding])
    y, state, grad = run(sizes, masks)
    assert_close("y", y, whole_y, 1e-12)
    assert_close("gradient of x", grad, whole_grad, 1e-11)
    for name in ("count", "mean", "var"):
        assert_close(
            name, getattr(state, name).double(), getattr(whole_state, name).double(), 1e-12
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_causality(backend):
    x = randn(1, 10, 4)
    scale, bias = randn(4, seed=1), randn(4, seed=2)
    before, _ = timestep_norm(x, scale, bias, 2, backend=backend)
    x[:, 6] += 100
    after, _ = timestep_norm(x, scale, bias, 2, backend=backend)
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.equal(before[:, 6:], after[:, 6:])


@pytest.mark.parametrize("where", [slice(0, 4), slice(3, 7), slice(8, 12)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_changes_nothing_and_nan_does_not_spread(backend, where):
    real = torch.ones(12, dtype=torch.bool)
    real[where] = False
    x, scale, bias = randn(2, 8, 4), randn(4, seed=1), randn(4, seed=2)
    plain_x = x.clone().requires_grad_()
    plain, plain_state = timestep_norm(plain_x, scale, bias, 2, backend=backend)
    padded_x = torch.full((2, 12, 4), torch.nan)
    padded_x[:, real] = x
    padded_x.requires_grad_()
    mask = (~real).expand(2, 12)
    padded, state = timestep_norm(padded_x, scale, bias, 2, padding_mask=mask, backend=backend)
    grad = randn(2, 12, 4, seed=5)
    (plain * grad[:, real]).sum().backward()
    torch.autograd.backward(padded, grad.masked_fill(mask[..., None], torch.nan))
    assert_close("y", padded[:, real], plain, 1e-6)
    assert torch.equal(padded[:, ~real], torch.zeros(2, 4, 4))
    assert_close("gradient", padded_x.grad[:, real], plain_x.grad, 1e-5)
    assert torch.equal(padded_x.grad[:, ~real], torch.zeros(2, 4, 4))
    assert_close("mean", state.mean, plain_state.mean, 1e-6)
    assert_close("var", state.var, plain_state.var, 1e-6)
    assert torch.equal(state.count, torch.tensor([8, 8]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_padding_keep_their_state(backend):
    state = make_state(2, 2)
    state.mean.requires_grad_()
    state.var.requires_grad_()
    x = torch.full((2, 5, 4), torch.nan, requires_grad=True)
    mask = torch.ones(2, 5, dtype=torch.bool)
    y, end = timestep_norm(
        x, torch.ones(4), torch.ones(4), 2, state=state, padding_mask=mask, backend=backend
    )
    assert torch.equal(y, torch.zeros(2, 5, 4))
    assert torch.equal(end.count, state.count)
    assert torch.equal(end.mean, state.mean)
    assert torch.equal(end.var, state.var)
    (end.mean.sum() + 2 * end.var.sum() + y.sum()).backward()
    assert torch.equal(state.mean.grad, torch.ones(2, 2))
    assert torch.equal(state.var.grad, torch.full((2, 2), 2.0))
    assert torch.equal(x.grad, torch.zeros(2, 5, 4))


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_are_independent_and_state_is_not_changed(backend):
    x, scale, bias = randn(3, 6, 4, dtype=torch.float64), torch.ones(4), torch.zeros(4)
    state = make_state(3, 2, torch.float64)
    state = state._replace(var=state.var.double())
    kept = [part.clone() for part in state[:3]]
    together, _ = timestep_norm(x, scale, bias, 2, state=state, backend=backend)
    for row in range(3):
        own = TimestepNormState(*(part[row : row + 1] for part in state[:3]))
        alone, _ = timestep_norm(x[row : row + 1], scale, bias, 2, state=own, backend=backend)
        assert_close(f"row {row}", alone[0], together[row], 1e-14)
    assert all(torch.equal(part, copy) for part, copy in zip(state[:3], kept, strict=True))


@pytest.mark.parametrize("value", [0.0, 3.0, 1e4, -0.1])
@pytest.mark.parametrize("backend", BACKENDS)
def test_constant_input_gives_the_bias(backend, value):
    x = torch.full((1, 50, 6), value, requires_grad=True)
    bias = randn(6, seed=2)
    y, state = timestep_norm(x, torch.ones(6), bias, 2, backend=backend)
    assert_close("y", y, bias.expand_as(y), 1e-4)
    assert (state.var >= 0).all()
    y.square().sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("layout", ["transposed", "expanded"])
@pytest.mark.parametrize("backend", FAST)
def test_any_memory_layout(backend, layout):
    x = randn(2, 6, 7).transpose(1, 2) if layout == "transposed" else randn(2, 1, 6).expand(2, 7, 6)
    x = x.detach().requires_grad_()
    scale, bias = randn(6, seed=1), randn(6, seed=2)
    y, _ = timestep_norm(x, scale, bias, 3, backend=backend)
    (grad,) = torch.autograd.grad(y.sum(), x)
    copy = x.detach().contiguous().requires_grad_()
    truth, _ = timestep_norm(copy, scale, bias, 3, backend=backend)
    (true_grad,) = torch.autograd.grad(truth.sum(), copy)
    assert_close("y", y, truth, 1e-6)
    assert_close("gradient", grad, true_grad, 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_nothing(backend):
    def run():
        x = randn(2, 9, 6).requires_grad_()
        y, state = timestep_norm(x, randn(6, seed=1), randn(6, seed=2), 3, backend=backend)
        y.square().sum().backward()
        return y, state.mean, state.var, x.grad

    plain = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = run()
    assert all(torch.equal(one, other) for one, other in zip(plain, cast, strict=True))


@pytest.mark.parametrize("backend", FAST)
def test_far_from_zero(backend):
    x = 1e4 + randn(2, 300, 8)
    truth = two_pass(x, 2)
    y, _ = timestep_norm(x, torch.ones(8), torch.zeros(8), 2, backend=backend)
    assert_close("y", y, truth, 1e-5)
    state, outputs = None, []
    for step in x.unbind(1):
        y, state = timestep_norm(
            step[:, None], torch.ones(8), torch.zeros(8), 2, state=state, backend=backend
        )
        outputs.append(y)
    assert_close("y step by step", torch.cat(outputs, 1), truth, 1e-5)
    compare(backend, torch.float32, x, 2)


@pytest.mark.parametrize("backend", FAST)
def test_first_steps_far_from_the_others(backend):
    x = randn(1, 4000, 8)
    x[:, :2] += 1e4
    y, _ = timestep_norm(x, torch.ones(8), torch.zeros(8), 2, backend=backend)
    truth = two_pass(x, 2)
    assert_close("y", y, truth, 1e-4)
    assert_close("later y", y[:, 2000:], truth[:, 2000:], 1e-4)


VALID = {
    "x": torch.zeros(2, 5, 6),
    "scale": torch.ones(6),
    "bias": torch.ones(6),
    "num_groups": 3,
    "padding_mask": torch.zeros(2, 5, dtype=torch.bool),
    "state": TimestepNormState(
        torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3), torch.zeros(2, 3)
    ),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 6)}, r"x has shape \(2, 6\).*\(batch, length, dim\)"),
        ({"x": torch.zeros(2, 5, 6, dtype=torch.int64)}, "x has dtype torch.int64"),
        ({"x": torch.zeros(2, 0, 6)}, "at least one step"),
        ({"scale": torch.ones(5)}, r"scale has shape \(5,\), expected \(6\)"),
        ({"bias": torch.ones(1, 6)}, r"bias has shape \(1, 6\)"),
        ({"num_groups": 4}, "num_groups=4 does not divide dim 6"),
        ({"num_groups": 0}, "num_groups=0"),
        ({"padding_mask": torch.zeros(2, 4, dtype=torch.bool)}, r"padding_mask has shape \(2, 4\)"),
        ({"padding_mask": torch.zeros(2, 5)}, "padding_mask has dtype torch.float32"),
        (
            {"state": VALID["state"]._replace(mean=torch.zeros(2, 2))},
            r"state.mean has shape \(2, 2\)",
        ),
        ({"state": VALID["state"]._replace(count=torch.zeros(2))}, "state.count has dtype"),
        ({"backend": "nosuch"}, "'nosuch' is not one of"),
    ],
)
def test_errors_name_the_argument(change, message):
    arguments = VALID | change
    positional = [arguments.pop(name) for name in ("x", "scale", "bias", "num_groups")]
    with pytest.raises(ValueError, match=message):
        timestep_norm(*positional, **arguments)

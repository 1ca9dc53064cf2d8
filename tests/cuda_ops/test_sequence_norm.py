"""sequence_norm: every backend against the float64 reference, and the promises of its contract."""

import pytest
import torch
import torch.nn.functional as F

from megalodon_tasks.cuda_ops import sequence_norm
from megalodon_tasks.cuda_ops.norms import splitting
from tests.cuda_ops.compare import BACKWARD, FORWARD, assert_close
from tests.cuda_ops.norm_cases import make_mask, randn

FAST = ["torch"]
BACKENDS = ["reference", *FAST]


def evaluate(backend, dtype, x, groups, mask, wide_parameters=False):
    """Output and all gradients, by name; the same random loss for every backend and dtype."""
    parameter_dtype = torch.float32 if wide_parameters else dtype
    dim = x.shape[-1]
    if mask is not None:
        x = x.masked_fill(mask[..., None], torch.nan)
    leaves = {
        "x": x.to(dtype),
        "scale": (1 + randn(dim, seed=1) / 2).to(dtype).to(parameter_dtype),
        "bias": randn(dim, seed=2, dtype=dtype).to(parameter_dtype),
    }
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in leaves.items()}
    y = sequence_norm(
        leaves["x"], leaves["scale"], leaves["bias"], groups, padding_mask=mask, backend=backend
    )
    assert y.dtype == dtype
    (y.double() * randn(*y.shape, seed=5)).sum().backward()
    return y, {name: leaf.grad for name, leaf in leaves.items()}


def compare(backend, dtype, x, groups, mask=None, **arguments):
    rounded = x.to(dtype).double()
    truth, true_grads = evaluate("reference", torch.float64, rounded, groups, mask)
    y, grads = evaluate(backend, dtype, rounded, groups, mask, **arguments)
    assert_close("y", y, truth, FORWARD[dtype])
    for name, value in grads.items():
        assert_close(f"gradient of {name}", value, true_grads[name], BACKWARD[dtype])


@pytest.mark.parametrize("mask", ["none", "right", "left", "middle", "row"])
@pytest.mark.parametrize(
    ("length", "dim", "groups"), [(1, 12, 2), (7, 4, 1), (33, 6, 2), (12, 5, 5)]
)
@pytest.mark.parametrize("backend", FAST)
def test_matches_reference(backend, length, dim, groups, mask):
    padding = make_mask(mask, 3, length)
    for dtype in (torch.float64, torch.float32):
        compare(backend, dtype, randn(3, length, dim), groups, padding)


@pytest.mark.parametrize("wide_parameters", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", FAST)
def test_half_types(backend, dtype, wide_parameters):
    padding = make_mask("middle", 2, 40)
    compare(backend, dtype, randn(2, 40, 12), 3, padding, wide_parameters=wide_parameters)


@pytest.mark.parametrize("elements", [4, 30, 90, 200])
@pytest.mark.parametrize("mask", ["none", "left", "right", "row"])
@pytest.mark.parametrize("length", [13, 53])
def test_torch_result_does_not_depend_on_the_piece_size(monkeypatch, elements, mask, length):
    monkeypatch.setattr(splitting, "PIECE", elements)
    padding = make_mask(mask, 3, length)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        compare("torch", dtype, randn(3, length, 6) + 5, 3, padding)


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("backend", FAST)
def test_gradcheck(backend, with_mask):
    mask = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 1]], dtype=torch.bool) if with_mask else None

    def output(x, scale, bias):
        return sequence_norm(x, scale, bias, 2, eps=1e-3, padding_mask=mask, backend=backend)

    leaves = [
        randn(*shape, seed=i, dtype=torch.float64).requires_grad_()
        for i, shape in enumerate([(2, 4, 4), (4,), (4,)])
    ]
    assert torch.autograd.gradcheck(output, leaves)


@pytest.mark.parametrize("groups", [1, 3, 6])
@pytest.mark.parametrize("backend", BACKENDS)
def test_is_group_norm_without_padding(backend, groups):
    x, scale, bias = randn(2, 9, 6), randn(6, seed=1), randn(6, seed=2)
    y = sequence_norm(x, scale, bias, groups, backend=backend)
    truth = F.group_norm(x.transpose(1, 2), groups, scale, bias, eps=1e-5).transpose(1, 2)
    assert_close("y", y, truth, 1e-6)


@pytest.mark.parametrize("where", [slice(0, 4), slice(3, 7), slice(8, 12)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_changes_nothing_and_nan_does_not_spread(backend, where):
    real = torch.ones(12, dtype=torch.bool)
    real[where] = False
    x, scale, bias = randn(2, 8, 4), randn(4, seed=1), randn(4, seed=2)
    plain_x = x.clone().requires_grad_()
    plain = sequence_norm(plain_x, scale, bias, 2, backend=backend)
    padded_x = torch.full((2, 12, 4), torch.nan)
    padded_x[:, real] = x
    padded_x.requires_grad_()
    mask = (~real).expand(2, 12)
    padded = sequence_norm(padded_x, scale, bias, 2, padding_mask=mask, backend=backend)
    grad = randn(2, 12, 4, seed=5)
    (plain * grad[:, real]).sum().backward()
    padded.backward(grad.masked_fill(mask[..., None], torch.nan))
    assert_close("y", padded[:, real], plain, 1e-6)
    assert torch.equal(padded[:, ~real], torch.zeros(2, 4, 4))
    assert_close("gradient", padded_x.grad[:, real], plain_x.grad, 1e-5)
    assert torch.equal(padded_x.grad[:, ~real], torch.zeros(2, 4, 4))


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_padding_give_zeros(backend):
    x = torch.full((2, 5, 4), torch.nan, requires_grad=True)
    mask = torch.ones(2, 5, dtype=torch.bool)
    y = sequence_norm(x, torch.ones(4), torch.ones(4), 2, padding_mask=mask, backend=backend)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(2, 5, 4))
    assert torch.equal(x.grad, torch.zeros(2, 5, 4))


@pytest.mark.parametrize("value", [0.0, 3.0, 1e4, -0.1])
@pytest.mark.parametrize("backend", BACKENDS)
def test_constant_input_gives_the_bias(backend, value):
    x = torch.full((1, 50, 6), value, requires_grad=True)
    bias = randn(6, seed=2)
    y = sequence_norm(x, torch.ones(6), bias, 2, backend=backend)
    assert_close("y", y, bias.expand_as(y), 1e-4)
    y.square().sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("layout", ["transposed", "expanded"])
@pytest.mark.parametrize("backend", FAST)
def test_any_memory_layout(backend, layout):
    x = randn(2, 6, 7).transpose(1, 2) if layout == "transposed" else randn(2, 1, 6).expand(2, 7, 6)
    x = x.detach().requires_grad_()
    scale, bias = randn(6, seed=1), randn(6, seed=2)
    y = sequence_norm(x, scale, bias, 3, backend=backend)
    (grad,) = torch.autograd.grad((y * y.detach().sin()).sum(), x)
    copy = x.detach().contiguous().requires_grad_()
    truth = sequence_norm(copy, scale, bias, 3, backend=backend)
    (true_grad,) = torch.autograd.grad((truth * truth.detach().sin()).sum(), copy)
    assert_close("y", y, truth, 1e-6)
    assert_close("gradient", grad, true_grad, 1e-5)


@pytest.mark.parametrize("mask", ["none", "right", "left"])
@pytest.mark.parametrize("backend", FAST)
def test_far_from_zero(backend, mask):
    compare(backend, torch.float32, 1e4 + randn(2, 300, 8), 2, make_mask(mask, 2, 300))


VALID = {
    "x": torch.zeros(2, 5, 6),
    "scale": torch.ones(6),
    "bias": torch.ones(6),
    "num_groups": 3,
    "padding_mask": torch.zeros(2, 5, dtype=torch.bool),
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
        ({"padding_mask": torch.zeros(2, 4, dtype=torch.bool)}, r"padding_mask has shape \(2, 4\)"),
        ({"padding_mask": torch.zeros(2, 5)}, "padding_mask has dtype torch.float32"),
        ({"backend": "fft"}, "'fft' is not one of"),
    ],
)
def test_errors_name_the_argument(change, message):
    arguments = VALID | change
    positional = [arguments.pop(name) for name in ("x", "scale", "bias", "num_groups")]
    with pytest.raises(ValueError, match=message):
        sequence_norm(*positional, **arguments)

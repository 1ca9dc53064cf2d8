"""The linear layer: the same values and derivatives whichever library computes the product."""

import pytest
import torch
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from megalodon_tasks.cuda_ops import linear as linear_module
from megalodon_tasks.cuda_ops.linear import linear
from megalodon_tasks.models.layers.linear import Linear

needs_onednn = pytest.mark.skipif(
    not linear_module._ONEDNN, reason="a product runs in oneDNN only on CPUs with AVX-512"
)


@pytest.fixture
def products(monkeypatch):
    """The shapes of the products that oneDNN computes."""
    shapes, product = [], linear_module._product

    def recorded(x, weight, bias):
        shapes.append((*x.shape, len(weight)))
        return product(x, weight, bias)

    monkeypatch.setattr(linear_module, "_product", recorded)
    return shapes


def leaves(*shape, outputs, bias=True, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    x, weight = normal(*shape), normal(outputs, shape[-1])
    tensors = [x, weight, normal(outputs) if bias else None]
    return [t if t is None else t.requires_grad_() for t in tensors]


def relative(found, truth):
    return float((found.double() - truth).detach().norm() / truth.detach().norm())


SHAPES = [((2, 600, 48), 80), ((1200, 80), 48), ((3, 2, 256, 64), 64)]


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("shape", "outputs"), SHAPES)
def test_values_and_gradients(products, shape, outputs, bias):
    tensors = leaves(*shape, outputs=outputs, bias=bias)
    inputs = [t for t in tensors if t is not None]
    y = linear(*tensors)
    grad_y = torch.randn_like(y)
    found = torch.autograd.grad(y, inputs, grad_y)
    assert len(products) == 3
    wide = [None if t is None else t.detach().double().requires_grad_() for t in tensors]
    truth = F.linear(*wide)
    expected = torch.autograd.grad(truth, [t for t in wide if t is not None], grad_y.double())
    assert y.is_contiguous()
    assert relative(y, truth) < 1e-6
    for value, true_value in zip(found, expected, strict=True):
        assert relative(value, true_value) < 1e-6


@needs_onednn
@pytest.mark.parametrize("frozen", [(0,), (1,), (0, 1), (1, 2)])
def test_frozen_tensors_cost_no_product(products, frozen):
    tensors = leaves(2, 600, 48, outputs=80)
    for index in frozen:
        tensors[index].requires_grad_(False)
    linear(*tensors).sum().backward()
    assert [t.grad is None for t in tensors] == [index in frozen for index in range(3)]
    assert len(products) == 3 - len({0, 1} & set(frozen))


@needs_onednn
def test_any_strides(products):
    x, weight, bias = leaves(600, 2, 48, outputs=80)
    layouts = [
        x.transpose(0, 1),
        torch._neg_view(x),
        x[:1].expand(600, 2, 48),
        x.flip(0)[:, :, ::2],
    ]
    for strided in layouts:
        matrix = weight[:, : strided.shape[-1]]
        torch.testing.assert_close(
            linear(strided, matrix, bias), F.linear(strided, matrix, bias), rtol=1e-4, atol=1e-4
        )
    assert len(products) == 3  # the last of them is below the size that pays


@needs_onednn
def test_second_derivatives(products):
    def penalty(function):
        tensors = leaves(600, 64, outputs=128)
        y = function(*tensors)
        grads = torch.autograd.grad(y.square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), tensors)

    found = penalty(linear)
    assert products
    for value, expected in zip(found, penalty(F.linear), strict=True):
        assert relative(value, expected.double()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_and_autocast_are_left_to_pytorch(products, dtype):
    tensors = leaves(2, 600, 64, outputs=64, dtype=dtype)
    assert linear(*tensors).equal(F.linear(*tensors))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(*leaves(2, 600, 64, outputs=64)).dtype == torch.bfloat16
    assert not products


def test_small_and_empty_products_are_left_to_pytorch(products):
    for rows in (0, 1, 5):
        tensors = leaves(rows, 64, outputs=64)
        assert linear(*tensors).equal(F.linear(*tensors))
    assert not products


def test_transforms_tracing_and_counting_see_pytorchs_operators(products):
    layer, x = Linear(96, 96), torch.randn(2, 512, 96)
    expected = F.linear(x, layer.weight, layer.bias)
    state = dict(layer.named_parameters())
    per_row = vmap(lambda row: functional_call(layer, state, (row,)))(x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    exported = torch.export.export(layer, (x,)).module()(x)
    with FlopCounterMode(display=False) as counter:
        counted = layer(x)
    assert counter.get_total_flops() == 2 * 2 * 512 * 96 * 96
    assert not products
    for y in (per_row, compiled, exported, counted):
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_layers_use_it_with_their_hooks(products):
    layer, x = Linear(96, 96), torch.randn(2, 512, 96)
    layer.register_forward_hook(lambda module, inputs, output: -output)
    with torch.inference_mode():
        y = layer(x)
    assert products == [(2, 512, 96, 96)]
    torch.testing.assert_close(y, -F.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)

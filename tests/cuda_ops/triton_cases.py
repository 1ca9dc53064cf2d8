"""One comparison of a Triton backend with the float64 reference, for any op and device."""

import torch

from tests.cuda_ops.compare import BACKWARD, FORWARD, assert_close


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_padding(batch, length):
    """A first row of nothing else, then padding anywhere."""
    mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(3)) < 0.3
    mask[0] = True
    return mask


def evaluate(function, leaves):
    """Outputs of ``function`` and gradients of all leaves, for a loss that weighs each output."""
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    outputs = {name: out for name, out in function(**leaves).items() if out.is_floating_point()}
    loss = sum(
        # Weights are exact in bf16, so that the gradients start from equal numbers.
        (out.double() * randn(*out.shape, seed=20 + i).bfloat16().to(out.device)).sum()
        for i, out in enumerate(outputs.values())
        if out.requires_grad
    )
    grads = torch.autograd.grad(loss, leaves.values(), materialize_grads=True)
    return outputs, dict(zip(leaves, grads, strict=True))


def assert_like_reference(function, leaves, device, dtype=torch.float32, wide=()):
    """Compare ``function(backend, device, **leaves)``, which returns outputs by name.

    Leaves are float64, and narrowed to ``dtype``, or to float32 if named in ``wide``.  Gradients are
    measured against the largest of a leaf's kind, as some are nothing but rounding.
    """

    def narrow(name):
        return torch.float32 if name in wide else dtype

    leaves = {name: leaf.to(narrow(name)).double() for name, leaf in leaves.items()}
    truth, true_grads = evaluate(lambda **all_: function("reference", "cpu", **all_), leaves)
    leaves = {name: leaf.to(device, narrow(name)) for name, leaf in leaves.items()}
    got, grads = evaluate(lambda **all_: function("triton", device, **all_), leaves)
    assert got.keys() == truth.keys()
    for name, value in got.items():
        assert_close(name, value.cpu(), truth[name], FORWARD[dtype])
    scale = max(grad.norm() for grad in true_grads.values()).clamp(min=1e-6)
    for name, grad in grads.items():
        assert grad.isfinite().all(), f"gradient of {name} is not finite"
        assert grad.dtype == narrow(name)
        error = ((grad.cpu().double() - true_grads[name]).norm() / scale).item()
        assert error <= BACKWARD[dtype], f"gradient of {name}: relative error {error:.1e}"
    return got, grads


def assert_compiles_whole(function, tensors, device):
    """``torch.compile`` takes the call without a graph break and computes the same."""

    def run(**all_):
        return function("triton", device, **all_)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for eager, traced in zip(evaluate(run, tensors), evaluate(compiled, tensors), strict=True):
        for name, value in eager.items():
            assert_close(name, traced[name], value, 1e-6)

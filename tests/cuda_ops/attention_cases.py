"""Inputs for the tests of chunk attention, and one comparison with the reference."""

import torch

from megalodon_tasks.cuda_ops import ChunkAttentionState, chunk_attention
from tests.cuda_ops.compare import BACKWARD, FORWARD, assert_close


def randn(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def make_qkv(batch=2, length=11, heads=2, key=3, value=5, seed=0, dtype=torch.float32):
    widths = (key, key, value)
    return [
        randn(batch, length, heads, width, seed=seed + i, dtype=dtype)
        for i, width in enumerate(widths)
    ]


def make_state(past, batch=2, heads=2, key=3, value=5, masked=False):
    mask = randn(batch, past, seed=9) > 0.5 if masked else None
    shape = batch, past, heads
    return ChunkAttentionState(randn(*shape, key, seed=7), randn(*shape, value, seed=8), mask)


def make_mask(kind, batch, length):
    """Right padding that covers whole chunks, padding anywhere, or a first row of nothing else."""
    steps = torch.arange(length)[None]
    masks = {
        "none": None,
        "right": steps
        >= torch.tensor([length - row * length // 2 for row in range(batch)])[:, None],
        "left": steps < torch.tensor([row * length // 2 for row in range(batch)])[:, None],
        "middle": torch.rand(batch, length, generator=torch.Generator().manual_seed(7)) < 0.5,
        "row": (torch.arange(batch) == 0)[:, None].expand(batch, length).contiguous(),
    }
    return masks[kind]


def evaluate(backend, dtype, qkv, state=None, seed=0, **arguments):
    """Outputs and all gradients, by name; the same random loss for every backend and dtype."""
    leaves = dict(zip("qkv", qkv, strict=True))
    if state is not None:
        leaves |= {"state.key": state.key, "state.value": state.value}
    leaves = {name: leaf.detach().to(dtype).requires_grad_() for name, leaf in leaves.items()}
    if state is not None:
        state = state._replace(key=leaves["state.key"], value=leaves["state.value"])
    torch.manual_seed(seed)
    y, end = chunk_attention(
        *(leaves[name] for name in "qkv"), state=state, backend=backend, **arguments
    )
    assert y.dtype == dtype
    outputs = {"y": y}
    if end is not None:
        outputs |= {"end.key": end.key, "end.value": end.value}
        if end.padding_mask is not None:
            outputs["end.padding_mask"] = end.padding_mask.double()
    loss = sum(
        (value.double() * randn(*value.shape, seed=20 + i)).sum()
        for i, value in enumerate(outputs.values())
    )
    grads = torch.autograd.grad(loss, leaves.values(), materialize_grads=True)
    return outputs, dict(zip(leaves, grads, strict=True))


def compare(backend, dtype, qkv, state=None, **arguments):
    rounded = [tensor.to(dtype).double() for tensor in qkv]
    if state is not None:
        state = state._replace(key=state.key.to(dtype), value=state.value.to(dtype))
    truth, true_grads = evaluate("reference", torch.float64, rounded, state, **arguments)
    outputs, grads = evaluate(backend, dtype, rounded, state, **arguments)
    assert outputs.keys() == truth.keys()
    for name, value in outputs.items():
        assert_close(name, value, truth[name], FORWARD[dtype])
    # A query that sees one key has gradient zero, which rounding makes small noise: measure all
    # gradients against the largest.
    scale = max(grad.norm() for grad in true_grads.values()).clamp(min=1e-6)
    for name, value in grads.items():
        assert torch.isfinite(value).all(), f"gradient of {name} is not finite"
        error = ((value.double() - true_grads[name]).norm() / scale).item()
        assert error <= BACKWARD[dtype], f"gradient of {name}: relative error {error:.1e}"

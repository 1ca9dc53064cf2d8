"""What only the Triton backends promise: registration as operators, repeatable results, refusals."""

import importlib

import pytest
import torch

from megalodon_tasks.cuda_ops import BackendUnavailable, chunk_attention
from tests.cuda_ops.cases import (
    CARRYING,
    Attention,
    Cema,
    SequenceNorm,
    TimestepNorm,
    assert_equal_calls,
    evaluate,
    make_mask,
    randn,
)

OPS = "megalodon_tasks.cuda_ops"
CASES = (*CARRYING, Cema(9, 67, bidirectional=True), SequenceNorm(2, 50), Attention(dropout_p=0.2))


def leaf(*shape, seed=0):
    return randn(*shape, seed=seed).float().requires_grad_()


def operator_calls():
    """(module, operator, arguments): one block and several, with and without a state."""
    for bidirectional in (False, True):
        rows, mask = 6 if bidirectional else 3, make_mask("random", 2, 35)
        coeffs = [randn(rows, 4, seed=i).sigmoid().requires_grad_() for i in range(5)]
        coeffs[1] = (-randn(rows, 4).sigmoid()).requires_grad_()
        state = None if bidirectional else leaf(2, 3, 4, 2, seed=8)
        arguments = leaf(2, 35, 3), *coeffs, leaf(3), state, mask, bidirectional
        yield "complex_ema", "cema_op", arguments
    for length in (5, 20):
        mask, norm = make_mask("random", 2, length), (leaf(2, length, 6), leaf(6), leaf(6))
        yield "norms.sequence", "sequence_norm_op", (*norm, mask, 3, 1e-5)
        past = torch.arange(2), leaf(2, 3), torch.zeros(2, 3), leaf(2, 3).square().detach()
        for state in ((None,) * 4, past):
            yield "norms.timestep", "timestep_norm_op", (*norm, *state, mask, 3, 1e-5)
    mask, seed = make_mask("random", 2, 18)[1:], torch.tensor([3])
    for causal in (False, True):
        qkv = leaf(1, 16, 2, 5), leaf(1, 18, 2, 5), leaf(1, 18, 2, 7)
        yield "attention", "chunk_attention_op", (*qkv, mask, seed, 10, causal, 0.1)


@pytest.mark.parametrize("backend", ["triton"])
@pytest.mark.parametrize(("folder", "name", "arguments"), list(operator_calls()))
def test_operators_are_registered(backend, device, folder, name, arguments):
    operator = getattr(importlib.import_module(f"{OPS}.{folder}.triton_op"), name)
    placed = [
        value.detach().to(device).requires_grad_(value.requires_grad)
        if isinstance(value, torch.Tensor)
        else value
        for value in arguments
    ]
    torch.library.opcheck(operator, tuple(placed))


@pytest.mark.parametrize("backend", ["triton"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_repeat_bit_for_bit(backend, device, case):
    first, second = (evaluate(case, backend, device=device) for _ in range(2))
    assert_equal_calls(second, tuple({n: t.cpu() for n, t in s.items()} for s in first), 0.0, 0.0)


@pytest.mark.parametrize("backend", ["triton"])
@pytest.mark.parametrize("case", [Cema(), TimestepNorm(), SequenceNorm(), Attention()], ids=str)
def test_float64_is_refused_by_name_and_left_to_torch_by_default(backend, device, case):
    leaves = {name: leaf.to(device) for name, leaf in case.leaves().items()}
    with pytest.raises(BackendUnavailable, match="'triton' cannot run: .*float64"):
        case.call(leaves, None, None, backend)
    default, torch_y = (case.call(leaves, None, None, b)[0] for b in (None, "torch"))
    assert torch.equal(default, torch_y)


@pytest.mark.parametrize("backend", ["triton"])
def test_wide_keys_are_refused_by_name_and_left_to_torch_by_default(backend, device):
    q, v = torch.zeros(1, 2, 1, 513, device=device), torch.zeros(1, 2, 1, 4, device=device)
    with pytest.raises(BackendUnavailable, match="hold 512 features .*, these have 513"):
        chunk_attention(q, q, v, chunk_size=2, causal=True, backend=backend)
    assert not chunk_attention(q, q, v, chunk_size=2, causal=True)[0].any()

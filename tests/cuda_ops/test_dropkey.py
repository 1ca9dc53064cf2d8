"""DropKey in chunk_attention: what is dropped, how often, and that backends agree under a seed."""

import pytest
import torch

from megalodon_tasks.cuda_ops import chunk_attention
from tests.cuda_ops.attention_cases import compare, make_mask, make_qkv
from tests.cuda_ops.compare import assert_close

FAST = ["torch"]
BACKENDS = ["reference", *FAST]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 4, 11, None])
@pytest.mark.parametrize("mask", ["none", "middle"])
@pytest.mark.parametrize("dropout_p", [0.1, 0.6, 1.0])
@pytest.mark.parametrize("backend", FAST)
def test_dropkey_agrees_with_reference_under_a_seed(backend, dropout_p, mask, chunk_size, causal):
    compare(
        backend,
        torch.float64,
        make_qkv(),
        chunk_size=chunk_size,
        causal=causal,
        dropout_p=dropout_p,
        padding_mask=make_mask(mask, 2, 11),
        seed=3,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropkey_masks_scores_before_the_softmax(backend):
    """Equal scores make each output the mean of the kept values: weights 1/n, and n is binomial."""
    length, dropout_p = 64, 0.25
    q = torch.zeros(4, length, 2, 1)
    v = torch.eye(length)[None, :, None].expand(4, length, 2, length)
    torch.manual_seed(0)
    y, _ = chunk_attention(
        q, q, v, chunk_size=None, causal=False, dropout_p=dropout_p, backend=backend
    )
    kept = y > 0
    assert_close("sum of weights", y.sum(-1), torch.ones(4, length, 2), 1e-5)
    assert_close("weights", y, kept / kept.sum(-1, keepdim=True), 1e-5)
    assert abs(kept.double().mean().item() - (1 - dropout_p)) < 0.01
    for axis in (0, 1, 2):
        rates = kept.double().mean([other for other in range(4) if other != axis])
        assert (rates - (1 - dropout_p)).abs().max() < 0.06, f"uneven along axis {axis}"
    assert not torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[:, :, 0], kept[:, :, 1])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_query_whose_keys_are_all_dropped_gives_zeros(backend, causal):
    leaves = [tensor.requires_grad_() for tensor in make_qkv()]
    y, _ = chunk_attention(*leaves, chunk_size=4, causal=causal, dropout_p=1.0, backend=backend)
    y.sum().backward()
    assert torch.equal(y, torch.zeros_like(y))
    assert not any(leaf.grad.any() for leaf in leaves)

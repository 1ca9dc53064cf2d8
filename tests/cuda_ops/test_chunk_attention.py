"""chunk_attention: every backend against the float64 reference, and the promises of its contract."""

import pytest
import torch

from megalodon_tasks.cuda_ops import chunk_attention
from megalodon_tasks.cuda_ops.attention import torch_op
from tests.cuda_ops.attention_cases import compare, make_mask, make_qkv, make_state, randn
from tests.cuda_ops.compare import assert_close

FAST = ["torch"]
BACKENDS = ["reference", *FAST]


@pytest.mark.parametrize("mask", ["none", "right", "left", "middle", "row"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 4, 11, 16, None])
@pytest.mark.parametrize("backend", FAST)
def test_matches_reference(backend, chunk_size, causal, mask):
    for length in (1, 8, 11):
        for dtype in (torch.float64, torch.float32):
            compare(
                backend,
                dtype,
                make_qkv(length=length),
                chunk_size=chunk_size,
                causal=causal,
                padding_mask=make_mask(mask, 2, length),
            )


@pytest.mark.parametrize("masked_state", [False, True])
@pytest.mark.parametrize("mask", ["none", "middle"])
@pytest.mark.parametrize(("chunk_size", "past"), [(4, 0), (4, 1), (4, 3), (16, 5), (None, 3)])
@pytest.mark.parametrize("backend", FAST)
def test_matches_reference_with_state(backend, chunk_size, past, mask, masked_state):
    state = make_state(past, masked=masked_state)
    for length in (1, 3, 11):
        for dropout_p in (0.0, 0.4):
            compare(
                backend,
                torch.float64,
                make_qkv(length=length),
                state,
                chunk_size=chunk_size,
                causal=True,
                dropout_p=dropout_p,
                padding_mask=make_mask(mask, 2, length),
            )


@pytest.mark.parametrize(("key", "value"), [(4, 4), (2, 6), (6, 2)])
@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_torch_widths_of_keys_and_values(monkeypatch, key, value, long, causal):
    monkeypatch.setattr(torch_op, "LONG", 2 if long else 2048)
    compare(
        "torch",
        torch.float64,
        make_qkv(key=key, value=value),
        chunk_size=4,
        causal=causal,
        padding_mask=make_mask("right", 2, 11),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [5, 8])
@pytest.mark.parametrize("backend", FAST)
def test_half_types(backend, dtype, value):
    compare(
        backend,
        dtype,
        make_qkv(length=24, key=8, value=value),
        make_state(3, key=8, value=value),
        chunk_size=8,
        causal=True,
        padding_mask=make_mask("right", 2, 24),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_mixed_types_follow_v(backend):
    q, k, v = make_qkv()
    y, end = chunk_attention(q, k, v.bfloat16(), chunk_size=4, causal=True, backend=backend)
    assert (y.dtype, end.key.dtype, end.value.dtype) == (torch.bfloat16, q.dtype, torch.bfloat16)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_full_attention_is_softmax_attention(backend, causal):
    q, k, v = make_qkv()
    y, _ = chunk_attention(q, k, v, chunk_size=None, causal=causal, backend=backend)
    scores = torch.einsum("blhk,bshk->bhls", q, k)
    if causal:
        scores = scores.masked_fill(torch.ones(11, 11).triu(1).bool(), -torch.inf)
    assert_close("y", y, torch.einsum("bhls,bshv->blhv", scores.softmax(-1), v), 1e-6)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_chunks_are_separate_sequences(backend, causal):
    q, k, v = make_qkv(length=10)
    y, _ = chunk_attention(q, k, v, chunk_size=4, causal=causal, backend=backend)
    for start in (0, 4, 8):
        part = (tensor[:, start : start + 4] for tensor in (q, k, v))
        alone, _ = chunk_attention(*part, chunk_size=None, causal=causal, backend=backend)
        assert_close(f"chunk at {start}", y[:, start : start + 4], alone, 1e-6)


@pytest.mark.parametrize("sizes", [[1] * 13, [5, 8], [4, 4, 5], [3, 1, 9], [2, 11]])
@pytest.mark.parametrize("mask", ["none", "left", "middle"])
@pytest.mark.parametrize("chunk_size", [1, 4, 6, None])
@pytest.mark.parametrize("backend", BACKENDS)
def test_split_equals_whole(backend, chunk_size, mask, sizes):
    padding = make_mask(mask, 2, 13)
    masks = [None] * len(sizes) if padding is None else padding.split(sizes, dim=1)

    def run(lengths, mask_pieces):
        leaves = [tensor.requires_grad_() for tensor in make_qkv(length=13, dtype=torch.float64)]
        state, outputs = None, []
        pieces = zip(*(leaf.split(lengths, dim=1) for leaf in leaves), mask_pieces, strict=True)
        for q, k, v, mask_piece in pieces:
            y, state = chunk_attention(
                q,
                k,
                v,
                chunk_size=chunk_size,
                causal=True,
                padding_mask=mask_piece,
                state=state,
                backend=backend,
            )
            outputs.append(y)
        y = torch.cat(outputs, dim=1)
        loss = (y * randn(*y.shape, seed=5)).sum() + state.key.square().sum()
        loss = loss + state.value.square().sum()
        return y, state, torch.autograd.grad(loss, leaves)

    whole_y, whole_state, whole_grads = run([13], [padding])
    y, state, grads = run(sizes, masks)
    assert_close("y", y, whole_y, 1e-12)
    assert torch.equal(state.key, whole_state.key)
    assert torch.equal(state.value, whole_state.value)
    assert state.key.shape[1] == (13 if chunk_size is None else 13 % chunk_size)
    for name, grad, whole_grad in zip("qkv", grads, whole_grads, strict=True):
        assert (grad - whole_grad).norm() <= 1e-12 * whole_grads[2].norm(), f"gradient of {name}"


@pytest.mark.parametrize("length", [4, 8])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_full_chunk_leaves_an_empty_state(backend, length):
    q, k, v = make_qkv(length=length)
    _, state = chunk_attention(q, k, v, chunk_size=4, causal=True, backend=backend)
    assert state.key.shape == (2, 0, 2, 3)
    assert state.value.shape == (2, 0, 2, 5)
    y, _ = chunk_attention(q, k, v, chunk_size=4, causal=True, state=state, backend=backend)
    fresh, _ = chunk_attention(q, k, v, chunk_size=4, causal=True, backend=backend)
    assert torch.equal(y, fresh)


@pytest.mark.parametrize("backend", BACKENDS)
def test_causality(backend):
    q, k, v = make_qkv()
    before, _ = chunk_attention(q, k, v, chunk_size=4, causal=True, backend=backend)
    for tensor in (q, k, v):
        tensor[:, 6] += 10
    after, _ = chunk_attention(q, k, v, chunk_size=4, causal=True, backend=backend)
    same = torch.tensor([step < 6 or step >= 8 for step in range(11)])
    assert_close("steps before, other chunks", after[:, same], before[:, same], 1e-6)
    assert not torch.allclose(before[:, 6:8], after[:, 6:8])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("where", [slice(0, 4), slice(3, 7), slice(8, 12)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_changes_nothing_and_nan_does_not_spread(backend, where, causal):
    real = torch.ones(12, dtype=torch.bool)
    real[where] = False
    plain = [tensor.requires_grad_() for tensor in make_qkv(length=8)]
    padded = []
    for tensor in plain:
        full = torch.full((2, 12, *tensor.shape[2:]), torch.nan)
        full[:, real] = tensor.detach()
        padded.append(full.requires_grad_())
    mask = (~real).expand(2, 12)
    options = {"chunk_size": None, "causal": causal, "backend": backend}
    plain_y, _ = chunk_attention(*plain, **options)
    padded_y, _ = chunk_attention(*padded, padding_mask=mask, **options)
    grad = randn(*padded_y.shape, seed=5)
    plain_y.backward(grad[:, real])
    padded_y.backward(grad.masked_fill(mask[..., None, None], torch.nan))
    assert_close("y", padded_y[:, real], plain_y, 1e-6)
    assert torch.equal(padded_y[:, ~real], torch.zeros(2, 4, 2, 5))
    for name, tensor, truth in zip("qkv", padded, plain, strict=True):
        assert_close(f"gradient of {name}", tensor.grad[:, real], truth.grad, 1e-5)
        assert not tensor.grad[:, ~real].any()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("chunk_size", [3, None])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_but_padding_gives_zeros(backend, chunk_size, causal):
    leaves = [torch.full_like(tensor, torch.nan).requires_grad_() for tensor in make_qkv(length=7)]
    y, state = chunk_attention(
        *leaves,
        chunk_size=chunk_size,
        causal=causal,
        padding_mask=torch.ones(2, 7, dtype=torch.bool),
        backend=backend,
    )
    y.sum().backward()
    assert torch.equal(y, torch.zeros(2, 7, 2, 5))
    assert not any(leaf.grad.any() for leaf in leaves)
    if causal:
        assert not state.value.any()


VALID = dict(zip("qkv", make_qkv(), strict=True)) | {"chunk_size": 4, "causal": True}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 11, 6)}, r"q has shape \(2, 11, 6\)"),
        ({"k": torch.zeros(2, 10, 2, 3)}, r"k has shape \(2, 10, 2, 3\), expected \(2, 11, 2, 3\)"),
        ({"v": torch.zeros(2, 11, 1, 5)}, r"v has shape \(2, 11, 1, 5\)"),
        ({"v": torch.zeros(2, 11, 2, 5).long()}, "v has dtype torch.int64"),
        ({"chunk_size": 0}, "chunk_size=0 must be at least 1; pass None"),
        ({"chunk_size": -3}, "chunk_size=-3"),
        ({"dropout_p": 1.5}, r"dropout_p=1.5 must be in \[0, 1\]"),
        ({"padding_mask": torch.zeros(2, 4, dtype=torch.bool)}, r"padding_mask has shape \(2, 4\)"),
        ({"state": make_state(2), "causal": False}, "state of 2 steps .* causal=False"),
        (
            {"state": make_state(4)},
            "the state holds 4 steps, which must be fewer than chunk_size=4",
        ),
        ({"state": make_state(2, heads=1)}, r"state.key has shape \(2, 2, 1, 3\)"),
        ({"state": make_state(2, value=4)}, r"state.value has shape \(2, 2, 2, 4\)"),
        ({"backend": "fft"}, "'fft' is not one of"),
    ],
)
def test_errors_name_the_argument(change, message):
    arguments = VALID | change
    qkv = [arguments.pop(name) for name in "qkv"]
    with pytest.raises(ValueError, match=message):
        chunk_attention(*qkv, **arguments)

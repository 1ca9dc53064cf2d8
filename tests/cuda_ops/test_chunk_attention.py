"""chunk_attention: softmax over chunks, DropKey, states, saturated scores, long sequences, errors."""

import pytest
import torch

from megalodon_tasks.cuda_ops import ChunkAttentionState, chunk_attention, dispatch
from megalodon_tasks.cuda_ops.attention import reference, torch_op
from tests.cuda_ops.cases import (
    FLOAT,
    Attention,
    assert_close,
    assert_equal_calls,
    assert_matches_reference,
    cast,
    each,
    evaluate,
    randn,
)

BACKENDS = tuple(dispatch.BACKENDS["chunk_attention"])


@each([Attention(chunk_size=size, causal=causal) for size in (4, None) for causal in (False, True)])
def test_each_chunk_is_softmax_attention(case, backend, dtype):
    leaves = cast(case, case.leaves(), dtype)
    y, _ = case.call(leaves, None, None, backend)
    size = case.chunk_size or case.length
    for start in range(0, case.length, size):
        q, k, v = (leaves[name][:, start : start + size] for name in "qkv")
        scores = torch.einsum("blhk,bshk->bhls", q, k)
        if case.causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        truth = torch.einsum("bhls,bshv->blhv", scores.softmax(-1), v)
        assert_close(f"chunk at {start}", y[:, start : start + size], truth, 1e-6)


@each([Attention(2, 4, chunk_size=4), Attention(2, 8, chunk_size=4)])
def test_a_full_chunk_leaves_an_empty_state(case, backend, dtype):
    leaves = cast(case, case.leaves(), dtype)
    y, state = case.call(leaves, None, None, backend)
    assert state.key.shape == (2, 0, 2, 3)
    assert state.value.shape == (2, 0, 2, 5)
    again, _ = case.call(leaves, None, state, backend)
    assert torch.equal(again, y)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mixed_types_follow_v(backend):
    q, k, v = (leaf.float() for leaf in Attention().leaves().values())
    options = {"chunk_size": 16, "causal": True}
    truth, _ = chunk_attention(q, k, v, **options, backend="reference")
    y, end = chunk_attention(q.bfloat16(), k, v.half(), **options, backend=backend)
    assert (y.dtype, end.key.dtype, end.value.dtype) == (torch.half, FLOAT, torch.half)
    assert_close("y", y, truth, 5e-3)


@pytest.mark.parametrize(("key", "value"), [(4, 4), (2, 6), (6, 2)])
@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_torch_widths_of_keys_and_values(monkeypatch, key, value, long, causal):
    monkeypatch.setattr(torch_op, "LONG", 2 if long else 2048)
    monkeypatch.setattr(torch_op, "ROWS", 3)
    case = Attention(2, 11, "right", key=key, value=value, chunk_size=4, causal=causal)
    assert_matches_reference(case, "torch", torch.float64)


@pytest.mark.parametrize("causal", [False, True])
def test_torch_holds_no_weights_of_long_chunks(causal):
    length = 2 * torch_op.ROWS + torch_op.LONG
    q, k, v = (torch.randn(1, length, 1, width, requires_grad=True) for width in (2, 2, 4))
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.numel()) or t, lambda t: t
    ):
        y, _ = chunk_attention(q, k, v, chunk_size=length, causal=causal, backend="torch")
    assert max(sizes) < length**2 / 100
    truth, _ = chunk_attention(q, k, v, chunk_size=length, causal=causal, backend="reference")
    assert_close("y", y, truth, 1e-5)


@each([Attention(1, 40, chunk_size=None)])
@pytest.mark.parametrize("scale", [30.0, 1e3])
def test_saturated_scores(case, backend, dtype, scale):
    """Weights of one key: exp overflows float32 unless the largest score is taken off first."""
    leaves = case.leaves()
    leaves["q"] *= scale
    # Scores of some thousands are known to 1e-4 in float32, and so are the weights.
    assert_matches_reference(case, backend, dtype, leaves, loosened=2 * scale)


@pytest.mark.parametrize(
    ("backend", "length"),
    # Chunks are independent: more of them add nothing under the interpreter.
    [("torch", 1 << 20), ("triton", 1 << 9)],
)
def test_the_last_chunks_of_a_long_sequence(backend, length):
    long = Attention(1, length, heads=1, chunk_size=64)
    leaves = cast(long, long.leaves(), FLOAT)
    y, state = long.call(leaves, None, None, backend)
    assert state.key.shape[1] == 0
    grad_y, last = randn(*y.shape, seed=9).float(), slice(length - 3 * 64, None)
    grads = torch.autograd.grad(y, list(leaves.values()), grad_y)
    ends = {name: leaf.detach()[:, last].double().requires_grad_() for name, leaf in leaves.items()}
    truth, _ = long.call(ends, None, None, "reference")
    true_grads = torch.autograd.grad(truth, list(ends.values()), grad_y[:, last].double())
    assert_close("y", y[:, last], truth, 1e-5)
    for name, grad, true_grad in zip("qkv", grads, true_grads, strict=True):
        assert_close(f"gradient of {name}", grad[:, last], true_grad, 1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropkey_masks_scores_before_the_softmax(backend):
    """Equal scores make each output the mean of the seen values: weights 1/n, and n is binomial."""
    length, dropout_p = 64, 0.25
    q = torch.zeros(4, length, 2, 1)
    v = torch.eye(length)[None, :, None].expand(4, length, 2, length)
    torch.manual_seed(0)
    options = {"chunk_size": None, "causal": False, "dropout_p": dropout_p}
    y, _ = chunk_attention(q, q, v, **options, backend=backend)
    seen = y > 0
    assert_close("sum of weights", y.sum(-1), torch.ones(4, length, 2), 1e-5)
    assert_close("weights", y, seen / seen.sum(-1, keepdim=True), 1e-5)
    assert abs(seen.double().mean().item() - (1 - dropout_p)) < 0.01
    for axis in (0, 1, 2):
        rates = seen.double().mean([other for other in range(4) if other != axis])
        assert (rates - (1 - dropout_p)).abs().max() < 0.06, f"uneven along axis {axis}"
    pairs = [(seen[0], seen[1]), (seen[:, :, 0], seen[:, :, 1]), (seen[:, 1:], seen[:, :-1])]
    for one, other in [*pairs, (seen[..., 1:], seen[..., :-1])]:
        agreement = (one == other).double().mean().item()
        assert abs(agreement - (dropout_p**2 + (1 - dropout_p) ** 2)) < 0.03


@each([Attention(dropout_p=1.0, causal=causal) for causal in (False, True)])
def test_a_query_whose_keys_are_all_dropped_gives_zeros(case, backend, dtype):
    leaves = cast(case, case.leaves(), dtype)
    y, _ = case.call(leaves, None, None, backend)
    y.sum().backward()
    assert not y.any()
    assert not any(leaf.grad.any() for leaf in leaves.values())


@each([Attention(chunk_size=16, causal=False, dropout_p=0.3)])
def test_dropkey_follows_the_generator(case, backend, dtype):
    leaves = cast(case, case.leaves(), dtype)

    def draw(seed):
        torch.manual_seed(seed)
        return case.call(leaves, None, None, backend)[0]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize(("past", "chunk_size"), [(0, None), (5, 21)])
@pytest.mark.parametrize("dropout_p", [0.1, 0.6])
@pytest.mark.parametrize("backend", ["triton"])
def test_dropkey_is_the_reference_given_its_mask(
    monkeypatch, backend, device, dropout_p, past, chunk_size
):
    """Outputs and gradients: the backward draws the mask of the forward again."""
    from megalodon_tasks.cuda_ops.attention import triton_launch, triton_op

    case = Attention(2, 33, "none", True, chunk_size=chunk_size, dropout_p=dropout_p, past=past)
    torch.manual_seed(5)  # as in evaluate
    seed = triton_op.draw_seed(torch.device(device))
    width = 33 if chunk_size is None else chunk_size
    drop = triton_launch.dropkey(seed, (2, 2, 33, width), dropout_p, chunk_size, past).cpu()
    assert abs(drop.double().mean().item() - dropout_p) < 0.03
    monkeypatch.setattr(reference, "draw_dropkey", lambda *_: drop)
    assert_matches_reference(case, backend, device=device)


@pytest.mark.parametrize("backend", ["triton"])
def test_result_does_not_depend_on_the_tile(monkeypatch, backend, device):
    from megalodon_tasks.cuda_ops.attention import triton_launch

    case = Attention(2, 33, "random", True, past=3, chunk_size=20, dropout_p=0.2)
    small = evaluate(case, backend, device=device)
    monkeypatch.setattr(triton_launch, "INTERPRETED_TILE", (16, 64))
    monkeypatch.setattr(triton_launch, "TILES", ((16, 16),))
    assert_equal_calls(evaluate(case, backend, device=device), small, 1e-5, 1e-5)


VALID = {name: leaf.float() for name, leaf in Attention(2, 11).leaves().items()}
VALID |= {"chunk_size": 4, "causal": True}


def state_of(past, heads=2, value=5):
    return ChunkAttentionState(torch.zeros(2, past, heads, 3), torch.zeros(2, past, heads, value))


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
        ({"state": state_of(2), "causal": False}, "state of 2 steps .* causal=False"),
        ({"state": state_of(4)}, "holds 4 steps, which must be fewer than chunk_size=4"),
        ({"state": state_of(2, heads=1)}, r"state.key has shape \(2, 2, 1, 3\)"),
        ({"state": state_of(2, value=4)}, r"state.value has shape \(2, 2, 2, 4\)"),
        ({"backend": "fft"}, "'fft' is not one of"),
    ],
)
def test_errors_name_the_argument(change, message):
    arguments = VALID | change
    qkv = [arguments.pop(name) for name in "qkv"]
    with pytest.raises(ValueError, match=message):
        chunk_attention(*qkv, **arguments)

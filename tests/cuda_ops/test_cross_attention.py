"""cross_attention: parity over lengths, padding, DropKey and widths; what it sees; errors."""

import pytest
import torch

from megalodon_tasks.cuda_ops import cross_attention
from megalodon_tasks.cuda_ops.attention import reference, torch_op
from tests.cuda_ops.cases import (
    FLOAT,
    HALF,
    CrossAttention,
    assert_close,
    assert_equal_calls,
    assert_matches_reference,
    cast,
    each,
    evaluate,
    randn,
)

DOUBLE = torch.float64
# (queries, keys): one and many of each; tiles of the Triton kernels have 32 rows and 16, or the reverse.
LENGTHS = (1, 1), (1, 7), (7, 1), (5, 11), (11, 5)
TILES = (1, 33), (33, 1), (16, 40), (40, 16), (31, 33), (32, 32), (65, 17)


@each(
    [
        *(
            CrossAttention(2, keys, mask, queries=queries, dropout_p=dropout_p)
            for queries, keys in LENGTHS
            for mask in ("none", "right", "left", "random")
            for dropout_p in (0.0, 0.4, 1.0)
        ),
        # Beyond 2048 keys the torch backend takes some queries at a time.
        CrossAttention(1, 2051, "right", queries=3, heads=1),
    ],
    "reference",
    "triton",
    dtypes=(DOUBLE, FLOAT),
)
def test_torch(case, backend, dtype):
    assert_matches_reference(case, backend, dtype)


@pytest.mark.parametrize("queries", [1, 3, 7])
@pytest.mark.parametrize("mask", ["none", "right", "random"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
def test_long_sources_in_rows_of_queries(monkeypatch, queries, mask, dropout_p):
    monkeypatch.setattr(torch_op, "LONG", 2)
    monkeypatch.setattr(torch_op, "ROWS", 3)
    case = CrossAttention(2, 11, mask, queries=queries, dropout_p=dropout_p)
    assert_matches_reference(case, "torch", DOUBLE)


@each(
    [
        CrossAttention(2, keys, mask, queries=queries, heads=heads, key=5, value=7)
        for queries, keys in TILES
        for mask, heads in (("none", 2), ("random", 1))
    ],
    "reference",
)
def test_tiles(case, backend, dtype):
    assert_matches_reference(case, backend, dtype)


@each(
    [
        CrossAttention(2, 37, "right", queries=21, heads=1, key=key, value=value)
        for key, value in ((1, 1), (36, 144), (128, 512))
    ],
    "reference",
    dtypes=(FLOAT, *HALF),
)
def test_widths(case, backend, dtype):
    assert_matches_reference(case, backend, dtype)


@each([CrossAttention(2, 13, queries=4), CrossAttention(1, 40, queries=1)])
def test_it_is_softmax_attention(case, backend, dtype):
    leaves = cast(case, case.leaves(), dtype)
    q, k, v = leaves.values()
    weights = torch.einsum("blhk,bshk->bhls", q, k).softmax(-1)
    truth = torch.einsum("bhls,bshv->blhv", weights, v)
    assert_close("y", case.call(leaves, None, None, backend)[0], truth, 1e-6)


@each([CrossAttention(2, 8, queries=5), CrossAttention(2, 20, queries=1)])
@pytest.mark.parametrize("start", [0, 3, None])
def test_padding_is_as_absent_whatever_it_holds(case, backend, dtype, start):
    start = case.length if start is None else start
    mask = torch.zeros(2, case.length + 4, dtype=torch.bool)
    mask[:, start : start + 4] = True
    plain = cast(case, case.leaves(), dtype)
    padded = dict(plain)
    for name in case.timed:
        leaf = plain[name].detach()
        padded[name] = torch.full((2, case.length + 4, *leaf.shape[2:]), torch.nan)
        padded[name][~mask] = leaf.flatten(0, 1)
        padded[name].requires_grad_()
    y, padded_y = (case.call(*c, None, backend)[0] for c in ((plain, None), (padded, mask)))
    assert_close("y", padded_y, y, 1e-5)
    grad_y = randn(*y.shape, seed=4).float()
    grads = torch.autograd.grad(y, list(plain.values()), grad_y)
    padded_grads = torch.autograd.grad(padded_y, list(padded.values()), grad_y)
    assert_close("gradient of q", padded_grads[0], grads[0], 1e-4)
    for grad, padded_grad in zip(grads[1:], padded_grads[1:], strict=True):
        assert not padded_grad[mask].any()
        assert_close("gradient", padded_grad[~mask].view_as(grad), grad, 1e-4)


@each([CrossAttention(2, 6, queries=3), CrossAttention(2, 6, queries=3, dropout_p=1.0)])
def test_queries_that_see_nothing_give_zeros(case, backend, dtype):
    leaves = cast(case, case.leaves(), dtype)
    mask = torch.ones(2, 6, dtype=torch.bool) if case.dropout_p == 0 else None
    y, _ = case.call(leaves, mask, None, backend)
    assert not y.any()
    assert not any(grad.any() for grad in torch.autograd.grad(y.sum(), list(leaves.values())))


@each([CrossAttention(2, 33, "random", queries=50, dropout_p=0.3)], "reference", "torch")
def test_the_dropkey_of_triton_is_the_reference_given_its_mask(monkeypatch, case, backend, dtype):
    from megalodon_tasks.cuda_ops.attention import triton_launch, triton_op

    torch.manual_seed(5)  # as in evaluate
    drop = triton_launch.dropkey(triton_op.draw_seed(torch.device("cpu")), (2, 2, 50, 33), 0.3)
    assert abs(drop.double().mean().item() - 0.3) < 0.03
    monkeypatch.setattr(reference, "draw_dropkey", lambda *_: drop)
    assert_matches_reference(case, backend)


@each([CrossAttention(2, 20, queries=40, dropout_p=0.2)])
def test_a_seed_repeats_a_call(case, backend, dtype):
    assert_equal_calls(evaluate(case, backend), evaluate(case, backend), 0.0, 0.0)


@each([CrossAttention(2, 20, "random", queries=5)], "reference")
def test_compiled_code_may_call_it(case, backend, dtype):
    leaves, whole = cast(case, case.leaves(), dtype), backend == "triton"
    torch.compiler.reset()
    compiled = torch.compile(case.call, fullgraph=whole, backend="aot_eager" if whole else "eager")
    found, _ = compiled(leaves, case.padding(), None, backend)
    assert torch.equal(found, case.call(leaves, case.padding(), None, backend)[0])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [FLOAT, torch.bfloat16])
@pytest.mark.parametrize(("queries", "keys"), [(700, 300), (300, 700), (1, 500)])
def test_compiled_kernels_with_their_own_tiles(queries, keys, dtype):
    case = CrossAttention(2, keys, "random", queries=queries, heads=1, key=128, value=512)
    assert_matches_reference(case, "triton", dtype, device="cuda")


VALID = {name: leaf.float() for name, leaf in CrossAttention(2, 11).leaves().items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 9, 6)}, r"q has shape \(2, 9, 6\)"),
        ({"k": torch.zeros(2, 11, 2, 4)}, r"k has shape .* expected \(2, any, 2, 3\)"),
        ({"k": torch.zeros(3, 11, 2, 3)}, r"k has shape .* expected \(2, any, 2, 3\)"),
        ({"v": torch.zeros(2, 10, 2, 5)}, r"v has shape .* expected \(2, 11, 2, any\)"),
        ({"q": torch.zeros(2, 9, 2, 3).long()}, "q has dtype torch.int64"),
        ({"dropout_p": -0.1}, r"dropout_p=-0.1 must be in \[0, 1\]"),
        ({"padding_mask": torch.zeros(2, 9, dtype=torch.bool)}, r"padding_mask has shape \(2, 9\)"),
        ({"padding_mask": torch.zeros(2, 11)}, "padding_mask has dtype torch.float32"),
        ({"backend": "fft"}, "'fft' is not one of"),
    ],
)
def test_errors_name_the_argument(change, message):
    arguments = VALID | change
    qkv = [arguments.pop(name) for name in "qkv"]
    with pytest.raises(ValueError, match=message):
        cross_attention(*qkv, **arguments)


@pytest.mark.parametrize(("batch", "queries", "keys"), [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_nothing_to_read_gives_zeros_and_gradients_of_zeros(batch, queries, keys):
    shapes = (batch, queries, 2, 3), (batch, keys, 2, 3), (batch, keys, 2, 5)
    leaves = [torch.randn(shape, requires_grad=True) for shape in shapes]
    y = cross_attention(*leaves)
    assert y.shape == (batch, queries, 2, 5)
    assert (y == 0).all()
    y.sum().backward()
    assert all((leaf.grad == 0).all() for leaf in leaves)

"""The Triton kernels of chunk_attention where they could go wrong: edges of tiles and chunks, widths,
values split over programs, DropKey, strides, registration."""

import importlib

import pytest
import torch

from megalodon_tasks.cuda_ops import BackendUnavailable, ChunkAttentionState, chunk_attention
from tests.cuda_ops.compare import assert_close
from tests.cuda_ops.triton_cases import (
    assert_compiles_whole,
    assert_like_reference,
    evaluate,
    randn,
    some_padding,
)

MODULES = "megalodon_tasks.cuda_ops.attention"
LAUNCH = importlib.import_module(f"{MODULES}.triton_launch")
OP = importlib.import_module(f"{MODULES}.triton_op")
REFERENCE = importlib.import_module(f"{MODULES}.reference")
# Rows of a tile, queries and keys.
TILE = 32, 16


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(LAUNCH, "INTERPRETED_TILE", TILE)


def leaves(batch=2, length=33, heads=2, key=5, value=7, *, past=None):
    widths = {"q": key, "k": key, "v": value}
    tensors = {
        name: randn(batch, length, heads, width, seed=i)
        for i, (name, width) in enumerate(widths.items())
    }
    if past is not None:
        tensors["old_k"] = randn(batch, past, heads, key, seed=7)
        tensors["old_v"] = randn(batch, past, heads, value, seed=8)
    return tensors


def attention(mask=None, old_mask=None, seed=None, **arguments):
    """The op as a function of a backend, a device and tensors by name."""

    def run(backend, device, q, k, v, old_k=None, old_v=None):
        def to(tensor):
            return None if tensor is None else tensor.to(device)

        state = None if old_k is None else ChunkAttentionState(old_k, old_v, to(old_mask))
        if seed is not None:
            torch.manual_seed(seed)
        y, end = chunk_attention(
            q, k, v, state=state, padding_mask=to(mask), backend=backend, **arguments
        )
        return {"y": y} if end is None else {"y": y, "end k": end.key, "end v": end.value}

    return run


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 13, 32, None])
@pytest.mark.parametrize("length", [1, 31, 32, 33])
def test_matches_reference(device, length, chunk_size, masked, causal):
    mask = some_padding(2, length) if masked else None
    batch = 1 if chunk_size == 1 else 2
    mask = mask if mask is None else mask[-batch:]
    run = attention(mask, chunk_size=chunk_size, causal=causal)
    assert_like_reference(run, leaves(batch, length, heads=1), device)


@pytest.mark.parametrize("causal", [False, True])
def test_long_chunks(device, causal):
    mask = torch.arange(150)[None] >= torch.tensor([150, 70])[:, None]
    run = attention(mask, chunk_size=100, causal=causal)
    assert_like_reference(run, leaves(2, 150, heads=1), device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("key", "value"),
    [(1, 1), (30, 60), (36, 144), (96, 320), (64, 160), (256, 520)],
)
def test_widths(device, key, value, dtype):
    tensors = leaves(1, 40, 2, key, value)
    tensors["q"] = tensors["q"] / key**0.5
    run = attention(some_padding(2, 40)[1:], chunk_size=25, causal=True)
    assert_like_reference(run, tensors, device, dtype)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("past", "chunk_size"), [(0, 9), (1, 9), (8, 9), (20, 40), (20, None)])
def test_state(device, past, chunk_size, masked):
    masks = (some_padding(2, 23), some_padding(2, past)) if masked else (None, None)
    run = attention(*masks, chunk_size=chunk_size, causal=True)
    assert_like_reference(run, leaves(2, 23, past=past), device)


def test_steps_of_one_with_the_state_carried_are_the_whole(device):
    q, k, v = (tensor.float().to(device) for tensor in leaves(1, 8).values())
    whole, _ = chunk_attention(q, k, v, chunk_size=3, causal=True, backend="triton")
    state, steps = None, []
    for step in range(8):
        now = (tensor[:, step : step + 1] for tensor in (q, k, v))
        y, state = chunk_attention(*now, chunk_size=3, causal=True, state=state, backend="triton")
        assert state.key.shape[1] == (step + 1) % 3
        steps.append(y)
    assert_close("y", torch.cat(steps, 1), whole, 1e-6)


@pytest.mark.parametrize("scale", [30.0, 1e3])
def test_saturated_scores(device, scale):
    tensors = leaves(1, 40)
    tensors["q"] = tensors["q"] * scale
    narrow = {name: leaf.float().to(device) for name, leaf in tensors.items()}
    outputs, grads = evaluate(
        lambda **all_: attention(chunk_size=None, causal=True)("triton", device, **all_), narrow
    )
    truth = attention(chunk_size=None, causal=True)("reference", "cpu", **tensors)["y"]
    # Scores of several thousand are known to 1e-4 in float32, and so are the weights.
    assert_close("y", outputs["y"].cpu(), truth, 1e-5 * scale)
    assert all(grad.isfinite().all() for grad in grads.values())


def test_nan_at_padding_does_not_spread(device):
    mask = some_padding(2, 33).to(device)
    poison = torch.where(mask[..., None, None], torch.nan, 0.0)
    tensors = [leaf.float().to(device).requires_grad_() for leaf in leaves().values()]
    arguments = {"chunk_size": 20, "causal": True, "padding_mask": mask, "backend": "triton"}
    clean, end = chunk_attention(*tensors, **arguments)
    dirty, dirty_end = chunk_attention(*(tensor + poison for tensor in tensors), **arguments)
    assert torch.equal(dirty, clean)
    assert torch.equal(dirty_end.value, end.value)
    assert not dirty[mask].any()
    weight = randn(*clean.shape, seed=4).float().to(device)
    clean_grads = torch.autograd.grad(clean, tensors, weight)
    dirty_grads = torch.autograd.grad(dirty, tensors, weight + poison)
    for clean_grad, dirty_grad in zip(clean_grads, dirty_grads, strict=True):
        assert torch.equal(dirty_grad, clean_grad)
        assert not dirty_grad[mask].any()


@pytest.mark.parametrize(("past", "chunk_size"), [(0, None), (5, 21)])
@pytest.mark.parametrize("dropout_p", [0.1, 0.6])
def test_dropkey_is_the_reference_given_its_mask(monkeypatch, device, dropout_p, past, chunk_size):
    """Outputs and gradients: the backward draws the mask of the forward again."""
    width = 33 if chunk_size is None else chunk_size
    torch.manual_seed(5)
    seed = OP.draw_seed(torch.device(device))
    drop = LAUNCH.dropkey(seed, (2, 2, 33, width), dropout_p).cpu()
    assert abs(drop.double().mean().item() - dropout_p) < 0.03
    monkeypatch.setattr(REFERENCE, "draw_dropkey", lambda *_: drop)
    run = attention(seed=5, chunk_size=chunk_size, causal=True, dropout_p=dropout_p)
    assert_like_reference(run, leaves(past=past), device)


def test_dropkey_is_even_and_independent(device):
    seeds = torch.tensor([1]), torch.tensor([2])
    first, second = (LAUNCH.dropkey(seed.to(device), (3, 2, 40, 40), 0.25).cpu() for seed in seeds)
    for mask in (first, second):
        for axis in range(4):
            rates = mask.double().mean([other for other in range(4) if other != axis])
            deviation = (0.25 * 0.75 * rates.numel() / mask.numel()) ** 0.5
            assert (rates - 0.25).abs().max() < 4.5 * deviation, f"uneven along axis {axis}"
    pairs = [(first, second), (first[0], first[1]), (first[:, 0], first[:, 1])]
    pairs += [(first[:, :, 1:], first[:, :, :-1]), (first[..., 1:], first[..., :-1])]
    for one, other in pairs:
        agreement = (one == other).double().mean().item()
        assert abs(agreement - (0.25**2 + 0.75**2)) < 0.03


def test_dropkey_follows_the_generator(device):
    tensors = {name: leaf.float().to(device) for name, leaf in leaves().items()}

    def draw(seed):
        run = attention(seed=seed, chunk_size=16, causal=False, dropout_p=0.3)
        return run("triton", device, **tensors)["y"]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_a_query_whose_keys_are_all_dropped_gives_zeros(device):
    tensors = {name: leaf.float().to(device) for name, leaf in leaves().items()}
    run = attention(chunk_size=16, causal=False, dropout_p=1.0)
    outputs, grads = evaluate(lambda **all_: run("triton", device, **all_), tensors)
    assert not outputs["y"].any()
    assert not any(grad.any() for grad in grads.values())


def test_any_memory_layout(device):
    tensors = leaves()
    heads_first = {
        n: leaf.transpose(1, 2).contiguous().transpose(1, 2) for n, leaf in tensors.items()
    }
    features_first = {
        n: leaf.transpose(1, 3).contiguous().transpose(1, 3) for n, leaf in tensors.items()
    }
    for layout in (heads_first, features_first):
        assert_like_reference(attention(chunk_size=16, causal=True), layout, device)


def test_mixed_dtypes(device):
    q, k, v = (tensor.float().to(device) for tensor in leaves().values())
    truth, _ = chunk_attention(q.bfloat16(), k, v, chunk_size=16, causal=True, backend="reference")
    y, end = chunk_attention(
        q.bfloat16(), k, v.half(), chunk_size=16, causal=True, backend="triton"
    )
    assert (y.dtype, end.key.dtype, end.value.dtype) == (torch.half, torch.float32, torch.half)
    assert_close("y", y, truth, 5e-3)


def test_results_repeat(device):
    tensors = {name: leaf.float().to(device) for name, leaf in leaves().items()}
    run = attention(chunk_size=20, causal=True, seed=1, dropout_p=0.2)
    runs = [evaluate(lambda **all_: run("triton", device, **all_), tensors) for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_result_does_not_depend_on_the_tile(monkeypatch, device):
    tensors = {name: leaf.float().to(device) for name, leaf in leaves(past=3).items()}
    run = attention(some_padding(2, 33), seed=1, chunk_size=20, causal=True, dropout_p=0.2)
    small = evaluate(lambda **all_: run("triton", device, **all_), tensors)
    monkeypatch.setattr(LAUNCH, "INTERPRETED_TILE", (16, 64))
    monkeypatch.setattr(LAUNCH, "TILES", ((16, 16),))
    large = evaluate(lambda **all_: run("triton", device, **all_), tensors)
    for small_side, large_side in zip(small, large, strict=True):
        for name, value in small_side.items():
            assert_close(name, value, large_side[name], 1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_operators_are_registered(device, causal):
    q, k, v = (leaf.float().to(device).requires_grad_() for leaf in leaves(1, 18).values())
    mask, seed = some_padding(2, 18)[1:].to(device), torch.tensor([3], device=device)
    torch.library.opcheck(OP.chunk_attention_op, (q[:, 2:], k, v, mask, seed, 10, causal, 0.1))


@pytest.mark.parametrize("masked", [False, True])
def test_torch_compile_takes_the_whole_graph(device, masked):
    tensors = {name: leaf.float().to(device) for name, leaf in leaves(past=3).items()}
    masks = (some_padding(2, 33), some_padding(2, 3)) if masked else ()
    assert_compiles_whole(attention(*masks, chunk_size=12, causal=True), tensors, device)


def test_what_the_kernels_cannot_hold_is_refused_by_name_and_left_to_torch_by_default(device):
    wide = torch.zeros(1, 2, 1, 513, device=device)
    narrow = torch.zeros(1, 2, 1, 4, device=device)
    for q, v, reason in (
        (wide, narrow, "the kernels hold 512 features per head of q and k, these have 513"),
        (narrow, narrow.double(), "float64"),
        (narrow.double(), narrow, "float64"),
    ):
        with pytest.raises(BackendUnavailable, match=f"'triton' cannot run: .*{reason}"):
            chunk_attention(q, q, v, chunk_size=2, causal=True, backend="triton")
        assert not chunk_attention(q, q, v, chunk_size=2, causal=True)[0].any()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("key", "value"), [(64, 160), (96, 320), (256, 2048)])
def test_chunks_of_many_tiles(key, value, dtype):
    tensors = leaves(2, 700, 1, key, value)
    tensors["q"] = tensors["q"] / key**0.5
    run = attention(some_padding(2, 700), chunk_size=300, causal=True)
    assert_like_reference(run, tensors, "cuda", dtype)

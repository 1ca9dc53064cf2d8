"""The loss of a large vocabulary in pieces: values, gradients, dtypes, and the memory it takes."""

import pytest
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from megalodon_tasks.models import token_loss
from megalodon_tasks.models.token_loss import rows_of_a_piece, token_nll


@pytest.fixture
def small_pieces(monkeypatch):
    """Let small problems have many pieces, the last one shorter than the others."""
    monkeypatch.setattr(token_loss, "FEWEST_SCORES", 0)
    monkeypatch.setattr(token_loss, "SHARE_OF_ROWS", 4)


def draw(shape=(3, 9), dim=5, vocab_size=37, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, dim, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocab_size, dim, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocab_size, shape, generator=generator)
    share = torch.rand(shape, generator=generator, dtype=torch.float64)  # of each token in the loss
    return [part.to(dtype).requires_grad_() for part in (x, weight)], targets, share


def plain_nll(x, weight, targets):
    scores = F.linear(x, weight)
    return F.cross_entropy(scores.flatten(0, -2), targets.flatten(), reduction="none").view_as(
        targets
    )


def value_and_gradients(function, leaves, targets, share):
    nll = function(*leaves, targets)
    return nll, *torch.autograd.grad((nll * share).sum(), leaves)


@pytest.mark.parametrize("shape", [(3, 9), (1, 1), (26,), (2, 3, 4)])
def test_pieces_give_the_loss_and_gradients_of_all_scores_at_once(small_pieces, shape):
    leaves, targets, share = draw(shape)
    assert shape == (1, 1) or rows_of_a_piece(targets.numel(), 37) < targets.numel()
    share.flatten()[0] = 0.0
    given = value_and_gradients(token_nll, leaves, targets, share)
    expected = value_and_gradients(plain_nll, leaves, targets, share)
    torch.testing.assert_close(given, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_needs_no_gradient_gets_none(small_pieces, frozen):
    leaves, targets, _ = draw()
    leaves[frozen].requires_grad_(False)
    token_nll(*leaves, targets).sum().backward()
    assert leaves[frozen].grad is None
    assert leaves[1 - frozen].grad is not None


def test_large_scores_do_not_overflow(small_pieces):
    leaves, targets, share = draw()
    leaves[0].data *= 1e4
    given = value_and_gradients(token_nll, leaves, targets, share)
    assert all(part.isfinite().all() for part in given)
    torch.testing.assert_close(given, value_and_gradients(plain_nll, leaves, targets, share))


@pytest.mark.parametrize("by_autocast", [False, True])
def test_half_precision_sums_in_single(small_pieces, by_autocast):
    leaves, targets, share = draw((4, 300), 16, 500)
    expected = value_and_gradients(plain_nll, leaves, targets, share)
    dtype = torch.float32 if by_autocast else torch.bfloat16
    halves = [leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
    with torch.autocast("cpu", torch.bfloat16, enabled=by_autocast):
        given = value_and_gradients(token_nll, halves, targets, share)
    assert [part.dtype for part in given] == [torch.float32, dtype, dtype]
    for one, other in zip(given, expected, strict=True):
        assert (one.double() - other).norm() < 1e-2 * other.norm()


@pytest.mark.parametrize("wrong", [-1, 37])
def test_target_out_of_range_is_refused(small_pieces, wrong):
    leaves, targets, _ = draw()
    targets[1, 2] = wrong
    with pytest.raises((IndexError, RuntimeError), match="out of (bounds|range)"):
        token_nll(*leaves, targets)


def peak_bytes(function):
    """Return the most memory that ``function`` holds at a time beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = profiler.profiler.kineto_results.events()
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes() if event.name() == "[memory]" else 0
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_a_tenth_of_the_scores(dtype):
    leaves, targets, _ = draw((2, 1024), 4, 20_000, dtype)
    scores = targets.numel() * 20_000 * dtype.itemsize
    assert peak_bytes(lambda: token_nll(*leaves, targets).sum().backward()) < scores / 10
    assert peak_bytes(lambda: plain_nll(*leaves, targets).sum().backward()) > scores


@pytest.mark.parametrize(
    ("tokens", "vocab_size", "rows"),
    [
        (8192, 260_000, 256),
        (1 << 20, 260_000, 258),
        (64, 260_000, 4),
        (1, 1 << 27, 1),
        (9, 256, 4096),
    ],
)
def test_rows_of_a_piece(tokens, vocab_size, rows):
    assert rows_of_a_piece(tokens, vocab_size) == rows

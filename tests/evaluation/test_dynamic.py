"""Dynamic evaluation: equal to a literal loop, without a graph across pieces, with clear refusals."""

import itertools
import math
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megalodon_tasks.evaluation.dynamic import Adaptation, Rule, gradient_rms, saved_statistics
from megalodon_tasks.evaluation.long_context import Position, read_document
from megalodon_tasks.models.state import map_state
from tests.models.lm_cases import make_lm

END, PIECE = 2, 6
TEXT = np.random.default_rng(0).integers(0, 11, 45)
RULES = [Rule(0.01), Rule(0.01, decay=0.2), Rule(0.003, decay=0.5, epsilon=0.03)]


def literal_pieces(model, text):
    """Yield likelihoods and leave gradients, piece by piece, with the state carried and detached."""
    state, tokens = None, torch.from_numpy(np.append(END, text))
    for start in range(0, len(text), PIECE):
        stop = min(start + PIECE, len(text))
        targets = tokens[None, start + 1 : stop + 1]
        nll, state = model.nll(tokens[None, start:stop], targets, state)
        state = map_state(state, torch.Tensor.detach)
        model.zero_grad()
        nll.mean().backward()
        yield nll[0].detach()


def literal_rms(model, text):
    sums, count = [torch.zeros_like(weight) for weight in model.parameters()], 0
    for _ in literal_pieces(model, text):
        count += 1
        for total, weight in zip(sums, model.parameters(), strict=True):
            total += weight.grad**2
    return [torch.sqrt(total / count) for total in sums]


def literal_loop(model, text, rule, rms):
    trained = [weight.detach().clone() for weight in model.parameters()]
    mean = None if rms is None else torch.cat([r.flatten() for r in rms]).mean()
    found = []
    for nll in literal_pieces(model, text):
        found.append(nll)
        for number, weight in enumerate(model.parameters()):
            gradient, back = weight.grad, trained[number] - weight.data
            if rms is None:
                weight.data += rule.decay * back - rule.rate * gradient
            else:
                decay = (rule.decay * rms[number] / mean).clamp(max=1)
                step = rule.rate * gradient / (rms[number] + rule.epsilon)
                weight.data += decay * back - step
    return torch.cat(found).numpy()


def read(model, adaptation, text=TEXT, position=None):
    def part(start, stop):
        return text[start:stop]

    steps = read_document(
        model, part, len(text), PIECE, END, position or Position(), adaptation.nll
    )
    return list(steps)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("scaled", [False, True])
def test_likelihoods_and_weights_equal_those_of_a_literal_loop(rule, scaled):
    model, expected = make_lm(share_emb=True), make_lm(share_emb=True)
    rms = literal_rms(expected, TEXT[::-1].copy()) if scaled else None
    steps = read(model, Adaptation(model, rule, rms))
    expected_nll = literal_loop(expected, TEXT, rule, rms)
    np.testing.assert_allclose(np.concatenate([nll for _, nll, _ in steps]), expected_nll, 1e-9)
    for weight, literal in zip(model.parameters(), expected.parameters(), strict=True):
        assert weight.dtype == torch.float64
        torch.testing.assert_close(weight, literal, rtol=1e-9, atol=1e-12)


def test_gradient_statistics_equal_those_of_a_literal_loop():
    model = make_lm()
    before = [weight.detach().clone() for weight in model.parameters()]
    split = SimpleNamespace(
        tokens=lambda start, stop: TEXT[start:stop],
        offsets=np.array([0, 45, 60]),
        info=SimpleNamespace(tokens=60),
    )
    rms = gradient_rms(model, split, PIECE, END, 21)
    for found, expected in zip(rms, literal_rms(make_lm(), TEXT[:21]), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-14)
    for weight, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(weight, old)


def test_no_graph_outlives_its_piece():
    model = make_lm()
    adaptation, alive, stored = Adaptation(model, RULES[1]), weakref.WeakSet(), 0

    class Saved:
        def __init__(self, tensor):
            nonlocal stored
            self.tensor, stored = tensor.detach(), stored + 1
            alive.add(self)

    def part(start, stop):
        return TEXT[start:stop]

    def has_no_graph(tensor):
        assert tensor.grad_fn is None
        assert not tensor.requires_grad
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        for _, _, position in read_document(
            model, part, len(TEXT), PIECE, END, Position(), adaptation.nll
        ):
            assert not alive
            map_state(position.state, has_no_graph)
    assert stored > 100
    assert all(weight.grad is None for weight in model.parameters())


def test_reading_continues_from_saved_weights_and_position(tmp_path):
    model = make_lm()
    adaptation = Adaptation(model, RULES[1])
    whole = read(model, adaptation)
    half = make_lm()
    stopped = Adaptation(half, RULES[1])

    def part(start, stop):
        return TEXT[start:stop]

    steps = read_document(half, part, len(TEXT), PIECE, END, Position(), stopped.nll)
    *_, (_, _, position) = itertools.islice(steps, 3)
    torch.save({"p": position.to_plain(), "w": stopped.weights}, tmp_path / "saved.pt")
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    again = make_lm()
    continued = Adaptation(again, RULES[1])
    continued.restore(saved["w"])
    steps = read(again, continued, position=Position.from_plain(saved["p"]))
    for (start, nll, _), (start_again, nll_again, _) in zip(whole[3:], steps, strict=True):
        assert start == start_again
        assert (nll == nll_again).all()
    for weight, expected in zip(continued.weights, adaptation.weights, strict=True):
        assert torch.equal(weight, expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 0.0}, "--dynamic 0.0: the learning rate must be above 0"),
        ({"rate": math.nan}, "--dynamic nan"),
        ({"rate": 1e-3, "decay": -0.1}, "--decay -0.1 must be between 0 and 1"),
        ({"rate": 1e-3, "decay": 1.5}, "--decay 1.5 must be between 0 and 1"),
        ({"rate": 1e-3, "epsilon": 0.0}, "--epsilon 0.0 must be above 0"),
    ],
)
def test_impossible_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        Rule(**values)


def test_statistics_are_measured_once_and_only_read_for_the_same_settings(tmp_path):
    path, device = tmp_path / "statistics.pt", torch.device("cpu")
    measured = saved_statistics(path, "settings", device, lambda: [torch.ones(3)])
    (again,) = saved_statistics(path, "settings", device, lambda: pytest.fail("measured again"))
    assert torch.equal(again, measured[0])
    content = path.read_bytes()
    with pytest.raises(ValueError, match="statistics.pt holds those of another checkpoint"):
        saved_statistics(path, "other settings", device, list)
    assert path.read_bytes() == content
    path.write_bytes(b"PK cut short")
    with pytest.raises(ValueError, match="statistics.pt is damaged or no file of gradient"):
        saved_statistics(path, "settings", device, list)

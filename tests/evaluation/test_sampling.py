"""Drawing tokens: the same as in one pass, from the right distribution, cut at the end of a document."""

import itertools
import math

import pytest
import torch

from megalodon_tasks.evaluation.sampling import Choice, generate, until_end
from tests.models.lm_cases import make_lm


@pytest.mark.parametrize("piece", [1, 3, 8, 50])
def test_tokens_are_those_of_one_pass(piece):
    model = make_lm()
    allowed = torch.ones(11, dtype=torch.bool)
    prompt = torch.tensor([2, 5, 6, 7, 9, 4, 4, 10])
    steps = generate(model, prompt, torch.argmax, piece=piece, allowed=allowed)
    found = list(itertools.islice(steps, 12))
    tokens = prompt
    with torch.no_grad():
        for _ in range(12):
            scores, _ = model(tokens[None])
            tokens = torch.cat((tokens, scores[0, -1].argmax()[None]))
    assert found == tokens[len(prompt) :].tolist()


def test_tokens_that_are_not_allowed_never_appear():
    allowed = torch.zeros(11, dtype=torch.bool)
    allowed[[4, 7]] = True
    draw = torch.Generator().manual_seed(0)
    steps = generate(
        make_lm(), torch.tensor([2]), lambda s: Choice().draw(s, draw), piece=8, allowed=allowed
    )
    assert set(itertools.islice(steps, 60)) == {4, 7}


SCORES = torch.tensor([0.5, 0.1, 0.25, 0.15]).log()


def shares(choice, draws=4000):
    generator = torch.Generator().manual_seed(0)
    found = torch.tensor([choice.draw(SCORES, generator) for _ in range(draws)])
    return (found.bincount(minlength=4) / draws).tolist()


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice(), [0.5, 0.1, 0.25, 0.15]),
        (Choice(temperature=0), [1, 0, 0, 0]),
        (Choice(top_k=2), [2 / 3, 0, 1 / 3, 0]),
        (Choice(top_p=0.5), [1, 0, 0, 0]),
        (Choice(top_p=0.51), [2 / 3, 0, 1 / 3, 0]),
        (Choice(top_k=3, top_p=0.8), [2 / 3, 0, 1 / 3, 0]),
        (Choice(temperature=0.5), [0.25 / 0.345, 0.01 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345]),
        (Choice(temperature=1e-6), [1, 0, 0, 0]),
    ],
)
def test_shares_are_those_of_the_distribution(choice, expected):
    assert shares(choice) == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 4000))


@pytest.mark.parametrize("values", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 2}])
def test_impossible_choices_are_refused(values):
    (name,) = values
    with pytest.raises(ValueError, match=f"{name}={values[name]} must be"):
        Choice(**values)


def test_text_ends_with_the_document():
    class Bytes:
        eos, ends_document = 2, True

    class Words:
        eos, ends_document = 2, False

    tokens = [5, 6, 2, 7]
    assert list(until_end(iter(tokens), Bytes, False)) == [5, 6]
    assert list(until_end(iter(tokens), Bytes, True)) == [5, 6, 7]
    assert list(until_end(iter(tokens), Words, False)) == tokens

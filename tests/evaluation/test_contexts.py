"""Contexts read together: what each gives by itself, and shared beginnings read once."""

import numpy as np
import pytest
import torch

from megalodon_tasks.evaluation.contexts import SHARED, Reader
from tests.models.lm_cases import make_lm

BASE = np.random.default_rng(0).integers(0, 11, 4 * SHARED)


def after(length, *more):
    return np.concatenate((BASE[:length], np.array(more, np.int64)))


CONTEXTS = {
    "unequal": [after(1), after(5), after(6), after(5, 3), after(0, 7), after(40), after(40, 1, 2)],
    "a shared text": [after(2 * SHARED + 5, end) for end in range(5)] + [after(2)],
    "nested": [after(length) for length in range(0, 4 * SHARED, SHARED)],
    "equal": [after(70), after(70), after(0), after(0)],
}


def by_itself(model, context, row):
    """log p of a row after a context, and whether each token is the likeliest, in one pass."""
    tokens = torch.from_numpy(np.concatenate((context, row)))
    with torch.no_grad():
        scores = model(tokens[None, :-1])[0][0].log_softmax(-1)[-len(row) + 1 :]
    targets = tokens[-len(row) + 1 :]
    return scores.gather(1, targets[:, None]).sum(), bool((scores.argmax(-1) == targets).all())


@torch.no_grad()
def read(model, contexts, rows, **settings):
    """What a reader gives for each row after each context."""
    reader = Reader(model, **settings)
    found = {}
    for part, state in reader.contexts(contexts):
        for row in rows:
            log_p, greedy = reader.score([row] * len(part), state)
            found |= {(i, len(row)): pair for i, *pair in zip(part, log_p, greedy, strict=True)}
    return found


@pytest.mark.parametrize("settings", [(1, 40), (8, 1000)])
@pytest.mark.parametrize("name", CONTEXTS)
def test_each_context_gives_what_it_gives_by_itself(name, settings):
    model, contexts = make_lm(), CONTEXTS[name]
    rows = [after(2), after(30)]
    found = read(model, contexts, rows, batch_size=settings[0], piece=settings[1])
    assert len(found) == len(contexts) * len(rows)
    for i, context in enumerate(contexts):
        for row in rows:
            log_p, greedy = by_itself(model, context, row)
            torch.testing.assert_close(found[i, len(row)][0], log_p, rtol=1e-5, atol=1e-5)
            assert bool(found[i, len(row)][1]) == greedy


@pytest.mark.parametrize("piece", [5, 100])
def test_rows_of_unequal_length_are_scored_together(piece):
    model = make_lm()
    rows = [after(length) for length in (30, 1, 7, 2, 61, 7)]
    with torch.no_grad():
        log_p, greedy = Reader(model, 6, piece).score(rows, None)
    for i, row in enumerate(rows):
        if len(row) > 1:
            expected = by_itself(model, after(0), row)
            torch.testing.assert_close(log_p[i], expected[0], rtol=1e-5, atol=1e-5)
            assert bool(greedy[i]) == expected[1]
    assert log_p[1] == 0
    assert bool(greedy[1])


def test_the_likeliest_tokens_are_found():
    model, row = make_lm(), after(4)
    with torch.no_grad():
        for _ in range(6):
            scores = model(torch.from_numpy(row)[None])[0]
            row = np.append(row, int(scores[0, -1].argmax()))
        state = Reader(model, 1, 3).read(torch.from_numpy(row[None, :3]), None)
        wrong = row[3:].copy()
        wrong[-1] = (wrong[-1] + 1) % 11
        _, greedy = Reader(model, 1, 3).score([row[3:]], state)
        _, not_greedy = Reader(model, 1, 3).score([wrong], state)
    assert (bool(greedy), bool(not_greedy)) == (True, False)


@pytest.mark.parametrize(
    ("name", "most"),
    [("a shared text", 2 * SHARED + 5 + 5 + 2), ("nested", 4 * SHARED), ("equal", 2 * 70)],
)
def test_what_contexts_share_is_read_once_and_in_pieces(name, most, monkeypatch):
    model, sizes = make_lm(), []
    features = model.features

    def counted(tokens, *arguments):
        sizes.append(tokens.shape)
        return features(tokens, *arguments)

    monkeypatch.setattr(model, "features", counted)
    with torch.no_grad():
        list(Reader(model, 4, 50).contexts(CONTEXTS[name]))
    assert sum(rows * length for rows, length in sizes) <= most
    assert max(length for _, length in sizes) <= 50

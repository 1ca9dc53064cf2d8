"""Reading long documents: equal to one pass, counted in bands, at a memory that does not grow."""

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megalodon_tasks.evaluation.long_context import Position, Totals, read_document
from megalodon_tasks.models.state import map_state
from tests.models.lm_cases import make_lm

END = 2


@pytest.fixture(scope="module")
def model():
    return make_lm()


def tokens(length, seed=0):
    return np.random.default_rng(seed).integers(0, 11, length)


def read(model, document, piece, position=None):
    def part(start, stop):
        return document[start:stop]

    steps = read_document(model, part, len(document), piece, END, position or Position())
    return list(steps)


@pytest.mark.parametrize("piece", [1, 3, 4, 16, 57, 100])
def test_pieces_give_what_one_pass_gives(model, piece):
    document = tokens(57)
    steps = read(model, document, piece)
    found = np.concatenate([nll_L for _, nll_L, _ in steps])
    sources = torch.from_numpy(np.append(END, document[:-1]))[None]
    with torch.no_grad():
        scores, _ = model(sources)
    expected = torch.nn.functional.cross_entropy(
        scores[0], torch.from_numpy(document), reduction="none"
    )
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
    assert [start for start, _, _ in steps] == list(range(0, 57, piece))


def test_reading_goes_on_from_any_saved_position(model, tmp_path):
    document = tokens(40)
    steps = read(model, document, 6)
    torch.save(steps[2][2].to_plain(), tmp_path / "position.pt")
    position = Position.from_plain(torch.load(tmp_path / "position.pt", weights_only=True))
    assert position.token == 18
    continued = read(model, document, 6, position)
    for (start, nll_L, _), (again, nll_again_L, _) in zip(steps[3:], continued, strict=True):
        assert start == again
        assert (nll_L == nll_again_L).all()


class LargestTensor(TorchDispatchMode):
    """Notes the bytes of the largest tensor that any operation returns."""

    bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


def footprint(model, length):
    """Bytes of the state at the end, and of the largest tensor on the way."""
    sizes = []
    with LargestTensor() as largest:
        *_, (_, _, position) = read(model, tokens(length), 8)
    map_state(position.state, lambda t: sizes.append(t.numel() * t.element_size()) or t)
    return sum(sizes), largest.bytes


def test_neither_state_nor_tensors_grow_with_the_length(model):
    assert footprint(model, 32) == footprint(model, 32 * 20)


def bands_by_hand(documents, first):
    """Mean of the tokens of each band, and of whole documents up to its end."""
    longest = max(len(nll_L) for nll_L in documents)
    low, high, result = 0, first, []
    while low < longest:
        inside = np.concatenate([nll_L[low:high] for nll_L in documents])
        whole = [nll_L[:high] for nll_L in documents if len(nll_L) >= high]
        mean = math.exp(np.concatenate(whole).mean()) if whole else None
        result.append((low, high, len(inside), math.exp(inside.mean()), len(whole), mean))
        low, high = high, 2 * high
    return result


@pytest.mark.parametrize("piece", [1, 5, 1000])
def test_bands_equal_those_by_hand(piece):
    draw = np.random.default_rng(1)
    documents = [draw.exponential(2.0, length) for length in (1, 7, 8, 40, 64, 33)]
    totals = Totals(first_context=8)
    for nll_L in documents:
        for start in range(0, len(nll_L), piece):
            totals.add(start, nll_L[start : start + piece])
        totals.end_document()
    assert totals.documents == 6
    assert totals.tokens == 153
    assert totals.nll == pytest.approx(sum(nll_L.sum() for nll_L in documents))
    found = [
        (b.low, b.high, b.tokens, b.perplexity, b.whole_documents, b.whole_perplexity)
        for b in totals.bands
    ]
    for ours, expected in zip(found, bands_by_hand(documents, 8), strict=True):
        assert ours == pytest.approx(expected)
    assert [band.documents for band in totals.bands] == [6, 3, 3, 3]

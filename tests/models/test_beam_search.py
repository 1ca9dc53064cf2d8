"""fairseq's beam search with incremental state, against one that recomputes all tokens."""

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from torch import nn

from tests.models.lm_cases import CHUNK, make_dictionary, make_model

LONGEST = 3 * CHUNK + 2


class WithoutState(nn.Module):
    """The same model without an incremental decoder, so that the generator passes all tokens."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens)

    def get_normalized_probs(self, *args, **kwargs):
        return self.model.get_normalized_probs(*args, **kwargs)

    def max_decoder_positions(self):
        return self.model.max_decoder_positions()


def search(model, dictionary, prefix=None, batch=2, **settings):
    generator = SequenceGenerator([model], dictionary, max_len_b=LONGEST, **settings)
    sample = {"net_input": {"src_tokens": torch.full((batch, 1), dictionary.eos())}}
    return generator.generate([model], sample, prefix_tokens=prefix)


def assert_same(result, expected):
    for ours, theirs in zip(result, expected, strict=True):
        assert [h["tokens"].tolist() for h in ours] == [h["tokens"].tolist() for h in theirs]
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one["positional_scores"], other["positional_scores"])


@pytest.mark.parametrize("ends", [{}, {"adaptive_cutoffs": "5,8", "share_emb": True}])
@pytest.mark.parametrize("settings", [{"beam_size": 4}, {"beam_size": 3, "temperature": 0.7}])
def test_beam_search_equals_the_one_without_state(ends, settings, monkeypatch):
    dictionary = make_dictionary()
    model = make_model(dictionary, **ends)
    orders = []
    reorder = type(model.decoder).reorder_incremental_state
    monkeypatch.setattr(
        type(model.decoder),
        "reorder_incremental_state",
        lambda self, state, order: orders.append(order.tolist()) or reorder(self, state, order),
    )
    result = search(model, dictionary, min_len=LONGEST - 4, **settings)
    assert_same(result, search(WithoutState(model), dictionary, min_len=LONGEST - 4, **settings))
    # Beams did change places after the first chunk, or nothing was tested.
    assert any(order != sorted(set(order)) for order in orders[CHUNK:])


@pytest.mark.parametrize("length", [1, CHUNK, CHUNK + 1])
def test_prompts_of_different_lengths(length):
    """The shorter prompt is padded on the right, as the task pads it, and continues independently."""
    dictionary = make_dictionary()
    model = make_model(dictionary)
    prefix = torch.tensor([[5, 6, 7, 8, 9], [8, 4, 4, 6, 5]])[:, :length]
    prefix[1, max(1, length - 2) :] = dictionary.pad()
    settings = {"beam_size": 3, "min_len": LONGEST - 3}
    result = search(model, dictionary, prefix, **settings)
    assert result[0][0]["tokens"][:length].tolist() == prefix[0].tolist()
    assert_same(result, search(WithoutState(model), dictionary, prefix, **settings))


def test_finished_sentences_leave_the_batch():
    """Rows end at different steps, so that the state loses rows in the middle of the search."""
    dictionary = make_dictionary()
    model = make_model(dictionary)
    with torch.no_grad():  # EOS is likely
        model.decoder.lm.output.weight[dictionary.eos()] *= 3
    prefix = torch.tensor([[4], [5], [6], [7]])
    result = search(model, dictionary, prefix, batch=4, beam_size=2)
    assert len({len(h[0]["tokens"]) for h in result}) > 1
    assert_same(result, search(WithoutState(model), dictionary, prefix, batch=4, beam_size=2))

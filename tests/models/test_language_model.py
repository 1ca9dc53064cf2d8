"""The language model in plain PyTorch: pieces, losses, activation checkpointing, bad tokens."""

import pytest
import torch
from torch.nn import functional as F

from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.language_model import CausalLM
from megalodon_tasks.models.state import (
    detach_state,
    join_states,
    map_state,
    reorder_state,
    split_state,
    state_from_plain,
    state_to_plain,
)
from tests.models.lm_cases import CHUNK, SIZES, make_lm, make_tokens, pieces_of


def in_pieces(lm, tokens, lengths):
    outputs, state = [], None
    for piece in pieces_of(tokens, lengths):
        scores, state = lm(piece, state)
        outputs.append(scores)
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("chunk_size", [CHUNK, None])
@pytest.mark.parametrize("lengths", [[1] * 14, [7, 1, 1], [4, 4, 4], [13]])
def test_pieces_of_any_size_equal_one_pass(chunk_size, lengths):
    lm, tokens = make_lm(chunk_size=chunk_size), make_tokens()
    torch.testing.assert_close(in_pieces(lm, tokens, lengths), lm(tokens)[0], rtol=1e-9, atol=1e-9)


def test_state_does_not_grow_with_what_was_read():
    lm, sizes = make_lm(), []
    for length in (CHUNK * 2, CHUNK * 30):
        counted = []
        map_state(lm(make_tokens(length=length))[1], lambda t, c=counted: c.append(t.numel()) or t)
        sizes.append(sum(counted))
    assert sizes[0] == sizes[1]


def test_nll_is_the_cross_entropy_of_the_scores():
    lm, tokens = make_lm(), make_tokens(length=16)
    scores, _ = lm(tokens[:, :-1])
    expected = F.cross_entropy(scores.transpose(1, 2), tokens[:, 1:], reduction="none")
    nll, state = lm.nll(tokens[:, :10], tokens[:, 1:11])
    nll_after, _ = lm.nll(tokens[:, 10:-1], tokens[:, 11:], state)
    torch.testing.assert_close(torch.cat((nll, nll_after), 1), expected)


@pytest.mark.parametrize("wrong", [-1, 11, 400])
def test_token_out_of_range_is_named(wrong):
    lm, tokens = make_lm(), make_tokens()
    tokens[1, 3] = wrong
    message = f"token id {wrong} is out of range: the vocabulary of this model has 11 symbols"
    with pytest.raises(ValueError, match=message):
        lm(tokens)
    with pytest.raises(ValueError, match=message):
        lm.nll(make_tokens(), tokens)


def test_a_language_model_must_be_causal():
    with pytest.raises(ValueError, match="model.causal=True"):
        CausalLM(MegalodonConfig(**SIZES), 11)


def test_padding_symbol_starts_at_zero():
    lm = CausalLM(MegalodonConfig(**SIZES, causal=True), 11, padding_idx=1)
    assert lm.embedding.weight[1].abs().max() == 0
    assert lm.embedding.weight[0].abs().max() > 0


def gradients(lm, tokens, state):
    """Compute the gradients of a training step, the state's included, from a fixed seed of dropout."""
    torch.manual_seed(5)
    state = map_state(state, lambda t: t.requires_grad_() if t.is_floating_point() else t)
    x, new_state = lm.features(tokens, state)
    loss = (x**3).sum() + new_state.blocks[1].cema.abs().sum() + new_state.norm.mean.sum()
    inputs = [*lm.stack.parameters(), state.blocks[0].norm.mean, state.blocks[1].attention.key]
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activation_checkpointing_changes_no_gradient(dropout):
    dropouts = dict.fromkeys(("dropout", "hidden_dropout", "attention_dropout"), dropout)
    plain, saving = (make_lm(checkpoint_activations=c, **dropouts) for c in (False, True))
    tokens = make_tokens(length=22)
    state = detach_state(plain(tokens[:, :6])[1])
    expected = gradients(plain.train(), tokens[:, 6:], state)
    recomputed = gradients(saving.train(), tokens[:, 6:], state)
    for one, other in zip(expected, recomputed, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-10)


def test_activation_checkpointing_stores_less_for_the_backward_pass():
    def saved_bytes(lm):
        sizes = {}
        # Each storage counts once: what is saved are often views of one tensor.
        keep = lambda t: sizes.update({t.untyped_storage().data_ptr(): t.nbytes}) or t  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            lm.features(make_tokens(length=200))
        return sum(sizes.values())

    plain, saving = (make_lm(num_layers=6, checkpoint_activations=c).train() for c in (False, True))
    assert saved_bytes(saving) < saved_bytes(plain) / 4


def test_states_join_and_split_by_rows():
    lm, tokens = make_lm(), make_tokens(batch=3)
    _, state = lm(tokens[:, :6])
    rows = split_state(state)
    assert [row.norm.count.shape[0] for row in rows] == [1, 1, 1]
    back = join_states([rows[2], rows[0]])
    expected, _ = lm(tokens[[2, 0], 6:], reorder_state(state, torch.tensor([2, 0])))
    torch.testing.assert_close(lm(tokens[[2, 0], 6:], back)[0], expected)


def test_joining_fills_in_what_only_some_states_have():
    lm, tokens = make_lm(), make_tokens()
    padded = torch.zeros(2, 6, dtype=torch.bool)
    _, plain = lm.features(tokens[:, :6])
    _, masked = lm.features(tokens[:, :6], padding_mask_BL=padded)
    assert masked.blocks[0].attention.padding_mask is not None
    joined = join_states([plain, masked])
    next_tokens = torch.cat((tokens, tokens))[:, 6:]
    torch.testing.assert_close(
        lm(next_tokens, joined)[0][:2], lm(tokens)[0][:, 6:], rtol=1e-9, atol=1e-9
    )


def test_state_survives_a_checkpoint_of_plain_values(tmp_path):
    lm, tokens = make_lm(), make_tokens()
    _, state = lm(tokens[:, :6])
    torch.save(state_to_plain(state), tmp_path / "state.pt")
    back = state_from_plain(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(lm(tokens[:, 6:], back)[0], lm(tokens[:, 6:], state)[0])

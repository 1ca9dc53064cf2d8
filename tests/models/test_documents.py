"""Documents packed in rows, with and without earlier states, against each on its own."""

import pytest
import torch

from megalodon_tasks.models.documents import run_documents
from tests.models.lm_cases import make_lm, make_tokens

# Row -> lengths of its documents.  Chunks have 4 steps: some documents fit in them and most do not.
PACKED = [[5, 9, 1], [15], [1, 1, 4, 3]]
LENGTH = 15


def packed(rows=PACKED):
    """Return tokens (B, L), document starts (B, L) and padding (B, L) or None."""
    tokens = make_tokens(batch=len(rows), length=LENGTH)
    starts = torch.zeros(len(rows), LENGTH, dtype=torch.bool)
    padded = torch.ones(len(rows), LENGTH, dtype=torch.bool)
    for row, lengths in enumerate(rows):
        at = torch.tensor([0, *lengths]).cumsum(0)
        starts[row, at[:-1]] = True
        padded[row, : at[-1]] = False
    return tokens, starts, padded if padded.any() else None


def separately(lm, tokens, rows):
    """Compute the features of each document in a call of its own, zero at padding."""
    expected = torch.zeros(*tokens.shape, lm.config.model_dim, dtype=torch.float64)
    for row, lengths in enumerate(rows):
        start = 0
        for length in lengths:
            document = tokens[row : row + 1, start : start + length]
            expected[row, start : start + length] = lm.features(document)[0][0]
            start += length
    return expected


@pytest.mark.parametrize("rows", [PACKED, [[15], [15]], [[7, 8], [7, 8]], [[2] * 7 + [1]]])
@pytest.mark.parametrize("chunk_size", [4, None])
def test_packed_documents_equal_separate_ones(rows, chunk_size):
    lm = make_lm(chunk_size=chunk_size)
    tokens, starts, padded = packed(rows)
    x, _ = lm.features(tokens, None, padded, starts)
    torch.testing.assert_close(x, separately(lm, tokens, rows), rtol=1e-9, atol=1e-9)


def test_gradients_equal_those_of_separate_documents():
    lm = make_lm()
    tokens, starts, padded = packed()
    parameters = list(lm.stack.parameters())
    x, _ = lm.features(tokens, None, padded, starts)
    gradients = torch.autograd.grad((x**3).sum(), parameters)
    expected = torch.autograd.grad((separately(lm, tokens, PACKED) ** 3).sum(), parameters)
    for one, other in zip(expected, gradients, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("cuts", [[6], [1, 6], [3, 4, 5, 2], [1] * 14])
def test_a_stream_of_documents_in_pieces_equals_one_pass(cuts):
    """Pieces end anywhere: in a chunk, at a document's end, with rows at different steps of a chunk."""
    lm = make_lm()
    rows = [[5, 9, 1], [15], [1, 1, 4, 9], [14, 1]]
    tokens, starts, _ = packed(rows)
    outputs, states, start = [], None, 0
    for length in [*cuts, LENGTH - sum(cuts)]:
        piece = slice(start, start + length)
        x, states = lm.features(tokens[:, piece], states, None, starts[:, piece])
        outputs.append(x)
        start += length
    expected = separately(lm, tokens, rows)
    torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=1e-9, atol=1e-9)


def test_rows_of_padding_only_retain_their_state():
    lm = make_lm()
    tokens, starts, padded = packed([[4, 2], [15]])
    _, states = lm.features(tokens[:, :6], None, None, starts[:, :6])
    x, after = lm.features(tokens[:, 6:], states, padded[:, 6:], starts[:, 6:])
    assert x[0].abs().max() == 0
    assert torch.equal(after[0].blocks[0].cema, states[0].blocks[0].cema)
    torch.testing.assert_close(x[1], lm.features(tokens[1:])[0][0, 6:], rtol=1e-9, atol=1e-9)


def test_state_of_a_whole_batch_may_come_before_documents():
    lm = make_lm()
    tokens, starts, _ = packed([[9, 6], [15]])
    _, state = lm.features(tokens[:, :6])
    x, _ = lm.features(tokens[:, 6:], state, None, starts[:, 6:])
    expected = separately(lm, tokens, [[9, 6], [15]])[:, 6:]
    torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-9)


def test_features_are_the_same_without_the_states():
    lm = make_lm()
    x = torch.randn(2, LENGTH, 16, dtype=torch.float64)
    _, starts, _ = packed([[5, 10], [15]])
    y, states = run_documents(lm.stack, x, starts, return_state=False)
    assert states is None
    torch.testing.assert_close(y, run_documents(lm.stack, x, starts)[0], rtol=1e-9, atol=1e-9)


def test_padding_inside_a_row_is_refused():
    lm = make_lm()
    tokens, starts, padded = packed([[4, 2], [15]])
    padded[0, 2] = True
    with pytest.raises(ValueError, match="row 0 has padding before its last real step"):
        lm.features(tokens, None, padded, starts)


def test_states_of_another_batch_are_refused():
    lm = make_lm()
    tokens, starts, padded = packed()
    _, states = lm.features(tokens, None, padded, starts)
    with pytest.raises(
        ValueError, match="got 3 states, one per row of an earlier batch, for 2 rows"
    ):
        lm.features(tokens[:2], states, padded[:2], starts[:2])

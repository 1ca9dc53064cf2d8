"""Bytes as tokens: nothing is lost, everything fits one byte, and what is no text is named."""

import numpy as np
import pytest

from megalodon_tasks.recipes.lra.text_tokens import (
    END_TOKEN,
    PADDING_TOKEN,
    VOCABULARY,
    tokens_of,
)
from tests.data.prepared import text_of


def test_the_vocabulary_fits_one_byte():
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 256
    assert (VOCABULARY[PADDING_TOKEN], VOCABULARY[END_TOKEN]) == ("<pad>", "</s>")
    assert VOCABULARY[ord("a")] == "a"
    assert VOCABULARY[ord(" ")] == "<20>"


@pytest.mark.parametrize(
    "text",
    ["a", "plain text", "br <br /><br />\n\ttab", "naïve café – 漢字 \U0001f600", "\x01\x7f"],
)
def test_text_goes_through_unchanged(text):
    tokens = tokens_of(text.encode())
    assert tokens.dtype == np.uint8
    assert tokens[-1] == END_TOKEN
    assert PADDING_TOKEN not in tokens
    assert END_TOKEN not in tokens[:-1]
    assert text_of(tokens).decode() == text


@pytest.mark.parametrize("limit", [1, 3, 4000])
def test_a_long_text_is_cut(limit):
    text = b"x" * 4001
    assert text_of(tokens_of(text, limit)) == text[:limit]
    assert len(tokens_of(text)) == 4001


def test_a_cut_may_go_through_a_character():
    assert text_of(tokens_of("aé".encode(), 2)) == b"a\xc3"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "^is empty$"),
        (b" \r\n\t", "^is empty$"),
        (b"b''", "^is empty$"),
        (b'b"" ', "^is empty$"),
        (b"caf\xe9", "^is not UTF-8 text: byte 0xe9 at place 4$"),
        (b"\x1f\x8b\x08", "byte 0x8b at place 2"),
        (b"x" * 5000 + b"\xff", "byte 0xff at place 5001"),
        (b"ab\0\0", "^has a zero byte at place 3, as in a damaged file$"),
    ],
)
def test_what_is_no_text_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        tokens_of(text)

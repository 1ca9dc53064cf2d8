"""Hold the conversations of a split with a language model, and compare its answers."""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from megalodon_tasks.data.conversations import is_answer
from megalodon_tasks.data.corpus import CorpusSplit
from megalodon_tasks.data.tokenizers import Tokenizer
from megalodon_tasks.evaluation.chat import Chat
from megalodon_tasks.evaluation.long_context import Position, counted_from, read_document
from megalodon_tasks.models.language_model import LanguageModel

PIECE = 4096  # tokens that are read at a time


class Answer(NamedTuple):
    """An answer of the model beside that of the data, and what was asked with the template around it."""

    prompt: str
    expected: str
    answer: str
    exact: bool


def answer_all(
    model: LanguageModel, tokenizer: Tokenizer, split: CorpusSplit, most: int
) -> Iterator[Answer]:
    """Answer every prompt of ``split``, which is of conversations, by the likeliest tokens.

    Later turns follow the model's own answers.  most: tokens of an answer, its end token included; one
    that has not ended by then is not exact.
    """
    for items in _items_of_documents(split):
        chat = Chat(model, tokenizer, torch.argmax, most, PIECE)
        for prompt, expected in zip(items[::2], items[1::2], strict=True):
            answer = [*chat.answer(prompt)]
            exact = chat.ended and answer == expected[:-1].tolist()
            shown = ["".join(tokenizer.stream(text)) for text in (prompt, expected, answer)]
            yield Answer(shown[0], shown[1], shown[2], exact)


def answer_bits(model: LanguageModel, split: CorpusSplit, end_token: int) -> float:
    """Return the mean loss of the tokens of the answers of ``split``, in bits."""
    total, count = 0.0, 0
    for items, offset in zip(_items_of_documents(split), split.offsets[:-1].tolist(), strict=True):
        sizes = [len(item) for item in items]
        answers_L = np.repeat(is_answer(np.arange(len(sizes))), sizes)
        read = counted_from(offset, split.tokens)
        for start, nll_L, _ in read_document(model, read, sum(sizes), PIECE, end_token, Position()):
            nll_L = nll_L[answers_L[start : start + len(nll_L)]]
            total, count = total + float(nll_L.sum()), count + len(nll_L)
    return total / count / math.log(2)


def _items_of_documents(split: CorpusSplit) -> Iterator[list[np.ndarray]]:
    edges = np.concatenate(([0], np.cumsum(split.sizes))).tolist()
    documents = itertools.pairwise([*split.first_items.tolist(), len(split.sizes)])
    for first, last in documents:
        pairs = itertools.pairwise(edges[first : last + 1])
        yield [split.tokens(start, stop) for start, stop in pairs]

"""Conversations as JSON lines, and the template that makes tokens of them.

A line is ``{"messages": [{"role": "user", "content": "..."}, ...]}``; roles are ``system``, ``user`` and
``assistant``.  In prepared data a conversation is a document whose items take turns: a prompt, its
answer, the next prompt and so on.  So every second item is an answer (:func:`is_answer`).

A template has a text for each role, in which ``{content}`` stands for what is said.  ``<s>``, ``</s>``
and words such as ``<|user|>`` in it are symbols of the vocabulary.  What is said is never read so.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from megalodon_tasks.data.corpus import Corpus, CorpusForm
from megalodon_tasks.data.tokenizers import Tokenizer
from megalodon_tasks.files import read_bytes

SYSTEM, USER, ASSISTANT = ROLES = ("system", "user", "assistant")
CONTENT, END = "{content}", "</s>"
#: ChatML (``<|im_start|>user ...``) with the symbols that every vocabulary of fairseq has.
CHATML = {role: f"<s>{role}\n{CONTENT}{END}" for role in ROLES}
_SYMBOL = re.compile(r"(<s>|</s>|<\|[^<>|\s]+\|>)")


def is_answer(item_N: np.ndarray) -> np.ndarray:
    """Return which items of a split of conversations, given by number, are answers, (N,) bool."""
    return item_N % 2 == 1


class Message(NamedTuple):
    """Who says what."""

    role: str
    content: str


def parse_conversation(line: bytes) -> list[Message]:
    """Read one line.

    Raises ``ValueError`` whose text completes a sentence that begins with the place of the line, as in
    ``is not JSON``: for anything but an optional system message and then questions and answers in turn.
    """
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None
    messages = entry.get("messages") if isinstance(entry, dict) else None
    if not isinstance(messages, list) or not messages:
        raise ValueError(
            'has no list of messages; write {"messages": [{"role": "user", "content": "..."}, ...]}'
        )
    found = [_parse_message(number, entry) for number, entry in enumerate(messages, start=1)]
    _check_order([message.role for message in found])
    return found


def _parse_message(number: int, entry: Any) -> Message:
    fields = entry if isinstance(entry, dict) else {}
    role, content = fields.get("role"), fields.get("content")
    if role not in ROLES:
        raise ValueError(f"message {number} has the role {role!r}; roles are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise ValueError(f"message {number} ({role}) has the content {content!r}, which is no text")
    if not content.strip():
        raise ValueError(f"message {number} ({role}) has an empty text")
    try:
        content.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"message {number} ({role}) has half a surrogate pair at character {error.start}"
        ) from None
    return Message(role, content)


def _check_order(roles: Sequence[str]) -> None:
    first = 1 if roles[0] == SYSTEM else 0
    for number, role in enumerate(roles[first:], start=first):
        expected = (USER, ASSISTANT)[(number - first) % 2]
        if role != expected:
            raise ValueError(
                f"message {number + 1} is of {role}, where {expected} is due: a system message may come "
                "first, then user and assistant take turns"
            )
    if roles[-1] != ASSISTANT:
        raise ValueError(f"ends with {roles[-1]}, without an answer of assistant")


class Template:
    """The text around what each role says.

    Raises ``ValueError``, which names ``where`` the texts are from, for other roles, for a text without
    ``{content}``, and for answers that do not end in ``</s>``: a model would never stop.
    """

    def __init__(self, texts: Mapping[str, str] = CHATML, where: str = "the template") -> None:
        if set(texts) != set(ROLES):
            raise ValueError(
                f"{where} has texts for {', '.join(map(str, texts)) or 'nobody'}; needed are "
                f"{', '.join(ROLES)}"
            )
        for role, text in texts.items():
            if not isinstance(text, str) or text.count(CONTENT) != 1:
                raise ValueError(
                    f"{where}: the text of {role} is {text!r}; it must have {CONTENT} in it once"
                )
        if not texts[ASSISTANT].endswith(CONTENT + END):
            raise ValueError(
                f"{where} does not end: the text of {ASSISTANT} is {texts[ASSISTANT]!r}, it must end in "
                f"{CONTENT}{END} so that an answer has an end"
            )
        self.texts, self.where = dict(texts), where

    @classmethod
    def read(cls, path: Path) -> "Template":
        """Read a JSON file with a text for each role."""
        try:
            texts = json.loads(read_bytes(path))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
        if not isinstance(texts, dict):
            raise ValueError(
                f"{path} holds {texts!r}, needed is a text for each of {', '.join(ROLES)}"
            )
        return cls(texts, str(path))


class ConversationEncoder:
    """Makes tokens of conversations.

    Raises ``ValueError`` if the vocabulary lacks a symbol or a word of the template.
    """

    def __init__(self, template: Template, tokenizer: Tokenizer) -> None:
        self._template, self._tokenizer = template, tokenizer
        self._dictionary = tokenizer.dictionary()
        self._around = {
            role: tuple(self._fixed(role, part) for part in text.split(CONTENT))
            for role, text in template.texts.items()
        }

    def prompt(self, messages: Sequence[Message]) -> np.ndarray:
        """Return ``messages`` and what stands before the answer to them, (tokens,) int64."""
        parts = []
        for role, content in messages:
            before, after = self._around[role]
            parts += [before, self._said(role, content), after]
        return np.concatenate([*parts, self._around[ASSISTANT][0]])

    def answer(self, content: str) -> np.ndarray:
        """Return an answer with its end token, (tokens,) int64."""
        return np.concatenate([self._said(ASSISTANT, content), self._around[ASSISTANT][1]])

    def items(self, conversation: Sequence[Message]) -> Iterator[np.ndarray]:
        """Yield prompt, answer, prompt, answer and so on.

        Raises ``ValueError`` for a text that makes no token, or has the end token in it.
        """
        asked: list[Message] = []
        for message in conversation:
            if message.role != ASSISTANT:
                asked.append(message)
                continue
            yield self.prompt(asked)
            yield self.answer(message.content)
            asked = []

    def _said(self, role: str, content: str) -> np.ndarray:
        tokens = self._tokenizer.encode(content)
        if not len(tokens):
            raise ValueError(f"the text of {role}, {content!r}, has no token in the vocabulary")
        if (tokens == self._tokenizer.eos).any():
            raise ValueError(
                f"the text of {role}, {content!r}, has a line break, which a vocabulary of words writes "
                "as the end token; write it on one line, or choose bytes or pieces"
            )
        return tokens

    def _fixed(self, role: str, text: str) -> np.ndarray:
        found = [np.empty(0, np.int64)]
        for part in filter(None, _SYMBOL.split(text)):
            symbol = _SYMBOL.fullmatch(part)
            if symbol and part not in self._dictionary:
                raise ValueError(
                    f"{self._template.where}: the text of {role} has the symbol {part}, which the "
                    f"vocabulary of {len(self._dictionary)} symbols lacks; all have <s> and </s>"
                )
            tokens = [self._dictionary.index(part)] if symbol else self._tokenizer.encode(part)
            found.append(np.asarray(tokens, np.int64))
            if (found[-1] == self._dictionary.unk()).any():
                raise ValueError(
                    f"{self._template.where}: the text of {role} has {part!r}, of which the vocabulary "
                    f"of {len(self._dictionary)} symbols lacks a part; write it in words that it has"
                )
        return np.concatenate(found)


@dataclass(frozen=True)
class ConversationForm(CorpusForm):
    """How a corpus of conversations is written.  template: its texts."""

    template: Mapping[str, str] = field(default_factory=lambda: CHATML)

    def details(self) -> dict[str, Any]:
        """Return the manifest's ``form``."""
        return {**super().details(), "template": dict(self.template)}


def template_of(corpus: Corpus) -> Template:
    """Return the template of a corpus of conversations; raise ``ValueError`` for any other corpus."""
    texts = corpus.manifest.form.get("template") if corpus.manifest else None
    if texts is None:
        raise ValueError(
            f"{corpus.folder} does not hold conversations; prepare some with "
            "megalodon prepare lm/instruct"
        )
    return Template(texts, f"the template of {corpus.folder}")

"""Conversations and templates: what becomes of them, and what is refused in which words."""

import json

import numpy as np
import pytest

from megalodon_tasks.data.conversations import (
    CHATML,
    ConversationEncoder,
    Message,
    Template,
    parse_conversation,
)
from megalodon_tasks.data.dictionary import read_dictionary
from megalodon_tasks.data.tokenizers import ByteTokenizer, WordTokenizer


def line(*pairs, **more):
    messages = [{"role": role, "content": content} for role, content in pairs]
    return json.dumps({"messages": messages, **more}).encode()


U, A, S = ("user", "hi"), ("assistant", "ho"), ("system", "be brief")


def words(folder, *symbols):
    (folder / "dict.txt").write_text("".join(f"{symbol} 1\n" for symbol in symbols))
    return WordTokenizer(read_dictionary(folder / "dict.txt"))


@pytest.mark.parametrize("pairs", [[U, A], [S, U, A], [S, U, A, U, A]])
def test_a_conversation_is_read(pairs):
    assert parse_conversation(line(*pairs, id=7)) == [Message(*pair) for pair in pairs]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not JSON"),
        (b"{]", "is not JSON: .*column 2"),
        (b'{"messages": "\xff"}', "is not JSON"),
        (b"[1]", "has no list of messages"),
        (b'{"messages": []}', "has no list of messages"),
        (b'{"conversations": [1]}', "has no list of messages"),
        (b'{"messages": [5]}', "message 1 has the role None; roles are system, user, assistant"),
        (line(U, ("human", "x")), "message 2 has the role 'human'; roles are system"),
        (b'{"messages": [{"role": ["user"], "content": "x"}]}', "message 1 has the role"),
        (line(("user", None), A), r"message 1 \(user\) has the content None, which is no text"),
        (line(("user", ["hi"]), A), r"message 1 \(user\) has the content \['hi'\]"),
        (line(U, ("assistant", "")), r"message 2 \(assistant\) has an empty text"),
        (line(("user", " \n"), A), r"message 1 \(user\) has an empty text"),
        (line(U, ("assistant", "a\ud800")), r"message 2 \(assistant\) has half a surrogate pair"),
        (line(U), "ends with user, without an answer of assistant"),
        (line(S), "ends with system, without an answer"),
        (line(U, A, U), "ends with user, without an answer"),
        (line(A, U), "message 1 is of assistant, where user is due"),
        (line(U, A, A), "message 3 is of assistant, where user is due"),
        (line(U, U, A), "message 2 is of user, where assistant is due"),
        (line(U, S, A), "message 2 is of system, where assistant is due"),
        (line(S, A), "message 2 is of assistant, where user is due"),
    ],
)
def test_what_is_no_conversation_is_named(text, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        parse_conversation(text)


def test_items_take_turns_and_answers_end():
    encoder = ConversationEncoder(Template(), ByteTokenizer())
    items = [*encoder.items([Message(*pair) for pair in (S, U, A, U, A)])]
    texts = ["".join(f"<{int(t)}>" if t < 4 else chr(int(t) - 4) for t in item) for item in items]
    assert texts == [
        "<0>system\nbe brief<2><0>user\nhi<2><0>assistant\n",
        "ho<2>",
        "<0>user\nhi<2><0>assistant\n",
        "ho<2>",
    ]


def test_no_text_becomes_a_symbol():
    (prompt, _) = ConversationEncoder(Template(), ByteTokenizer()).items(
        [Message("user", "</s><s>assistant"), Message("assistant", "x")]
    )
    assert np.flatnonzero(prompt < 4).tolist() == [0, 22, 23]


def test_symbols_of_a_vocabulary(tmp_path):
    texts = {role: f"<|{role}|> {{content}}" for role in CHATML} | {"assistant": "{content}</s>"}
    tokenizer = words(tmp_path, "<|user|>", "<|system|>", "hi", "ho", "be")
    encoder = ConversationEncoder(Template(texts), tokenizer)
    assert [item.tolist() for item in encoder.items([Message(*U), Message(*A)])] == [[4, 6], [7, 2]]
    with pytest.raises(
        ValueError, match="'hi\\\\nho', has a line break, which a vocabulary of words"
    ):
        encoder.answer("hi\nho")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"user": "<|user|>{content}"},
            r"T: the text of user has the symbol <\|user\|>, which the voc",
        ),
        ({"system": "{content}<|end|>"}, r"T: the text of system has the symbol <\|end\|>"),
        (
            {"user": "Question: {content}"},
            "T: the text of user has 'Question: ', of which the vocab",
        ),
    ],
)
def test_a_vocabulary_that_lacks_a_part_of_the_template_is_refused(tmp_path, changes, message):
    texts = dict.fromkeys(CHATML, "{content}</s>") | changes
    with pytest.raises(ValueError, match=message):
        ConversationEncoder(Template(texts, "T"), words(tmp_path, "hi", "ho"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"assistant": "<s>{content}"},
            "does not end: the text of assistant is '<s>{content}', it must",
        ),
        ({"assistant": "{content}</s>\n"}, "does not end"),
        ({"user": "hi"}, "the text of user is 'hi'; it must have {content} in it once"),
        ({"system": "{content}{content}"}, "the text of system is"),
        ({"system": 5}, "the text of system is 5"),
        (
            {"tool": "{content}"},
            "has texts for system, user, assistant, tool; needed are system, user",
        ),
    ],
)
def test_a_wrong_template_is_named(tmp_path, changes, message):
    path = tmp_path / "template.json"
    path.write_text(json.dumps(CHATML | changes))
    with pytest.raises(ValueError, match=f"{path}:? {message}"):
        Template.read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("[]", r"holds \[\]"), ("{}", "has texts for nobody; needed are")],
)
def test_a_file_that_is_no_template_is_named(tmp_path, text, message):
    path = tmp_path / "template.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{path} {message}"):
        Template.read(path)

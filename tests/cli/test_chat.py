"""Conversations with a model: answers as by hand, no turn dearer than another, wrong input named."""

import csv
import io
import json
import sys

import numpy as np
import pytest
import torch

from megalodon_tasks.cli.main import main
from megalodon_tasks.data.conversations import CHATML, ConversationEncoder, Message, Template
from megalodon_tasks.data.tokenizers import ByteTokenizer
from megalodon_tasks.errors import UserError
from megalodon_tasks.evaluation.chat import Chat
from megalodon_tasks.evaluation.sampling import text_tokens
from megalodon_tasks.models.decoding import Decoder, OrdinaryDecoder
from tests.cli.language_models import write_checkpoint, write_corpus
from tests.recipes.conversation_files import prepare_conversations

EOS = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_conversations(tmp_path_factory.mktemp("conversations"))


@pytest.fixture(scope="module")
def checkpoint(data):
    write_checkpoint(data.parent / "checkpoint.pt", data)
    return data.parent / "checkpoint.pt"


@pytest.fixture(scope="module")
def model(data, checkpoint):
    return write_checkpoint(data.parent / "same.pt", data).double().eval()


def chatted(monkeypatch, capfd, checkpoint, lines, *arguments):
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert main(["chat", str(checkpoint), "--cpu", "--tokens", "12", *arguments]) == 0
    return capfd.readouterr()


def ending(model, after):
    """Draw the likeliest tokens, but the end token at the numbers ``after``."""
    drawn = iter(range(10**6))

    def choose(scores_V):
        return EOS if next(drawn) in after else int(scores_V.argmax())

    return choose


@pytest.mark.parametrize("after", [(), (0,), (3, 9, 10)], ids=str)
@pytest.mark.parametrize("piece", [5, 4096])
def test_turns_continue_one_text(model, after, piece):
    encoder = ConversationEncoder(Template(), ByteTokenizer())
    chat = Chat(model, ByteTokenizer(), ending(model, after), most=6, piece=piece)
    text, allowed = [EOS], text_tokens(ByteTokenizer(), 260)
    choose = ending(model, after)
    for turn in range(4):
        prompt = encoder.prompt([Message("user", f"question {turn}")])
        found = [*chat.answer(prompt)]
        text += prompt.tolist()
        expected = []
        for _ in range(6):
            with torch.no_grad():
                scores, _ = model(torch.tensor([text + expected]))
            token = choose(scores[0, -1].masked_fill(~allowed, -torch.inf))
            if token == EOS:
                break
            expected.append(token)
        assert found == expected
        assert chat.ended == (len(expected) < 6)
        text += [*expected, EOS]


def test_an_answer_that_is_not_read_to_its_end_has_not_been(model):
    encoder = ConversationEncoder(Template(), ByteTokenizer())
    prompts = [encoder.prompt([Message("user", text)]) for text in ("one", "two", "one")]
    chat, other = (Chat(model, ByteTokenizer(), torch.argmax, 6, 4096) for _ in range(2))
    assert [*chat.answer(prompts[0])] == [*other.answer(prompts[0])]
    next(chat.answer(prompts[1]))
    assert [*chat.answer(prompts[2])] == [*other.answer(prompts[2])]


def counting(kind, steps):
    """The call of a decoder, which also notes that it was called."""
    call = kind.__call__

    def counted(self, tokens):
        steps.append(1)
        return call(self, tokens)

    return counted


def test_the_tenth_turn_costs_no_more_than_the_first(model, monkeypatch):
    read, steps = [], []
    features = type(model).features

    def counted(self, tokens, *more):
        read.append(tokens.shape[1])
        return features(self, tokens, *more)

    monkeypatch.setattr(type(model), "features", counted)
    for kind in (Decoder, OrdinaryDecoder):
        monkeypatch.setattr(kind, "__call__", counting(kind, steps))
    chat = Chat(model, ByteTokenizer(), torch.argmax, most=6, piece=4096)
    prompt = ConversationEncoder(Template(), ByteTokenizer()).prompt([Message("user", "again")])
    costs = []
    for _ in range(10):
        read.clear()
        steps.clear()
        answer = [*chat.answer(prompt)]
        costs.append((sum(read), len(steps), len(answer)))
    # What the turn before left unread comes first: the token drawn last and the end token.
    assert {cost[1:] for cost in costs} == {costs[0][1:]}
    assert max(cost[0] for cost in costs) <= len(prompt) + 2


def test_each_line_is_answered_alike_in_one_run_and_with_a_system_message(
    monkeypatch, capfd, checkpoint
):
    first = chatted(monkeypatch, capfd, checkpoint, "what is it\nand why\n", "--seed", "3").out
    again = chatted(monkeypatch, capfd, checkpoint, "what is it\nand why", "--seed", "3").out
    assert first == again
    other = chatted(
        monkeypatch, capfd, checkpoint, "what is it\nand why\n", "--seed", "3", "--system", "be"
    )
    assert other.out != first
    said = chatted(monkeypatch, capfd, checkpoint, "what is it\n \nand why\n", "--seed", "3")
    assert said.out == first
    assert "an empty line asks nothing" in said.err


def test_a_model_of_text_chats_with_a_template_by_name(monkeypatch, capfd, tmp_path):
    data = write_corpus(tmp_path)
    write_checkpoint(tmp_path / "checkpoint.pt", data)
    with pytest.raises(UserError, match="data does not hold conversations; prepare some with"):
        main(["chat", str(tmp_path / "checkpoint.pt"), "--cpu"])
    (tmp_path / "t.json").write_text(json.dumps(CHATML))
    more = ["--template", str(tmp_path / "t.json")]
    assert chatted(monkeypatch, capfd, tmp_path / "checkpoint.pt", "hi\n", *more).out
    (tmp_path / "t.json").write_text(json.dumps(CHATML | {"user": "<|user|>{content}"}))
    with pytest.raises(UserError, match=r"t.json: the text of user has the symbol <\|user\|>"):
        main(["chat", str(tmp_path / "checkpoint.pt"), "--cpu", *more])


def test_a_release_answers_as_its_checkpoint(monkeypatch, capfd, data, checkpoint, tmp_path):
    folder = tmp_path / "release"
    assert main(["convert", "to-released", str(checkpoint), str(folder)]) == 0
    capfd.readouterr()
    expected = chatted(monkeypatch, capfd, checkpoint, "why\n").out
    assert chatted(monkeypatch, capfd, folder, "why\n", "--data", str(data)).out == expected
    with pytest.raises(UserError, match="is a release, which has no tokenizer"):
        main(["chat", str(folder), "--cpu"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--system", " "], "--system is an empty text"),
        (["--template", "nowhere"], "nowhere"),
    ],
)
def test_wrong_options_are_named(checkpoint, arguments, message):
    with pytest.raises(UserError, match=message):
        main(["chat", str(checkpoint), "--cpu", *arguments])


def test_exact_answers_are_counted(data, checkpoint, model, tmp_path, monkeypatch):
    """A model that always draws what the data says, except in the first answer."""
    lines = (data.parent / "source" / "test.jsonl").read_text().splitlines()
    said = [m for line in lines for m in json.loads(line)["messages"]]
    answers = [m["content"] for m in said if m["role"] == "assistant"]
    tokens = [t for text in answers for t in (*ByteTokenizer().encode(text).tolist(), EOS)]
    tokens[0] += 1
    drawn = iter(tokens)
    monkeypatch.setattr(
        "megalodon_tasks.evaluation.exact_answers.torch.argmax", lambda _: next(drawn)
    )
    results = tmp_path / "results.jsonl"
    words = ["evaluate-answers", str(checkpoint), "--cpu", "--results", str(results)]
    assert main(words) == 0
    record = json.loads(results.read_text())
    assert record["n"] == len(answers)
    assert record["value"] == pytest.approx(100 * (len(answers) - 1) / len(answers))
    with open(tmp_path / "answers-test.tsv", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert [row["expected"] for row in rows] == answers
    assert [row["exact"] for row in rows] == ["False", *["True"] * (len(answers) - 1)]


def test_the_loss_is_that_of_the_answers(data, checkpoint, model, tmp_path):
    results = tmp_path / "results.jsonl"
    words = ["evaluate-answers", str(checkpoint), "--cpu", "--results", str(results)]
    main([*words, "--tokens", "3"])
    encoder = ConversationEncoder(Template(), ByteTokenizer())
    bits, count = 0.0, 0
    for line in (data.parent / "source" / "test.jsonl").read_text().splitlines():
        messages = [Message(m["role"], m["content"]) for m in json.loads(line)["messages"]]
        items = [*encoder.items(messages)]
        tokens = torch.from_numpy(np.concatenate(([EOS], *items)))[None]
        answers = torch.cat([torch.full((len(t),), n % 2 == 1) for n, t in enumerate(items)])
        with torch.no_grad():
            nll, _ = model.nll(tokens[:, :-1], tokens[:, 1:])
        bits += nll[0, answers].sum().item() / np.log(2)
        count += int(answers.sum())
    assert json.loads(results.read_text())["loss"] == pytest.approx(bits / count, rel=1e-5)


def test_data_that_is_not_of_conversations_is_refused(tmp_path):
    data = write_corpus(tmp_path)
    write_checkpoint(tmp_path / "checkpoint.pt", data)
    with pytest.raises(UserError, match="data does not hold conversations"):
        main(["evaluate-answers", str(tmp_path / "checkpoint.pt"), "--cpu"])

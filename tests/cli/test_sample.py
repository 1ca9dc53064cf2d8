"""Continuing a text: the same as without pieces, streamed, cut where it should be, refused when bad."""

import io
import itertools
import math
import sys

import pytest
import torch

from megalodon_tasks.cli import evaluate, sample
from megalodon_tasks.data.tokenizers import ByteTokenizer
from megalodon_tasks.errors import UserError
from megalodon_tasks.evaluation.sampling import Choice, generate
from tests.cli.language_models import TEXT, write_checkpoint, write_corpus
from tests.models.lm_cases import make_lm
from tests.recipes import lm_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def checkpoint(data):
    write_checkpoint(data.parent / "checkpoint.pt", data)
    return data.parent / "checkpoint.pt"


def sampled(capfd, checkpoint, *arguments):
    assert sample.main([str(checkpoint), "--cpu", "--tokens", "40", *arguments]) == 0
    return capfd.readouterr().out


def greedy(scores_V):
    return int(scores_V.argmax())


@pytest.mark.parametrize("piece", [1, 3, 8, 50])
def test_tokens_are_those_of_one_pass(piece):
    model = make_lm()
    allowed = torch.ones(11, dtype=torch.bool)
    prompt = torch.tensor([2, 5, 6, 7, 9, 4, 4, 10])
    steps = generate(model, prompt, greedy, piece=piece, allowed=allowed)
    found = list(itertools.islice(steps, 12))
    tokens = prompt
    with torch.no_grad():
        for _ in range(12):
            scores, _ = model(tokens[None])
            tokens = torch.cat((tokens, scores[0, -1].argmax()[None]))
    assert found == tokens[len(prompt) :].tolist()


def test_tokens_that_are_not_allowed_never_appear():
    allowed = torch.zeros(11, dtype=torch.bool)
    allowed[[4, 7]] = True
    draw = torch.Generator().manual_seed(0)
    steps = generate(
        make_lm(), torch.tensor([2]), lambda s: Choice().draw(s, draw), piece=8, allowed=allowed
    )
    assert set(itertools.islice(steps, 60)) == {4, 7}


SCORES = torch.tensor([0.5, 0.1, 0.25, 0.15]).log()


def shares(choice, draws=4000):
    generator = torch.Generator().manual_seed(0)
    found = torch.tensor([choice.draw(SCORES, generator) for _ in range(draws)])
    return (found.bincount(minlength=4) / draws).tolist()


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        (Choice(), [0.5, 0.1, 0.25, 0.15]),
        (Choice(temperature=0), [1, 0, 0, 0]),
        (Choice(top_k=2), [2 / 3, 0, 1 / 3, 0]),
        (Choice(top_p=0.5), [1, 0, 0, 0]),
        (Choice(top_p=0.51), [2 / 3, 0, 1 / 3, 0]),
        (Choice(top_k=3, top_p=0.8), [2 / 3, 0, 1 / 3, 0]),
        (Choice(temperature=0.5), [0.25 / 0.345, 0.01 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345]),
        (Choice(temperature=1e-6), [1, 0, 0, 0]),
    ],
)
def test_shares_are_those_of_the_distribution(choice, wanted):
    assert shares(choice) == pytest.approx(wanted, abs=4 * math.sqrt(0.25 / 4000))


@pytest.mark.parametrize("values", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 2}])
def test_impossible_choices_are_refused(values):
    (name,) = values
    with pytest.raises(ValueError, match=f"{name}={values[name]} must be"):
        Choice(**values)


def test_prompt_from_line_file_and_standard_input(capfd, checkpoint, tmp_path, monkeypatch):
    (tmp_path / "prompt").write_text("Über\n")
    texts = [sampled(capfd, checkpoint, "--prompt", "Über\n")]
    texts.append(sampled(capfd, checkpoint, "--prompt-file", str(tmp_path / "prompt")))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Über\n".encode())))
    texts.append(sampled(capfd, checkpoint, "--prompt-file", "-"))
    assert texts[0].startswith("Über\n")
    assert len(set(texts)) == 1


def test_seeds_and_pieces(capfd, checkpoint):
    first = sampled(capfd, checkpoint, "--prompt", TEXT, "--seed", "5")
    assert sampled(capfd, checkpoint, "--prompt", TEXT, "--seed", "5", "--piece", "7") == first
    assert sampled(capfd, checkpoint, "--prompt", TEXT, "--seed", "6") != first


def test_fairseq_interactive_reads_bytes_and_continues_alike(capfd, checkpoint, data, tmp_path):
    (tmp_path / "input").write_text("the hill\n")
    more = ["--bpe", "bytes", "--beam", "1", "--min-len", "24", "--max-len-b", "24", "--input"]
    more.append(str(tmp_path / "input"))
    lm_data.interactive(data, checkpoint, *more)
    (line,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("H-0")]
    model = evaluate.load(checkpoint, str(data), torch.device("cpu")).model.decoder.lm
    prompt = torch.tensor([2, *ByteTokenizer().encode("the hill")])
    allowed = torch.ones(260, dtype=torch.bool)
    allowed[[1, 2]] = False  # fairseq draws no padding, and no end yet
    tokens = itertools.islice(generate(model, prompt, greedy, piece=4, allowed=allowed), 10)
    symbols = [ByteTokenizer().dictionary()[token] for token in [*prompt[1:].tolist(), *tokens]]
    assert line.split("\t")[2].split(" ")[: len(symbols)] == symbols


def test_text_ends_with_the_document():
    class Bytes:
        eos, ends_document = 2, True

    class Words:
        eos, ends_document = 2, False

    tokens = [5, 6, 2, 7]
    assert list(sample.until_end(iter(tokens), Bytes, False)) == [5, 6]
    assert list(sample.until_end(iter(tokens), Bytes, True)) == [5, 6, 7]
    assert list(sample.until_end(iter(tokens), Words, False)) == tokens


def test_pieces_and_words_too(capfd, tmp_path):
    data = write_corpus(tmp_path / "p", "--tokens", "sentencepiece", "--pieces", "280")
    write_checkpoint(tmp_path / "p.pt", data, vocab_size=384)
    capfd.readouterr()
    assert sampled(capfd, tmp_path / "p.pt", "--prompt", "the hill").startswith("the hill")
    data = lm_data.preprocess(tmp_path / "w")
    write_checkpoint(tmp_path / "w.pt", data, vocab_size=16)
    capfd.readouterr()
    assert (
        sample.main([str(tmp_path / "w.pt"), "--cpu", "--prompt", "alpha x", "--tokens", "9"]) == 0
    )
    said = capfd.readouterr()
    assert said.out.startswith("alpha x")
    assert "1 tokens of the prompt are not in the vocabulary" in said.err
    assert set(said.out.split()) <= {
        *lm_data.WORDS,
        "x",
        "xalpha",
        "<unk>",
        "madeupword0000",
        "madeupword0001",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "a\udcff"], "--prompt is not UTF-8: byte 0xff at 1"),
        (["--prompt-file", "nowhere"], "nowhere"),
        (["--temperature", "-1"], "temperature=-1.0 must be at least 0"),
        (["--tokens", "0"], "--tokens 0 must be at least 1"),
        (["--piece", "0"], "--piece 0 must be at least 1"),
    ],
)
def test_bad_input_is_named(checkpoint, arguments, message):
    with pytest.raises(UserError, match=message):
        sample.main([str(checkpoint), "--cpu", *arguments])

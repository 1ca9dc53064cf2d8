"""Continuing a text: the same as without pieces, streamed, cut where it should be, refused when bad."""

import io
import itertools
import sys

import pytest
import torch

from megalodon_tasks.cli.main import main
from megalodon_tasks.data.tokenizers import ByteTokenizer
from megalodon_tasks.errors import UserError
from megalodon_tasks.evaluation import checkpoint as checkpoints
from megalodon_tasks.evaluation.sampling import generate
from tests.cli.language_models import TEXT, write_checkpoint, write_corpus
from tests.recipes import lm_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def checkpoint(data):
    write_checkpoint(data.parent / "checkpoint.pt", data)
    return data.parent / "checkpoint.pt"


def sampled(capfd, checkpoint, *arguments):
    assert main(["sample", str(checkpoint), "--cpu", "--tokens", "40", *arguments]) == 0
    return capfd.readouterr().out


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
    model = checkpoints.load(checkpoint, data, torch.device("cpu")).language_model
    prompt = torch.tensor([2, *ByteTokenizer().encode("the hill")])
    allowed = torch.ones(260, dtype=torch.bool)
    allowed[[1, 2]] = False  # fairseq draws no padding, and no end yet
    tokens = itertools.islice(generate(model, prompt, torch.argmax, piece=4, allowed=allowed), 10)
    symbols = [ByteTokenizer().dictionary()[token] for token in [*prompt[1:].tolist(), *tokens]]
    assert line.split("\t")[2].split(" ")[: len(symbols)] == symbols


def test_pieces_and_words_too(capfd, tmp_path):
    data = write_corpus(tmp_path / "p", "--tokens", "sentencepiece", "--pieces", "280")
    write_checkpoint(tmp_path / "p.pt", data, vocab_size=384)
    capfd.readouterr()
    assert sampled(capfd, tmp_path / "p.pt", "--prompt", "the hill").startswith("the hill")
    data = lm_data.preprocess(tmp_path / "w")
    write_checkpoint(tmp_path / "w.pt", data, vocab_size=16)
    capfd.readouterr()
    words = ["sample", str(tmp_path / "w.pt"), "--cpu", "--prompt", "alpha x", "--tokens", "9"]
    assert main(words) == 0
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
    ],
)
def test_bad_input_is_named(checkpoint, arguments, message):
    with pytest.raises(UserError, match=message):
        main(["sample", str(checkpoint), "--cpu", *arguments])

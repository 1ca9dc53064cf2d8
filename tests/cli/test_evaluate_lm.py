"""Evaluating a language model on documents: numbers by hand, stopping and going on, what is written."""

import bz2
import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from megalodon_tasks.cli.main import INTERRUPTED, main
from megalodon_tasks.data.corpus import read_corpus
from megalodon_tasks.data.manifest import MANIFEST, sha256_of
from megalodon_tasks.errors import UserError
from megalodon_tasks.evaluation import language_model
from megalodon_tasks.evaluation.long_context import Position
from megalodon_tasks.evaluation.shuffled import ShuffledSplit
from tests.cli.language_models import CHUNK, LENGTHS, TEXT, write_checkpoint, write_corpus

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [TEXT[n : n + length].encode() for n, length in enumerate(LENGTHS["test"])]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def checkpoint(data, tmp_path):
    write_checkpoint(tmp_path / "checkpoint.pt", data)
    return tmp_path / "checkpoint.pt"


COMMAND = ["evaluate-lm", "--cpu", "--first-context", "32"]


def evaluated(checkpoint, *arguments):
    assert main([*COMMAND, str(checkpoint), *arguments]) == 0
    lines = (checkpoint.parent / "results.jsonl").read_text().splitlines()
    return json.loads(lines[-1])


def nll_by_hand(checkpoint, data):
    """Each document in one pass: the negative log-likelihood of all its tokens."""
    model = write_checkpoint(checkpoint.parent / "same.pt", data)
    total = 0.0
    for text in DOCUMENTS:
        ids = torch.tensor([2, *(byte + 4 for byte in text), 2])
        with torch.no_grad():
            scores, _ = model(ids[None, :-1])
        total += torch.nn.functional.cross_entropy(scores[0], ids[1:], reduction="sum").item()
    return total


@pytest.mark.parametrize("piece", ["7", "4096"])
def test_measures_equal_those_by_hand(checkpoint, data, piece, capsys):
    record = evaluated(checkpoint, "--piece", piece)
    nll, text = nll_by_hand(checkpoint, data), b"".join(DOCUMENTS)
    tokens, words = len(text) + len(DOCUMENTS), sum(len(d.split()) for d in DOCUMENTS)
    assert record["nll"] == pytest.approx(nll, rel=1e-5)
    assert (record["tokens"], record["n"]) == (tokens, len(DOCUMENTS))
    assert record["measures"] == pytest.approx({
        "perplexity": math.exp(nll / tokens),
        "word_perplexity": math.exp(nll / words) if nll / words < 700 else math.inf,
        "bits_per_character": nll / math.log(2) / len(text.decode()),
        "bits_per_byte": nll / math.log(2) / len(text),
    }, rel=1e-4)  # fmt: skip
    assert record["metric"] == "word_perplexity"
    said = capsys.readouterr().out
    assert f"3 documents, {tokens} tokens" in said
    assert "256 - 512" in said


def test_table_csv_and_picture(checkpoint):
    record = evaluated(checkpoint, "--metric", "bits_per_byte")
    assert record["value"] == record["measures"]["bits_per_byte"]
    with open(checkpoint.parent / "context_length.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["to"]) for row in rows] == [32, 64, 128, 256, 512]
    assert [int(row["documents"]) for row in rows] == [3, 3, 2, 2, 1]
    assert sum(int(row["tokens"]) for row in rows) == record["tokens"]
    assert [row["whole_documents"] for row in rows] == ["3", "2", "2", "1", "0"]
    assert [row["whole_perplexity"] == "" for row in rows] == [False] * 4 + [True]
    assert (checkpoint.parent / "context_length.png").read_bytes().startswith(b"\x89PNG")
    assert not list(checkpoint.parent.glob("*.progress.pt"))


def test_segments_instead_of_documents(checkpoint):
    record = evaluated(checkpoint, "--segments", "4")
    assert record["n"] == 4
    assert max(band["high"] for band in record["context"] if band["tokens"]) == 256


@pytest.mark.parametrize(("size", "chunk_size"), [("64", 64), ("full", None), ("5", 5)])
def test_another_chunk_size_gives_what_a_model_of_that_size_gives(
    checkpoint, data, tmp_path, size, chunk_size
):
    record = evaluated(checkpoint, "--chunk-size", size)
    assert (record["chunk_size"], record["evaluation_chunk_size"]) == (CHUNK, chunk_size)
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "checkpoint.pt"
    write_checkpoint(other, data, chunk_size=chunk_size)
    assert evaluated(other)["nll"] == record["nll"] != evaluated(checkpoint)["nll"]


def with_eval_chunk_size(checkpoint, size):
    """The same checkpoint, of a task that evaluates with chunks of this size."""
    state = torch.load(checkpoint)
    state["cfg"]["task"]["eval_chunk_size"] = size
    torch.save(state, checkpoint)
    return checkpoint


@pytest.mark.parametrize(
    ("options", "expected"),
    [([], 64), (["--chunk-size", "5"], 5), (["--chunk-size", "full"], None)],
)
def test_the_chunk_size_of_the_task_is_that_of_the_evaluation(checkpoint, options, expected):
    same = evaluated(checkpoint, "--chunk-size", "full" if expected is None else str(expected))
    record = evaluated(with_eval_chunk_size(checkpoint, 64), *options)
    assert (record["chunk_size"], record["evaluation_chunk_size"]) == (CHUNK, expected)
    assert record["nll"] == same["nll"]


@pytest.mark.parametrize(("segments", "parts"), [([], 28), (["--segments", "3"], 30)])
def test_context_cuts_documents_into_parts_read_from_an_empty_state(
    checkpoint, data, segments, parts, capsys
):
    record = evaluated(checkpoint, "--context", "26", "--piece", "7", *segments)
    model = write_checkpoint(checkpoint.parent / "same.pt", data)
    split = read_corpus(data).split("test")
    streams = np.split(split.tokens(0, split.info.tokens), split.offsets[1:-1])
    if segments:
        streams = np.split(np.concatenate(streams), [236, 471])
    nll, count, before = 0.0, 0, 2
    for stream in streams:
        for part in torch.from_numpy(stream).split(26):
            with torch.no_grad():
                scores, _ = model(torch.cat((torch.tensor([before]), part[:-1]))[None])
            nll += torch.nn.functional.cross_entropy(scores[0], part, reduction="sum").item()
            count, before = count + 1, int(part[-1])
    assert record["nll"] == pytest.approx(nll, rel=1e-6)
    assert (record["n"], record["segment_tokens"]) == (count, 26) == (parts, 26)
    assert f"{parts} parts" in capsys.readouterr().out


@pytest.mark.parametrize(("length", "parts"), [(100, 8), (2_000_000, 1)])
def test_documents_are_joined_in_an_order_that_the_result_records(
    checkpoint, data, length, parts, capsys
):
    joined = ["--concatenate", str(length), "--piece", "7", "--order-seed"]
    records = {seed: evaluated(checkpoint, *joined, seed) for seed in ("1", "2", "3")}
    again = evaluated(checkpoint, *joined[:-1], "--metric", "perplexity")
    assert again["nll"] == records["1"]["nll"]
    assert len({record["nll"] for record in records.values()}) > 1
    model = write_checkpoint(checkpoint.parent / "same.pt", data)
    for seed, record in records.items():
        split = ShuffledSplit(read_corpus(data).split("test"), int(seed))
        stream = split.tokens(0, 10**6)
        nll, before = 0.0, 2
        for part in torch.from_numpy(stream).split(length):
            with torch.no_grad():
                scores, _ = model(torch.cat((torch.tensor([before]), part[:-1]))[None])
            nll += torch.nn.functional.cross_entropy(scores[0], part, reduction="sum").item()
            before = int(part[-1])
        assert record["nll"] == pytest.approx(nll, rel=1e-6)
        assert (record["n"], record["tokens"]) == (parts, len(stream))
        assert (record["concatenated"], record["order_seed"]) == (length, int(seed))
        assert "documents shuffled and joined" in record["comparable"]
    assert f"{parts} parts" in capsys.readouterr().out
    for ending in (".csv", ".png"):
        assert (checkpoint.parent / f"context_length_joined{ending}").is_file()


def test_joined_documents_are_those_of_the_split_each_whole(data):
    split = read_corpus(data).split("test")
    found = {}
    for seed in range(6):
        shuffled = ShuffledSplit(split, seed)
        stream = shuffled.tokens(0, split.info.tokens)
        pieces = [shuffled.tokens(start, start + 7) for start in range(0, len(stream), 7)]
        assert np.concatenate(pieces).tolist() == stream.tolist()
        texts = np.split(stream, shuffled.offsets[1:-1])
        found[tuple(len(text) for text in texts)] = {tuple(text) for text in texts}
    assert len(found) > 2
    assert set(map(frozenset, found.values())) == {
        frozenset(map(tuple, np.split(split.tokens(0, split.info.tokens), split.offsets[1:-1])))
    }


def test_compressors_stand_beside(checkpoint, capsys):
    record = evaluated(checkpoint, "--compressors")
    text = b"".join(DOCUMENTS)
    assert record["compressors"]["bz2 -9"] == pytest.approx(
        8 * len(bz2.compress(text, 9)) / len(text)
    )
    assert "xz -9e after the training split" in capsys.readouterr().out


class Stop:
    """Press Ctrl-C at the piece of this number."""

    def __init__(self, monkeypatch, piece):
        self.left, read = piece, language_model.read_document

        def counted(*arguments):
            for step in read(*arguments):
                self.left -= 1
                if self.left == 0:
                    os.kill(os.getpid(), signal.SIGINT)
                yield step

        monkeypatch.setattr(language_model, "read_document", counted)


@pytest.mark.parametrize("piece", [1, 20, 25, 60])
def test_stopped_and_started_again_equals_uninterrupted(checkpoint, monkeypatch, piece, capsys):
    whole = evaluated(checkpoint, "--piece", "8")
    Stop(monkeypatch, piece)
    assert main([*COMMAND, str(checkpoint), "--piece", "8"]) == INTERRUPTED
    assert "continues where it was stopped" in capsys.readouterr().err
    (progress,) = checkpoint.parent.glob("*.progress.pt")
    again = evaluated(checkpoint, "--piece", "8")
    for key in ("nll", "tokens", "n", "measures", "context"):
        assert again[key] == whole[key], key
    assert not progress.exists()


def test_progress_of_another_evaluation_is_not_used(checkpoint, monkeypatch, capsys):
    Stop(monkeypatch, 20)
    assert main([*COMMAND, str(checkpoint), "--piece", "8"]) == INTERRUPTED
    record = evaluated(checkpoint, "--piece", "9")
    assert "is of another evaluation; starting from the beginning" in capsys.readouterr().err
    assert record["tokens"] == sum(len(text) + 1 for text in DOCUMENTS)


def test_a_damaged_progress_file_costs_time_only(tmp_path, capsys):
    (tmp_path / "p").write_bytes(b"PK cut short")
    totals, position = language_model.Progress(tmp_path / "p", "x").load(32)
    assert (totals.tokens, position) == (0, Position())
    assert "p is damaged" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_at_any_moment_goes_on(checkpoint, data):
    whole = evaluated(checkpoint, "--piece", "1")
    code = (
        "from megalodon_tasks.cli.main import main\n"
        "from megalodon_tasks.evaluation import language_model\n"
        f"language_model.SAVE_SECONDS = 0.0\nmain({[*COMMAND, str(checkpoint), '--piece', '1']})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
    while not list(checkpoint.parent.glob("*.progress.pt")):
        time.sleep(0.01)
    time.sleep(0.2)
    process.kill()
    process.wait()
    again = evaluated(checkpoint, "--piece", "1")
    assert again["nll"] == whole["nll"]
    assert again["context"] == whole["context"]


DYNAMIC = ["--piece", "8", "--dynamic", "0.002", "--decay", "0.1"]
RMS = ["--epsilon", "0.01", "--statistics-tokens", "100", "--gradient-statistics"]


def test_dynamic_evaluation_is_another_number_and_leaves_the_checkpoint(checkpoint, capsys):
    content = checkpoint.read_bytes()
    static = evaluated(checkpoint, "--piece", "8")
    sgd = evaluated(checkpoint, *DYNAMIC)
    statistics = checkpoint.parent / "statistics.pt"
    rms = evaluated(checkpoint, *DYNAMIC, *RMS, str(statistics))
    assert "dynamic evaluation: RMS, rate 0.002, decay 0.1, a step after every 8 tokens" in (
        capsys.readouterr().out
    )
    assert statistics.is_file()
    assert len({record["nll"] for record in (static, sgd, rms)}) == 3
    assert sgd["nll"] < static["nll"]
    settings = {"rate": 0.002, "decay": 0.1, "epsilon": 1e-5, "statistics_tokens": None}
    assert (static["dynamic"], sgd["dynamic"]) == (None, settings)
    assert rms["dynamic"] == settings | {"epsilon": 0.01, "statistics_tokens": 100}
    assert evaluated(checkpoint, *DYNAMIC, *RMS, str(statistics))["nll"] == rms["nll"]
    assert checkpoint.read_bytes() == content
    assert evaluated(checkpoint, "--dynamic", "0.002")["piece"] == 128


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("piece", [1, 20, 60])
def test_dynamic_evaluation_stopped_and_started_again_equals_uninterrupted(
    checkpoint, monkeypatch, piece, scaled
):
    options = [*DYNAMIC, *([*RMS, str(checkpoint.parent / "s.pt")] if scaled else [])]
    whole = evaluated(checkpoint, *options)
    Stop(monkeypatch, piece)
    assert main([*COMMAND, str(checkpoint), *options]) == INTERRUPTED
    again = evaluated(checkpoint, *options)
    for key in ("nll", "tokens", "n", "measures", "context"):
        assert again[key] == whole[key], key


def test_dynamic_evaluation_with_other_settings_does_not_continue(checkpoint, monkeypatch, capsys):
    expected = evaluated(checkpoint, *DYNAMIC[:-1], "0.2")
    Stop(monkeypatch, 20)
    assert main([*COMMAND, str(checkpoint), *DYNAMIC]) == INTERRUPTED
    assert evaluated(checkpoint, *DYNAMIC[:-1], "0.2")["nll"] == expected["nll"]
    assert "is of another evaluation; starting from the beginning" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--decay", "0.1"], "--decay 0.1 has no effect without --dynamic RATE"),
        (["--gradient-statistics", "s.pt"], "s.pt has no effect without --dynamic RATE"),
        (["--dynamic", "1e-3", "--epsilon", "0.1"], "--epsilon 0.1 has no effect without --grad"),
        (
            ["--dynamic", "1e-3", "--statistics-tokens", "9"],
            "--statistics-tokens 9 has no effect without --gradient-statistics FILE",
        ),
        (["--dynamic", "-1"], "--dynamic -1.0: the learning rate must be above 0"),
        (["--dynamic", "1e-3", "--decay", "2"], "--decay 2.0 must be between 0 and 1"),
    ],
)
def test_wrong_options_of_dynamic_evaluation_are_named(checkpoint, arguments, message):
    with pytest.raises(UserError, match=message):
        main(["evaluate-lm", str(checkpoint), "--cpu", *arguments])
    assert not (checkpoint.parent / "results.jsonl").exists()


def test_a_rate_at_which_the_weights_diverge_is_named(checkpoint):
    with pytest.raises(UserError, match=r"--dynamic 1000.0: the weights have diverged"):
        main([*COMMAND, str(checkpoint), "--piece", "8", "--dynamic", "1e3"])
    assert not (checkpoint.parent / "results.jsonl").exists()


def test_statistics_of_other_settings_are_refused(checkpoint):
    statistics = ["--gradient-statistics", str(checkpoint.parent / "s.pt")]
    evaluated(checkpoint, *DYNAMIC, *statistics)
    for other in (["--chunk-size", "8"], ["--piece", "9"], ["--statistics-tokens", "50"]):
        with pytest.raises(UserError, match="s.pt holds those of another checkpoint, data"):
            main([*COMMAND, str(checkpoint), *DYNAMIC, *statistics, *other])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--segments", "1000000"], "--segments 1000000 must be between 1 and"),
        (["--order-seed", "0"], "--order-seed 0 has no effect without --concatenate"),
        (["--concatenate", "--segments", "3"], "--segments 3 does not go with --concatenate"),
        (["--concatenate", "9", "--context", "5"], "--context 5 does not go with --concatenate"),
        (["--concatenate", "--split", "valid"], "split 'valid' of .* has one document"),
        (["--split", "dev"], "has no split 'dev'"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_wrong_options_are_named(checkpoint, arguments, message):
    with pytest.raises(UserError, match=message):
        main(["evaluate-lm", str(checkpoint), "--cpu", *arguments])
    assert not (checkpoint.parent / "results.jsonl").exists()


def test_plain_data_of_fairseq_has_perplexity_alone(data, tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in data.iterdir():
        if path.name != "manifest.json":
            (plain / path.name).write_bytes(path.read_bytes())
    checkpoint = tmp_path / "checkpoint.pt"
    write_checkpoint(checkpoint, plain)
    record = evaluated(checkpoint)
    assert (record["metric"], record["n"], list(record["measures"])) == (
        "perplexity",
        1,
        ["perplexity"],
    )
    for more, message in (
        (["--metric", "bits_per_byte"], "does not say how to count that; possible: perplexity"),
        (["--compressors"], "needs a corpus of bytes"),
    ):
        with pytest.raises(UserError, match=message):
            main(["evaluate-lm", str(checkpoint), "--cpu", *more])


def test_a_vocabulary_of_other_data_is_refused(checkpoint, tmp_path):
    other = write_corpus(tmp_path / "o", "--tokens", "sentencepiece", "--pieces", "280")
    with pytest.raises(UserError, match="does not fit|vocabulary"):
        main(["evaluate-lm", str(checkpoint), "--cpu", "--data", str(other)])


def test_a_token_out_of_range_is_refused(checkpoint, data, tmp_path):
    split = read_corpus(data).split("test")
    damaged = tmp_path / "data"
    damaged.mkdir()
    for path in data.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    tokens = split.tokens(0, int(split.offsets[-1])).astype(split.dtype)
    tokens[5] = 999
    tokens.tofile(damaged / "test.bin")
    with pytest.raises(UserError, match="test.bin is damaged: its sha256"):
        main(["evaluate-lm", str(checkpoint), "--cpu", "--data", str(damaged)])
    manifest = json.loads((damaged / MANIFEST).read_text())
    manifest["files"]["test.bin"]["sha256"] = sha256_of(damaged / "test.bin")
    (damaged / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="token id 999 is out of range"):
        main(["evaluate-lm", str(checkpoint), "--cpu", "--data", str(damaged)])


@pytest.mark.parametrize("option", ["--piece", "--first-context", "--context"])
def test_sizes_must_be_positive(checkpoint, option, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate-lm", str(checkpoint), option, "0"])
    assert f"argument {option}: 0 must be at least 1" in capsys.readouterr().err

"""Retrieval: pairs of papers in their released layout, and what is damaged in them."""

import os

import numpy as np
import pytest

from megalodon_tasks.data.sequences import PreparedDataset
from megalodon_tasks.data.sources import Rejects
from megalodon_tasks.recipes.lra.retrieval import prepare as prepare_retrieval
from megalodon_tasks.recipes.lra.retrieval.release import FILES, find_pairs, read_pairs
from megalodon_tasks.recipes.lra.text_tokens import VOCABULARY
from tests.data.prepared import text_of, write_random

# As the release has them: quotes and backslashes are characters of the text.
PAIRS = {
    "train": [
        ("1.0", r"b'We parse \"trees\".\n\n 1 Introduction'", "b'Parsing with\\tgrammars.'"),
        ("0.0", 'b"It\'s about speech."', r"b'Na\xc3\xafve Bayes'"),
        ("1.0", "plain text, not printed as bytes", "b'short'"),
    ],
    "valid": [("0.0", "b'a'", "b'bc'"), ("1.0", "b'def'", "b'g'")],
    "test": [("1.0", "b'h'", "b'i'")],
}


def lines_of(pairs):
    return [f"{label}\tP{n}\tW{n}\t{a}\t{b}\n" for n, (label, a, b) in enumerate(pairs)]


def write_pairs(folder, pairs=PAIRS):
    folder.mkdir(parents=True, exist_ok=True)
    for split, name in FILES.items():
        (folder / name).write_text("".join(lines_of(pairs[split])))
    return folder


def prepare(source, out, rejects=None, **options):
    rejects = Rejects() if rejects is None else rejects
    return prepare_retrieval.prepare(source, out, rejects, **options)


@pytest.mark.parametrize(
    "below", ["", "tsv_data", "lra_release/tsv_data", "lra_release/lra_release/tsv_data"]
)
def test_files_are_found_where_the_release_has_them(tmp_path, below):
    write_pairs(tmp_path / below)
    assert find_pairs(tmp_path) == {s: tmp_path / below / name for s, name in FILES.items()}


def test_pairs_become_bytes_as_they_stand(tmp_path):
    assert prepare(write_pairs(tmp_path / "raw"), tmp_path / "out")
    dataset = PreparedDataset(tmp_path / "out")
    assert dataset.spec.benchmark == "retrieval"
    assert list(dataset.spec.columns) == ["inputs", "inputs2"]
    assert dataset.spec.vocabulary == VOCABULARY
    for split, pairs in PAIRS.items():
        found = dataset.split(split)
        assert found.labels.tolist() == [int(float(label)) for label, _, _ in pairs]
        for index, (_, first, second) in enumerate(pairs):
            assert text_of(found.sequence("inputs", index)).decode() == first
            assert text_of(found.sequence("inputs2", index)).decode() == second
    dataset.manifest.verify()


def test_both_texts_are_cut(tmp_path):
    prepare(write_pairs(tmp_path / "raw"), tmp_path / "out", max_bytes=4)
    split = PreparedDataset(tmp_path / "out").split("train")
    assert split.lengths("inputs").tolist() == split.lengths("inputs2").tolist() == [5, 5, 5]


def test_preparation_is_skipped_while_files_and_options_are_the_same(tmp_path):
    raw, out = write_pairs(tmp_path / "raw"), tmp_path / "out"
    assert prepare(raw, out)
    os.utime(raw / FILES["train"], (1, 1))
    assert not prepare(raw, out)
    assert prepare(raw, out, max_bytes=100)
    write_pairs(raw, {**PAIRS, "test": [("0.0", "b'h'", "b'i'")]})
    assert prepare(raw, out, max_bytes=100)
    np.testing.assert_array_equal(PreparedDataset(out).split("test").labels, [0])


DAMAGE = [
    (b"1.0\tP1\tW1\tonly one text", "has 4 fields separated by tabs, expected 5"),
    (b"1.0\tP1\tW1\ta\tb\tc", "has 6 fields"),
    (b"", "has 1 fields"),
    (b"2.0\tP1\tW1\ta\tb", "has the label '2.0', which is neither 0 nor 1"),
    (b"-1\tP1\tW1\ta\tb", "has the label '-1'"),
    (b"yes\tP1\tW1\ta\tb", "has the label 'yes'"),
    (b"0.5\tP1\tW1\ta\tb", "has the label '0.5'"),
    (b"1.0\tP1\tW1\t\tb", ", text 1 is empty"),
    (b"1.0\tP1\tW1\ta\tb''", ", text 2 is empty"),
    (b"1.0\tP1\tW1\ta\t \r", ", text 2 is empty"),
    (b"1.0\tP1\tW1\tcaf\xe9\tb", ", text 1 is not UTF-8 text: byte 0xe9 at place 4"),
    (b"1.0\tP1\tW1\ta\tb\0\0", ", text 2 has a zero byte at place 2"),
]


@pytest.mark.parametrize(("line", "reason"), DAMAGE)
def test_a_damaged_pair_is_left_out_and_named(tmp_path, capsys, line, reason):
    raw, out = write_pairs(tmp_path / "raw"), tmp_path / "out"
    path = raw / FILES["valid"]
    first, second = (text.encode() for text in lines_of(PAIRS["valid"]))
    path.write_bytes(first + line + b"\n" + second)
    prepare_retrieval.main([str(raw), str(out)])
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2] == "left out as damaged: 1"
    assert printed[-1].startswith(f"  {path}, line 2")
    assert reason in printed[-1]
    assert PreparedDataset(out).split("valid").labels.tolist() == [0, 1]


@pytest.mark.parametrize(("line", "reason"), DAMAGE)
def test_a_damaged_pair_is_refused_where_asked(tmp_path, line, reason):
    raw = write_pairs(tmp_path / "raw")
    with open(raw / FILES["train"], "ab") as stream:
        stream.write(line + b"\n")
    with pytest.raises(ValueError, match="train.tsv, line 4") as error:
        prepare(raw, tmp_path / "out", Rejects(strict=True))
    assert reason in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kept", [1, 5, 12, 20])
def test_a_file_that_breaks_off_is_refused(kept):
    whole = lines_of(PAIRS["train"])[0].encode()
    lines = [whole, whole[:kept]]
    with pytest.raises(ValueError, match="x.tsv, line 2: the file breaks off here, after . of 5"):
        list(read_pairs(lines, "x.tsv", Rejects()))


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_the_last_line_may_have_any_end(end):
    line = lines_of(PAIRS["test"])[0].encode().rstrip(b"\n") + end
    (pair,) = read_pairs([line], "x.tsv", Rejects())
    assert (pair.number, pair.label, pair.texts) == (1, 1, (b"b'h'", b"b'i'"))


def test_an_empty_file_is_refused(tmp_path):
    raw = write_pairs(tmp_path / "raw", {**PAIRS, "test": []})
    with pytest.raises(ValueError, match="test.tsv has no lines; copy or unpack it again"):
        prepare(raw, tmp_path / "out")


def test_a_missing_file_is_named(tmp_path):
    raw = write_pairs(tmp_path / "raw")
    (raw / FILES["valid"]).unlink()
    with pytest.raises(
        ValueError, match="new_aan_pairs.eval.tsv is missing beside the other files"
    ):
        prepare(raw, tmp_path / "out")


def test_where_nothing_is_found_it_is_said_what_to_get(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} is empty.*get lra_release.gz"):
        prepare(tmp_path, tmp_path / "out")
    (tmp_path / "lra_release.gz").touch()
    with pytest.raises(ValueError, match="unpack .*/lra_release.gz first .tar -xzf lra_release.gz"):
        prepare(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="lra_release.gz is an archive; unpack it with 'tar -xzf"):
        prepare(tmp_path / "lra_release.gz", tmp_path / "out")


def test_data_of_another_benchmark_is_not_replaced(tmp_path):
    write_random(tmp_path / "out", benchmark="text")
    with pytest.raises(ValueError, match="holds prepared data of 'text'; choose another folder"):
        prepare(write_pairs(tmp_path / "raw"), tmp_path / "out")


def test_other_counts_than_expected_are_said(tmp_path, capsys):
    raw, out = write_pairs(tmp_path / "raw"), tmp_path / "out"
    prepare_retrieval.main([str(raw), str(out), "--verify"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == [
        f"{out}: prepared",
        "train: 3 pairs (the released benchmark has 147086), lengths 22 to 42 and 9 to 27 with the "
        "end token, labels 0:33.3% 1:66.7%",
    ]

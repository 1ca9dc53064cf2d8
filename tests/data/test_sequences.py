"""Labelled sequences: what is written is read, and items that cannot be stored are refused."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from megalodon_tasks.data.sequences import ColumnSpec
from tests.data.prepared import random_items, spec_of, write_items, write_random

COLUMNS = {
    "tokens": {"columns": {"inputs": ColumnSpec("uint8")}},
    "wide tokens": {"columns": {"inputs": ColumnSpec("uint16")}, "vocabulary": ("a",) * 300},
    "pairs": {"columns": {"inputs": ColumnSpec("uint8"), "inputs2": ColumnSpec("uint8")}},
    "pixels": {
        "columns": {"inputs": ColumnSpec("uint8", 25)},
        "kind": "pixels",
        "vocabulary": (),
    },
    "waveform": {
        "columns": {"inputs": ColumnSpec("int16", 16)},
        "kind": "waveform",
        "vocabulary": (),
    },
}


@pytest.mark.parametrize("case", COLUMNS)
def test_what_is_written_is_read(tmp_path, case):
    spec = spec_of(**COLUMNS[case])
    items = {"train": random_items(20, spec, 1), "test": random_items(5, spec, 2)}
    dataset = write_items(tmp_path / "data", spec, items)
    assert dataset.spec == replace(spec, source={**spec.source, "duplicates": {}})
    assert list(dataset.splits) == ["train", "test"]
    for name, expected in items.items():
        split = pickle.loads(pickle.dumps(dataset.split(name)))
        assert len(split) == len(expected)
        assert split.labels.tolist() == [label for label, _ in expected]
        for column in spec.columns:
            lengths = [len(sequences[column]) for _, sequences in expected]
            assert split.lengths(column).tolist() == lengths
            for index, (_, sequences) in enumerate(expected):
                found = split.sequence(column, index)
                assert found.dtype == sequences[column].dtype
                np.testing.assert_array_equal(found, sequences[column])
    dataset.manifest.verify()


def test_description_sums_up(tmp_path):
    spec = spec_of()
    items = random_items(50, spec)
    split = write_items(tmp_path, spec, {"train": items}).split("train")
    labels = [label for label, _ in items]
    lengths = [len(sequences["inputs"]) for _, sequences in items]
    assert split.info.class_counts == np.bincount(labels, minlength=3).tolist()
    assert split.info.min_length == {"inputs": min(lengths)}
    assert split.info.max_length == {"inputs": max(lengths)}


def test_same_items_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_random(tmp_path / name)
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert len(files) == 10
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    ("label", "sequence", "message"),
    [
        (3, [1, 2], "split 'train', item 1: label 3 is none of the classes 0-2"),
        (-1, [1, 2], "label -1"),
        (0, [], "item 1, inputs: shape \\(0,\\), expected a sequence of at least 1"),
        (0, [[1]], "shape \\(1, 1\\)"),
        (0, [1, 11], "item 1, inputs: tokens from 1 to 11, expected 0 to 10"),
    ],
)
def test_bad_item_is_refused(tmp_path, label, sequence, message):
    spec = spec_of()
    items = [(0, {"inputs": np.array([1])}), (label, {"inputs": np.array(sequence, np.int64)})]
    with pytest.raises(ValueError, match=message):
        write_items(tmp_path / "data", spec, {"train": items})
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("changes", "sequences", "message"),
    [
        ({}, {"inputs2": [1]}, "expected \\['inputs'\\]"),
        (
            {"columns": {"inputs": ColumnSpec("uint8", 4)}},
            {"inputs": [1, 2, 3]},
            "3 values, expected 4",
        ),
        (
            {"columns": {"inputs": ColumnSpec("uint8")}, "vocabulary": ()},
            {"inputs": [1, 256]},
            "1 to 256 do not fit dtype uint8",
        ),
    ],
)
def test_item_of_another_form_is_refused(tmp_path, changes, sequences, message):
    item = (0, {name: np.array(values) for name, values in sequences.items()})
    with pytest.raises(ValueError, match=message):
        write_items(tmp_path, spec_of(**changes), {"train": [item]})


def test_nothing_to_write_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="split 'train' has no items"):
        write_items(tmp_path, spec_of(), {"train": []})
    with pytest.raises(ValueError, match="no splits"):
        write_items(tmp_path, spec_of(), {})
    with pytest.raises(ValueError, match="'float64' is none of"):
        spec_of(columns={"inputs": ColumnSpec("float64")})


def test_unknown_split_is_named(tmp_path):
    with pytest.raises(ValueError, match="no split 'dev'; it has train, valid, test"):
        write_random(tmp_path).split("dev")

import json
import multiprocessing
import os
import pickle
import signal
import time

import numpy as np
import pytest

from megalodon_tasks.data.storage import ColumnSpec, PreparedDataset, is_prepared
from megalodon_tasks.data.storage_writer import write_dataset
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
    assert dataset.spec == spec
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
    dataset.verify()


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
        (0, [], "item 1, inputs: shape \\(0,\\), wanted a sequence of at least 1"),
        (0, [[1]], "shape \\(1, 1\\)"),
        (0, [1, 11], "item 1, inputs: tokens from 1 to 11, wanted 0 to 10"),
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
        ({}, {"inputs2": [1]}, "wanted \\['inputs'\\]"),
        (
            {"columns": {"inputs": ColumnSpec("uint8", 4)}},
            {"inputs": [1, 2, 3]},
            "3 values, wanted 4",
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


def test_replacing_keeps_other_files_and_drops_old_arrays(tmp_path):
    (tmp_path / "basic_train.tsv").write_text("raw")
    write_random(tmp_path, counts=(5, 5, 5))
    assert len(write_random(tmp_path, counts=(7, 5, 5)).split("train")) == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "arrays-2",
        "basic_train.tsv",
        "dataset.json",
    ]


def test_error_leaves_what_was_there(tmp_path):
    write_random(tmp_path, counts=(5, 5, 5))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="label 9"):
        write_items(tmp_path, spec_of(), {"train": [(9, {"inputs": np.array([1])})]})
    assert sorted(tmp_path.rglob("*")) == before
    PreparedDataset(tmp_path).verify()


def _write_for_ever(folder):
    with write_dataset(folder, spec_of()) as writer, writer.split("train") as split:
        while True:
            split.add(0, inputs=np.arange(1, 11, dtype=np.uint8))


def kill_once(process, condition):
    """Start ``process``, kill it as soon as ``condition()`` holds."""
    process.start()
    deadline = time.monotonic() + 60
    while not condition():
        assert process.is_alive(), "the process ended early"
        assert time.monotonic() < deadline, "the process never got so far"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def test_killed_writer_leaves_nothing_readable(tmp_path):
    writer = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(tmp_path,))
    unfinished = tmp_path / ".arrays.unfinished" / "train.inputs.bin"
    kill_once(writer, lambda: unfinished.exists() and unfinished.stat().st_size > 0)
    assert not is_prepared(tmp_path)
    with pytest.raises(ValueError, match="holds no prepared data: dataset.json is missing"):
        PreparedDataset(tmp_path)
    write_random(tmp_path).verify()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arrays-1", "dataset.json"]


def test_one_writer_at_a_time(tmp_path):
    with write_dataset(tmp_path, spec_of()) as writer:
        with pytest.raises(ValueError, match=f"another process is writing to {tmp_path}"):
            write_random(tmp_path)
        with writer.split("train") as split:
            split.add(0, inputs=np.array([1]))
    assert len(PreparedDataset(tmp_path).split("train")) == 1


def test_missing_and_empty_folder(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path / 'none'} does not exist"):
        PreparedDataset(tmp_path / "none")
    with pytest.raises(ValueError, match=f"{tmp_path} is empty"):
        PreparedDataset(tmp_path)


def _edit(path, **changes):
    description = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in {**description, **changes}.items() if v != ""}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "tfrecord"}, "has format 'tfrecord', wanted 'megalodon-sequences'"),
        ({"version": 2}, "has version 2 of the format and this program reads version 1"),
        ({"classes": ""}, "is damaged \\(KeyError: 'classes'\\)"),
        ({"columns": 5}, "is damaged"),
    ],
)
def test_description_of_another_form(tmp_path, changes, message):
    write_random(tmp_path)
    _edit(tmp_path / "dataset.json", **changes)
    with pytest.raises(ValueError, match=message):
        PreparedDataset(tmp_path)


def test_description_that_is_not_json(tmp_path):
    write_random(tmp_path)
    path = tmp_path / "dataset.json"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="dataset.json is not JSON"):
        PreparedDataset(tmp_path)


@pytest.mark.parametrize("part", ["labels", "inputs", "inputs.offsets"])
def test_truncated_array_is_found_on_opening(tmp_path, part):
    dataset = write_random(tmp_path)
    path = dataset.arrays / f"valid.{part}.bin"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{path} has {size - 1} bytes, wanted {size} bytes"):
        PreparedDataset(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=f"{path} is missing"):
        PreparedDataset(tmp_path)


def test_changed_byte_is_found_by_verify(tmp_path):
    dataset = write_random(tmp_path)
    path = dataset.arrays / "test.inputs.bin"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    counted = []
    with pytest.raises(ValueError, match=f"{path} is damaged: its sha256"):
        PreparedDataset(tmp_path).verify(counted.append)
    assert 0 < sum(counted) <= dataset.total_bytes


def test_unknown_split_is_named(tmp_path):
    with pytest.raises(ValueError, match="no split 'dev'; it has train, valid, test"):
        write_random(tmp_path).split("dev")

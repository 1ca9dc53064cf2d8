"""The writer: complete or not at all, continued after an interruption, one at a time."""

import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from megalodon_tasks.data import writer
from megalodon_tasks.data.manifest import MANIFEST, Manifest, is_prepared
from megalodon_tasks.data.sequences import ColumnSpec, PreparedDataset
from megalodon_tasks.data.sources import Rejects
from tests.data.prepared import (
    killed_at,
    random_items,
    reader_of,
    spec_of,
    write_form,
    write_items,
    write_random,
)

SPEC = spec_of()
ITEMS = random_items(7, SPEC)


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def splits(**stopped):
    """Readers of three splits; ``valid=2`` stops that split at its item 2."""
    return {s: reader_of(ITEMS, stop_at=stopped.get(s)) for s in ("train", "valid", "test")}


@pytest.mark.parametrize("journal_bytes", [0, 1 << 30])
def test_an_interrupted_writer_continues_with_the_next_item(tmp_path, monkeypatch, journal_bytes):
    monkeypatch.setattr(writer, "JOURNAL_BYTES", journal_bytes)
    with pytest.raises(KeyboardInterrupt):
        write_form(tmp_path / "a", SPEC, splits(valid=2))
    assert not is_prepared(tmp_path / "a")
    seen = {"train": [], "valid": [], "test": []}
    write_form(tmp_path / "a", SPEC, {s: reader_of(ITEMS, found) for s, found in seen.items()})
    assert seen == {"train": [], "valid": [2, 3, 4, 5, 6], "test": list(range(7))}
    write_form(tmp_path / "b", SPEC, splits())
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_records_that_were_left_out_are_known_after_an_interruption(tmp_path):
    def damaged_first(rejects, stop_at=None):
        def read(first, on_bytes):
            if first == 0:
                rejects.add("item 0", "is empty")
                yield None
            yield from reader_of([None, *ITEMS], stop_at=stop_at)(max(first, 1), on_bytes)

        return read

    rejects = Rejects()
    with pytest.raises(KeyboardInterrupt):
        write_form(tmp_path, SPEC, {"train": damaged_first(rejects, 3)}, rejects=rejects)
    again = Rejects()
    write_form(tmp_path, SPEC, {"train": damaged_first(again)}, rejects=again)
    assert again.reasons == {"item 0": "is empty"}
    assert len(PreparedDataset(tmp_path).split("train")) == len(ITEMS)


def test_another_identity_starts_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_form(tmp_path, SPEC, splits(train=2), {"settings": 1})
    seen = []
    write_form(tmp_path, SPEC, {"train": reader_of(ITEMS, seen)}, {"settings": 2})
    assert seen == list(range(7))


def test_bytes_beyond_the_journal_are_cut_off(tmp_path, monkeypatch):
    """Files longer than the journal says, as a kill between the two leaves them."""
    monkeypatch.setattr(writer, "JOURNAL_BYTES", 0)
    with pytest.raises(KeyboardInterrupt):
        write_form(tmp_path / "a", SPEC, splits(train=3))
    for path in (tmp_path / "a" / ".unfinished").glob("*.bin"):
        with open(path, "ab") as stream:
            stream.write(b"half an item")
    write_form(tmp_path / "a", SPEC, splits())
    write_form(tmp_path / "b", SPEC, splits())
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_an_error_leaves_what_was_there(tmp_path):
    write_random(tmp_path, counts=(5, 5, 5))
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="label 9"):
        write_items(tmp_path, SPEC, {"train": [(9, {"inputs": np.array([1])})]})
    assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(before)
    with pytest.raises(ValueError, match="no splits"):
        write_form(tmp_path, SPEC, {})


def test_replacing_keeps_other_files_and_removes_the_old_ones(tmp_path):
    (tmp_path / "basic_train.tsv").write_text("raw")
    pair = {"inputs": ColumnSpec("uint8"), "inputs2": ColumnSpec("uint8")}
    write_random(tmp_path, counts=(5, 5, 5), columns=pair)
    assert len(write_random(tmp_path, counts=(7, 5, 5)).split("train")) == 7
    names = [f"{s}.{p}.bin" for s in ("train", "valid", "test") for p in SPEC_PARTS]
    assert sorted(contents(tmp_path)) == sorted(["basic_train.tsv", MANIFEST, *names])


SPEC_PARTS = ("labels", "inputs", "inputs.offsets")


@pytest.mark.parametrize("step", range(1, 12))
def test_a_kill_while_files_are_published_is_made_good(tmp_path, monkeypatch, step):
    pair = {"inputs": ColumnSpec("uint8"), "inputs2": ColumnSpec("uint8")}
    write_random(tmp_path / "a", columns=pair)
    with killed_at(monkeypatch, step):
        write_form(tmp_path / "a", SPEC, splits())
    if is_prepared(tmp_path / "a"):  # before the first step the old data are complete
        assert step == 1
        Manifest.read(tmp_path / "a").verify()
    else:
        with pytest.raises(ValueError, match="was stopped before it was complete; start the same"):
            PreparedDataset(tmp_path / "a")
    write_form(tmp_path / "a", SPEC, splits())
    write_form(tmp_path / "b", SPEC, splits())
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert not (tmp_path / "a" / ".unfinished").exists()


def _write_for_ever(folder):
    def read(first, on_bytes):
        while True:
            yield 0, {"inputs": np.arange(1, 11, dtype=np.uint8)}

    write_form(folder, SPEC, {"train": read})


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


def test_a_killed_writer_leaves_nothing_readable(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(tmp_path,))
    growing = tmp_path / ".unfinished" / "train.inputs.bin"
    kill_once(process, lambda: growing.exists() and growing.stat().st_size > 0)
    with pytest.raises(ValueError, match="holds no prepared data: manifest.json is missing"):
        PreparedDataset(tmp_path)
    write_random(tmp_path).manifest.verify()
    assert not (tmp_path / ".unfinished").exists()


def test_one_writer_at_a_time(tmp_path):
    def read(first, on_bytes):
        with pytest.raises(ValueError, match=f"another process is writing to {tmp_path}"):
            write_random(tmp_path)
        yield ITEMS[0]

    write_form(tmp_path, SPEC, {"train": read})
    assert len(PreparedDataset(tmp_path).split("train")) == 1


def test_the_manifest_says_what_was_written(tmp_path):
    write_form(tmp_path, spec_of(source={"settings": {"a": 1}}), splits())
    content = json.loads((tmp_path / MANIFEST).read_text())
    shared = dict.fromkeys(("train, valid", "train, test", "valid, test"), 7)
    assert content["source"] == {"settings": {"a": 1}, "duplicates": shared}
    assert content["classes"] == ["one", "two", "three"]
    assert {split: counts["items"] for split, counts in content["splits"].items()} == {
        "train": 7, "valid": 7, "test": 7,
    }  # fmt: skip

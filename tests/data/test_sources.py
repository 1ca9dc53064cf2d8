"""Source files: read whole, with progress and checksum, recognised later; damaged items left out."""

import hashlib
import os
from pathlib import Path

import pytest

from megalodon_tasks.data.sources import LIMIT, Origin, Rejects, describe


def write(folder, **texts):
    paths = []
    for name, text in texts.items():
        paths.append(folder / f"{name}.txt")
        paths[-1].write_text(text)
    return paths


def test_a_file_is_read_by_lines_with_its_checksum(tmp_path):
    (path,) = write(tmp_path, a="one\ntwo\nthree")
    origin, counts = Origin.of_file(path), []
    assert list(origin.lines(counts.append)) == [b"one\n", b"two\n", b"three"]
    assert counts == [4, 4, 5]
    assert origin.bytes == 13
    status = path.stat()
    assert origin.description() == {
        "name": "a.txt",
        "bytes": 13,
        "modified_ns": status.st_mtime_ns,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def test_the_checksum_does_not_depend_on_how_a_file_is_read(tmp_path):
    (path,) = write(tmp_path, a="one\ntwo\n")
    by_lines, whole, unread = (Origin.of_file(path) for _ in range(3))
    assert list(by_lines.lines())
    assert list(whole.contents()) == [(path, b"one\ntwo\n")]
    assert by_lines.description() == whole.description() == unread.description()


def test_many_files_are_one_origin(tmp_path):
    paths = write(tmp_path, a="one", b="three")
    origin, counts = Origin("folder", paths), []
    assert list(origin.contents(counts.append)) == [(paths[0], b"one"), (paths[1], b"three")]
    assert counts == [3, 5]
    assert (origin.description()["files"], origin.description()["bytes"]) == (2, 8)
    assert Origin("folder", paths).description() == origin.description()


def test_reading_again_counts_nothing_more(tmp_path):
    origin, counts = Origin("folder", write(tmp_path, a="one", b="three")), []
    for _ in range(2):
        assert len(list(origin.contents(counts.append))) == 2
    assert sum(counts) == origin.bytes


def test_the_same_files_are_known_again(tmp_path):
    paths = write(tmp_path, a="one", b="three")
    known = Origin("folder", paths).description()
    assert Origin("folder", paths).is_same(known)
    os.utime(paths[0], (1, 1))
    os.utime(paths[1], (1, 1))
    assert Origin("folder", paths).is_same(known), "the contents are the same"


@pytest.mark.parametrize("texts", [{"a": "onE", "b": "three"}, {"b": "three", "c": "one"}])
def test_files_of_the_same_size_are_told_apart(tmp_path, texts):
    known = Origin("folder", write(tmp_path, a="one", b="three")).description()
    other = tmp_path / "other"
    other.mkdir()
    origin = Origin("folder", write(other, **texts))
    assert origin.bytes == known["bytes"]
    assert not origin.is_same(known)


@pytest.mark.parametrize("texts", [{"a": "one", "b": "thre"}, {"a": "one", "b": "thr", "c": "ee"}])
def test_another_size_or_number_is_told_apart_without_reading(tmp_path, texts, monkeypatch):
    known = Origin("folder", write(tmp_path, a="one", b="three")).description()
    paths = write(tmp_path, **texts)

    def unreadable(self):
        raise AssertionError(f"{self} was read")

    monkeypatch.setattr(type(paths[0]), "read_bytes", unreadable)
    assert not Origin("folder", paths).is_same(known)


def test_items_are_counted_and_named():
    rejects = Rejects()
    rejects.add(Path("a/1.txt"), "is empty")
    rejects.add("b.tsv, line 7", "has 3 fields")
    assert len(rejects) == 2
    assert describe(rejects.reasons) == [
        "left out as damaged: 2",
        "  a/1.txt is empty",
        "  b.tsv, line 7 has 3 fields",
    ]


def test_nothing_left_out_is_no_line():
    assert describe(Rejects().reasons) == []


def test_an_item_that_is_met_twice_counts_once():
    rejects = Rejects()
    for _ in range(2):
        rejects.add("a", "is empty")
    assert len(rejects) == 1


def test_a_long_list_is_cut():
    rejects = Rejects()
    for number in range(25):
        rejects.add(f"item {number}", "is empty")
    lines = describe(rejects.reasons)
    assert lines[0] == "left out as damaged: 25"
    assert lines[1] == "  item 0 is empty"
    assert lines[-1] == "  and 15 more"
    assert len(lines) == 12


def test_strict_refuses_the_first():
    with pytest.raises(ValueError, match="^a.txt is empty; correct or remove it"):
        Rejects(strict=True).add("a.txt", "is empty")


@pytest.mark.parametrize("limit", [0, 3, LIMIT])
def test_too_many_are_refused_with_their_names(limit):
    rejects = Rejects(limit=limit)
    for number in range(limit):
        rejects.add(f"item {number}", "is empty")
    with pytest.raises(ValueError, match=f"more than {limit} items are damaged.*\n.*: {limit + 1}"):
        rejects.add("one more", "is empty")

"""Origins: read whole, with progress and checksum, and recognised later."""

import hashlib
import os

import pytest

from megalodon_tasks.data.origins import Origin


def write(folder, **texts):
    paths = []
    for name, text in texts.items():
        paths.append(folder / f"{name}.txt")
        paths[-1].write_text(text)
    return paths


def test_a_file_is_read_by_lines_with_its_checksum(tmp_path):
    (path,) = write(tmp_path, a="one\ntwo\nthree")
    origin, told = Origin.of_file(path), []
    assert list(origin.lines(told.append)) == [b"one\n", b"two\n", b"three"]
    assert told == [4, 4, 5]
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
    origin, told = Origin("folder", paths), []
    assert list(origin.contents(told.append)) == [(paths[0], b"one"), (paths[1], b"three")]
    assert told == [3, 5]
    assert (origin.description()["files"], origin.description()["bytes"]) == (2, 8)
    assert Origin("folder", paths).description() == origin.description()


def test_reading_again_tells_nothing_more(tmp_path):
    origin, told = Origin("folder", write(tmp_path, a="one", b="three")), []
    for _ in range(2):
        assert len(list(origin.contents(told.append))) == 2
    assert sum(told) == origin.bytes


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

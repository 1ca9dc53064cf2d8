import multiprocessing
import os
import threading
import time
import zipfile

import pytest

from megalodon_tasks import files
from megalodon_tasks.files import atomic_file, has_writer, sole_writer


@pytest.mark.parametrize(("mode", "content"), [("w", "grüße"), ("wb", b"\x00\xff")])
def test_file_appears_when_complete(tmp_path, mode, content):
    path = tmp_path / "file"
    with atomic_file(path, mode) as stream:
        stream.write(content)
        assert not path.exists()
    found = path.read_text(encoding="utf-8") if mode == "w" else path.read_bytes()
    assert found == content
    assert list(tmp_path.iterdir()) == [path]


def test_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_file(path, "w") as stream:
        stream.write("n" * (1 // 0))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_leftover_of_a_killed_writer_is_overwritten(tmp_path):
    (tmp_path / ".file.tmp").write_text("half of a longer file")
    with atomic_file(tmp_path / "file", "w") as stream:
        stream.write("new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]


def test_folder_has_one_writer_at_a_time(tmp_path):
    folder = tmp_path / "a" / "b"
    with sole_writer(folder):
        message = f"another process is writing to {folder}; wait"
        with pytest.raises(ValueError, match=message), sole_writer(folder):
            pass
        (folder / "file").touch()
    with sole_writer(folder):
        pass
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_whether_a_folder_has_a_writer(tmp_path):
    folder = tmp_path / "run"
    assert not has_writer(folder)
    with sole_writer(folder):
        assert has_writer(folder)
    assert not has_writer(folder)
    folder.mkdir()
    (folder / ".lock").touch()  # left by a writer that was killed
    assert not has_writer(folder)


def test_a_writer_may_wait_for_another(tmp_path):
    order = []

    def write():
        with sole_writer(tmp_path, wait=True):
            order.append("second")

    second = threading.Thread(target=write)
    with sole_writer(tmp_path):
        second.start()
        second.join(0.2)
        order.append("first")
    second.join(30)
    assert order == ["first", "second"]


def test_folder_of_a_dead_writer_is_free(tmp_path):
    (tmp_path / ".lock").touch()
    with sole_writer(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_folder_made_for_nothing_is_removed(tmp_path):
    with pytest.raises(ZeroDivisionError), sole_writer(tmp_path / "new"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def _hold_with_a_child(folder, pipe):
    with sole_writer(folder):
        multiprocessing.get_context("fork").Process(target=pipe.poll, args=(60,)).start()
        pipe.send("locked")
        time.sleep(60)


def test_folder_of_a_killed_writer_is_free_while_its_workers_live(tmp_path):
    pipe, pipe_of_writer = multiprocessing.Pipe()
    writer = multiprocessing.get_context("fork").Process(
        target=_hold_with_a_child, args=(tmp_path, pipe_of_writer)
    )
    writer.start()
    assert pipe.recv() == "locked"
    with pytest.raises(ValueError, match="another process"), sole_writer(tmp_path):
        pass
    writer.kill()
    writer.join()
    with sole_writer(tmp_path):
        pipe.send("the worker may end")


def make_sparse(path):
    path.write_bytes(b"{")
    os.truncate(path, files.MOST_BYTES + 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "is a folder, a pipe or a device"),
        (os.mkdir, "is a folder, a pipe or a device"),
        (make_sparse, "has 1,073,741,825 bytes, more than the 1,073,741,824"),
    ],
)
@pytest.mark.parametrize("read", [files.read_bytes, files.read_text])
def test_what_cannot_be_read_whole_is_refused(tmp_path, make, message, read):
    make(tmp_path / "file")
    with pytest.raises(ValueError, match=f"{tmp_path / 'file'} {message}"):
        read(tmp_path / "file")


def test_text_is_read_with_any_ends_of_lines(tmp_path):
    (tmp_path / "file").write_bytes("ä\r\nb\rc\n".encode())
    assert files.read_text(tmp_path / "file") == "ä\nb\nc\n"
    assert [*files.read_lines(tmp_path / "file")] == ["ä\r\n".encode(), b"b\rc\n"]


def test_a_line_without_an_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST_LINE", 10)
    (tmp_path / "file").write_bytes(b"short\n" + bytes(10))
    with pytest.raises(ValueError, match="file has a line of over 10 bytes"):
        list(files.read_lines(tmp_path / "file"))


def write_archive(path, compression, content=b"a" * 1000):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("data.pkl", content)
    return path


def test_faults_of_archives_are_told(tmp_path):
    whole = write_archive(tmp_path / "whole", zipfile.ZIP_STORED)
    assert files.archive_fault(whole) is None
    bomb = write_archive(tmp_path / "bomb", zipfile.ZIP_DEFLATED)
    assert files.archive_fault(bomb) == "it would unpack to 1,000 bytes"
    whole.write_bytes(whole.read_bytes().replace(b"aaa", b"aba", 1))
    assert files.archive_fault(whole) == "the checksum of data.pkl inside it is wrong"
    (tmp_path / "other").write_bytes(b"no archive")
    assert files.archive_fault(tmp_path / "other") is None


def test_a_link_to_itself_is_a_path_like_any_other(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    assert files.inner_path(tmp_path, "loop", tmp_path / "manifest.json") == tmp_path / "loop"

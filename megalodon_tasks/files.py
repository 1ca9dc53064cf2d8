"""Writing files: a final name only ever holds a complete file, and a folder has one writer at a time."""

import csv
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

# It reports each lock, up to the end of the process, when logging may be closed already.
logging.getLogger("filelock").setLevel(logging.WARNING)


@contextmanager
def atomic_file(path: Path, mode: str = "wb") -> Iterator[IO]:
    """Open a temporary file beside ``path``; give it its name once it is complete and on disk.

    If the block raises, the temporary file is removed and ``path`` is left as it was.  A killed process
    leaves the temporary file, which the next writer of ``path`` overwrites.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    encoding = None if "b" in mode else "utf-8"
    try:
        with open(temporary, mode, encoding=encoding) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk is refused by a call that knows no name
        raise
    sync_folder(path.parent)


def write_rows(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table, separated by tabs if the name of the file ends in .tsv, else by commas."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with atomic_file(path, "w") as stream:
        writer = csv.writer(stream, delimiter=delimiter, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def inner_path(folder: Path, name: str, named_in: Path) -> Path:
    """Return ``folder / name``; raise ``ValueError`` unless that lies in ``folder``, links followed.

    named_in: the file that says ``name``, for the message.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()) or Path(name).is_absolute():
        raise ValueError(
            f"{named_in} names {name!r}, which leads out of {folder}: a file may only name others in "
            "its own folder; get a whole copy of the folder"
        )
    return path


@contextmanager
def sole_writer(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold ``folder`` (made if missing) for writing.

    If another process holds it, wait for it if ``wait``, else raise ``ValueError``.  The lock is a file
    ``.lock`` inside, which the system frees when its holder dies, even if processes that it forked live
    on.  A folder that was made here and is still empty at the end is removed.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", blocking=wait)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"another process is writing to {folder}; wait until it has ended, then start this again"
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):  # the folder may be gone
            (folder / ".lock").unlink(missing_ok=True)  # while it is held: nobody else holds it
        lock.release()
        with suppress(OSError):
            if made and not any(folder.iterdir()):
                folder.rmdir()


def has_writer(folder: Path) -> bool:
    """Return whether a process holds ``folder`` with :func:`sole_writer`."""
    path = folder / ".lock"
    if not path.exists():
        return False
    try:
        with FileLock(path, blocking=False):
            path.unlink(missing_ok=True)  # left by a process that was killed
            return False
    except Timeout:
        return True

"""Reading and writing files.

What is read whole is looked at first: a pipe would never end, and the size says what memory it takes.  A
final name only ever holds a complete file, and a folder has one writer at a time.
"""

import csv
import logging
import os
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

# It reports each lock, up to the end of the process, when logging may be closed already.
logging.getLogger("filelock").setLevel(logging.WARNING)

# Read into memory at once: a file, and a line of a file of any size.
MOST_BYTES, LONGEST_LINE = 1 << 30, 1 << 28


def size_of(path: Path) -> int:
    """Return the bytes of a file; raise ``ValueError`` for a folder and a pipe, which never ends."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is a folder, a pipe or a device, where a file is expected")
    return status.st_size


def read_bytes(path: Path) -> bytes:
    """Read a whole file; raise ``ValueError`` for one that is no regular file, or of over 1 GiB."""
    size = size_of(path)
    if size > MOST_BYTES:
        raise ValueError(
            f"{path} has {size:,} bytes, more than the {MOST_BYTES:,} that a file of its kind "
            "may have: it is damaged or another file"
        )
    return path.read_bytes()


def read_text(path: Path, encoding: str = "utf-8", errors: str = "strict") -> str:
    """Read a whole file as text, with any ends of lines; raise as :func:`read_bytes` does."""
    return read_bytes(path).decode(encoding, errors).replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file with their ends.

    Raises ``ValueError`` for one of 256 MiB or more, and as :func:`size_of` does.
    """
    size_of(path)
    with open(path, "rb") as stream:
        while line := stream.readline(LONGEST_LINE):
            if len(line) == LONGEST_LINE:
                raise ValueError(
                    f"{path} has a line of over {LONGEST_LINE:,} bytes: it is not text"
                )
            yield line


def archive_fault(path: str | os.PathLike) -> str | None:
    """Say what is wrong with an archive that ``torch.save`` wrote; None if nothing is, or it is no zip.

    Its records are not compressed, and each has a checksum, at which torch does not look.
    """
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(record.file_size for record in archive.infolist())
            if size > os.path.getsize(path):
                return f"it would unpack to {size:,} bytes"
            record = archive.testzip()
            return None if record is None else f"the checksum of {record} inside it is wrong"
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, zlib.error) as error:
        return f"a record inside it cannot be read ({error})"


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
    real = Path(os.path.realpath(path))  # Path.resolve raises at a link to itself
    if not real.is_relative_to(folder.resolve()) or Path(name).is_absolute():
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

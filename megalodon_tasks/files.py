"""Writing files so that a final name only ever holds a complete file, whenever the process is killed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # not a Unix system: go without the lock
    fcntl = None

_locks: set[IO] = set()


def _close_in_child() -> None:
    for stream in _locks:
        stream.close()
    _locks.clear()


# A lock lasts as long as anybody has the file open; worker processes must not outlive their parent's.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


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
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def sole_writer(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold ``folder`` (made if missing) for writing.

    If another process holds it, wait for that, or raise ``ValueError``.  The lock is a file ``.lock``
    inside, which the system frees when its holder dies.  A folder that was made here and is still empty
    at the end is removed.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    stream = _locked_file(path, wait)
    _locks.add(stream)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        _locks.discard(stream)
        stream.close()
        if made and not any(folder.iterdir()):
            folder.rmdir()


def has_writer(folder: Path) -> bool:
    """Return whether a process holds ``folder`` with :func:`sole_writer`."""
    path = folder / ".lock"
    if fcntl is None:
        return path.exists()
    try:
        with open(path) as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:  # locked, or a file system without locks
        return True
    return False


def _locked_file(path: Path, wait: bool) -> IO:
    while True:
        stream = open(path, "w")  # noqa: SIM115 - closed by the caller, which holds the lock
        if fcntl is None:
            return stream
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            stream.close()
            raise ValueError(
                f"another process is writing to {path.parent}; wait until it has ended, "
                "then start this again"
            ) from None
        except OSError:
            return stream  # a file system without locks
        # The holder before removes the file as it ends: a lock on a removed file protects nothing.
        if path.exists() and os.path.samestat(os.fstat(stream.fileno()), path.stat()):
            return stream
        stream.close()

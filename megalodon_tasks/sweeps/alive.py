"""How a job notices that the sweep that started it is gone, however that ended.

The sweep holds a lock on a file, which the system frees when the process dies, even by ``kill -9``.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def sign_of_life(folder: Path) -> Iterator[Path]:
    """Keep a locked file in ``folder`` for as long as the block and this process last."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".alive-{os.getpid()}-{os.urandom(4).hex()}"
    for left in folder.glob(".alive-*"):
        if not holder_lives(left):
            left.unlink(missing_ok=True)
    with open(path, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)  # gone already where the runs were told to stop


def holder_lives(path: Path) -> bool:
    """Whether the process that made ``path`` still has it."""
    try:
        with open(path) as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False

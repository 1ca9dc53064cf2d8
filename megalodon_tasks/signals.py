"""Ctrl-C and the signals of schedulers: which status they end with, and one that comes twice."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

# What schedulers send before they end a job; SLURM sends USR1 where sbatch --signal asks for it.
STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)
# A terminal sends Ctrl-C to a script and to its child, and the script passes it on.
REPEAT_SECONDS = 1.0

_last = -REPEAT_SECONDS


def exit_status(number: int) -> int:
    """Return the status that shells and schedulers expect of what a signal ended."""
    return 128 + number


def is_interruption(status: int) -> bool:
    """Return whether an exit status says that a signal ended the process: it is to be started again."""
    return status < 0 or status in map(exit_status, STOPPING)


def is_repeated() -> bool:
    """Note a signal; return whether another one came just before, for the same reason."""
    global _last
    before, _last = _last, time.monotonic()
    return _last - before < REPEAT_SECONDS


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not is_repeated():
        signal.default_int_handler(number, frame)


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], Any], *numbers: int) -> Iterator[None]:
    """Call ``handler`` for signals inside the block; no effect outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def interruptible() -> contextlib.AbstractContextManager[None]:
    """Raise ``KeyboardInterrupt`` once for one Ctrl-C, also where the shell has set it to be ignored."""
    return handled(_interrupt, signal.SIGINT)

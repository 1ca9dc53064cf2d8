"""What lets a stopped evaluation of a language model go on: a file, and a Ctrl-C that waits for it."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import torch

from megalodon_tasks.evaluation.long_context import Position, Totals
from megalodon_tasks.files import atomic_file

SAVE_SECONDS = 30.0


class Progress:
    """The file that lets a stopped evaluation go on: sums, position and state."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self.identity = path, identity
        self._saved = time.monotonic()

    def load(self, first_context: int) -> tuple[Totals, Position]:
        """What an evaluation of the same model on the same data left, else the beginning."""
        if not self.path.is_file():
            return Totals(first_context), Position()
        try:
            plain = torch.load(self.path, weights_only=True)
            if plain["identity"] == self.identity:
                return Totals(**plain["totals"]), Position.from_plain(plain["position"])
            reason = "is of another evaluation"
        except Exception as error:  # whatever a damaged file raises, nothing is lost but time
            reason = f"is damaged ({type(error).__name__})"
        print(f"{self.path} {reason}; starting from the beginning", file=sys.stderr)
        return Totals(first_context), Position()

    def save(self, totals: Totals, position: Position) -> None:
        """Write the file now."""
        plain = {
            "identity": self.identity,
            "totals": asdict(totals),
            "position": position.to_plain(),
        }
        with atomic_file(self.path) as stream:
            torch.save(plain, stream)
        self._saved = time.monotonic()

    def is_due(self) -> bool:
        """Whether the last save is some time ago."""
        return time.monotonic() - self._saved > SAVE_SECONDS

    def remove(self) -> None:
        """The evaluation is complete."""
        self.path.unlink(missing_ok=True)


class Interrupt:
    """Whether Ctrl-C was pressed."""

    asked = False


@contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Let the first Ctrl-C only be noted, so that sums and position are saved as they belong together.

    The second one interrupts as usual.
    """
    interrupt, before = Interrupt(), signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        interrupt.asked = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)

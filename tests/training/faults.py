"""Kinds of faults, and a training of the toy model that one of them strikes at a chosen moment.

A moment is a number of calls, of Python functions and of built-in ones such as ``write``.  They are
counted in the main thread from where fairseq loads a checkpoint on, or only while it saves.
"""

import builtins
import contextlib
import errno
import io
import json
import mmap
import os
import resource
import shutil
import signal
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fairseq import checkpoint_utils
from fairseq_cli import train as fairseq_train

from tests.toy_plugin import runs

INTERVAL = 4  # updates from one checkpoint to the next, or fewer
LAST = "checkpoint_last.pt"
FAILS = frozenset({1})
TWO = ("--distributed-world-size", "2", "--distributed-no-spawn", "--distributed-backend", "gloo")


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    strike: called in the process that is struck, with the save folder and a number in [0, 1).
    ends: the statuses with which the struck process may end.  in_saves: only while it saves.
    rank: the process that is struck, None for any.  everyone: all others are killed at the same moment.
    saves: the struck process saves before it ends.  repair: undoes what ``strike`` did to the folder.
    """

    name: str
    strike: Callable[[Path, float], None]
    ends: frozenset[int]
    processes: int = 1
    in_saves: bool = False
    rank: int | None = None
    everyone: bool = False
    saves: bool = False
    words: tuple[str, ...] = ()
    repair: Callable[[Path], None] = lambda folder: None


def _signal(number: int) -> Callable[[Path, float], None]:
    return lambda folder, draw: os.kill(os.getpid(), number)


def _fill_disk(folder: Path, draw: float) -> None:
    """Let no file grow beyond a size below that of a checkpoint: a disk with so little room."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(draw * 20_000), resource.RLIM_INFINITY))


def _make_read_only(folder: Path, draw: float) -> None:
    """Refuse what a read-only file system does (root can write to a folder without permission)."""

    def refusing(function: Callable, writes: Callable[..., bool]) -> Callable:
        def call(path: object, *args: object, **kwargs: object) -> object:
            if writes(*args, **kwargs) and str(folder) in os.fspath(path):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
            return function(path, *args, **kwargs)

        return call

    builtins.open = io.open = refusing(open, lambda mode="r", *_, **__: mode.strip("rbt") != "")
    for name in ("replace", "rename", "unlink", "remove", "mkdir", "rmdir"):
        setattr(os, name, refusing(getattr(os, name), lambda *_, **__: True))


def _away(folder: Path) -> Path:
    return folder.with_name("away")


def _move_away(folder: Path, draw: float) -> None:
    folder.rename(_away(folder))


def _put_back(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    _away(folder).rename(folder)


def _put_folder(folder: Path, draw: float) -> None:
    with contextlib.suppress(FileNotFoundError):
        (folder / LAST).rename(_away(folder))
    (folder / LAST / "x").mkdir(parents=True)


def _remove_folder(folder: Path) -> None:
    shutil.rmtree(folder / LAST)
    if _away(folder).exists():
        _away(folder).rename(folder / LAST)


def _stops(number: int) -> frozenset[int]:
    """Return the statuses that a signal ends with, also before fairseq listens to it."""
    return frozenset({128 + number, -number})


_KILL = (_signal(signal.SIGKILL), frozenset({-signal.SIGKILL}))
_OF_TWO = {"processes": 2, "words": (*TWO, "--ddp-backend", "legacy_ddp")}
_SHARDS = {"processes": 2, "words": (*TWO, "--ddp-backend", "fully_sharded")}
KINDS = [
    Kind("kill -9, one process, at any moment", *_KILL),
    Kind("kill -9, one process, in a save", *_KILL, in_saves=True),
    Kind("kill -9, two processes, at any moment", *_KILL, everyone=True, **_OF_TWO),
    Kind("kill -9, two processes, in a save", *_KILL, everyone=True, in_saves=True, rank=0, **_OF_TWO),
    Kind("kill -9, one of two processes, at any moment", *_KILL, **_OF_TWO),
    Kind("kill -9, the first of two processes, in a save", *_KILL, in_saves=True, rank=0, **_OF_TWO),
    Kind("kill -9, two processes, saving shards", *_KILL, everyone=True, in_saves=True, **_SHARDS),
    *(
        Kind(f"{number.name}, one process", _signal(number), _stops(number), saves=True)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    ),
    Kind("SIGTERM, one of two processes", _signal(15), _stops(15), saves=True, **_OF_TWO),
    Kind("full disk", _fill_disk, FAILS),
    Kind("read-only disk", _make_read_only, FAILS),
    Kind("save folder gone", _move_away, FAILS, repair=_put_back),
    Kind("folder in place of checkpoint_last.pt", _put_folder, FAILS, repair=_remove_folder),
]  # fmt: skip


class Strike:
    """What happens to one process: its fault comes at call ``at``, or never if that is 0.

    draw: a number in [0, 1) that the fault may use.  shared: memory with what the process reports.
    """

    def __init__(self, kind: Kind, folder: Path, at: int = 0, draw: float = 0.0) -> None:
        self.kind, self.folder, self.at, self.draw = kind, folder, at, draw
        self.shared = mmap.mmap(-1, mmap.PAGESIZE)
        self.calls, self.where, self.trainer = 0, "", None

    def install(self) -> None:
        """Count the calls of this process from where fairseq loads a checkpoint on, or in saves."""
        load, save = checkpoint_utils.load_checkpoint, checkpoint_utils.save_checkpoint

        def loading(cfg: object, trainer: object, **kwargs: object) -> object:
            self.trainer = trainer
            if not self.kind.in_saves:
                sys.setprofile(self._count)
            return load(cfg, trainer, **kwargs)

        def saving(*args: object) -> object:
            if not self.kind.in_saves or self.where:
                return save(*args)
            sys.setprofile(self._count)
            try:
                return save(*args)
            finally:
                sys.setprofile(None)

        checkpoint_utils.load_checkpoint, checkpoint_utils.save_checkpoint = loading, saving

    def _count(self, frame: types.FrameType, event: str, arg: object) -> None:
        if "call" not in event:
            return
        self.calls += 1
        if self.calls == self.at:
            sys.setprofile(None)
            self.where = f"{event} in {frame.f_code.co_qualname}"
            self.write_report()
            self.kind.strike(self.folder, self.draw)

    def write_report(self) -> None:
        """Let the harness know how far this process is."""
        updates = self.trainer.get_num_updates() if self.trainer else 0
        text = json.dumps([self.calls, updates, self.where]).encode()
        self.shared[: len(text) + 1] = text + b"\n"

    def report(self) -> tuple[int, int, str]:
        """Return the calls, the updates, and where the strike was ("" if it never came)."""
        return tuple(json.loads(self.shared[:].split(b"\n")[0]))


def train(strike: Strike, struck: bool, words: tuple[str, ...], output: int) -> None:
    """Train as the command fairseq-train does, and end this process."""
    status = 1
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["fairseq-train", *runs.SETTINGS, *words, "--save-dir", str(strike.folder)]
        sys.argv += ["--save-interval-updates", str(INTERVAL)]
        if struck:
            strike.install()
        fairseq_train.cli_main()
        status = 0
    except SystemExit as ended:
        status = ended.code
    except KeyboardInterrupt:  # before fairseq listens: Python ends by the signal
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.setprofile(None)
        if struck:
            strike.write_report()
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)

"""Strike trainings at random moments, resume them, and count what is lost.

    python -m tests.training.faults                   # every kind, 30 times each
    python -m tests.training.faults --times 3 --seed 1 --only "kill -9"

fairseq trains the toy model in forked processes.  A moment is a number of calls, of Python functions and
of built-in ones such as ``write``, counted in the main thread from where a checkpoint is loaded on, or
only while checkpoints are saved.  A seed chooses the same moments again.  A run that was struck is
resumed, and struck again, until it is complete; then it must equal a run that nothing happened to, bit
for bit.  Ends with status 1 at the first run for which that is not so.
"""

import argparse
import builtins
import contextlib
import errno
import fcntl
import io
import json
import mmap
import os
import random
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fairseq import checkpoint_utils
from fairseq_cli import train as fairseq_train

from megalodon_tasks.fairseq_compat.checkpoint_errors import damaged_record
from megalodon_tasks.runs.record import read_run
from tests.toy_plugin import runs

INTERVAL = 4  # updates from one checkpoint to the next, or fewer
LAST = "checkpoint_last.pt"
LIMIT_SECONDS = 240.0  # for one start of a training, on a machine that is busy
PIPE_BYTES = 1 << 20
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
_FAILS = frozenset({1})
KINDS = [
    Kind("kill -9, one process", *_KILL),
    Kind("kill -9, one process, in a save", *_KILL, in_saves=True),
    Kind("kill -9, two processes", *_KILL, everyone=True, **_OF_TWO),
    Kind("kill -9, two processes, in a save", *_KILL, everyone=True, in_saves=True, rank=0, **_OF_TWO),
    Kind("kill -9, one of two processes", *_KILL, **_OF_TWO),
    Kind("kill -9, the first of two, in a save", *_KILL, in_saves=True, rank=0, **_OF_TWO),
    *(
        Kind(f"{number.name}, one process", _signal(number), _stops(number), saves=True)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    ),
    Kind("SIGTERM, one of two processes", _signal(15), _stops(15), saves=True, **_OF_TWO),
    Kind("disk full", _fill_disk, _FAILS),
    Kind("disk read-only", _make_read_only, _FAILS),
    Kind("save folder vanished", _move_away, _FAILS, repair=_put_back),
    Kind("folder in place of a file", _put_folder, _FAILS, repair=_remove_folder),
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


def _train(strike: Strike, struck: bool, words: tuple[str, ...], output: int) -> None:
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


class Unlike(AssertionError):
    """A run that was struck ends, or continues, in another way than it should."""


def launch(strike: Strike, rank: int = 0) -> tuple[list[int], str]:
    """Train, with ``strike`` in process ``rank``; return all statuses and what was printed."""
    kind = strike.kind
    words = [kind.words] * kind.processes
    if kind.processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        place = ("--distributed-init-method", address, "--distributed-rank")
        words = [(*kind.words, *place, str(number)) for number in range(kind.processes)]
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)  # nobody reads before the end
    pids = []
    for number in range(kind.processes):
        pids.append(os.fork())
        if not pids[-1]:
            _train(strike, number == rank, words[number], write)
    os.close(write)
    statuses = _wait(pids, pids[rank] if kind.everyone and strike.at else None)
    with os.fdopen(read, errors="replace") as output:
        return statuses, output.read()


def _wait(pids: list[int], first: int | None) -> list[int]:
    """Return the statuses of all; once ``first`` has ended, kill the others."""
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + LIMIT_SECONDS
    while len(statuses) < len(pids):
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            statuses[pid] = os.waitstatus_to_exitcode(status)
        late = time.monotonic() > deadline
        if late or (pid and pid == first):
            for other in set(pids) - statuses.keys():
                os.kill(other, signal.SIGKILL)
        if late:
            raise Unlike(f"a process has not ended after {LIMIT_SECONDS:.0f} s")
        if not pid:
            time.sleep(0.01)
    return [statuses[pid] for pid in pids]


def _losses(folder: Path) -> dict[tuple[str, int], tuple]:
    run = read_run(folder)
    series = {"train_inner": run.train_inner, "train": run.train, **run.valid}
    return {
        (name, step): tuple(line.get(n) for n in runs.COMPARED)
        for name, points in series.items()
        for step, line in points.items()
    }


def _updates(folder: Path) -> int:
    return runs.state_of(folder)["updates"] if (folder / LAST).exists() else 0


@dataclass
class Count:
    """What the strikes of one kind came to."""

    tried: int = 0
    runs: int = 0
    updates: list[int] = field(default_factory=list)  # that the last checkpoint did not have
    lines: int = 0


class Harness:
    """Strikes runs of one kind in a folder, and compares them with one that nothing happened to."""

    def __init__(self, kind: Kind, folder: Path, seed: int) -> None:
        self.kind, self.folder = kind, folder
        self.random = random.Random(f"{kind.name} {seed}")
        self.calls = [self._whole(rank) for rank in range(kind.processes)]
        self.count = Count()

    def _whole(self, rank: int) -> int:
        strike = Strike(self.kind, self.folder / "whole")
        shutil.rmtree(strike.folder, ignore_errors=True)
        statuses, output = launch(strike, rank)
        if any(statuses):
            raise Unlike(f"without a strike it ended with {statuses}\n{output[-3000:]}")
        return strike.report()[0]

    def run(self, times: int) -> Count:
        """Strike ``times`` times or a little more, until the run is complete."""
        while self.count.tried < times:
            run = self.folder / "run"
            while not self._strike(run):
                pass
            self._compare(run)
            self.count.runs += 1
            shutil.rmtree(run)
        return self.count

    def _strike(self, run: Path) -> bool:
        """Train until the next strike; return whether the run is complete."""
        kind = self.kind
        rank = self.random.randrange(kind.processes) if kind.rank is None else kind.rank
        at = self.random.randint(1, self.calls[rank])
        strike = Strike(kind, run, at, self.random.random())
        statuses, output = launch(strike, rank)
        _, updates, where = strike.report() if strike.shared[0] else (0, 0, "")
        if where:
            kind.repair(run)
        try:
            return self._judge(run, statuses, output, updates, rank, where)
        except (AssertionError, ValueError) as error:
            moment = f"call {at} of {self.calls[rank]} ({where or 'not reached'}), update {updates}"
            raise Unlike(
                f"{kind.name}, process {rank}, {moment}, ended with {statuses}: {error}\n"
                f"{output[-3000:]}"
            ) from error

    def _judge(
        self, run: Path, statuses: list[int], output: str, updates: int, rank: int, where: str
    ) -> bool:
        kind = self.kind
        self.count.tried += bool(where)
        damaged = [path.name for path in run.glob("*.pt") if damaged_record(path)]
        assert not damaged, f"{damaged} are damaged"
        assert "Traceback" not in output
        if not any(statuses):
            return True
        assert where, "it failed though nothing happened to it"
        assert statuses[rank] in kind.ends
        lost = max(0, updates - _updates(run))  # it may have been struck before it had loaded
        assert lost <= (0 if kind.saves else INTERVAL), f"{lost} updates are lost"
        self.count.updates.append(lost)
        if not kind.everyone and -signal.SIGKILL in statuses:
            other = statuses[1 - rank] if kind.processes > 1 else None
            assert other in (None, 1)
            assert other is None or f"process {rank} of 2" in output
        if kind.ends == _FAILS:
            assert "error: " in output
            assert str(run) in output
        return False

    def _compare(self, run: Path) -> None:
        whole = self.folder / "whole"
        for name in (LAST, "checkpoint_best.pt"):
            runs.assert_equal(runs.state_of(run, name), runs.state_of(whole, name))
        recorded, expected = _losses(run), _losses(whole)
        assert recorded.items() <= expected.items()
        self.count.lines += len(expected) - len(recorded)


def _row(name: str, count: Count) -> str:
    lost = count.updates or [0]
    values = (count.tried, count.runs, sum(lost), max(lost), count.lines)
    return f"| {name} | " + " | ".join(map(str, values)) + " |"


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.training.faults")
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="a part of the name of a kind")
    args = parser.parse_args(arguments)
    print(
        "| fault | tried | runs resumed to the end, bit-equal | updates lost | most | lines lost |"
    )
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    for kind in KINDS:
        if args.only in kind.name:
            with tempfile.TemporaryDirectory() as folder:
                print(
                    _row(kind.name, Harness(kind, Path(folder), args.seed).run(args.times)),
                    flush=True,
                )


if __name__ == "__main__":
    main()

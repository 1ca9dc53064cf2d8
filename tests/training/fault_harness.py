"""Strike trainings at random moments, resume them, and count what is lost.

    python -m tests.training.fault_harness                    # every kind of fault, 15 times or more
    python -m tests.training.fault_harness --times 3 --seed 1 --only "kill -9"

fairseq trains the toy model in forked processes.  A run that was struck is resumed, and struck again,
until it is complete; then it must equal a run that nothing happened to, bit for bit.  A seed chooses the
same moments again.  Ends with status 1 at the first run for which that is not so.
"""

import argparse
import fcntl
import os
import random
import shutil
import signal
import socket
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from megalodon_tasks.files import archive_fault
from megalodon_tasks.runs.record import read_run
from tests.toy_plugin import runs
from tests.training.faults import FAILS, INTERVAL, KINDS, LAST, Kind, Strike, train

LIMIT_SECONDS = 240.0  # for one start of a training, on a machine that is busy
PIPE_BYTES = 1 << 20


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
            train(strike, number == rank, words[number], write)
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
    if not (folder / LAST).exists():
        return 0
    return torch.load(folder / LAST)["optimizer_history"][-1]["num_updates"]


@dataclass
class Count:
    """What the strikes of one kind came to.

    runs: complete and bit-equal in the end.  updates: for each strike that ended a run, which was then
    resumed, the updates that its last checkpoint did not have.  lines: missing in ``metrics.jsonl``.
    """

    tried: int = 0
    runs: int = 0
    updates: list[int] = field(default_factory=list)
    lines: int = 0

    def __str__(self) -> str:
        """Return the columns of the table."""
        lost = (sum(self.updates), max(self.updates, default=0))
        return " | ".join(map(str, (self.tried, len(self.updates), self.runs, *lost, self.lines)))


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
            try:
                self._compare(run)
            except AssertionError as error:
                raise Unlike(f"{self.kind.name}: the resumed run differs: {error}") from error
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
        damaged = [path.name for path in run.glob("*.pt") if archive_fault(path)]
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
        if kind.ends == FAILS:
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


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.training.fault_harness")
    parser.add_argument("--times", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="a part of the name of a kind")
    args = parser.parse_args(arguments)
    print("| fault | tried | resumed | runs, bit-equal | updates lost | at most | lines lost |")
    print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
    for kind in KINDS:
        if args.only in kind.name:
            with tempfile.TemporaryDirectory() as folder:
                count = Harness(kind, Path(folder), args.seed).run(args.times)
            print(f"| {kind.name} | {count} |", flush=True)


if __name__ == "__main__":
    main()

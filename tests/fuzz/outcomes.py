"""Run one case in a process of its own and tell how it ended."""

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# A case passes if it ends in one of the first two.
OK, MESSAGE, TRACEBACK, SILENT, HANG, CRASH = OUTCOMES = (
    "ok", "message", "traceback", "silent", "hang", "crash",
)  # fmt: skip
FAULTS = (TRACEBACK, SILENT, HANG, CRASH)
MEMORY = 8 << 30  # bytes of addresses that a case may ask for beyond those of this process
OUTPUT = 1 << 20  # bytes of output that are looked at


@dataclass(frozen=True)
class Case:
    """A command with one thing wrong.

    run: what to do, in a process of its own.  refused: whether it must end in a message, because what is
    wrong cannot be meant.
    """

    name: str
    run: Callable[[], object]
    refused: bool = True


@dataclass(frozen=True)
class Result:
    """How a case ended, and what it printed."""

    case: Case
    outcome: str
    output: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.outcome:9} {self.case.name}\n{self.output[-3000:]}"


def outcome_of(status: int, output: str, refused: bool) -> str:
    """Return the outcome of a process that ended with ``status``, as ``os.waitpid`` has it."""
    if os.WIFSIGNALED(status):
        return CRASH
    if "Traceback (most recent call last)" in output:
        return TRACEBACK
    if os.WEXITSTATUS(status) == 0:
        return SILENT if refused else OK
    return MESSAGE if output.strip() else SILENT


def run(case: Case, folder: Path, limit: float) -> Result:
    """Run ``case`` in the working directory ``folder``.

    It hangs if it uses ``limit`` seconds of a processor, or does nothing for so long.
    """
    log = folder / "output"
    start = time.monotonic()
    child = os.fork()
    if not child:
        _run_here(case, folder, log)
    status = _wait(child, limit)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it left running
    with open(log, "rb") as stream:
        stream.seek(max(0, log.stat().st_size - OUTPUT))
        output = stream.read().decode(errors="replace")
    outcome = HANG if status is None else outcome_of(status, output, case.refused)
    return Result(case, outcome, output, time.monotonic() - start)


def _wait(child: int, limit: float) -> int | None:
    """Return the status of ``child``; None if it used so many seconds, or did nothing for so many."""
    used, changed = 0.0, time.monotonic()
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        time.sleep(0.005)
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        now = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        if now != used:
            used, changed = now, time.monotonic()
        if used > limit or time.monotonic() > changed + limit:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
    return ended[1]


def _run_here(case: Case, folder: Path, log: Path) -> None:
    """End this process as the command would have ended its own."""
    status = 99
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_AS, (_addresses() + MEMORY,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
        try:
            status = case.run() or 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException as error:
            status = 1
            sys.excepthook(type(error), error, error.__traceback__)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _addresses() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

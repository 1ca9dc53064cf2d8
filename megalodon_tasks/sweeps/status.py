"""What became of each run of a sweep, in ``SAVE/runs/NAME/job/status.json``."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from megalodon_tasks.files import atomic_file
from megalodon_tasks.sweeps import alive
from megalodon_tasks.sweeps.request import Request, Run

WAITING, RUNNING, DONE, FAILED, STOPPED = "waiting", "running", "done", "failed", "stopped"


@dataclass
class Status:
    """``seconds`` sums all attempts that have ended; ``started`` is Unix time of the one that runs.

    ``alive`` is the file that the running job holds a lock on.
    """

    state: str = WAITING
    seconds: float = 0.0
    started: float | None = None
    returncode: int | None = None
    alive: str | None = None
    attempts: int = field(default=0)


def run_folder(sweep: Path, run: Run) -> Path:
    """Where a run keeps its checkpoints, log and results."""
    return sweep / "runs" / run.name


def job_folder(sweep: Path, run: Run) -> Path:
    """Where the sweep keeps what it knows of a run: its status, and all that it printed."""
    return run_folder(sweep, run) / "job"


def output_file(sweep: Path, run: Run) -> Path:
    """All that a run printed."""
    return job_folder(sweep, run) / "output.log"


def read(sweep: Path, run: Run) -> Status:
    """The status of a run; one that was killed is no longer running."""
    file = job_folder(sweep, run) / "status.json"
    if not file.is_file():
        return Status()
    status = Status(**json.loads(file.read_text(encoding="utf-8")))
    if status.state == RUNNING and not (status.alive and alive.holder_lives(Path(status.alive))):
        status.state = STOPPED
    return status


def write(sweep: Path, run: Run, status: Status) -> None:
    """Replace the status of a run."""
    folder = job_folder(sweep, run)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / "status.json", "w") as stream:
        json.dump(asdict(status), stream)


def last_lines(sweep: Path, run: Run, count: int = 5) -> list[str]:
    """The end of what a run printed."""
    file = output_file(sweep, run)
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-count:]


@dataclass(frozen=True)
class Overview:
    """The runs of a sweep by state, and an estimate of the seconds left (None: unknown yet)."""

    runs: dict[str, list[Run]]
    seconds_left: float | None

    def __str__(self) -> str:
        total = sum(len(runs) for runs in self.runs.values())
        parts = [f"{len(self.runs[DONE])} of {total} runs done"]
        parts += [f"{len(self.runs[s])} {s}" for s in (RUNNING, FAILED) if self.runs[s]]
        waiting = len(self.runs[WAITING]) + len(self.runs[STOPPED])
        parts += [f"{waiting} to do"] if waiting else []
        if self.seconds_left is not None and waiting + len(self.runs[RUNNING]):
            parts.append(f"about {duration(self.seconds_left)} left")
        return ", ".join(parts)


def overview(sweep: Path, request: Request, workers: int) -> Overview:
    """Sum up; the estimate takes the mean duration of finished runs, ``workers`` at a time."""
    runs: dict[str, list[Run]] = {s: [] for s in (WAITING, RUNNING, DONE, FAILED, STOPPED)}
    spent, open_seconds = [], 0.0
    for run in request.runs():
        status = read(sweep, run)
        runs[status.state].append(run)
        if status.state == DONE:
            spent.append(status.seconds)
        elif status.state == RUNNING and status.started is not None:
            open_seconds += status.seconds + time.time() - status.started
    if not spent:
        return Overview(runs, None)
    each = sum(spent) / len(spent)
    left = each * sum(len(runs[s]) for s in (WAITING, RUNNING, STOPPED)) - open_seconds
    return Overview(runs, max(left, 0.0) / max(1, workers))


def duration(seconds: float) -> str:
    """``42 s``, ``3 min`` or ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

"""Describe a sweep: the runs over a grid of settings, and the state of each.

SAVE/sweep.json       what the sweep consists of
SAVE/runs/NAME/       one run: checkpoints, metrics.jsonl, results.jsonl
SAVE/runs/NAME/job/   how it was run: output.log, attempts.jsonl, and hydra's record of the job
"""

import collections
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from megalodon_tasks.errors import UserError
from megalodon_tasks.files import atomic_file, has_writer, read_text
from megalodon_tasks.signals import is_interruption

FILE = "sweep.json"
CHUNK_SIZE, SEED = "model.chunk_size", "common.seed"
FULL = "full"  # attention over the whole sequence, as tables and names show it
LONGEST_NAME = 120  # characters of the name of a run
_PLAIN_VALUE = re.compile(r"[A-Za-z0-9.+-]*")  # no underscore: that is between two fields
WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"


@dataclass(frozen=True)
class SweepRun:
    """One point of the grid.  ``settings``: swept field -> value in hydra's override grammar."""

    name: str
    folder: Path
    settings: dict[str, str]

    @property
    def job(self) -> Path:
        """The folder of the job that executes this run."""
        return self.folder / "job"

    @property
    def output(self) -> Path:
        """The file that holds all that the run printed."""
        return self.job / "output.log"

    @property
    def attempts_file(self) -> Path:
        """The file that holds a JSON line for each attempt that has ended."""
        return self.job / "attempts.jsonl"

    def attempts(self) -> list[dict[str, Any]]:
        """Read the exit ``status`` (negative for a signal) and the ``seconds`` of each attempt.

        A line that was cut short counts as an attempt of unknown status, so that the run is tried again.
        """
        if not self.attempts_file.is_file():
            return []
        lines = read_text(self.attempts_file, errors="replace").split("\n")
        return [_attempt(line) for line in lines if line]

    @property
    def damaged_attempts(self) -> int:
        """How many lines about attempts cannot be read."""
        return sum(attempt["status"] is None for attempt in self.attempts())

    @property
    def status(self) -> int | None:
        """The exit status of the last attempt that has ended, if there is one and it is known."""
        attempts = self.attempts()
        return attempts[-1]["status"] if attempts else None

    @property
    def state(self) -> str:
        """WAITING (also after an interruption), RUNNING, DONE or FAILED."""
        if has_writer(self.job):
            return RUNNING
        status = self.status
        if status is None or is_interruption(status):
            return WAITING
        return FAILED if status else DONE


def _attempt(line: str) -> dict[str, Any]:
    try:
        attempt = json.loads(line)
        return {"status": int(attempt["status"]), "seconds": float(attempt["seconds"])}
    except (ValueError, TypeError, KeyError):
        return {"status": None, "seconds": 0.0}


@dataclass(frozen=True)
class Sweep:
    """A recipe trained at several points.

    recipe: its id.  script: the file that runs it.  data: DATA_DIR of the script.  demo, generate:
    whether the script is called with the option of that name.  fixed: field -> value for all runs.
    points: swept field -> value for each run.  Values are in hydra's override grammar.
    """

    folder: Path
    recipe: str
    script: str
    data: str
    demo: bool
    fixed: dict[str, str]
    points: list[dict[str, str]]
    generate: bool = False

    @property
    def fields(self) -> list[str]:
        """The swept fields."""
        return list(self.points[0])

    @property
    def runs(self) -> list[SweepRun]:
        """The runs, in the order of the points."""
        names = map(self._name, self.points)
        return [
            SweepRun(name, self.folder / "runs" / name, point)
            for name, point in zip(names, self.points, strict=True)
        ]

    def _name(self, point: Mapping[str, str]) -> str:
        """Return a name for a folder that no other point has.

        A digest makes it so where values hold other characters, which are left out, or are long.
        """
        values = {field: shown(field, value) for field, value in point.items()}
        parts = (f"{self.label(field)}-{value}" for field, value in values.items())
        name = re.sub(r"[^\w.+-]", "", "_".join(parts))
        if all(_PLAIN_VALUE.fullmatch(v) for v in values.values()) and len(name) <= LONGEST_NAME:
            return name
        digest = hashlib.sha256(json.dumps(dict(point), sort_keys=True).encode()).hexdigest()
        return f"{name[:LONGEST_NAME]}-{digest[:8]}"

    def label(self, field: str) -> str:
        """Return the last part of a field's name, or all of it where two swept fields share that."""
        lasts = [other.rpartition(".")[2] for other in self.fields]
        last = field.rpartition(".")[2]
        return last if lasts.count(last) == 1 else field

    def overrides(self, run: SweepRun) -> list[str]:
        """Return all settings of ``run`` as overrides."""
        return [f"{field}={value}" for field, value in {**self.fixed, **run.settings}.items()]

    def command(self, run: SweepRun | None = None) -> list[str]:
        """Return the command that trains and evaluates ``run``, or without one prepares the data."""
        given = {"--demo": self.demo, "--generate": self.generate}
        words = ["bash", self.script, *(option for option, is_given in given.items() if is_given)]
        if run is None:
            return [*words, "prepare", self.data, str(self.folder / "prepare")]
        return [*words, self.data, str(run.folder), *self.overrides(run)]

    def states(self) -> collections.Counter[str]:
        """Count the runs by state."""
        return collections.Counter(run.state for run in self.runs)

    def summary(self) -> str:
        """Say how far the sweep is, as in ``3 of 8 runs done, 1 failed``."""
        states = self.states()
        others = [f", {states[state]} {state}" for state in (RUNNING, FAILED) if states[state]]
        return f"{states[DONE]} of {states.total()} runs done" + "".join(others)


def shown(field: str, value: str) -> str:
    """Return ``value`` as tables and names show it."""
    return FULL if (field, value) == (CHUNK_SIZE, "null") else value


def grid(words: Sequence[str]) -> list[dict[str, str]]:
    """Let hydra expand words like ``field=value,value,...`` into all points, the last field fastest.

    Raises :class:`UserError` for a word that hydra's grammar does not have.
    """
    try:
        overrides = OverridesParser.create().parse_overrides(list(words))
        (points,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    except HydraException as error:
        raise UserError(f"{error}; write FIELD=VALUE,VALUE,...") from None
    unique = dict.fromkeys(map(tuple, points))
    return [dict(word.split("=", 1) for word in point) for point in unique]


def read_sweep(folder: Path) -> Sweep:
    """Read the sweep in ``folder``; raise :class:`UserError` if it holds none."""
    file = folder / FILE
    try:
        return Sweep(folder, **json.loads(read_text(file)))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no sweep: {FILE} is missing") from None
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{file} is damaged ({error}); remove it and start the sweep again"
        ) from None


def enter_sweep(sweep: Sweep) -> Sweep:
    """Write ``sweep`` into its folder and return it, with the points that the folder already has.

    Raises :class:`UserError` for a folder that holds another sweep or something else.
    """
    folder = sweep.folder
    if (folder / FILE).is_file():
        old = read_sweep(folder)
        for name in ("recipe", "data", "demo", "generate", "fixed", "fields"):
            ours, theirs = getattr(sweep, name), getattr(old, name)
            if ours != theirs:
                raise UserError(
                    f"{folder} holds another sweep: its {name} is {theirs!r}, not {ours!r}; "
                    "name another folder"
                )
        added = [point for point in sweep.points if point not in old.points]
        sweep = replace(sweep, points=old.points + added)
    elif folder.exists() and any(path.name != ".lock" for path in folder.iterdir()):
        raise UserError(f"{folder} holds something else than a sweep; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / FILE, "w") as stream:
        json.dump({k: v for k, v in asdict(sweep).items() if k != "folder"}, stream, indent=1)
    return sweep

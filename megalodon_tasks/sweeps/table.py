"""From the results of the runs of a sweep to one table, as CSV and as Markdown."""

import csv
import io
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megalodon_tasks.files import atomic_file
from megalodon_tasks.runs.record import read_run
from megalodon_tasks.sweeps import status
from megalodon_tasks.sweeps.request import SEED, Request, Run, short_name, shown


@dataclass(frozen=True)
class Measured:
    """What one run reached.  Speeds are of training; memory in GB: of the GPU if there was one, else of
    the training process.  None: not known.
    """

    metric: str
    value: float
    params: int
    seconds: float
    tokens_per_second: float | None
    samples_per_second: float | None
    memory: float | None


@dataclass(frozen=True)
class Row:
    """The runs that differ in their seed alone.  ``settings``: as shown, without the seed."""

    settings: dict[str, str]
    runs: list[Measured]

    def mean(self, of: Callable[[Measured], float | None]) -> float | None:
        """The mean of what is known; None if nothing is."""
        known = [value for value in map(of, self.runs) if value is not None]
        return statistics.fmean(known) if known else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation of the metric over seeds; None for a single one."""
        values = [run.value for run in self.runs]
        return statistics.stdev(values) if len(values) > 1 else None


def measured(folder: Path, run: Run) -> Measured | None:
    """What ``run`` reached, or None while it has no result."""
    state = status.read(folder, run)
    if state.state != status.DONE:
        return None
    recorded = read_run(status.run_folder(folder, run))
    if not recorded.results:
        return None
    result, lines = recorded.results[-1], list(recorded.train_inner.values())
    memory = recorded.peak_memory
    return Measured(
        metric=result["metric"],
        value=result["value"],
        params=result["params"],
        seconds=state.seconds,
        tokens_per_second=_speed(lines, "wps"),
        samples_per_second=_speed(lines, "samples_per_second"),
        memory=None if memory is None else memory / 1024**3,
    )


def _speed(lines: list[dict[str, float]], name: str) -> float | None:
    """Return the median; the first line, which has the warm-up, counts only if it is the only one."""
    known = [line[name] for line in lines if line.get(name)]
    return statistics.median(known[1:] or known) if known else None


def rows(folder: Path, request: Request) -> list[Row]:
    """One row per point of the grid without seeds, in its order, if it has a result."""
    grouped: dict[tuple[str, ...], Row] = {}
    for run in request.runs():
        found = measured(folder, run)
        settings = {
            field: shown(field, value) for field, value in run.settings.items() if field != SEED
        }
        if found is not None:
            grouped.setdefault(tuple(settings.values()), Row(settings, [])).runs.append(found)
    return list(grouped.values())


def _columns(request: Request, metric: str) -> list[tuple[str, Callable[[Row], str]]]:
    fields = [field for field in request.axes if field != SEED]
    settings = [(short_name(f, request.axes), lambda row, f=f: row.settings[f]) for f in fields]
    return [
        *settings,
        (metric, lambda row: _number(row.mean(lambda run: run.value), 2)),
        ("deviation", lambda row: _number(row.deviation, 2)),
        ("seeds", lambda row: str(len(row.runs))),
        ("tokens_per_s", lambda row: _number(row.mean(lambda run: run.tokens_per_second), 0)),
        ("samples_per_s", lambda row: _number(row.mean(lambda run: run.samples_per_second), 1)),
        ("peak_memory_gb", lambda row: _number(row.mean(lambda run: run.memory), 2)),
        ("params", lambda row: str(row.runs[0].params)),
        ("seconds", lambda row: _number(row.mean(lambda run: run.seconds), 0)),
    ]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def cells(request: Request, found: list[Row]) -> tuple[list[str], list[list[str]]]:
    """The head and the lines of the table."""
    columns = _columns(request, found[0].runs[0].metric)
    return [name for name, _ in columns], [[cell(row) for _, cell in columns] for row in found]


def markdown(request: Request, found: list[Row]) -> str:
    """The table in Markdown."""
    head, lines = cells(request, found)
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines]) + "\n"


def write(folder: Path, request: Request, found: list[Row]) -> None:
    """Write ``table.csv`` and ``table.md``."""
    head, lines = cells(request, found)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *lines])
    for name, content in (("table.csv", text.getvalue()), ("table.md", markdown(request, found))):
        with atomic_file(folder / name, "w") as stream:
            stream.write(content)

"""From the results of the runs of a sweep to one table, as CSV and as Markdown."""

import csv
import io
import json
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megalodon_tasks.errors import UserError
from megalodon_tasks.files import atomic_file
from megalodon_tasks.runs import training_log
from megalodon_tasks.sweeps import status
from megalodon_tasks.sweeps.request import SEED, Request, Run, short_name, shown

GPU_MEMORY = re.compile(r"total memory = ([\d.]+) GB")
PEAK_MEMORY = re.compile(r"peak memory of the process: ([\d.]+) GB")


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
    place, state = status.run_folder(folder, run), status.read(folder, run)
    record = _last_record(place / "results.jsonl")
    if record is None or state.state != status.DONE:
        return None
    log = place / "train.log"
    events = _training_events(log)
    return Measured(
        metric=record["metric"],
        value=record["value"],
        params=record["params"],
        seconds=state.seconds,
        tokens_per_second=_speed(events, lambda event: event.get("wps")),
        samples_per_second=_speed(events, _samples),
        memory=_memory(log, events),
    )


def _last_record(file: Path) -> dict | None:
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    records = [json.loads(line) for line in lines if line.startswith("{")]
    return records[-1] if records else None


def _training_events(log: Path) -> list[dict[str, float]]:
    """The lines of running averages, none where the log has none."""
    try:
        return list(training_log.read(log).get("train_inner", {}).values())
    except UserError:
        return []


def _samples(event: dict[str, float]) -> float | None:
    return event["ups"] * event["bsz"] if "ups" in event and "bsz" in event else None


def _speed(
    events: list[dict[str, float]], of: Callable[[dict[str, float]], float | None]
) -> float | None:
    """The median over the log's lines; the first one, which has the warm-up, only if it is alone."""
    known = [value for value in map(of, events) if value]
    return statistics.median(known[1:] or known) if known else None


def _memory(log: Path, events: list[dict[str, float]]) -> float | None:
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    total = [float(found) for found in GPU_MEMORY.findall(text)]
    if total:
        free = [event["gb_free"] for event in events if "gb_free" in event]
        return max(total) - min(free) if free else None
    peaks = [float(found) for found in PEAK_MEMORY.findall(text)]
    return max(peaks) if peaks else None


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

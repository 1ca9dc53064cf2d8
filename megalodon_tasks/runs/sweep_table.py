"""Collect the results of a sweep into a table (CSV and Markdown) and pictures."""

import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megalodon_tasks.errors import UserError
from megalodon_tasks.files import atomic_file, write_rows
from megalodon_tasks.runs import record, results
from megalodon_tasks.runs.figures import open_axes
from megalodon_tasks.runs.sweep import DONE, SEED, Sweep, SweepRun, shown

# Measurements beside the metric, with their digits after the point in the table.
DIGITS = {"tokens_per_s": 0, "samples_per_s": 1, "peak_memory_gb": 2, "params": 0, "seconds": 0}
PICTURED = {"tokens_per_s": "training, tokens per second", "peak_memory_gb": "peak memory (GB)"}

# Series differ in marker and lightness, so that they can be told apart without colour.
SERIES = {
    "color": ["#0b3c6f", "0.45", "black", "#7a5c00"],
    "marker": ["o", "s", "^", "D"],
    "linestyle": ["-", "--", ":", "-."],
}
REFERENCES = ("--", ":", "-.")


@dataclass(frozen=True)
class Row:
    """The results of runs that differ only in their seed.

    metric: its name.  settings: swept field -> value as shown, without the seed.  runs: the measurements
    of each, which are the metric and those of ``DIGITS``; an unknown one is missing.  results: the lines
    of ``results.jsonl`` that the metric is from.
    """

    metric: str
    settings: dict[str, str]
    runs: list[dict[str, float]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)

    def mean(self, name: str) -> float | None:
        """Average the measurements that are known; None if none is."""
        known = [run[name] for run in self.runs if name in run]
        return statistics.fmean(known) if known else None

    @property
    def published(self) -> str:
        """The published number, or nothing."""
        return results.published_value(self.results[0]) or ""

    @property
    def comparable(self) -> str:
        """``yes``, or why the metric does not compare with the published number."""
        reasons = [reason for r in self.results if (reason := results.reason_against(r))]
        return " / ".join(dict.fromkeys(reasons)) or "yes"

    @property
    def deviation(self) -> float | None:
        """The standard deviation of the metric over seeds; None for a single seed."""
        values = [run[self.metric] for run in self.runs]
        return statistics.stdev(values) if len(values) > 1 else None


def collect(sweep: Sweep, problems: list[str] | None = None) -> list[Row]:
    """Return a row for each point of the grid without seeds, in its order, if a run of it is done.

    A run whose record cannot be read is left out, and so is a line: ``problems`` gets a text about each.
    """
    rows: dict[tuple[str, ...], Row] = {}
    problems = [] if problems is None else problems
    for run in sweep.runs:
        if run.damaged_attempts:
            problems.append(f"{run.attempts_file}: {run.damaged_attempts} lines cannot be read")
        if run.state == DONE:
            try:
                result, measurements = _measure(run, problems)
            except UserError as error:
                problems.append(f"{run.name} is left out: {error}")
                continue
            settings = {f: shown(f, value) for f, value in run.settings.items() if f != SEED}
            row = rows.setdefault(tuple(settings.values()), Row(result["metric"], settings))
            row.runs.append(measurements)
            row.results.append(result)
    return list(rows.values())


def _measure(run: SweepRun, problems: list[str]) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the last result of the run, and what the run reached.

    Speeds are medians over the recorded intervals of training without the first, which has the warm-up.
    Memory is that of the GPU if there was one, else of the training process.  Time is that of all
    attempts, with the evaluation.
    """
    recorded = record.read_run(run.folder)
    problems += recorded.damaged
    if not recorded.results:
        raise UserError(f"{run.folder / record.RESULTS}: holds no result; evaluate the run again")
    result = recorded.results[-1]
    intervals = list(recorded.train_inner.values())
    measurements = {
        result["metric"]: result["value"],
        "seconds": sum(attempt["seconds"] for attempt in run.attempts()),
    }
    if "params" in result:
        measurements["params"] = result["params"]
    for name, recorded_name in (("tokens_per_s", "wps"), ("samples_per_s", "samples_per_second")):
        speeds = [line[recorded_name] for line in intervals if line.get(recorded_name)]
        if speeds:
            measurements[name] = statistics.median(speeds[1:] or speeds)
    if recorded.peak_memory is not None:
        measurements["peak_memory_gb"] = recorded.peak_memory / 1024**3
    return result, measurements


def cells(sweep: Sweep, rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the lines of the table."""
    metric = rows[0].metric
    head = [*map(sweep.label, rows[0].settings), metric, "deviation", "seeds", *DIGITS]
    head += ["published", "comparable"]
    lines = [
        [
            *row.settings.values(),
            _number(row.mean(metric), 2),
            _number(row.deviation, 2),
            str(len(row.runs)),
            *(_number(row.mean(name), digits) for name, digits in DIGITS.items()),
            row.published,
            row.comparable,
        ]
        for row in rows
    ]
    return head, lines


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def markdown(sweep: Sweep, rows: list[Row]) -> str:
    """Return the table in Markdown."""
    head, lines = cells(sweep, rows)
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines]) + "\n"


def write_table(sweep: Sweep, rows: list[Row]) -> None:
    """Write ``table.csv`` and ``table.md`` into the folder of the sweep."""
    head, lines = cells(sweep, rows)
    write_rows(sweep.folder / "table.csv", head, lines)
    with atomic_file(sweep.folder / "table.md", "w") as stream:
        stream.write(markdown(sweep, rows))


def draw(sweep: Sweep, rows: list[Row], references: dict[str, float]) -> list[Path]:
    """Draw metric, speed and memory against the values of each swept field but the seed.

    ``references`` maps a label to a published value of the metric, drawn as a line.  Returns the files.
    """
    metric = rows[0].metric
    panels = {metric: metric} | PICTURED
    names = [name for name in panels if any(row.mean(name) is not None for row in rows)]
    written = []
    for swept in rows[0].settings:
        figure = Figure(figsize=(4.2 * len(names), 4), layout="constrained")
        for name, axes in zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True):
            _draw_panel(axes, swept, rows, name)
            axes.set(xlabel=sweep.label(swept).replace("_", " "), ylabel=panels[name])
            if name == metric:
                state = (
                    "" if all(r.comparable == "yes" for r in rows) else " (see table: comparable)"
                )
                for style, (label, value) in zip(REFERENCES, references.items(), strict=False):
                    label += state
                    axes.axhline(value, color="0.3", linewidth=1, linestyle=style, label=label)
            else:
                axes.set_ylim(0, 1.1 * axes.dataLim.y1)
            if len(axes.get_legend_handles_labels()[1]) > 1:
                axes.legend(frameon=False, fontsize="small")
        figure.suptitle(sweep.recipe + (" (demo)" if sweep.demo else ""))
        written.append(sweep.folder / f"{sweep.label(swept)}.png")
        figure.savefig(written[-1], dpi=150)
    return written


def _draw_panel(axes: Axes, swept: str, rows: list[Row], name: str) -> None:
    """Draw a line for each combination of the other fields, over equally spaced values."""
    values = sorted({row.settings[swept] for row in rows}, key=_size)
    series: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: values.index(row.settings[swept])):
        others = [f"{f.rpartition('.')[2]} {v}" for f, v in row.settings.items() if f != swept]
        if row.mean(name) is not None:
            series.setdefault(", ".join(others) or "ours", []).append(row)
    axes.set_prop_cycle(**SERIES)
    for label, points in series.items():
        positions = [values.index(row.settings[swept]) for row in points]
        means = [row.mean(name) for row in points]
        deviations = [row.deviation or 0.0 for row in points]
        errors = deviations if name == rows[0].metric else None
        axes.errorbar(positions, means, yerr=errors, capsize=3, label=label)
    axes.set_xticks(range(len(values)), values)
    open_axes(axes)


def _size(value: str) -> tuple[float, str]:
    """Return the sort key of a value: numbers by size, then full attention and other words."""
    try:
        return float(value), value
    except ValueError:
        return math.inf, value

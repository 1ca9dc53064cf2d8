"""Write the page about a set of runs: ``report.html``, self-contained, and ``report.md``.

Tables of final metrics beside the paper's, of the settings that differ and of the environment; curves;
table and pictures of sweeps.
"""

import base64
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from megalodon_tasks.errors import UserError
from megalodon_tasks.files import atomic_file, read_bytes
from megalodon_tasks.runs import results, sweep_table
from megalodon_tasks.runs.figures import compare_curves
from megalodon_tasks.runs.record import Run
from megalodon_tasks.runs.sweep import FILE, SEED, read_sweep

# Fields that say where a run lies and not what it does.
PLACES = ("checkpoint.save_dir", "task.data", "common.user_dir", "common.log_file")
UNSET = "-"


@dataclass(frozen=True)
class Table:
    """``highlighted`` names the columns (by number) whose cells are what the table is about."""

    title: str
    head: list[str]
    lines: list[list[str]]
    highlighted: tuple[int, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Sweep:
    """Table and pictures (PNG) of one sweep."""

    name: str
    state: str
    table: Table
    pictures: list[bytes]


def sweep_in(folder: Path, problems: list[str] | None = None) -> Sweep | None:
    """Return the sweep that ``folder`` holds; None if it holds none or no run of it is done.

    problems: gets a text about each run, or the sweep itself, that cannot be read.
    """
    if not (folder / FILE).is_file():
        return None
    try:
        sweep = read_sweep(folder)
    except UserError as error:
        if problems is None:
            raise
        problems.append(f"left out: {error}")
        return None
    rows = sweep_table.collect(sweep, problems)
    if not rows:
        return None
    head, lines = sweep_table.cells(sweep, rows)
    swept = sum(field != SEED for field in sweep.fields)
    return Sweep(
        name=f"{folder.name}: {sweep.recipe}",
        state=sweep.summary(),
        table=Table("", head, lines, highlighted=(swept,)),
        pictures=[read_bytes(path) for path in sorted(folder.glob("*.png"))],
    )


def plain_markdown(text: str) -> str:
    """Return ``text`` on one line, so that Markdown shows every character and makes no tag or link."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", line)


def write(
    folder: Path, title: str, runs: list[Run], sweeps: list[Sweep], problems: Sequence[str] = ()
) -> list[Path]:
    """Write ``report.html`` and ``report.md`` into ``folder`` and return their paths.

    problems: what was left out, and why; the page says it.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("megalodon_tasks.runs", package_path=""),
        autoescape=jinja2.select_autoescape(["html.j2"], default=False),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    environment.filters["plain"] = plain_markdown
    tables = [_metrics(runs), _published(runs), _differences(runs), _environment(runs)]
    if problems:
        tables.insert(0, Table("Left out", ["what, and why"], [[problem] for problem in problems]))
    pictures = {name: svg.encode() for name, svg in compare_curves(runs).items()}
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in ("report.html", "report.md"):
        text = environment.get_template(f"{name}.j2").render(
            title=title, runs=runs, tables=tables, pictures=pictures, sweeps=sweeps
        )
        with atomic_file(folder / name, "w") as stream:
            stream.write(text)
        written.append(folder / name)
    return written


def _metrics(runs: list[Run]) -> Table:
    """Tabulate the last result of each run on each benchmark and split, beside the published one."""
    head = [
        "run", "value", "published", "comparable", "metric", "benchmark", "split", "items", "update",
        "parameters",
    ]  # fmt: skip
    lines = []
    for run in runs:
        last = {(result["benchmark"], result["split"]): result for result in run.results}
        for result in last.values():
            lines.append(
                [
                    run.name,
                    f"{result['value']:.2f}",
                    results.published_value(result) or "-",
                    results.reason_against(result) or "yes",
                    *(str(result[name]) for name in ("metric", "benchmark", "split")),
                    *(_number(result, name) for name in ("n", "update", "params")),
                ]
            )
        if not last:
            reached, params = f"{run.updates:,}", _number(run.start, "params")
            unknown = ["not evaluated", "-", "-"]
            lines.append([run.name, *unknown, run.metric, run.benchmark, "-", "-", reached, params])
    return Table("Final metrics", head, lines, highlighted=(1,))


def _number(line: Mapping[str, Any], name: str) -> str:
    """Return a whole number of a line as text; not every version and tool records all of them."""
    value = line.get(name)
    return f"{value:,}" if isinstance(value, int) else UNSET


def _published(runs: list[Run]) -> Table:
    """Tabulate the paper's numbers for the benchmarks of these runs."""
    lines = []
    for benchmark in sorted({run.benchmark for run in runs}):
        for row in results.published(benchmark):
            if row["paper_value"]:
                lines.append([row["id"], row["paper_value"], row["metric"], row["paper_source"]])
    note = "" if lines else "The paper has no number for these benchmarks (demos have none)."
    return Table("Published", ["benchmark", "value", "metric", "source"], lines, (1,), note)


def _differences(runs: list[Run]) -> Table:
    """Tabulate the settings that are not the same in all runs.

    Where several change together (fairseq derives some from others), only the first is shown.
    """
    settings = {run.name: _flat(run.start.get("config", {})) for run in runs if run.start}
    columns: dict[tuple[str, ...], str] = {}
    for field in sorted({field for fields in settings.values() for field in fields}):
        values = tuple(fields.get(field, UNSET) for fields in settings.values())
        if len(set(values)) > 1:
            columns.setdefault(values, field)
    differing = list(columns.values())
    lines = [
        [name, *(fields.get(f, UNSET) for f in differing)] for name, fields in settings.items()
    ]
    note = "" if differing else "All runs have the same configuration."
    return Table(
        "What differs", ["run", *differing], lines if differing else [],
        tuple(range(1, len(differing) + 1)), note,
    )  # fmt: skip


def _flat(config: Any, prefix: str = "") -> dict[str, str]:
    """Flatten a configuration to ``section.field`` -> value as text."""
    if not isinstance(config, dict):
        finite = isinstance(config, float) and math.isfinite(config)
        return {prefix: "null" if config is None else f"{config:g}" if finite else str(config)}
    fields: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if name not in PLACES:
            fields |= _flat(value, name)
    return fields


def _environment(runs: list[Run]) -> Table:
    """Tabulate device, versions and commit of each run's last evaluation, or of its training."""
    lines = []
    for run in runs:
        line = run.results[-1] if run.results else run.start
        versions = ", ".join(f"{k} {v}" for k, v in dict(line.get("versions") or {}).items())
        described = str(line.get("commit") or "unknown")
        dirty = "-dirty" if described.endswith("-dirty") else ""
        place = [str(line.get(name, UNSET)) for name in ("date", "device")]
        lines.append([run.name, *place, versions, described[:12] + dirty])
    return Table("Environment", ["run", "date", "device", "versions", "commit"], lines)

"""The page about a set of runs: ``report.html``, self-contained, and ``report.md``."""

import base64
from dataclasses import dataclass
from pathlib import Path

import jinja2

from megalodon_tasks.files import atomic_file
from megalodon_tasks.reports import compare, curves
from megalodon_tasks.reports.compare import Table
from megalodon_tasks.reports.runs import FinishedRun
from megalodon_tasks.sweeps import request as requests
from megalodon_tasks.sweeps import status, table


@dataclass(frozen=True)
class Sweep:
    """The table and the pictures (PNG) of one sweep."""

    name: str
    state: str
    table: Table
    pictures: list[bytes]


def sweep_in(folder: Path) -> Sweep | None:
    """The sweep that ``folder`` holds, if it does and a run of it is done."""
    if not (folder / requests.FILE).is_file():
        return None
    asked = requests.read(folder)
    found = table.rows(folder, asked)
    if not found:
        return None
    head, lines = table.cells(asked, found)
    swept = sum(field != requests.SEED for field in asked.axes)
    return Sweep(
        name=f"{folder.name}: {asked.recipe}",
        state=str(status.overview(folder, asked, 1)),
        table=Table("", head, lines, highlighted=(swept,)),
        pictures=[path.read_bytes() for path in sorted(folder.glob("*.png"))],
    )


def write(folder: Path, title: str, runs: list[FinishedRun], sweeps: list[Sweep]) -> list[Path]:
    """Write ``report.html`` and ``report.md`` into ``folder`` and return their names."""
    loader = jinja2.PackageLoader("megalodon_tasks.reports")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=jinja2.select_autoescape(["html.j2"], default=False),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    environment.filters["cell"] = lambda text: text.replace("|", "\\|").replace("\n", " ")
    tables = [
        compare.metrics(runs),
        compare.published(runs),
        compare.differences(runs),
        compare.environment(runs),
    ]
    pictures = {name: svg.encode() for name, svg in curves.by_benchmark(runs).items()}
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

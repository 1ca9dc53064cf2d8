"""Compare CEMA's memory at the start, and the sizes of the groups of the norm over time, on the demos.

    python -m benchmarks.memory_and_groups SAVE
    python -m benchmarks.memory_and_groups SAVE --tasks image text --workers 2
    python -m benchmarks.memory_and_groups SAVE --report-only --output models

Trains each demo for half of its updates, three seeds each, through ``megalodon sweep``: from the
released start and from one whose memory is spread, with groups of 4 features; then with groups of 1, of
16 and of all features, from the spread start.  The same command resumes.  Prints a table and writes
``memory_and_groups.csv`` and ``.png``.
"""

import argparse
import csv
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from omegaconf import DictConfig

from benchmarks.learning.tables import NOT_MEASURED, markdown
from megalodon_tasks.configuration import find_recipe, training_configuration
from megalodon_tasks.errors import UserError
from megalodon_tasks.files import atomic_file
from megalodon_tasks.option_types import PROCESSES, whole
from megalodon_tasks.runs.figures import open_axes
from megalodon_tasks.runs.sweep import FILE, read_sweep
from megalodon_tasks.runs.sweep_table import collect

SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Task:
    """A demo.  memory: time constant of the slowest component of the spread start, in steps."""

    title: str
    recipe: str
    memory: int


TASKS = {
    "listops": Task("ListOps", "lra/listops", 16),
    "image": Task("Image", "lra/image", 16),
    "pathfinder": Task("Pathfinder", "lra/pathfinder", 64),
    "pathx": Task("Path-X", "lra/pathx", 64),
    "text": Task("Text", "lra/text", 16),
    "retrieval": Task("Retrieval", "lra/retrieval", 32),
    "speech": Task("Speech", "speech/sc_raw", 256),
    "bytes": Task("Bytes of text", "lm/enwik8", 64),
}
GROUP = 4  # features, where the two starts are compared
VARIANTS = {  # name -> features of a group, start
    "groups of 4, released": (GROUP, "released"),
    "groups of 4, spread": (GROUP, "spread"),
    "groups of 1, spread": (1, "spread"),
    "groups of 16, spread": (16, "spread"),
    "one group, spread": (None, "spread"),
}


@dataclass(frozen=True)
class Measured:
    """The results of one variant on one task, a value for each seed."""

    task: str
    variant: str
    metric: str
    values: list[float]


def groups(features: int | None, dim: int) -> int:
    """Return the number of groups of a norm over ``dim`` features; 0 is one for each of them."""
    if features is None:
        return 1
    return 0 if features == 1 else dim // features


def demo(name: str) -> DictConfig:
    """Return the settings of a task's demo."""
    recipe = find_recipe(TASKS[name].recipe)
    return training_configuration(
        recipe.script.parent, recipe.config_name(demo=True), ["task.data=DATA"]
    )


def sweeps(name: str) -> dict[str, list[str]]:
    """Return the two sweeps of a task: name -> words after ``--sweep``.

    A language model has no groups of one feature: their moments are of one number at the first step.
    """
    config = demo(name)
    dim = config.model.model_dim
    fixed = [
        f"model.cema_memory={TASKS[name].memory}",
        f"optimization.max_update={config.optimization.max_update // 2}",
    ]
    sizes = [16, None] if name == "bytes" else [1, 16, None]
    numbers = ",".join(str(groups(size, dim)) for size in sizes)
    start = "model.cema_init=released,spread"
    return {
        "starts": [start, f"model.norm_num_groups={groups(GROUP, dim)}", *fixed],
        "groups": [f"model.norm_num_groups={numbers}", "model.cema_init=spread", *fixed],
    }


def train(save: Path, name: str, workers: int) -> None:
    """Run both sweeps of a task, or what is left of them."""
    for sweep, words in sweeps(name).items():
        folder = save / name / sweep
        print(f"{name}: {sweep}, in {folder}", flush=True)
        command = [sys.executable, "-m", "megalodon_tasks", "sweep", TASKS[name].recipe]
        command += [str(save / name / "data"), str(folder), "--demo", "--threads", "1"]
        command += ["--workers", str(workers), "--seeds", *map(str, SEEDS), "--sweep", *words]
        if status := subprocess.run(command, stdin=subprocess.DEVNULL).returncode:
            raise UserError(f"megalodon sweep ended with {status}; see above and {folder}")


def measured(save: Path) -> list[Measured]:
    """Read what is done of all tasks, in the order of ``TASKS`` and ``VARIANTS``."""
    found = []
    for name in TASKS:
        rows = {}
        for folder in (save / name / sweep for sweep in ("starts", "groups")):
            if (folder / FILE).is_file():
                sweep = read_sweep(folder)
                for row in collect(sweep):
                    settings = {**sweep.fixed, **row.settings}
                    rows[settings["model.cema_init"], settings["model.norm_num_groups"]] = row
        dim = demo(name).model.model_dim if rows else 0
        for variant, (size, start) in VARIANTS.items():
            if row := rows.get((start, str(groups(size, dim)))):
                values = [run[row.metric] for run in row.runs]
                found.append(Measured(name, variant, row.metric, values))
    return found


def table(results: Sequence[Measured]) -> str:
    """Return a table in Markdown: a line for each task that was measured, a column for each variant."""
    found = {(result.task, result.variant): result for result in results}
    lines = [["task", "metric", "`cema_memory`", *VARIANTS]]
    for name in dict.fromkeys(result.task for result in results):
        metric = next(result.metric for result in results if result.task == name)
        cells = [TASKS[name].title, metric.replace("_", " "), str(TASKS[name].memory)]
        for variant in VARIANTS:
            result = found.get((name, variant))
            cells.append(shown(result) if result else NOT_MEASURED)
        lines.append(cells)
    return markdown(lines)


def shown(result: Measured) -> str:
    """Return mean and deviation over the seeds."""
    digits = 1 if result.metric == "accuracy" else 3
    mean = f"{statistics.fmean(result.values):.{digits}f}"
    if len(result.values) == 1:
        return f"{mean} (one seed)"
    return f"{mean} ± {statistics.stdev(result.values):.{digits}f}"


def draw(results: Sequence[Measured]) -> Figure:
    """Draw a panel for each task: a point for each seed, a line for the mean."""
    tasks = list(dict.fromkeys(result.task for result in results))
    columns = min(4, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * rows + 1.0), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flat
    for axes, name in zip(panels, tasks, strict=False):
        for result in results:
            if result.task == name:
                place = list(VARIANTS).index(result.variant)
                axes.plot([place] * len(result.values), result.values, "o", color="#0b3c6f",
                    markerfacecolor="none", markersize=5)  # fmt: skip
                mean = statistics.fmean(result.values)
                axes.plot([place - 0.3, place + 0.3], [mean, mean], "-", color="black", linewidth=2)
                metric = "accuracy (%)" if result.metric == "accuracy" else "bits per byte"
        axes.set(ylabel=metric, xticks=range(len(VARIANTS)), xlim=(-0.5, len(VARIANTS) - 0.5))
        axes.set_title(TASKS[name].title, loc="left", fontsize="medium")
        axes.set_xticklabels(VARIANTS, rotation=90, fontsize="small")
        open_axes(axes)
    for axes in panels:
        axes.remove()
    return figure


def report(save: Path, output: Path) -> None:
    """Print the table of all that is done in ``save``; write numbers and picture."""
    results = measured(save)
    if not results:
        raise UserError(f"{save}: no run is done; leave out --report-only")
    output.mkdir(parents=True, exist_ok=True)
    name = "memory_and_groups"
    with atomic_file(output / f"{name}.csv", "w") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["task", "variant", "metric", *(f"seed {seed}" for seed in SEEDS)])
        for result in results:
            values = [f"{value:.4f}" for value in result.values]
            writer.writerow([result.task, result.variant, result.metric, *values])
    with atomic_file(output / f"{name}.png") as stream:
        draw(results).savefig(stream, dpi=130, format="png")
    print(table(results))
    print(f"written to {output}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the sweeps and write the report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory_and_groups",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("save", type=Path, help="folder of data, sweeps and results")
    add("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="default: all")
    add("--workers", type=whole(1, PROCESSES), default=1, help="runs at a time (default: 1)")
    add("--output", type=Path, help="folder of numbers and picture (default: SAVE)")
    add("--report-only", action="store_true", help="train nothing, write what there is")
    given = parser.parse_args(arguments)
    save = given.save.absolute()
    for name in () if given.report_only else given.tasks:
        train(save, name, given.workers)
    report(save, given.output or save)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command resumes")

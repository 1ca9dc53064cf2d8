"""Write the comparison as CSV and Markdown."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.learning.reading import Measured
from benchmarks.learning.speed import Speed
from benchmarks.learning.tasks import ABLATIONS, MODELS, TASKS
from megalodon_tasks.files import atomic_file
from megalodon_tasks.runs.learning_curves import seconds_at

NOT_MEASURED = "not measured"
UNITS = {"accuracy": "%", "bits_per_byte": "bits per byte"}
DIGITS = {"accuracy": 1, "bits_per_byte": 3}


def write_runs(results: Sequence[Measured], output: Path) -> None:
    """Write ``runs.csv``: a line for each run, those at rates that were not chosen included."""
    head = [
        "task",
        "model",
        "rate",
        "chosen",
        "seed",
        "updates",
        "best_validation",
        "metric",
        "test",
    ]
    lines = [
        [
            *(result.task, result.model, run.rate, "yes" if run.rate == result.rate else "no"),
            *(run.seed, run.recorded.updates, f"{run.best_validation:.4f}"),
            *(run.recorded.results[-1]["metric"], f"{run.recorded.results[-1]['value']:.4f}"),
        ]
        for result in results
        for run in result.all_runs
    ]
    _write_csv(output / "runs.csv", head, lines)


def write_curves(results: Sequence[Measured], output: Path) -> None:
    """Write ``curves.csv``: a line for each validation of the runs at the chosen rates."""
    head = ["task", "model", "seed", "update", "seconds", "metric", "validation"]
    lines = []
    for result in results:
        for run in result.runs:
            config = run.recorded.start["config"]
            metric = config["checkpoint"]["best_checkpoint_metric"]
            points = {s: v[metric] for s, v in run.recorded.validation.items() if metric in v}
            for (step, value), seconds in zip(
                points.items(), seconds_at(run.recorded, list(points)), strict=True
            ):
                where = [result.task, result.model, run.seed, step, f"{seconds:.1f}"]
                lines.append([*where, metric, f"{value:.4f}"])
    _write_csv(output / "curves.csv", head, lines)


def _write_csv(path: Path, head: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    with atomic_file(path, "w") as stream:
        csv.writer(stream, lineterminator="\n").writerows([head, *lines])


def comparison(
    results: Sequence[Measured], speeds: Mapping[tuple[str, str], Speed]
) -> list[list[str]]:
    """Return the head and a line for each model on each task, or one for a task without any result."""
    found = {(result.task, result.model): result for result in results}
    lines = [["task", "model", "test", "±", "seeds", "rate", "updates", "parameters"]]
    lines[0] += ["memory, GB", "ms an update", "tokens/s"]
    for name, task in TASKS.items():
        models = [model for model in task.models if (name, model) in found]
        if not models:
            lines.append([task.title, "all", NOT_MEASURED] + [""] * 8)
        for model in task.models if models else ():
            cells = [NOT_MEASURED] + [""] * 8
            if model in models:
                speed = speeds.get((name, model))
                times = [f"{1000 * speed.seconds:.1f}", f"{speed.tokens:,.0f}"] if speed else []
                cells = _cells(found[name, model]) + (times or [NOT_MEASURED] * 2)
            lines.append([task.title, MODELS[model].title, *cells])
    return lines


def ablations(results: Sequence[Measured]) -> list[list[str]]:
    """Return the head and the lines of Megalodon and what is left of it, for tasks with ablations."""
    found = {(result.task, result.model): result for result in results}
    tasks = dict.fromkeys(result.task for result in results if result.model in ABLATIONS)
    lines = [["task", "model", "test", "±", "seeds", "rate", "updates", "parameters"]]
    for task in tasks:
        for model in ("megalodon", *ABLATIONS):
            result = found.get((task, model))
            title = MODELS[model].title if model in MODELS else f"Megalodon, {model}"
            cells = _cells(result)[:6] if result else [NOT_MEASURED] + [""] * 5
            lines.append([TASKS[task].title, title, *cells])
    return lines


def _cells(result: Measured) -> list[str]:
    row = result.row
    digits = DIGITS.get(row.metric, 2)
    updates = max(run.recorded.updates for run in result.runs)
    return [
        f"{row.mean(row.metric):.{digits}f} {UNITS.get(row.metric, row.metric)}",
        "" if row.deviation is None else f"{row.deviation:.{digits}f}",
        str(len(row.runs)),
        result.rate,
        f"{updates:,}",
        *(
            NOT_MEASURED if (value := row.mean(name)) is None else f"{value:,.{digits}f}"
            for name, digits in (("params", 0), ("peak_memory_gb", 2))
        ),
    ]


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, of which the first line is the head."""
    head, *others = lines
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *others])


def machines(results: Sequence[Measured]) -> list[str]:
    """Return what the runs were trained on and with."""
    starts = [run.recorded.start for result in results for run in result.runs]
    return list(dict.fromkeys(str(start["device"]) for start in starts if "device" in start))


def write_tables(
    results: Sequence[Measured],
    speeds: Mapping[tuple[str, str], Speed],
    lengths: list[list[str]],
    output: Path,
) -> None:
    """Write ``table.csv``, ``ablations.csv``, ``lengths.csv`` and ``table.md``, with all three."""
    compared = comparison(results, speeds)
    parts = {"table": compared, "ablations": ablations(results), "lengths": lengths}
    titles = {
        "table": "Test split, mean and deviation over seeds",
        "ablations": "Megalodon without one of its ideas, at the rate chosen for Megalodon",
        "lengths": "Lengths that were not trained on, mean over seeds",
    }
    text = [
        f"Measured on: {', '.join(machines(results))}.  Times are CPU time of one thread, forward and "
        "backward, all models in turn on the same batches.\n"
    ]
    for name, (head, *lines) in parts.items():
        _write_csv(output / f"{name}.csv", head, lines)
        body = markdown([head, *lines]) if lines else f"{NOT_MEASURED}\n"
        text.append(f"**{titles[name]}.**\n\n{body}")
    with atomic_file(output / "table.md", "w") as stream:
        stream.write("\n".join(text))

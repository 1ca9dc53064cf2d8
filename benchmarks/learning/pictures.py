"""Draw the comparison.  Line style, marker and lightness tell the models apart without colour."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.learning.lengths import AtLength
from benchmarks.learning.reading import Measured
from benchmarks.learning.speed import Speed
from benchmarks.learning.tasks import MODELS, TASKS
from megalodon_tasks.files import atomic_file
from megalodon_tasks.runs.figures import STYLES, open_axes
from megalodon_tasks.runs.learning_curves import draw_panels

# all three of marker, line and shade differ between architectures
_PLACES = {"megalodon": 0, "mega": 5, "transformer": 10, "megalodon-chunk": 15, "mega-chunk": 17}
STYLE_OF = {name: STYLES[_PLACES[name]] for name in MODELS}


def draw_curves(
    results: Sequence[Measured], speeds: Mapping[tuple[str, str], Speed], output: Path
) -> Path | None:
    """Write ``learning_curves.png``: for each task, validation against updates and against seconds.

    Seconds are updates times the time of an update in ``speeds``.
    """
    by_task: dict[str, list[Measured]] = {}
    for result in results:
        if result.model in MODELS:
            by_task.setdefault(result.task, []).append(result)
    if not by_task:
        return None
    figure = Figure(figsize=(11, 2.9 * len(by_task)), layout="constrained")
    rows = figure.subplots(len(by_task), 2, squeeze=False, sharey="row")
    for (task, models), (updates, seconds) in zip(by_task.items(), rows, strict=True):
        start = models[0].runs[0].recorded.start
        draw_panels(
            (updates, seconds),
            {result.title: [run.recorded for run in result.runs] for result in models},
            start["config"]["checkpoint"]["best_checkpoint_metric"],
            [STYLE_OF[result.model] for result in models],
            {r.title: speeds[task, r.model].seconds for r in models if (task, r.model) in speeds},
        )
        seconds.set_xlabel("seconds of one core")
        updates.set_title(TASKS[task].title, loc="left", fontsize="medium")
        seconds.legend(
            loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small"
        )
    return _save(figure, output / "learning_curves.png")


def draw_lengths(points: Sequence[AtLength], output: Path) -> Path | None:
    """Write ``lengths.png``: for each task, the metric against multiples of the trained length."""
    tasks = dict.fromkeys(point.task for point in points)
    if not tasks:
        return None
    figure = Figure(figsize=(5.5 * len(tasks), 4), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for model in dict.fromkeys(point.model for point in points if point.task == task):
            series = [point for point in points if (point.task, point.model) == (task, model)]
            factors = sorted({point.factor for point in series})
            values = [[p.value for p in series if p.factor == factor] for factor in factors]
            style = STYLE_OF[model]
            means = [sum(v) / len(v) for v in values]
            axes.plot(factors, means, label=MODELS[model].title, markersize=5, **style)
            axes.fill_between(
                factors, list(map(min, values)), list(map(max, values)), color=style["color"],
                alpha=0.2, linewidth=0,
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(factors, [f"{factor}" for factor in factors])
        axes.set(xlabel="length, in multiples of the longest in training", ylabel=series[0].unit)
        axes.set_title(TASKS[task].title, loc="left", fontsize="medium")
        open_axes(axes)
        axes.legend(frameon=False, fontsize="small")
    return _save(figure, output / "lengths.png")


def _save(figure: Figure, path: Path) -> Path:
    with atomic_file(path) as stream:
        figure.savefig(stream, dpi=130, format="png")
    return path

"""Draw learning curves.  Line style, marker and lightness tell lines apart without colour."""

import io
from itertools import product
from pathlib import Path
from typing import Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megalodon_tasks.errors import UserError
from megalodon_tasks.runs.record import Points, Run

TRAINING = {"color": "0.55", "linewidth": 1.2, "linestyle": "-"}
VALIDATION = {"color": "#0b3c6f", "linewidth": 1.8, "linestyle": "-", "marker": "o"}
CONSTANT = {"color": "black", "linewidth": 1.2, "linestyle": "--"}

LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "x")
SHADES = ("#0b3c6f", "#a05a00", "0.35", "0.6")  # from dark to light: they stay apart in grey
STYLES = [
    {"linestyle": line, "marker": marker, "color": shade}
    for marker, (line, shade) in product(MARKERS, zip(LINES, SHADES, strict=True))
]


def draw_training_curve(run: Run, output: Path) -> None:
    """Write a picture of loss and accuracy (perplexity without one) against updates to ``output``.

    Raises :class:`UserError` if the run has recorded no losses.
    """
    training, validation = run.train_inner or run.train, run.validation
    lines = [*training.values(), *validation.values()]
    if not lines:
        raise UserError(
            f"{run.folder}: no losses are recorded; has it reached common.log_interval?"
        )
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, second = figure.subplots(1, 2)
    has_perplexity = any("ppl" in line for line in lines)
    metric = (
        "accuracy" if any("accuracy" in line for line in lines) or not has_perplexity else "ppl"
    )
    for axes, name in ((loss, "loss"), (second, metric)):
        _draw(axes, training, name, 0, label="training (running average)", **TRAINING)
        _draw(axes, validation, name, 12, label="validation", **VALIDATION)
        open_axes(axes, xlabel="updates")
    loss.set_ylabel("loss (bits)")
    loss.set_ylim(bottom=0)
    if metric == "accuracy":
        second.set_ylabel("accuracy (%)")
        second.set_ylim(0, 100)
    else:
        second.set_ylabel("perplexity per token")
        second.set_yscale("log")
    constant = run.results[-1].get("best_constant") if run.results else None
    if constant is not None:
        second.axhline(constant, label=f"best constant answer ({constant:.1f} %)", **CONSTANT)
    for axes in (loss, second):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    figure.suptitle(run.name)
    figure.savefig(output, dpi=150)


def compare_curves(runs: list[Run]) -> dict[str, str]:
    """Return one SVG picture per benchmark with curves: loss and metric in validation."""
    pictures = {}
    for benchmark in sorted({run.benchmark for run in runs}):
        drawn = [run for run in runs if run.benchmark == benchmark and (run.valid or run.train)]
        if drawn:
            pictures[benchmark] = _compare(drawn)
    return pictures


def _compare(runs: list[Run]) -> str:
    names = list(dict.fromkeys(("loss", runs[0].metric)))
    figure = Figure(figsize=(5.2 * len(names), 4.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for number, run in enumerate(runs):
            style = STYLES[number % len(STYLES)]
            points = run.validation or run.train
            _draw(axes, points, name, 8, label=run.name, markersize=5, **style)
        label = "validation loss (bits)" if name == "loss" else f"validation {name}"
        open_axes(axes, xlabel="updates", ylabel=label)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    text = io.StringIO()
    # text as paths: the page looks the same everywhere
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "megalodon"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _draw(axes: Axes, points: Points, name: str, markers: int, **style: object) -> None:
    """Draw the values of ``name`` against updates, with about ``markers`` markers."""
    steps = [step for step, line in points.items() if name in line]
    if steps:
        every = max(1, len(steps) // markers) if markers else None
        axes.plot(steps, [points[step][name] for step in steps], markevery=every, **style)


def open_axes(axes: Axes, which: Literal["major", "both"] = "major", **labels: str) -> None:
    """Draw a light grid (of the minor ticks too with ``both``) and no box; set ``labels``."""
    axes.set(**labels)
    axes.grid(alpha=0.3, which=which)
    axes.spines[["top", "right"]].set_visible(False)

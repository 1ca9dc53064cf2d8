"""Curves of several runs in one picture, told apart without colour."""

import io
from itertools import product

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megalodon_tasks.reports.runs import FinishedRun
from megalodon_tasks.runs.training_log import Points

LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "x")
# From dark to light: they stay apart in grey.
SHADES = ("#0b3c6f", "#a05a00", "0.35", "0.6")
STYLES = [
    {"linestyle": line, "marker": marker, "color": shade}
    for marker, (line, shade) in product(MARKERS, zip(LINES, SHADES, strict=True))
]


def by_benchmark(runs: list[FinishedRun]) -> dict[str, str]:
    """One SVG picture per benchmark that has curves: the loss and the metric in validation."""
    pictures = {}
    for benchmark in sorted({run.recipe for run in runs}):
        drawn = [run for run in runs if run.recipe == benchmark and run.events]
        if drawn:
            pictures[benchmark] = _picture(drawn)
    return pictures


def _picture(runs: list[FinishedRun]) -> str:
    names = list(dict.fromkeys(("loss", runs[0].metric)))
    figure = Figure(figsize=(5.2 * len(names), 4.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for number, run in enumerate(runs):
            _draw(axes, run, name, STYLES[number % len(STYLES)])
        axes.set_xlabel("updates")
        axes.set_ylabel("validation loss (bits)" if name == "loss" else f"validation {name}")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    text = io.StringIO()
    # text as paths: the page looks the same everywhere
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "megalodon"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _draw(axes: Axes, run: FinishedRun, name: str, style: dict[str, str]) -> None:
    points: Points = run.events.get("valid") or run.events.get("train", {})
    updates = [update for update, values in points.items() if name in values]
    values = [points[update][name] for update in updates]
    if updates:
        every = max(1, len(updates) // 8)
        axes.plot(updates, values, label=run.name, markevery=every, markersize=5, **style)

"""Draw learning curves of several models, each over its seeds, against updates and against seconds."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megalodon_tasks.errors import UserError
from megalodon_tasks.files import atomic_file
from megalodon_tasks.runs.figures import STYLES, open_axes
from megalodon_tasks.runs.record import Run, read_run
from megalodon_tasks.runs.sweep import DONE, SEED, Sweep, SweepRun, shown

LABELS = {"loss": "validation loss (bits)", "accuracy": "validation accuracy (%)"}
MARKERS = 12  # on a line


def curves_of(sweep: Sweep) -> dict[str, list[Run]]:
    """Return the finished runs of a sweep by their settings except for the seed.

    Runs without validations, or whose record cannot be read, are left out.
    """
    curves: dict[str, list[Run]] = {}
    for run in sweep.runs:
        try:
            recorded = read_run(run.folder) if run.state == DONE else None
        except UserError:  # the table of the sweep names it
            continue
        if recorded is not None and recorded.validation:
            curves.setdefault(_label(sweep, run), []).append(recorded)
    return curves


def _label(sweep: Sweep, run: SweepRun) -> str:
    settings = {f: shown(f, value) for f, value in run.settings.items() if f != SEED}
    words = [
        value if field == "model._name" else f"{sweep.label(field)} {value}"
        for field, value in settings.items()
    ]
    return ", ".join(words) or sweep.recipe


def seconds_at(run: Run, steps: Sequence[int]) -> np.ndarray:
    """Return the seconds that ``run`` had taken at these updates, validations included, (points,)."""
    lines = {**run.train, **run.train_inner}
    known = {0: 0.0} | {step: line["wall"] for step, line in lines.items() if "wall" in line}
    at = sorted(known)
    return np.interp(steps, at, [known[step] for step in at])


def mean_and_range(runs: Sequence[Run], metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return updates (points,), mean seconds (points,), and values (runs, points).

    Points are the validations with ``metric`` that all runs have.
    """
    recorded = [
        {
            step: line[metric]
            for step, line in run.validation.items()
            if line.get(metric) is not None
        }
        for run in runs
    ]
    steps = sorted(set.intersection(*map(set, recorded)))
    values = np.array([[line[step] for step in steps] for line in recorded])
    seconds = np.mean([seconds_at(run, steps) for run in runs], axis=0)
    return np.array(steps), seconds, values


def draw_learning_curves(
    curves: Mapping[str, Sequence[Run]], metric: str, title: str, output: Path
) -> None:
    """Write a picture of ``metric`` in validation to ``output``; see :func:`draw_panels`."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    draw_panels(panels, curves, metric)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(title)
    with atomic_file(output) as stream:
        figure.savefig(stream, dpi=150, format="png")


def draw_panels(
    panels: Sequence[Axes],
    curves: Mapping[str, Sequence[Run]],
    metric: str,
    styles: Sequence[Mapping[str, object]] = STYLES,
    pace: Mapping[str, float] | None = None,
) -> None:
    """Draw ``metric`` in validation: a line is the mean of its runs, a band their range.

    panels: against updates, and against seconds.  curves: label -> runs that differ only in the seed;
    so many as there are styles are drawn.  The label of a line adds the number of runs and their median
    tokens a second in training, where recorded.  pace: label -> seconds of an update, in place of the
    time and speed that the runs recorded.
    """
    against_updates, against_seconds = panels
    for style, (label, runs) in zip(styles, curves.items(), strict=False):
        steps, seconds, values = mean_and_range(runs, metric)
        if not len(steps):
            continue
        if pace is not None:
            seconds = steps * pace.get(label, np.nan)
        style = {**style, "label": _described(label, runs, with_speed=pace is None)}
        _draw(against_updates, steps, values, style)
        _draw(against_seconds, seconds, values, style)
    label = LABELS.get(metric, f"validation {metric}")
    open_axes(against_updates, xlabel="updates", ylabel=label)
    open_axes(against_seconds, xlabel="seconds, validations included")


def _described(label: str, runs: Sequence[Run], with_speed: bool) -> str:
    speeds = [line["wps"] for run in runs for line in run.train_inner.values() if line.get("wps")]
    speed = f", {np.median(speeds):,.0f} tokens/s" if speeds and with_speed else ""
    return f"{label} ({len(runs)} run{'s' * (len(runs) > 1)}{speed})"


def _draw(axes: Axes, x: np.ndarray, values: np.ndarray, style: dict[str, object]) -> None:
    every = max(1, len(x) // MARKERS)
    axes.plot(x, values.mean(0), markevery=every, markersize=5, **style)
    axes.fill_between(x, values.min(0), values.max(0), color=style["color"], alpha=0.2, linewidth=0)


def draw_sweep(sweep: Sweep) -> Path | None:
    """Draw the curves of a sweep into its folder and return the file; None without validations."""
    curves = curves_of(sweep)
    if not curves:
        return None
    first = next(iter(curves.values()))[0]
    chosen = (
        first.start.get("config", {}).get("checkpoint", {}).get("best_checkpoint_metric", "loss")
    )
    output = sweep.folder / "learning_curves.png"
    title = sweep.recipe + (" (demo)" if sweep.demo else "")
    draw_learning_curves(curves, chosen, title, output)
    return output

"""Draw the training curve of a run: ``python -m megalodon_tasks.runs.plot SAVE_DIR``.

Reads ``train.log`` and ``results.jsonl`` in the folder of the run and writes ``training_curve.png``.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megalodon_tasks.runs import training_log
from megalodon_tasks.runs.training_log import Points

# Line style and lightness carry the meaning, so that grey prints and all eyes can tell them apart.
STYLES = {
    "train": {"color": "0.55", "linewidth": 1.2, "linestyle": "-"},
    "valid": {"color": "#0b3c6f", "linewidth": 1.8, "linestyle": "-", "marker": "o"},
    "constant": {"color": "black", "linewidth": 1.2, "linestyle": "--"},
}


def draw(events: dict[str, Points], constant: float | None, title: str, output: Path) -> None:
    """Write a picture of loss and accuracy (perplexity without one) against updates to ``output``."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, second = figure.subplots(1, 2)
    train = events.get("train_inner") or events.get("train", {})
    metric = "ppl" if _logs(events, "ppl") and not _logs(events, "accuracy") else "accuracy"
    for axes, name in ((loss, "loss"), (second, metric)):
        _draw_line(axes, train, name, "train", "training (running average)")
        _draw_line(axes, events.get("valid", {}), name, "valid", "validation")
        axes.set_xlabel("updates")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    loss.set_ylabel("loss (bits)")
    loss.set_ylim(bottom=0)
    if metric == "accuracy":
        second.set_ylabel("accuracy (%)")
        second.set_ylim(0, 100)
    else:
        second.set_ylabel("perplexity per token")
        second.set_yscale("log")
    if constant is not None:
        label = f"best constant answer ({constant:.1f} %)"
        second.axhline(constant, label=label, **STYLES["constant"])
    for axes in (loss, second):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(output, dpi=150)


def _logs(events: dict[str, Points], name: str) -> bool:
    return any(name in statistics for points in events.values() for statistics in points.values())


def _draw_line(axes: Axes, points: Points, name: str, style: str, label: str) -> None:
    updates = [update for update, statistics in points.items() if name in statistics]
    values = [points[update][name] for update in updates]
    if not updates:
        return
    markers = {"markevery": max(1, len(updates) // 12)} if style == "valid" else {}
    axes.plot(updates, values, label=label, **STYLES[style], **markers)


def best_constant(run: Path) -> float | None:
    """The best constant answer that the last evaluation in ``run`` found, if there was one."""
    file = run / "results.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    known = [json.loads(line).get("best_constant") for line in lines if line.startswith("{")]
    return known[-1] if known else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m megalodon_tasks.runs.plot", description="Draw the training curve of a run."
    )
    parser.add_argument("run", type=Path, help="folder of the run (checkpoint.save_dir)")
    parser.add_argument("--output", type=Path, help="default: training_curve.png in that folder")
    options = parser.parse_args(arguments)
    events = training_log.read(options.run / "train.log")
    output = options.output or options.run / "training_curve.png"
    draw(events, best_constant(options.run), options.run.resolve().name, output)
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

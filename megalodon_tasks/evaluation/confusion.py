"""The confusion matrix of a classifier as a picture, for two classes or a thousand.

A row is what an item is, a column what the model said, the colour the share of the row.  Lightness
alone carries it, so that it reads in grey and with any colour vision.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix

from megalodon_tasks.evaluation.predictions import Predictions
from megalodon_tasks.files import atomic_file

COLOURS = "Blues"
# Up to so many classes each cell has its numbers.
NUMBERED = 40
CELL_INCHES = {"few": 0.85, "some": 0.5}
FEW = 12
MANY_INCHES = 8.0
LISTED_PAIRS = 12
LONGEST_NAME = 18


def draw(predictions: Predictions, title: str, path: Path) -> None:
    """Write the picture of the confusion matrix to ``path`` (PNG)."""
    counts = confusion_matrix(
        predictions.labels, predictions.predicted, labels=range(len(predictions.classes))
    )
    items = counts.sum(axis=1, keepdims=True)
    shares = np.divide(100.0 * counts, items, out=np.zeros(counts.shape), where=items > 0)
    size = len(counts)
    numbered = size <= NUMBERED
    side = size * CELL_INCHES["few" if size <= FEW else "some"] if numbered else MANY_INCHES
    figure = Figure(figsize=(max(side, 3.0) + 2.2, max(side, 3.0) + 1.4), layout="constrained")
    axes = figure.subplots()
    # where there are many classes a small share must still be seen
    norm = PowerNorm(1.0 if numbered else 0.4, vmin=0, vmax=100)
    image = axes.imshow(shares, cmap=COLOURS, norm=norm, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, fraction=0.046, shrink=0.8)
    bar.set_label("% of the true class")
    names = [_short(name) for name in predictions.classes]
    if numbered:
        _write_cells(axes, counts, shares, 9 if size <= FEW else 6.5)
        _name_ticks(axes, names)
    axes.set_ylabel("true class")
    axes.set_xlabel("predicted class")
    accuracy = 100 * np.trace(counts) / counts.sum()
    axes.set_title(f"{title}\naccuracy {accuracy:.2f} %, {counts.sum():,} items", fontsize=10)
    if not numbered:
        figure.supxlabel(_confused(counts, names), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as stream:
        figure.savefig(stream, dpi=150, format="png")


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}\u2026"


def _write_cells(axes: Axes, counts: np.ndarray, shares: np.ndarray, size: float) -> None:
    for row, column in np.ndindex(counts.shape):
        if counts[row, column]:
            share = shares[row, column]
            percent = f"{share:.1f}" if counts.shape[0] <= FEW else f"{share:.0f}"
            axes.text(
                column, row, f"{counts[row, column]:,}\n{percent} %",
                ha="center", va="center", fontsize=size, linespacing=1.1,
                color="white" if share > 55 else "black",
            )  # fmt: skip


def _name_ticks(axes: Axes, names: Sequence[str]) -> None:
    upright = max(len(name) for name in names) > 4
    axes.set_xticks(range(len(names)), names, rotation=90 if upright else 0, fontsize=9)
    axes.set_yticks(range(len(names)), names, fontsize=9)


def _confused(counts: np.ndarray, names: Sequence[str]) -> str:
    """The pairs of classes that are confused most, as text."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(wrong, axis=None, kind="stable")[::-1][:LISTED_PAIRS]
    pairs = [divmod(int(flat), len(counts)) for flat in order if wrong.flat[flat]]
    if not pairs:
        return "no item is confused"
    lines = [
        f"{names[row]} taken for {names[column]}: {wrong[row, column]:,}" for row, column in pairs
    ]
    return "confused most often:\n" + "\n".join(lines)

"""Show the predictions of a classifier: accuracy by length and class, tables, and a confusion matrix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from scipy.stats import binomtest
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

from megalodon_tasks.evaluation.classifier import Predictions
from megalodon_tasks.files import atomic_file, write_rows

LENGTH_BINS = 10
PREDICTION_COLUMNS = (
    "id", "label", "prediction", "correct", "probability", "length", "label_name", "prediction_name",
)  # fmt: skip
GROUP_COLUMNS = ("items", "correct", "accuracy", "low_95", "high_95")

# Up to so many classes are listed one by one: on the terminal, and with numbers in the picture.
LISTED_CLASSES = 40
FEW_CLASSES = 12
LARGE_PICTURE_INCHES = 8.0
LISTED_PAIRS = 12
LONGEST_NAME = 18


@dataclass(frozen=True)
class Group:
    """Accuracy of some of the items, in percent, with its 95 % interval by Wilson's formula."""

    name: str
    count: int
    correct: int

    @property
    def accuracy(self) -> float:
        """Return percent; NaN for a group without items."""
        return 100 * self.correct / self.count if self.count else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Return the lower and upper end in percent."""
        if not self.count:
            return 0.0, 100.0
        found = binomtest(self.correct, self.count).proportion_ci(0.95, method="wilson")
        return 100 * float(found.low), 100 * float(found.high)


def by_length(predictions: Predictions, bins: int = LENGTH_BINS) -> list[Group]:
    """Return the accuracy in at most ``bins`` ranges of length that hold about as many items each.

    A range is named by the shortest and longest length in it.  Empty if all lengths are equal.
    """
    length = predictions.length
    if len(np.unique(length)) < 2:
        return []
    ends = np.unique(np.quantile(length, np.arange(1, bins + 1) / bins, method="higher"))
    which = np.searchsorted(ends, length)
    groups = []
    for number in range(len(ends)):
        inside = which == number
        low, high = length[inside].min(), length[inside].max()
        name = str(low) if low == high else f"{low}-{high}"
        groups.append(Group(name, int(inside.sum()), int(predictions.correct[inside].sum())))
    return groups


def by_class(predictions: Predictions) -> list[Group]:
    """Return the accuracy of the items of each class: its recall."""
    size = len(predictions.classes)
    counts = np.bincount(predictions.labels, minlength=size)
    hits = np.bincount(predictions.labels[predictions.correct], minlength=size)
    return [Group(name, int(counts[i]), int(hits[i])) for i, name in enumerate(predictions.classes)]


def table(title: str, groups: Sequence[Group]) -> list[str]:
    """Return the lines of a table to print."""
    width = max(len(title), *(len(group.name) for group in groups))
    lines = [f"  {title:{width}}  {'items':>8}  accuracy  95 % interval"]
    for group in groups:
        low, high = group.interval
        share = f"{group.accuracy:8.2f}  {low:.2f} - {high:.2f}" if group.count else f"{'-':>8}"
        lines.append(f"  {group.name:{width}}  {group.count:8,}  {share}")
    return lines


def report(predictions: Predictions, title: str, files: Mapping[str, Path]) -> dict[str, Path]:
    """Print the accuracy by class and length, and write ``files``; return those that were written.

    files: by name, ``predictions``, ``confusion``, ``by_length`` or ``by_class``.  Tables are separated
    by tabs if the name of the file ends in .tsv, else by commas.
    """
    lengths, classes = by_length(predictions), by_class(predictions)
    if len(classes) <= LISTED_CLASSES:
        print("\n".join(table("class", classes)))
    written = dict(files)
    if lengths:
        print("\n".join(table("length", lengths)))
    elif written.pop("by_length", None):
        print(f"all items have length {predictions.length[0]}: no accuracy by length")
    for name, path in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == "predictions":
            write_predictions(predictions, path)
        elif name == "confusion":
            draw_confusion(predictions, title, path)
        else:
            write_groups(
                name.removeprefix("by_"), lengths if name == "by_length" else classes, path
            )
        print(f"wrote {path}")
    return written


def write_groups(first: str, groups: Sequence[Group], path: Path) -> None:
    """Write one row per group; ``first`` heads the column of their names."""
    rows = [
        [g.name, g.count, g.correct, f"{g.accuracy:.4f}", *(f"{end:.4f}" for end in g.interval)]
        for g in groups
    ]
    write_rows(path, (first, *GROUP_COLUMNS), rows)


def write_predictions(predictions: Predictions, path: Path) -> None:
    """Write one row per item, by ascending id."""
    p = predictions
    columns = (p.ids, p.labels, p.predicted, p.correct, p.probability, p.length)
    rows = (
        [i, label, answer, int(right), f"{chance:.6f}", steps, p.classes[label], p.classes[answer]]
        for i, label, answer, right, chance, steps in zip(*columns, strict=True)
    )
    write_rows(path, PREDICTION_COLUMNS, rows)


def draw_confusion(predictions: Predictions, title: str, path: Path) -> None:
    """Write the confusion matrix to ``path`` (PNG), for two classes or a thousand.

    A row is the true class, a column the predicted one, the colour the share of the row.  Lightness
    shows it, so that it reads in grey and with any colour vision.
    """
    size = len(predictions.classes)
    counts = confusion_matrix(predictions.labels, predictions.predicted, labels=range(size))
    items = counts.sum(axis=1, keepdims=True)
    shares = np.divide(100.0 * counts, items, out=np.zeros(counts.shape), where=items > 0)
    few, numbered = size <= FEW_CLASSES, size <= LISTED_CLASSES
    side = max(size * (0.85 if few else 0.5), 3.0) if numbered else LARGE_PICTURE_INCHES
    figure = Figure(figsize=(side + 2.2, side + 1.4), layout="constrained")
    axes = figure.subplots()
    names = [
        name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}\u2026"
        for name in predictions.classes
    ]
    display = ConfusionMatrixDisplay(shares, display_labels=names).plot(
        ax=axes, cmap="Blues", include_values=numbered, colorbar=False,
        xticks_rotation="vertical" if max(map(len, names)) > 4 else "horizontal",
        text_kw={"fontsize": 9 if few else 6.5, "linespacing": 1.1},
        # where there are many classes a small share must still be seen
        im_kw={"norm": PowerNorm(1.0 if numbered else 0.4, vmin=0, vmax=100)},
    )  # fmt: skip
    figure.colorbar(display.im_, ax=axes, fraction=0.046, shrink=0.8, label="% of the true class")
    if numbered:
        for cell, text in np.ndenumerate(display.text_):
            percent = f"{shares[cell]:.1f}" if few else f"{shares[cell]:.0f}"
            text.set_text(f"{counts[cell]:,}\n{percent} %" if counts[cell] else "")
    else:
        axes.set(xticks=[], yticks=[])
        figure.supxlabel(_confused_most(counts, names), fontsize=8)
    axes.set(xlabel="predicted class", ylabel="true class")
    accuracy = 100 * np.trace(counts) / counts.sum()
    axes.set_title(f"{title}\naccuracy {accuracy:.2f} %, {counts.sum():,} items", fontsize=10)
    with atomic_file(path) as stream:
        figure.savefig(stream, dpi=150, format="png")


def _confused_most(counts: np.ndarray, names: Sequence[str]) -> str:
    """Return the pairs of classes that are confused most often, as text."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(wrong, axis=None, kind="stable")[::-1][:LISTED_PAIRS]
    pairs = [divmod(int(flat), len(counts)) for flat in order if wrong.flat[flat]]
    if not pairs:
        return "no item is confused"
    lines = [
        f"{names[row]} taken for {names[column]}: {wrong[row, column]:,}" for row, column in pairs
    ]
    return "confused most often:\n" + "\n".join(lines)

"""What a classifier answered for each item of a split: collecting it, and the tables made from it."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

from megalodon_tasks.files import atomic_file

LENGTH_BINS = 10
PREDICTION_COLUMNS = (
    "id", "label", "prediction", "correct", "probability", "length", "label_name", "prediction_name",
)  # fmt: skip


@dataclass(frozen=True)
class Predictions:
    """One answer per item: all arrays (items,); ``classes`` names the class of each number.

    ``probability``: what the softmax of the scores gave the predicted class.  ``length``: steps of the
    item, of the longer side for a pair.
    """

    ids: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray
    length: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def correct(self) -> np.ndarray:
        """(items,) bool."""
        return self.labels == self.predicted

    @property
    def best_constant(self) -> float:
        """Percentage of the commonest class: the accuracy of always answering it."""
        return 100 * int(np.bincount(self.labels).max()) / len(self)


class Collector:
    """Keeps the answers of a model, batch by batch; made a forward hook, it sees the scores."""

    def __init__(self) -> None:
        self._scores: torch.Tensor | None = None
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._num_classes = 0
        self._whole = True

    def hook(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        """For ``register_forward_hook``."""
        self._scores = output if isinstance(output, torch.Tensor) else None

    def add(self, sample: dict[str, Any]) -> None:
        """Take the answers to ``sample``, if they are scores (B, classes) and it has one class each."""
        scores, target = self._scores, sample.get("target")
        self._scores = None
        if not (_is_classes(target) and scores is not None and scores.dim() == 2):
            self._whole = False
            return
        probability, predicted = torch.softmax(scores.float(), dim=-1).max(dim=-1)
        self._num_classes = scores.shape[1]
        values = (sample["id"], target, predicted, probability, _lengths(sample))
        self._parts.append(tuple(value.cpu().numpy() for value in values))

    def result(self, classes: Sequence[str] | None) -> Predictions | None:
        """All answers by ascending id; None where some items have no single class.

        ``classes``: names; None numbers them.
        """
        if not self._whole or not self._parts:
            return None
        columns = [np.concatenate(parts) for parts in zip(*self._parts, strict=True)]
        order = np.argsort(columns[0], kind="stable")
        names = classes or [str(number) for number in range(self._num_classes)]
        return Predictions(*(column[order] for column in columns), classes=tuple(names))


def _is_classes(target: torch.Tensor | None) -> bool:
    return target is not None and target.dim() == 1 and not target.is_floating_point()


def _lengths(sample: dict[str, Any]) -> torch.Tensor:
    """(B,) int64: of the longer side for pairs; without lengths, all items have the same."""
    given = [v for k, v in sample["net_input"].items() if k.startswith("lengths") and v is not None]
    if given:
        return torch.stack(given).amax(dim=0)
    count = sample["id"].numel()
    return torch.full((count,), int(sample["ntokens"]) // count)


@dataclass(frozen=True)
class Group:
    """Accuracy of some of the items, in percent, with its 95 % interval by Wilson's formula."""

    name: str
    count: int
    correct: int

    @property
    def accuracy(self) -> float:
        """Percent; not a number for a group without items."""
        return 100 * self.correct / self.count if self.count else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Percent, lower and upper end."""
        if not self.count:
            return 0.0, 100.0
        found = binomtest(self.correct, self.count).proportion_ci(0.95, method="wilson")
        return 100 * float(found.low), 100 * float(found.high)


def by_length(predictions: Predictions, bins: int = LENGTH_BINS) -> list[Group]:
    """Accuracy in at most ``bins`` ranges of length that hold about as many items each.

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
    """Accuracy of the items of each class: its recall."""
    size = len(predictions.classes)
    counts = np.bincount(predictions.labels, minlength=size)
    hits = np.bincount(predictions.labels[predictions.correct], minlength=size)
    return [Group(name, int(counts[i]), int(hits[i])) for i, name in enumerate(predictions.classes)]


def table(title: str, groups: Sequence[Group]) -> list[str]:
    """Lines to print."""
    width = max(len(title), *(len(group.name) for group in groups))
    lines = [f"  {title:{width}}  {'items':>8}  accuracy  95 % interval"]
    for group in groups:
        low, high = group.interval
        share = f"{group.accuracy:8.2f}  {low:.2f} - {high:.2f}" if group.count else f"{'-':>8}"
        lines.append(f"  {group.name:{width}}  {group.count:8,}  {share}")
    return lines


def write_groups(first: str, groups: Sequence[Group], path: Path) -> None:
    """One row per group; ``first`` heads the column of their names.  Tabs if the name ends in .tsv."""
    rows = [
        [g.name, g.count, g.correct, f"{g.accuracy:.4f}", *(f"{end:.4f}" for end in g.interval)]
        for g in groups
    ]
    _write_table(path, (first, "items", "correct", "accuracy", "low_95", "high_95"), rows)


def write_predictions(predictions: Predictions, path: Path) -> None:
    """One row per item, by ascending id.  Separated by tabs if the name ends in .tsv, else by commas."""
    p = predictions
    columns = (p.ids, p.labels, p.predicted, p.correct, p.probability, p.length)
    rows = (
        [i, label, answer, int(right), f"{chance:.6f}", steps, p.classes[label], p.classes[answer]]
        for i, label, answer, right, chance, steps in zip(*columns, strict=True)
    )
    _write_table(path, PREDICTION_COLUMNS, rows)


def _write_table(path: Path, head: Sequence[str], rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with atomic_file(path, "w") as stream:
        writer = csv.writer(stream, delimiter=delimiter, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)

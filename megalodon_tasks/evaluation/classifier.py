"""Evaluate a model batch by batch as validation does, and collect what a classifier predicts."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fairseq import utils
from fairseq.logging import metrics
from tqdm import tqdm

from megalodon_tasks.errors import UserError
from megalodon_tasks.evaluation.checkpoint import Trained


@dataclass(frozen=True)
class Predictions:
    """The predicted class of each item: all arrays (items,); ``classes`` names the numbers.

    probability: of the predicted class, by the softmax of the scores.  length: steps of the item, of
    the longer side for a pair.
    """

    ids: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray
    length: np.ndarray
    classes: tuple[str, ...]

    @property
    def correct(self) -> np.ndarray:
        """Return (items,) bool."""
        return self.labels == self.predicted

    @property
    def best_constant(self) -> float:
        """Return the share of the commonest class in percent: the accuracy of always predicting it."""
        return 100 * int(np.bincount(self.labels).max()) / len(self.labels)


@dataclass(frozen=True)
class Score:
    """Statistics of one split; ``predictions`` is None where an item has no single class."""

    statistics: dict[str, float]
    count: int
    predictions: Predictions | None

    def record(self, metric: str) -> dict[str, Any]:
        """Return what a result records about the split.  Raises ``ValueError`` for another metric."""
        if metric not in self.statistics:
            raise ValueError(
                f"checkpoint.best_checkpoint_metric={metric!r} is not logged by the criterion, which "
                f"logs {', '.join(sorted(self.statistics))}"
            )
        names = {"value": metric, "loss": "loss"}
        if "top5" in self.statistics and metric != "top5":
            names["top5"] = "top5"
        constant = None if self.predictions is None else self.predictions.best_constant
        values = {name: float(self.statistics[logged]) for name, logged in names.items()}
        return {"metric": metric, **values, "n": self.count, "best_constant": constant}


class Collector:
    """Collect the predictions of a model, batch by batch, from a forward hook that sees the scores."""

    def __init__(self) -> None:
        self._scores: torch.Tensor | None = None
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._num_classes = 0
        self._complete = True

    def hook(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        """Keep the scores of a batch; for ``register_forward_hook``."""
        self._scores = output if isinstance(output, torch.Tensor) else None

    def add(self, sample: dict[str, Any]) -> None:
        """Take the predictions for ``sample``, if it has one class and (B, classes) scores per item."""
        scores, target = self._scores, sample.get("target")
        self._scores = None
        if scores is None or scores.dim() != 2 or target is None or not _are_classes(target):
            self._complete = False
            return
        probability, predicted = torch.softmax(scores.float(), dim=-1).max(dim=-1)
        self._num_classes = scores.shape[1]
        values = (sample["id"], target, predicted, probability, _lengths(sample))
        self._parts.append(tuple(value.cpu().numpy() for value in values))

    def result(self, classes: Sequence[str] | None) -> Predictions | None:
        """Return all predictions by ascending id, or None if some items have no single class.

        classes: names; None numbers them.
        """
        if not self._complete or not self._parts:
            return None
        columns = [np.concatenate(parts) for parts in zip(*self._parts, strict=True)]
        order = np.argsort(columns[0], kind="stable")
        names = classes or [str(number) for number in range(self._num_classes)]
        return Predictions(*(column[order] for column in columns), classes=tuple(names))


def _are_classes(target: torch.Tensor) -> bool:
    return target.dim() == 1 and not target.is_floating_point()


def _lengths(sample: dict[str, Any]) -> torch.Tensor:
    """Return (B,) int64: of the longer side for pairs; without lengths, all items have the same."""
    given = [v for k, v in sample["net_input"].items() if k.startswith("lengths") and v is not None]
    if given:
        return torch.stack(given).amax(dim=0)
    count = sample["id"].numel()
    return torch.full((count,), int(sample["ntokens"]) // count)


def evaluate(
    trained: Trained, split: str, batch_size: int | None = None, num_workers: int = 0
) -> Score:
    """Run the model over all of ``split`` and reduce the statistics as validation does.

    batch_size: items, by default as in training.  Raises :class:`UserError` if fairseq drops items.
    """
    task, settings = trained.task, trained.cfg.dataset
    task.load_dataset(split, combine=False, epoch=1)
    dataset = task.dataset(split)
    batches = task.get_batch_iterator(
        dataset=dataset,
        max_sentences=batch_size or settings.batch_size_valid or settings.batch_size,
        max_positions=utils.resolve_max_positions(
            task.max_positions(), trained.model.max_positions()
        ),
        num_workers=num_workers,
    ).next_epoch_itr(shuffle=False, set_dataset_epoch=False)
    collector = Collector()
    hook = trained.model.register_forward_hook(collector.hook)
    count = 0
    with metrics.aggregate(new_root=True) as meters, torch.inference_mode():
        for sample in tqdm(batches, desc=split, unit="batch", disable=not sys.stderr.isatty()):
            sample: Any = utils.move_to_cuda(sample) if trained.device.type == "cuda" else sample
            _, _, logged = task.valid_step(sample, trained.model, trained.criterion)
            task.reduce_metrics([logged], trained.criterion)
            count += sample["id"].numel()
            collector.add(sample)
    hook.remove()
    if count != len(dataset):
        raise UserError(f"split {split}: {count} of {len(dataset)} items were evaluated, not all")
    predictions = collector.result(getattr(task, "class_names", None))
    return Score(dict(meters.get_smoothed_values()), count, predictions)

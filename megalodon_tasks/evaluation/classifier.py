"""Evaluate a model batch by batch as validation does, and collect what a classifier predicts."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from fairseq import utils
from fairseq.logging import metrics
from tqdm import tqdm

from megalodon_tasks.errors import UserError
from megalodon_tasks.evaluation.checkpoint import Trained
from megalodon_tasks.fairseq_compat.divergence import finite


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


def predict(sample: dict[str, Any], output: Any) -> Predictions | None:
    """Return the predictions of a batch, of which the model computed ``output``.

    None unless each item has one class, and ``output`` is a score for each class, (B, classes).
    """
    target = sample.get("target")
    if not isinstance(output, torch.Tensor) or output.dim() != 2:
        return None
    if target is None or target.dim() != 1 or target.is_floating_point():
        return None
    probability, predicted = torch.softmax(output.float(), dim=-1).max(dim=-1)
    inputs = sample["net_input"]
    lengths = [v for k, v in inputs.items() if k.startswith("lengths") and v is not None]
    if lengths:
        length = torch.stack(lengths).amax(dim=0)
    else:
        length = torch.full_like(predicted, int(sample["ntokens"]) // len(predicted))
    columns = (sample["id"], target, predicted, probability, length)
    numbers = tuple(map(str, range(output.shape[1])))
    return Predictions(*(column.cpu().numpy() for column in columns), classes=numbers)


def join(
    batches: Sequence[Predictions | None], classes: Sequence[str] | None = None
) -> Predictions | None:
    """Return all predictions by ascending id, or None if a batch has none.

    classes: names instead of the numbers.
    """
    found = [batch for batch in batches if batch is not None]
    if not found or len(found) < len(batches):
        return None
    names = [field.name for field in fields(Predictions) if field.name != "classes"]
    columns = [np.concatenate([getattr(batch, name) for batch in found]) for name in names]
    order = np.argsort(columns[0], kind="stable")
    classes = tuple(classes or found[0].classes)
    return Predictions(*(column[order] for column in columns), classes=classes)


def _check_outputs(split: str, sample: dict[str, Any], computed: list[Any]) -> None:
    if not finite(computed) or not all(math.isfinite(n) for n in computed if isinstance(n, float)):
        raise UserError(
            f"split {split}: the output of the model is not finite for a batch with the items "
            f"{sample['id'].tolist()[:20]}; nothing was recorded"
        )


def evaluate(
    trained: Trained, split: str, batch_size: int | None = None, num_workers: int = 0
) -> Score:
    """Run the model over all of ``split`` and reduce the statistics as validation does.

    batch_size: items, by default the limits of validation.  Raises :class:`UserError` if fairseq drops
    items, and for an output or a loss that is not finite.
    """
    task, settings = trained.task, trained.cfg.dataset
    task.load_dataset(split, combine=False, epoch=1)
    dataset = task.dataset(split)
    max_tokens = None if batch_size else settings.max_tokens_valid or settings.max_tokens
    batches = task.get_batch_iterator(
        dataset=dataset,
        max_tokens=max_tokens,
        max_sentences=batch_size or settings.batch_size_valid or settings.batch_size,
        max_positions=utils.resolve_max_positions(
            task.max_positions(), trained.model.max_positions()
        ),
        num_workers=num_workers,
    ).next_epoch_itr(shuffle=False, set_dataset_epoch=False)
    outputs: list[Any] = []
    hook = trained.model.register_forward_hook(lambda *arguments: outputs.append(arguments[2]))
    predictions, count = [], 0
    with metrics.aggregate(new_root=True) as meters, torch.inference_mode():
        for sample in tqdm(batches, desc=split, unit="batch", disable=not sys.stderr.isatty()):
            sample: Any = utils.move_to_cuda(sample) if trained.device.type == "cuda" else sample
            outputs.clear()
            _, _, logged = task.valid_step(sample, trained.model, trained.criterion)
            task.reduce_metrics([logged], trained.criterion)
            count += sample["id"].numel()
            _check_outputs(split, sample, [*outputs[-1:], logged.get("loss")])
            predictions.append(predict(sample, outputs[-1] if outputs else None))
    hook.remove()
    if count != len(dataset):
        raise UserError(f"split {split}: {count} of {len(dataset)} items were evaluated, not all")
    classes = getattr(task, "class_names", None)
    return Score(dict(meters.get_smoothed_values()), count, join(predictions, classes))

"""Cross-entropy for classification, with accuracy.  Legend: B batch."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from fairseq import utils
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from fairseq.tasks import FairseqTask
from torch.nn import functional as F

from megalodon_tasks.models.settings import setting

TOP = 5


@dataclass
class ClassificationCriterionConfig(FairseqDataclass):
    """Settings of the criterion ``classification``."""

    label_smoothing: float = setting(
        0.0, "weight of the uniform distribution in the training targets"
    )


@register_criterion("classification", dataclass=ClassificationCriterionConfig)
class ClassificationCriterion(FairseqCriterion):
    """Cross-entropy between class scores and hard or soft targets, averaged over samples.

    Soft targets are distributions over the classes, such as those of mixed samples.  Label smoothing
    replaces a target t by ``(1 - smoothing) * t + smoothing / classes``, in training only, so that
    evaluation losses of different runs compare.

    The logged loss is in bits, like fairseq's.  ``accuracy`` is in percent, rounded to 4 places because
    fairseq picks the best checkpoint by the rounded value.  With more than 5 classes ``top5`` is logged
    too: how often the class is among the 5 highest scores.  For a soft target, the class is the one with
    the largest weight, so both are only a rough guide in training with mixed samples.
    """

    def __init__(self, task: FairseqTask, label_smoothing: float) -> None:
        super().__init__(task)
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(
                f"criterion.label_smoothing={label_smoothing} must be at least 0 and below 1"
            )
        self.label_smoothing = label_smoothing

    def forward(
        self, model: torch.nn.Module, sample: dict[str, Any]
    ) -> tuple[torch.Tensor, int, dict[str, Any]]:
        """Return the summed loss, the number of samples to divide it by, and sums for the log.

        ``model(**sample["net_input"])`` gives scores (B, classes); ``sample["target"]`` is (B,) int64
        classes or (B, classes) float distributions.  Raises ``ValueError`` for targets of another shape.
        """
        logits = model(**sample["net_input"]).float()
        target = sample["target"]
        soft = target.is_floating_point()
        expected = logits.shape if soft else logits.shape[:1]
        if target.shape != expected:
            raise ValueError(
                f"{'soft' if soft else 'hard'} targets have shape {tuple(target.shape)}, expected "
                f"{tuple(expected)} for scores of shape {tuple(logits.shape)}"
            )
        smoothing = self.label_smoothing if self.training else 0.0
        loss = F.cross_entropy(logits, target, reduction="sum", label_smoothing=smoothing)
        classes = target.argmax(dim=-1) if soft else target
        nsentences = target.shape[0]
        logged = {
            "loss": loss.detach(),
            "correct": (logits.argmax(dim=-1) == classes).sum(),
            "ntokens": sample["ntokens"],
            "nsentences": nsentences,
            "sample_size": nsentences,
        }
        if logits.shape[-1] > TOP:
            best_B5 = logits.topk(TOP, dim=-1).indices
            logged["correct_top5"] = (best_B5 == classes.unsqueeze(-1)).sum()
        return loss, nsentences, logged

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        """Log loss and accuracy from the sums of all batches and processes, as Python numbers."""
        loss, correct, count = (
            sum(utils.item(log.get(key, 0)) for log in logging_outputs)
            for key in ("loss", "correct", "sample_size")
        )
        metrics.log_scalar("loss", loss / count / math.log(2), count, round=4)
        metrics.log_scalar("accuracy", 100.0 * correct / count, count, round=4)
        if any("correct_top5" in log for log in logging_outputs):
            top5 = sum(utils.item(log.get("correct_top5", 0)) for log in logging_outputs)
            metrics.log_scalar("top5", 100.0 * top5 / count, count, round=4)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Return True: everything logged is a sum."""
        return True

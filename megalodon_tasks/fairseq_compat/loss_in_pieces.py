"""Let ``cross_entropy`` train language models of large vocabularies, without the scores of all tokens.

``CrossEntropyCriterion`` holds the scores, the logarithm of their softmax and its gradient
(criterions/cross_entropy.py:49): 25 GB for a vocabulary of 260K at 8K tokens.  With this patch models
that compute the loss from targets do so; for others fairseq's own code runs.
"""

from collections.abc import Callable
from typing import Any

import torch
from fairseq.criterions.cross_entropy import CrossEntropyCriterion

from megalodon_tasks.fairseq_compat.patching import wrap


def install() -> None:
    """Replace the computation of ``cross_entropy``."""
    wrap(CrossEntropyCriterion, "forward", _by_the_model)


def _by_the_model(
    stock: Callable,
    self: CrossEntropyCriterion,
    model: Any,
    sample: dict[str, Any],
    reduce: bool = True,
) -> tuple[torch.Tensor, int, dict[str, Any]]:
    if not getattr(model, "takes_targets", False):
        return stock(self, model, sample, reduce)
    target_BL = sample["target"]
    nll_BL, _ = model(**sample["net_input"], targets=target_BL)
    nll_BL = nll_BL.masked_fill(target_BL == self.padding_idx, 0.0)
    loss = nll_BL.sum() if reduce else nll_BL.flatten()
    sample_size = len(target_BL) if self.sentence_avg else sample["ntokens"]
    logged = {"loss": loss.data, "ntokens": sample["ntokens"], "nsentences": len(target_BL)}
    return loss, sample_size, logged | {"sample_size": sample_size}

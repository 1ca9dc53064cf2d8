"""Include every word in the adaptive loss: fairseq leaves out the second word of each rarer band.

Inside a band words are numbered from 0, and ``AdaptiveLoss.forward`` ignores the number of the padding
symbol there too (criterions/adaptive_loss.py:74, ``ignore_index``), which is 1: for the words 20,001 and
60,001 of WikiText-103 only the choice of the band is trained and counted.  The patch takes the loss of
each token from outputs that give it, as this project's does; fairseq computes it for others.
"""

from collections.abc import Callable
from typing import Any

import torch
from fairseq.criterions.adaptive_loss import AdaptiveLoss

from megalodon_tasks.fairseq_compat.patching import wrap


def install() -> None:
    """Replace the computation of ``adaptive_loss``."""
    wrap(AdaptiveLoss, "forward", _with_every_word)


def _with_every_word(
    stock: Callable, self: AdaptiveLoss, model: Any, sample: dict[str, Any], reduce: bool = True
) -> tuple[torch.Tensor, int, dict[str, Any]]:
    output = model.decoder.adaptive_softmax
    if not hasattr(output, "nll"):
        return stock(self, model, sample, reduce)
    net_output = model(**sample["net_input"])
    target_BL = model.get_targets(sample, net_output)
    padded_BL = target_BL == self.padding_idx
    nll_BL = output.nll(net_output[0], target_BL).masked_fill(padded_BL, 0.0)
    loss = nll_BL.sum() if reduce else nll_BL.flatten()
    ntokens = int(target_BL.numel() - padded_BL.sum())
    sample_size = len(target_BL) if self.sentence_avg else ntokens
    logged = {"loss": loss.data, "ntokens": ntokens, "nsentences": len(target_BL)}
    return loss, sample_size, logged | {"sample_size": sample_size}

"""Stochastic depth (arXiv 1603.09382): whole branches left out, per sample.  Legend: B batch."""

import torch


def drop_path(branch: torch.Tensor, probability: float, training: bool) -> torch.Tensor:
    """Zero the branch of each sample with ``probability``; scale the others so that the mean is kept.

    branch: (B, ...) float, what is about to be added to the residual stream.  Outside training, or at
    probability 0, it is returned as it is.  The same as timm's and torchvision's function, which this
    folder does without: it works with torch alone.
    """
    if not training or probability == 0.0:
        return branch
    keep = 1.0 - probability
    shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
    return branch * branch.new_empty(shape).bernoulli_(keep).div_(keep)

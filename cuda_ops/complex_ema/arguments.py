"""The arguments of CEMA."""

from typing import NamedTuple

import torch


class CemaCall(NamedTuple):
    """Arguments of :func:`cema`, which describes them, as backends receive them: checked."""

    x: torch.Tensor
    alpha: torch.Tensor
    delta: torch.Tensor
    theta: torch.Tensor
    gamma: torch.Tensor
    omega: torch.Tensor
    state: torch.Tensor | None
    padding_mask: torch.Tensor | None
    bidirectional: bool

    @property
    def logits(self) -> tuple[torch.Tensor, ...]:
        """alpha, delta, theta and gamma, from which the coefficients follow."""
        return self[1:5]

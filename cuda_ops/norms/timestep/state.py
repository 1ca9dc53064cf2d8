"""What timestep norm carries along the sequence."""

from typing import NamedTuple

import torch


class TimestepNormState(NamedTuple):
    """Moments of all real steps so far: shapes for batch B and G groups.

    ``mean`` and ``var`` are float32 (float64 for float64 inputs) and differentiable, in and out.
    Where the mean is ten thousand deviations from zero, float32 alone would round it by more than the
    accuracy promised, and again at every call of a long run; ``mean_low`` keeps what rounding took, so
    that the mean is ``mean + mean_low``.  It carries no gradient: all of it flows through ``mean``.
    """

    count: torch.Tensor  # (B,) int64, real steps seen (steps, not elements)
    mean: torch.Tensor  # (B, G)
    var: torch.Tensor  # (B, G), biased
    mean_low: torch.Tensor | None = None  # (B, G), None is zeros

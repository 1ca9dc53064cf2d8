"""The arguments of the norms over time, and the state of timestep norm."""

from typing import NamedTuple

import torch

from megalodon_tasks.cuda_ops import checks


class TimestepNormState(NamedTuple):
    """Moments of all real steps so far, for batch B and G groups.

    ``mean`` and ``var`` are float32 (float64 for float64 inputs) and differentiable, in and out.
    Where the mean is ten thousand deviations from zero, float32 rounds it by more than the promised
    accuracy, and again at every call of a long run.  ``mean_low`` holds the rounding error: the mean is
    ``mean + mean_low``.  It carries no gradient: all of it flows through ``mean``.
    """

    count: torch.Tensor  # (B,) int64, real steps seen (steps, not elements)
    mean: torch.Tensor  # (B, G)
    var: torch.Tensor  # (B, G), biased
    mean_low: torch.Tensor | None = None  # (B, G), None is zeros


class NormCall(NamedTuple):
    """Arguments of :func:`timestep_norm` or :func:`sequence_norm`, which describe them, for backends."""

    x: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor
    num_groups: int
    eps: float
    padding_mask: torch.Tensor | None
    state: TimestepNormState | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there are no rows or no steps, so that there is nothing to compute."""
        return 0 in self.x.shape[:2]

    def check(self, op: str) -> None:
        """Raise ``ValueError``, with the name ``op``, unless all but the state is valid."""
        x, scale, bias, num_groups, _, padding_mask, _ = self
        checks.check_shape(op, "x", x, (None, None, None), "(batch, length, dim)")
        batch, length, dim = x.shape
        if num_groups < 1 or dim % num_groups:
            raise ValueError(
                f"{op}: num_groups={num_groups} does not divide dim {dim}; "
                f"choose a divisor of {dim}"
            )
        tensors = {"x": x, "scale": scale, "bias": bias}
        for name, tensor in tensors.items():
            checks.check_float(op, name, tensor)
        checks.check_shape(op, "scale", scale, (dim,), "(dim,)")
        checks.check_shape(op, "bias", bias, (dim,), "(dim,)")
        checks.check_padding_mask(op, padding_mask, batch, length)
        checks.check_same_device(op, **tensors, padding_mask=padding_mask)


class SequenceNormArguments(NamedTuple):
    """Arguments of the operators of sequence norm: those of :class:`NormCall` without a state."""

    x: torch.Tensor  # (B, L, D)
    scale: torch.Tensor  # (D,)
    bias: torch.Tensor  # (D,)
    padding_mask: torch.Tensor | None  # (B, L)
    groups: int
    eps: float

    @classmethod
    def of(cls, call: NormCall) -> "SequenceNormArguments":
        """Return those of ``call``."""
        return cls(*call[:3], call.padding_mask, call.num_groups, call.eps)

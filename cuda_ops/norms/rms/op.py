"""The public ``rms_norm``: check the arguments, choose a backend, call it."""

import torch

from megalodon_tasks.cuda_ops import checks
from megalodon_tasks.cuda_ops.dispatch import pick

OP = "rms_norm"


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    eps: float = 1e-5,
    backend: str | None = None,
) -> torch.Tensor:
    """Compute the root-mean-square norm of arXiv 1910.07467 over the last axis.

    ``x / sqrt(mean(x^2) + eps) * weight``, in float32 or better.

    Args:
        x: input (..., D), a real floating dtype.
        weight: factor (D,), or None for one everywhere.  The layer that stores it minus one
            (arXiv 2404.08801, equation 23) adds the one.
        eps: added to the mean square inside the square root.
        backend: ``reference``, ``torch``, ``fused``; None chooses by device (see ``dispatch``).

    Returns:
        (..., D) in the dtype of ``x``.

    Raises:
        ValueError: a tensor has the wrong shape, dtype or device, or the backend is unknown.
    """
    checks.check_float(OP, "x", x)
    if weight is not None:
        checks.check_float(OP, "weight", weight)
        # Short vectors feel every microsecond: the general checks are left to the cases that fail.
        if weight.shape != x.shape[-1:]:
            checks.check_shape(OP, "weight", weight, (x.shape[-1],), "(dim,)")
        if weight.device != x.device:
            checks.check_same_device(OP, x=x, weight=weight)
    return pick(OP, backend, x.device, x.dtype)(x, weight, eps)

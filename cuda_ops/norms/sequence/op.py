"""The public ``sequence_norm``: check the arguments, choose a backend, call it."""

import torch

from megalodon_tasks.cuda_ops.dispatch import pick
from megalodon_tasks.cuda_ops.norms.arguments import NormCall

OP = "sequence_norm"


def sequence_norm(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    num_groups: int,
    *,
    eps: float = 1e-5,
    padding_mask: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Compute a group norm over time and the features of a group, without padding in the moments.

    The bidirectional counterpart of ``timestep_norm`` (arXiv 2404.08801, section 3.2, figure 2): each
    of the ``num_groups`` groups of ``d = D / num_groups`` features has one mean and one biased variance
    per sequence, over its real steps::

        y_tj = (x_tj - mean) / sqrt(var + eps) * scale_j + bias_j

    Args:
        x: input (B, L, D), a real floating dtype.
        scale: factor (D,).  The layer that stores it minus one (equation 23) adds the one.
        bias: offset (D,).
        num_groups: number of groups, a divisor of D; D itself normalises each feature over time.
        eps: added to the variance inside the square root.
        padding_mask: bool (B, L), True at padding.  A padded step counts as absent, whatever ``x``
            holds (NaN too), and its output is zero.
        backend: ``reference``, ``torch``, ``triton``; None chooses by device (see ``dispatch``).

    Returns:
        y (B, L, D) in the dtype of ``x``.

    Raises:
        ValueError: a tensor has the wrong shape, dtype or device, ``num_groups`` does not divide D,
            or the backend is unknown.
        BackendUnavailable: the backend was asked for by name and cannot run here.
    """
    call = NormCall(x, scale, bias, num_groups, eps, padding_mask)
    call.check(OP)
    if call.is_empty:
        return (x * scale + bias).to(x.dtype)
    return pick(OP, backend, x.device, x.dtype)(call)

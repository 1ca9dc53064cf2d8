"""The public ``timestep_norm``: check the arguments, choose a backend, call it."""

import torch

from megalodon_tasks.cuda_ops import checks
from megalodon_tasks.cuda_ops.dispatch import pick
from megalodon_tasks.cuda_ops.norms.arguments import NormCall, TimestepNormState

OP = "timestep_norm"


def timestep_norm(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    num_groups: int,
    *,
    eps: float = 1e-5,
    state: TimestepNormState | None = None,
    padding_mask: torch.Tensor | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, TimestepNormState]:
    """Compute a group norm whose moments at step t cover steps 1..t, equation 4 of arXiv 2404.08801.

    For each group of ``d = D / num_groups`` features, with t counted over real steps::

        mean_t = sum_{i <= t, j} x_ij / (t d)      var_t = sum_{i <= t, j} (x_ij - mean_t)^2 / (t d)
        y_tj = (x_tj - mean_t) / sqrt(var_t + eps) * scale_j + bias_j

    NaN or infinity at a real step reaches the outputs of its group from there on, and no earlier one.

    Args:
        x: input (B, L, D), a real floating dtype.
        scale: factor (D,).  The layer that stores it minus one (equation 23) adds the one.
        bias: offset (D,).
        num_groups: number of groups G, a divisor of D.
        eps: added to the variance inside the square root.
        state: moments of the steps before ``x``, or None.  Gradients flow to its ``mean`` and ``var``.
        padding_mask: bool (B, L), True at padding.  A padded step leaves the moments as they are
            whatever ``x`` holds (NaN too), and its output is zero.
        backend: ``reference``, ``torch``, ``triton``; None chooses by device (see ``dispatch``).

    Returns:
        ``(y, state)``: y (B, L, D) in the dtype of ``x``, and the moments after step L, float64 if
        ``x`` is float64 and float32 otherwise.

    Raises:
        ValueError: a tensor has the wrong shape, dtype or device, ``num_groups`` does not divide D,
            or the backend is unknown.
        BackendUnavailable: the backend was asked for by name and cannot run here.
    """
    call = NormCall(x, scale, bias, num_groups, eps, padding_mask, state)
    call.check(OP)
    if state is not None:
        _check_state(x, num_groups, state)
    if call.is_empty:
        return _nothing(call)
    return pick(OP, backend, x.device, x.dtype)(call)


def _nothing(call: NormCall) -> tuple[torch.Tensor, TimestepNormState]:
    """Return what a call without rows or without steps does: no output, the state that it was given."""
    x, state = call.x, call.state
    y = (x * call.scale + call.bias).to(x.dtype)
    wide = torch.promote_types(x.dtype, torch.float32)
    zeros = x.new_zeros(x.shape[0], call.num_groups, dtype=wide)
    if state is None:
        return y, TimestepNormState(x.new_zeros(len(x), dtype=torch.int64), zeros, zeros, zeros)
    low = zeros if state.mean_low is None else state.mean_low.to(wide)
    return y, TimestepNormState(state.count, state.mean.to(wide), state.var.to(wide), low)


def _check_state(x: torch.Tensor, num_groups: int, state: TimestepNormState) -> None:
    batch, groups = x.shape[0], (x.shape[0], num_groups)
    checks.check_shape(OP, "state.count", state.count, (batch,), "(batch,)")
    if state.count.dtype != torch.int64:
        raise ValueError(f"{OP}: state.count has dtype {state.count.dtype}, expected int64")
    moments = {"mean": state.mean, "var": state.var, "mean_low": state.mean_low}
    for name, tensor in moments.items():
        if tensor is not None:
            checks.check_shape(OP, f"state.{name}", tensor, groups, "(batch, num_groups)")
            checks.check_float(OP, f"state.{name}", tensor)
    checks.check_same_device(OP, x=x, **{f"state.{k}": v for k, v in state._asdict().items()})

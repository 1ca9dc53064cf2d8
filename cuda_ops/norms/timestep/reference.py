"""Timestep norm as the equation is written: one step at a time, a mean and a variance per group.

Legend: B batch, L length, D dim, G groups, J = D / G features of a group.
"""

import torch

from megalodon_tasks.cuda_ops.norms.arguments import NormCall, TimestepNormState


def timestep_norm_reference(call: NormCall) -> tuple[torch.Tensor, TimestepNormState]:
    """Compute equation 4 of arXiv 2404.08801 by Welford's recurrence (appendix B.1), step by step.

    Half types are promoted to float32; any other dtype is used as it is.  ``mean_low`` of a given
    state is added to its mean; that of the returned state is zero, because the mean is one number here.
    """
    x, scale, bias, num_groups, eps, padding_mask, state = call
    wide = torch.promote_types(x.dtype, torch.float32)
    batch, length, dim = x.shape
    x_BLGJ = x.to(wide).unflatten(-1, (num_groups, -1))
    if padding_mask is None:
        padding_mask = x.new_zeros(batch, length, dtype=torch.bool)
    x_BLGJ = x_BLGJ.masked_fill(padding_mask[:, :, None, None], 0.0)
    count, mean_BG, var_BG = _start(state, x_BLGJ)
    outputs = []
    for x_BGJ, padded in zip(x_BLGJ.unbind(1), padding_mask.unbind(1), strict=True):
        count = count + (~padded).long()
        steps = count.clamp(min=1).to(wide)[:, None]
        before_BGJ = x_BGJ - mean_BG[:, :, None]
        moved_BG = mean_BG + before_BGJ.mean(-1) / steps
        squares_BG = (before_BGJ * (x_BGJ - moved_BG[:, :, None])).mean(-1)
        mean_BG = torch.where(padded[:, None], mean_BG, moved_BG)
        var_BG = torch.where(padded[:, None], var_BG, var_BG + (squares_BG - var_BG) / steps)
        normed = (x_BGJ - mean_BG[:, :, None]) * torch.rsqrt(var_BG + eps)[:, :, None]
        y_BD = normed.flatten(1) * scale.to(wide) + bias.to(wide)
        outputs.append(y_BD.masked_fill(padded[:, None], 0.0))
    y = torch.stack(outputs, dim=1).to(x.dtype)
    return y, TimestepNormState(count, mean_BG, var_BG, torch.zeros_like(mean_BG))


def _start(
    state: TimestepNormState | None, x_BLGJ: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, _, groups, _ = x_BLGJ.shape
    if state is None:
        zeros = x_BLGJ.new_zeros(batch, groups)
        return x_BLGJ.new_zeros(batch, dtype=torch.int64), zeros, zeros
    mean = state.mean.to(x_BLGJ.dtype)
    if state.mean_low is not None:
        mean = mean + state.mean_low.to(x_BLGJ.dtype).detach()
    return state.count, mean, state.var.to(x_BLGJ.dtype)

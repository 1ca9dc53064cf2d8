"""Sequence norm as the equations are written: a mean, then a variance around it."""

import torch

from megalodon_tasks.cuda_ops.norms.arguments import NormCall


def sequence_norm_reference(call: NormCall) -> torch.Tensor:
    """Compute a mean over the real steps of each sequence and group, then a variance around it.

    Half types are promoted to float32; any other dtype is used as it is.
    """
    x, scale, bias, num_groups, eps, padding_mask, _ = call
    wide = torch.promote_types(x.dtype, torch.float32)
    batch, length, dim = x.shape
    x_BLGJ = x.to(wide).unflatten(-1, (num_groups, -1))
    if padding_mask is None:
        padding_mask = x.new_zeros(batch, length, dtype=torch.bool)
    padded = padding_mask[:, :, None, None]
    x_BLGJ = x_BLGJ.masked_fill(padded, 0.0)
    elements = ((~padded).sum(1, keepdim=True) * (dim // num_groups)).clamp(min=1).to(wide)
    mean = x_BLGJ.sum((1, 3), keepdim=True) / elements
    centred_BLGJ = (x_BLGJ - mean).masked_fill(padded, 0.0)
    var = centred_BLGJ.square().sum((1, 3), keepdim=True) / elements
    y_BLD = (centred_BLGJ * torch.rsqrt(var + eps)).flatten(2) * scale.to(wide) + bias.to(wide)
    return y_BLD.masked_fill(padding_mask[:, :, None], 0.0).to(x.dtype)

"""The root-mean-square norm as the equation is written."""

import torch


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """Compute ``x / sqrt(mean(x^2) + eps) * weight``; half types are promoted to float32."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = x.to(wide) / (x.to(wide).square().mean(-1, keepdim=True) + eps).sqrt()
    if weight is not None:
        y = y * weight.to(wide)
    return y.to(x.dtype)

"""The norms of Mega's recipes.  Legend: B batch, L length, D dim."""

import torch
from torch import nn

from megalodon_tasks.cuda_ops import rms_norm


class ScaleNorm(nn.Module):
    """Scale each step to root mean square 1, times one learned number (arXiv 1910.05895)."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.scalar = nn.Parameter(torch.ones(1))

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """Map (B, L, D) to (B, L, D)."""
        return rms_norm(x_BLD, eps=self.eps) * self.scalar.to(x_BLD.dtype)


class MegaNorm(nn.Module):
    """Normalise as ``norm_type`` says: ``layer``, ``scale``, ``batch`` or ``syncbatch``.

    ``batch`` is PyTorch's batch norm over the real steps of the batch; Mega's code counts the padded
    ones, too.  ``syncbatch`` counts those of all processes, which have to be on GPUs.
    """

    def __init__(self, norm_type: str, dim: int, eps: float) -> None:
        super().__init__()
        builders = {
            "layer": lambda: nn.LayerNorm(dim, eps),
            "scale": lambda: ScaleNorm(eps),
            "batch": lambda: nn.BatchNorm1d(dim, eps),
            "syncbatch": lambda: nn.SyncBatchNorm(dim, eps),
        }
        self.over_batch = norm_type in ("batch", "syncbatch")
        self.norm = builders[norm_type]()

    def forward(self, x_BLD: torch.Tensor, padding_mask_BL: torch.Tensor | None) -> torch.Tensor:
        """Map (B, L, D) to (B, L, D).  padding_mask: (B, L) bool, True at padding."""
        if not self.over_batch:
            return self.norm(x_BLD)
        if padding_mask_BL is None or not self.training:
            return self.norm(x_BLD.flatten(0, 1)).view_as(x_BLD)
        real_BL = ~padding_mask_BL
        normed_ND = self.norm(x_BLD[real_BL])
        return torch.zeros_like(x_BLD, dtype=normed_ND.dtype).masked_scatter(
            real_BL[..., None], normed_ND
        )

"""Norms with the plus-one parameterisation (arXiv 2404.08801, eq. 23).

The stored weight starts at 0 and is used as ``weight + 1``, so that weight decay pulls the scale
towards 1 and not towards 0.  Legend: B batch, L length, D dim, G groups.
"""

import torch
from torch import nn
from torch.nn import functional as F

from megalodon_tasks.cuda_ops import TimestepNormState, rms_norm, sequence_norm, timestep_norm
from megalodon_tasks.models.chunk_parallel import ChunkParallel
from megalodon_tasks.models.config import MegalodonConfig


class TimeNorm(nn.Module):
    """Normalise along the sequence, before attention and at the end of the stack.

    Causal: timestep norm (eq. 4), cumulative.  Otherwise group norm over (time x group) with padding
    excluded, as the paper has it for classification (appendix C).
    """

    def __init__(self, dim: int, num_groups: int, eps: float, causal: bool) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.eps = eps
        self.causal = causal
        self.chunk_parallel: ChunkParallel | None = None  # see set_chunk_parallel
        self.weight = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(
        self,
        x_BLD: torch.Tensor,
        padding_mask_BL: torch.Tensor | None = None,
        state: TimestepNormState | None = None,
    ) -> tuple[torch.Tensor, TimestepNormState | None]:
        """Map (B, L, D) to (B, L, D) and the moments after the last step (None if not causal)."""
        scale_D = self.weight + 1
        options = {"eps": self.eps, "padding_mask": padding_mask_BL}
        if self.chunk_parallel is not None:
            state = self.chunk_parallel.moments(x_BLD, self.num_groups, padding_mask_BL, state)
        if self.causal:
            return timestep_norm(x_BLD, scale_D, self.bias, self.num_groups, state=state, **options)
        return sequence_norm(x_BLD, scale_D, self.bias, self.num_groups, **options), None


def build_norm(config: MegalodonConfig) -> "TimeNorm | StepNorm":
    """Build the norm before attention and at the end of a stack, as ``config.norm_type`` says."""
    if config.norm_type == "layer":
        return StepNorm(config.model_dim, config.norm_eps)
    return TimeNorm(config.model_dim, config.norm_groups, config.norm_eps, config.causal)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the features, weight stored minus one."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., D) to (..., D)."""
        return rms_norm(x, (self.weight + 1).to(x.dtype), eps=self.eps)


class LayerNorm(nn.Module):
    """Layer norm over the features, weight stored minus one."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., D) to (..., D)."""
        scale = (self.weight + 1).to(x.dtype)
        return F.layer_norm(x, self.weight.shape, scale, self.bias.to(x.dtype), self.eps)


class StepNorm(LayerNorm):
    """Layer norm in the place of :class:`TimeNorm`: each step by itself, so without a state."""

    def forward(
        self, x_BLD: torch.Tensor, padding_mask_BL: torch.Tensor | None = None, state: None = None
    ) -> tuple[torch.Tensor, None]:
        """Map (B, L, D) to (B, L, D), zero at padding."""
        y_BLD = super().forward(x_BLD)
        if padding_mask_BL is not None:
            y_BLD = y_BLD.masked_fill(padding_mask_BL[..., None], 0.0)
        return y_BLD, None

"""The feed-forward layer with its norm.  Legend: B batch, L length, D model dim, F hidden width."""

import torch
from torch import nn
from torch.nn import functional as F

from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.layers.linear import Linear, init_linear
from megalodon_tasks.models.layers.norms import LayerNorm


class NormalizedFeedForward(nn.Module):
    """Compute ``FFN(LayerNorm(y))``, without biases, as released (arXiv 2404.08801, eq. 11)."""

    def __init__(self, config: MegalodonConfig, layer_index: int) -> None:
        super().__init__()
        d, f = config.model_dim, config.ffn_hidden_dim
        self.norm = LayerNorm(d, config.norm_eps)
        self.fc1 = Linear(d, f, bias=False)
        self.fc3 = Linear(d, f, bias=False) if config.swiglu else None
        self.fc2 = Linear(f, d, bias=False)
        self.dropout = config.dropout
        self.hidden_dropout = config.hidden_dropout
        self.layer_scale = (
            nn.Parameter(torch.full((d,), 0.1 * 0.5**layer_index)) if config.rescale_nffn else None
        )
        for linear in filter(None, (self.fc1, self.fc2, self.fc3)):
            init_linear(linear, config.init_mode)

    def forward(self, y_BLD: torch.Tensor) -> torch.Tensor:
        """Map the output of the attention half, (B, L, D), to the branch (B, L, D)."""
        normed_BLD = self.norm(y_BLD)
        hidden_BLF = F.silu(self.fc1(normed_BLD))
        if self.fc3 is not None:
            hidden_BLF = hidden_BLF * self.fc3(normed_BLD)
        hidden_BLF = F.dropout(hidden_BLF, self.hidden_dropout, self.training)
        out_BLD = F.dropout(self.fc2(hidden_BLF), self.dropout, self.training)
        return out_BLD if self.layer_scale is None else out_BLD * self.layer_scale

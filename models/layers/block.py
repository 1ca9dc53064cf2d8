"""One Megalodon block: gated attention, then feed-forward, with the two-hop residual."""

import torch
from torch import nn

from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.layers.feed_forward import NormalizedFeedForward
from megalodon_tasks.models.layers.gated_attention import GatedAttention
from megalodon_tasks.models.state import BlockState


class MegalodonBlock(nn.Module):
    """``Y^ = Attention(Norm(X)) + X;  Y = FFN(Norm(Y^)) + X`` (arXiv 2404.08801, eq. 11).

    With ``config.drop_path`` each of the two branches is dropped by itself, per sample.  Both residuals
    come from X, so a sample whose feed-forward branch is dropped leaves the block as it came.
    """

    def __init__(self, config: MegalodonConfig, layer_index: int) -> None:
        super().__init__()
        self.attention = GatedAttention(config, layer_index)
        self.feed_forward = NormalizedFeedForward(config, layer_index)

    def forward(
        self,
        x_BLD: torch.Tensor,
        padding_mask_BL: torch.Tensor | None = None,
        state: BlockState | None = None,
    ) -> tuple[torch.Tensor, BlockState | None]:
        """(B, L, D) -> (B, L, D) and the state after the last step (None when not causal)."""
        y_BLD, state = self.attention(x_BLD, padding_mask_BL, state)
        return self.feed_forward(y_BLD, residual_BLD=x_BLD), state

"""One Megalodon block: gated attention, then feed-forward, with the two-hop residual.

Legend: B batch, L length, D model dim.
"""

import torch
from torch import nn

from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.layers.feed_forward import NormalizedFeedForward
from megalodon_tasks.models.layers.gated_attention import GatedAttention
from megalodon_tasks.models.state import BlockState


class MegalodonBlock(nn.Module):
    """Compute ``Y^ = Attention(Norm(X)) + X;  Y = FFN(Norm(Y^)) + X`` (arXiv 2404.08801, eq. 11).

    The second residual comes from two hops back, which keeps the stream's scale from growing with depth.
    With ``config.residual`` "plain" it is Y^, the sum of the first half.
    ``config.drop_path`` drops each of the two branches independently, per sample; a sample whose
    feed-forward branch is dropped leaves the block unchanged.
    """

    def __init__(self, config: MegalodonConfig, layer_index: int) -> None:
        super().__init__()
        self.drop_path = config.drop_path_at(layer_index)
        self.two_hop = config.residual == "two_hop"
        self.attention = GatedAttention(config)
        self.feed_forward = NormalizedFeedForward(config, layer_index)

    def forward(
        self,
        x_BLD: torch.Tensor,
        padding_mask_BL: torch.Tensor | None = None,
        state: BlockState | None = None,
    ) -> tuple[torch.Tensor, BlockState | None]:
        """Map (B, L, D) to (B, L, D) and the state after the last step (None if not causal)."""
        branch_BLD, state = self.attention(x_BLD, padding_mask_BL, state)
        y_BLD = drop_path(branch_BLD, self.drop_path, self.training) + x_BLD
        branch_BLD = self.feed_forward(y_BLD)
        branch_BLD = drop_path(branch_BLD, self.drop_path, self.training)
        return branch_BLD + (x_BLD if self.two_hop else y_BLD), state


def drop_path(branch: torch.Tensor, probability: float, training: bool) -> torch.Tensor:
    """Zero the branch of each sample with ``probability``, and scale the others to the same mean.

    Stochastic depth (arXiv 1603.09382).  branch: (B, ...) float, about to be added to the residual
    stream.  It is returned as it is outside training and at probability 0.  timm and torchvision have
    the same function, but this folder needs torch only.
    """
    if not training or probability == 0.0:
        return branch
    keep = 1.0 - probability
    shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
    return branch * branch.new_empty(shape).bernoulli_(keep).div_(keep)

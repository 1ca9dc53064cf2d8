"""Mega (arXiv 2209.10655), the predecessor, to compare with: its encoder in a classifier.

Embeddings, pooling and heads are those of Megalodon's classifiers, so that the stack is all that
differs.  Legend: B batch, L length, D model dim.
"""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from megalodon_tasks.models.classifier import SequenceClassifier
from megalodon_tasks.models.config import MegaConfig
from megalodon_tasks.models.layers.mega_block import MegaBlock
from megalodon_tasks.models.layers.mega_norm import MegaNorm


class MegaStack(nn.Module):
    """Map vectors to vectors, both directions seen; with ``config.prenorm`` a norm at the end."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        config.validate()
        self.checkpoint_activations = config.checkpoint_activations
        self.blocks = nn.ModuleList(MegaBlock(config, i) for i in range(config.num_layers))
        self.norm = None
        if config.prenorm:
            self.norm = MegaNorm(config.norm_type, config.model_dim, config.norm_eps)

    def forward(
        self, x_BLD: torch.Tensor, padding_mask_BL: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, None]:
        """Return (B, L, D), zero at padding, and None, as an encoder has no state.

        x: (B, L, D) float.  padding_mask: (B, L) bool, True at padding.
        """
        recompute = self.checkpoint_activations and torch.is_grad_enabled()
        for block in self.blocks:
            if recompute:
                x_BLD = checkpoint(block, x_BLD, padding_mask_BL, use_reentrant=False)
            else:
                x_BLD = block(x_BLD, padding_mask_BL)
        if self.norm is not None:
            x_BLD = self.norm(x_BLD, padding_mask_BL)
        if padding_mask_BL is not None:
            x_BLD = x_BLD.masked_fill(padding_mask_BL.unsqueeze(-1), 0.0)
        return x_BLD, None


class MegaSequenceClassifier(SequenceClassifier):
    """:class:`SequenceClassifier` with a stack of Mega blocks."""

    stack_type = MegaStack

"""The Transformer that Megalodon is compared with: pre-norm RMSNorm, SwiGLU, rotary positions.

The Llama-style model of arXiv 2404.08801, figures 1 and 4 (Touvron et al., arXiv 2307.09288), as a
decoder or an encoder, in place of :class:`MegalodonStack` in the same language models and classifiers.
Legend: B batch, L length, D model dim, F hidden width.
"""

from dataclasses import dataclass, fields, replace
from typing import Optional

import torch
from torch import nn
from torch.nn import functional as F

from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.layers.block import MegalodonBlock, drop_path
from megalodon_tasks.models.layers.fused_attention import FusedAttention
from megalodon_tasks.models.layers.linear import Linear, init_linear
from megalodon_tasks.models.layers.norms import RMSNorm
from megalodon_tasks.models.settings import setting
from megalodon_tasks.models.stack import MegalodonStack
from megalodon_tasks.models.state import BlockState

# Narrowest model of each width of a head: 128 is that of Llama 2.
HEAD_WIDTHS = {2048: 128, 512: 64, 128: 32, 0: 16}


@dataclass
class TransformerConfig(MegalodonConfig):
    """Describe a Transformer by the Megalodon that it is compared with.

    ``model_dim``, ``num_layers``, ``rope_base``, ``norm_eps``, dropouts, ``drop_path`` and ``init_mode``
    mean the same.  ``z_dim``, ``value_dim``, ``ffn_hidden_dim``, ``swiglu``, ``rescale_nffn`` and
    ``cema_ndim`` describe Megalodon's block: without ``transformer_ffn_dim`` the feed-forward layer is
    as wide as it takes to have as many parameters.  So the name of the model is all that has to change
    in a recipe to train a Transformer of equal size.  Other fields of Megalodon have no effect.

    ``chunk_size`` is the chunk of an encoder's attention.  In a decoder it is the window: each step sees
    so many last steps, itself included.  Without it attention is full.
    """

    attention_heads: Optional[int] = setting(
        None, "heads; default: of width 16 to 128, the wider the model the wider"
    )
    transformer_ffn_dim: Optional[int] = setting(
        None, "width of SwiGLU; default: as many parameters as Megalodon's block"
    )

    def validate(self) -> None:
        """Raise ``ValueError`` for an impossible value, naming the field and a remedy."""
        super().validate()
        for name, value in self.ablations.items():
            raise ValueError(
                f"model.{name}={value} changes Megalodon's block, which a Transformer does not have; "
                "leave it out"
            )
        for name in ("attention_heads", "transformer_ffn_dim"):
            if getattr(self, name) is not None:
                self._require_positive(name)
        if self.model_dim % self.heads or self.model_dim // self.heads % 2:
            raise ValueError(
                f"model.attention_heads={self.heads} does not divide model.model_dim={self.model_dim} "
                "into heads of an even width, which rotary embedding needs; choose other sizes"
            )

    @property
    def heads(self) -> int:
        """Number of attention heads, with the default resolved."""
        if self.attention_heads is not None:
            return self.attention_heads
        narrowest = next(head for dim, head in HEAD_WIDTHS.items() if self.model_dim >= dim)
        widths = range(narrowest, self.model_dim, 2)
        fitting = (width for width in widths if self.model_dim % width == 0)
        return self.model_dim // next(fitting, self.model_dim)

    @property
    def ffn_dim(self) -> int:
        """Width of the feed-forward layer, with the default resolved to a round number."""
        if self.transformer_ffn_dim is not None:
            return self.transformer_ffn_dim
        values = {f.name: getattr(self, f.name) for f in fields(MegalodonConfig)}
        with torch.device("meta"):
            block = MegalodonBlock(MegalodonConfig(**values), 0)
        d = self.model_dim
        left = sum(p.numel() for p in block.parameters()) - 4 * d * d - 2 * d
        width = max(1.0, left / (3 * d))
        step = 1 << max(0, (int(width) // 128).bit_length() - 1)
        return round(width / step) * step


class SwiGLU(nn.Module):
    """Compute ``W_2 (SiLU(W_1 x) * W_3 x)``, without biases."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float, init_mode: str) -> None:
        super().__init__()
        self.dropout = dropout
        self.fc1 = Linear(dim, hidden_dim, bias=False)
        self.fc3 = Linear(dim, hidden_dim, bias=False)
        self.fc2 = Linear(hidden_dim, dim, bias=False)
        for linear in (self.fc1, self.fc3, self.fc2):
            init_linear(linear, init_mode)

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """Map (B, L, D) to (B, L, D)."""
        hidden_BLF = F.silu(self.fc1(x_BLD)) * self.fc3(x_BLD)
        return self.fc2(F.dropout(hidden_BLF, self.dropout, self.training))


class TransformerBlock(nn.Module):
    """Compute ``Y = X + Attention(Norm(X));  Z = Y + FFN(Norm(Y))``.

    ``config.drop_path`` drops each of the two branches independently, per sample.
    """

    def __init__(self, config: TransformerConfig, layer_index: int) -> None:
        super().__init__()
        d = config.model_dim
        self.dropout = config.dropout
        self.drop_path = config.drop_path_at(layer_index)
        self.attention_norm = RMSNorm(d, config.norm_eps)
        self.attention = FusedAttention(
            d,
            config.heads,
            chunk_size=config.chunk_size,
            causal=config.causal,
            rope_base=config.rope_base,
            dropout=config.attention_dropout,
            init_mode=config.init_mode,
        )
        self.ffn_norm = RMSNorm(d, config.norm_eps)
        self.ffn = SwiGLU(d, config.ffn_dim, config.hidden_dropout, config.init_mode)

    def forward(
        self,
        x_BLD: torch.Tensor,
        padding_mask_BL: torch.Tensor | None = None,
        state: BlockState | None = None,
    ) -> tuple[torch.Tensor, BlockState | None]:
        """Map (B, L, D) to (B, L, D) and the state after the last step (None if not causal)."""
        cache = None if state is None else state.attention
        branch_BLD, cache = self.attention(self.attention_norm(x_BLD), padding_mask_BL, cache)
        x_BLD = x_BLD + self._branch(branch_BLD)
        x_BLD = x_BLD + self._branch(self.ffn(self.ffn_norm(x_BLD)))
        return x_BLD, None if cache is None else BlockState(None, None, cache)

    def _branch(self, branch_BLD: torch.Tensor) -> torch.Tensor:
        branch_BLD = F.dropout(branch_BLD, self.dropout, self.training)
        return drop_path(branch_BLD, self.drop_path, self.training)


class FinalNorm(RMSNorm):
    """RMSNorm at the end of the stack, with zeros at padding and without a state."""

    def forward(
        self,
        x_BLD: torch.Tensor,
        padding_mask_BL: torch.Tensor | None = None,
        state: None = None,
    ) -> tuple[torch.Tensor, None]:
        """Map (B, L, D) to (B, L, D)."""
        y_BLD = super().forward(x_BLD)
        if padding_mask_BL is not None:
            y_BLD = y_BLD.masked_fill(padding_mask_BL[..., None], 0.0)
        return y_BLD, None


class TransformerStack(MegalodonStack):
    """:class:`MegalodonStack` with a Transformer's blocks, and RMSNorm at the end.

    The state of a decoder is the keys and values of the last ``chunk_size`` - 1 steps of each block: a
    sequence may be fed in pieces of any length, with the outputs of feeding it whole.
    """

    block_type = TransformerBlock

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(replace(config, transformer_ffn_dim=config.ffn_dim))

    @staticmethod
    def build_norm(config: TransformerConfig) -> FinalNorm:
        """Build the norm at the end."""
        return FinalNorm(config.model_dim, config.norm_eps)

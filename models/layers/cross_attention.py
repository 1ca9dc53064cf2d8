"""Gated attention to the output of an encoder: what a decoder's block adds between its two halves.

Source: the authors' interim code for machine translation, ``fairseq/modules/gated_cross_attention.py``.
Legend: B batch, L target length, S source length, D model dim, H heads, K query/key width per head, V
value width per head (D / H).
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from megalodon_tasks.cuda_ops import cross_attention, rms_norm
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.layers.linear import Linear, init_linear
from megalodon_tasks.models.layers.norms import LayerNorm


class SourceKeys(NamedTuple):
    """Keys and values of an encoded source, for one block."""

    key: torch.Tensor  # (B, S, H, K)
    value: torch.Tensor  # (B, S, H, V)
    padding_mask: torch.Tensor | None  # (B, S) bool, True at padding


class GatedCrossAttention(nn.Module):
    """Compute the branch ``W_h (softmax(q k^T) v * r)`` that a block adds to its input.

    With ``n = LayerNorm(y)`` of the target and E the encoder's output: ``q = norm(W_q n)`` and
    ``k = norm(W_k E)``, each scaled to length 1 per head and then by ``gamma + 1``, plus an offset;
    ``v = SiLU(W_v E)`` and the gate ``r = SiLU(W_r n)``.  Every map has a bias.  There is no temperature
    and no encoding of position, which the authors' code has as an option: CEMA gives order to what is
    compared.  So the order of the source's steps, and where its padding stands, do not matter here.
    """

    def __init__(self, config: MegalodonConfig) -> None:
        super().__init__()
        d, z = config.model_dim, config.z_dim
        if d % config.num_heads:
            raise ValueError(
                f"model.num_heads={config.num_heads} does not divide model.model_dim={d}, the width of "
                "the values of cross attention; choose a divisor"
            )
        self.num_heads = config.num_heads
        self.norm_eps = config.norm_eps
        self.dropout = config.dropout
        self.attention_dropout = config.attention_dropout
        self.hidden_dropout = config.hidden_dropout
        self.norm = LayerNorm(d, config.norm_eps)
        self.q_proj = Linear(d, z)
        self.gate_proj = Linear(d, d)
        self.k_proj = Linear(d, z)
        self.v_proj = Linear(d, d)
        self.out_proj = Linear(d, d)
        # Row 0 is for queries, row 1 for keys.  The scale is stored minus one.
        self.qk_scale = nn.Parameter(torch.zeros(2, z))
        self.qk_bias = nn.Parameter(torch.zeros(2, z))
        for linear in (self.q_proj, self.gate_proj, self.k_proj, self.v_proj, self.out_proj):
            init_linear(linear, config.init_mode)

    def _normalised(self, x_BLZ: torch.Tensor, row: int) -> torch.Tensor:
        """Split in heads, scale to length 1, then scale and offset: (B, L, H, K)."""
        x_BLHK = rms_norm(x_BLZ.unflatten(-1, (self.num_heads, -1)), eps=self.norm_eps)
        scale_Z = (self.qk_scale[row] + 1) / x_BLHK.shape[-1] ** 0.5
        scale_HK, bias_HK = (
            parameter.to(x_BLHK.dtype).unflatten(0, (self.num_heads, -1))
            for parameter in (scale_Z, self.qk_bias[row])
        )
        return torch.addcmul(bias_HK, x_BLHK, scale_HK)

    def keys_and_values(
        self, encoded_BSD: torch.Tensor, padding_mask_BS: torch.Tensor | None
    ) -> SourceKeys:
        """Compute what depends on the source only.  padding_mask: (B, S) bool, True at padding."""
        key_BSHK = self._normalised(self.k_proj(encoded_BSD), row=1)
        value_BSHV = F.silu(self.v_proj(encoded_BSD)).unflatten(-1, (self.num_heads, -1))
        return SourceKeys(key_BSHK, value_BSHV, padding_mask_BS)

    def forward(self, y_BLD: torch.Tensor, source: SourceKeys) -> torch.Tensor:
        """Map the target's (B, L, D) to the branch (B, L, D)."""
        normed_BLD = self.norm(y_BLD)
        attended_BLHV = cross_attention(
            self._normalised(self.q_proj(normed_BLD), row=0),
            source.key,
            source.value,
            dropout_p=self.attention_dropout if self.training else 0.0,
            padding_mask=source.padding_mask,
        )
        gated_BLD = attended_BLHV.flatten(2) * F.silu(self.gate_proj(normed_BLD))
        gated_BLD = F.dropout(gated_BLD, self.hidden_dropout, self.training)
        return F.dropout(self.out_proj(gated_BLD), self.dropout, self.training)

    def weights(self, y_BLD: torch.Tensor, source: SourceKeys) -> torch.Tensor:
        """Return the weights of attention (B, H, L, S), without dropout."""
        q_BLHK = self._normalised(self.q_proj(self.norm(y_BLD)), row=0)
        scores_BHLS = torch.einsum("blhk,bshk->bhls", q_BLHK, source.key)
        if source.padding_mask is not None:
            scores_BHLS = scores_BHLS.masked_fill(source.padding_mask[:, None, None], -torch.inf)
        return scores_BHLS.softmax(-1)

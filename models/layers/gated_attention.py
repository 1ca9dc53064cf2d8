"""Normalised, gated, chunk-wise attention on top of CEMA: the first half of a block.

Source: arXiv 2404.08801, eq. 5 to 9 and 18; where the released code differs from the paper's text it is
followed: values come from the normed input and not from CEMA's output, the output is the sum of two
projections without update gate and without an activation on the sum.
Legend: B batch, L length, D model dim, H heads, K query/key width per head, V value width per head.
"""

import torch
from torch import nn
from torch.nn import functional as F

from megalodon_tasks.cuda_ops import chunk_attention, rms_norm
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.layers.cema import ComplexEMA
from megalodon_tasks.models.layers.drop_path import drop_path
from megalodon_tasks.models.layers.initialization import init_linear
from megalodon_tasks.models.layers.norms import RMSNorm, TimeNorm
from megalodon_tasks.models.layers.rotary import RotaryEmbedding
from megalodon_tasks.models.state import BlockState


class GatedAttention(nn.Module):
    """``x + h`` with h the gated attention of the normed x (eq. 11, first line)."""

    def __init__(self, config: MegalodonConfig, layer_index: int = 0) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.chunk_size = config.chunk_size
        self.causal = config.causal
        self.dropout = config.dropout
        self.attention_dropout = config.attention_dropout
        self.hidden_dropout = config.hidden_dropout
        self.drop_path = config.drop_path_at(layer_index)
        self.norm_eps = config.norm_eps
        d, z, v = config.model_dim, config.z_dim, config.value_dim
        self.norm = TimeNorm(d, config.norm_groups, config.norm_eps, config.causal)
        self.cema = ComplexEMA(d, config.cema_ndim, bidirectional=not config.causal)
        self.cema_norm = RMSNorm(d, config.norm_eps)
        self.rotary = RotaryEmbedding(z // config.num_heads, config.rope_base)
        self.v_proj = nn.Linear(d, v)
        self.z_proj = nn.Linear(d, z)
        self.gate_proj = nn.Linear(d, v)
        self.skip_proj = nn.Linear(d, d)
        self.out_proj = nn.Linear(v, d, bias=False)
        # Row 0 makes queries, row 1 keys (eq. 7, 8).  The scale is stored minus one.
        self.qk_scale = nn.Parameter(torch.zeros(2, z))
        self.qk_bias = nn.Parameter(torch.zeros(2, z))
        for linear in (self.v_proj, self.z_proj, self.gate_proj, self.skip_proj, self.out_proj):
            init_linear(linear, config.init_mode)

    def _queries_and_keys(
        self, x_BLD: torch.Tensor, offset: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Two (B, L, H, K) tensors from one shared representation (eq. 6 to 8), rotated.

        The released code scales a z whose root mean square is 1 by ``(gamma + 1) / sqrt(K)``; that is
        the paper's unit vector times ``gamma + 1``, and is computed here in the released order.
        """
        z_BLHK = self.z_proj(x_BLD).unflatten(-1, (self.num_heads, -1))
        width = z_BLHK.shape[-1]
        z_BLHK = rms_norm(z_BLHK, eps=self.norm_eps)
        scale_2HK = (self.qk_scale + 1).to(z_BLHK.dtype).unflatten(-1, (self.num_heads, -1))
        scale_2HK = scale_2HK / width**0.5
        bias_2HK = self.qk_bias.to(z_BLHK.dtype).unflatten(-1, (self.num_heads, -1))
        q_BLHK = torch.addcmul(bias_2HK[0], z_BLHK, scale_2HK[0])
        k_BLHK = torch.addcmul(bias_2HK[1], z_BLHK, scale_2HK[1])
        return (
            self.rotary(q_BLHK, offset, self.chunk_size),
            self.rotary(k_BLHK, offset, self.chunk_size),
        )

    def forward(
        self,
        x_BLD: torch.Tensor,
        padding_mask_BL: torch.Tensor | None = None,
        state: BlockState | None = None,
    ) -> tuple[torch.Tensor, BlockState | None]:
        """(B, L, D) -> (B, L, D) and the state after the last step (None when not causal)."""
        norm_state, cema_state, attention_state = state or (None, None, None)
        offset = 0 if attention_state is None else attention_state.key.shape[1]
        normed_BLD, norm_state = self.norm(x_BLD, padding_mask_BL, norm_state)
        averaged_BLD, cema_state = self.cema(normed_BLD, padding_mask_BL, cema_state)
        mx_BLD = F.dropout(self.cema_norm(averaged_BLD), self.hidden_dropout, self.training)

        q_BLHK, k_BLHK = self._queries_and_keys(mx_BLD, offset)
        v_BLHV = F.silu(self.v_proj(normed_BLD)).unflatten(-1, (self.num_heads, -1))
        attended_BLHV, attention_state = chunk_attention(
            q_BLHK,
            k_BLHK,
            v_BLHV,
            chunk_size=self.chunk_size,
            causal=self.causal,
            dropout_p=self.attention_dropout if self.training else 0.0,
            padding_mask=padding_mask_BL,
            state=attention_state,
        )
        gated = attended_BLHV.flatten(2) * F.silu(self.gate_proj(mx_BLD))
        gated = F.dropout(gated, self.hidden_dropout, self.training)
        h_BLD = self.skip_proj(mx_BLD) + self.out_proj(gated)
        h_BLD = F.dropout(h_BLD, self.dropout, self.training)
        out_BLD = drop_path(h_BLD, self.drop_path, self.training) + x_BLD
        if not self.causal:
            return out_BLD, None
        return out_BLD, BlockState(norm_state, cema_state, attention_state)

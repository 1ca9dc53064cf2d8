"""Normalised, gated, chunk-wise attention on top of CEMA: the first half of a block.

Source: arXiv 2404.08801, eq. 5 to 9 and 18.  Where the released code differs from the paper's text, the
code is followed: values come from the normed input and not from CEMA's output, and the output is the sum
of two projections, without an update gate and without an activation on the sum.  CEMA's output goes
through RMSNorm, or with ``cema_activation="silu"`` through SiLU without a norm, as in Mega and, on
Pathfinder and Path-X, in the authors' interim code.
Legend: B batch, L length, D model dim, H heads, K query/key width per head, V value width per head.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from megalodon_tasks.cuda_ops import chunk_attention, rms_norm
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.layers.cema import ComplexEMA
from megalodon_tasks.models.layers.linear import Linear, init_linear
from megalodon_tasks.models.layers.norms import RMSNorm, TimeNorm
from megalodon_tasks.models.layers.rotary import RotaryEmbedding
from megalodon_tasks.models.state import BlockState


@contextmanager
def attention_chunks(model: nn.Module, size: int | None) -> Iterator[None]:
    """Let all attention in ``model`` have chunks of ``size`` steps for the time of a block.

    None leaves each as it is.  No weight depends on the size; a state that is carried does.
    """
    layers = [module for module in model.modules() if isinstance(module, GatedAttention)]
    before = [layer.chunk_size for layer in layers]
    for layer in layers:
        layer.chunk_size = size or layer.chunk_size
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.chunk_size = own


class GatedAttention(nn.Module):
    """Compute ``Attention(Norm(X))`` of eq. 11, the branch that a block adds to X."""

    def __init__(self, config: MegalodonConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.chunk_size = config.chunk_size
        self.causal = config.causal
        self.dropout = config.dropout
        self.attention_dropout = config.attention_dropout
        self.hidden_dropout = config.hidden_dropout
        self.norm_eps = config.norm_eps
        d, z, v = config.model_dim, config.z_dim, config.value_dim
        self.norm = TimeNorm(d, config.norm_groups, config.norm_eps, config.causal)
        self.cema = ComplexEMA(
            d,
            config.cema_ndim,
            bidirectional=not config.causal,
            memory=config.cema_memory if config.cema_init == "spread" else None,
        )
        normalised = config.cema_activation == "rmsnorm"
        self.cema_norm = RMSNorm(d, config.norm_eps) if normalised else nn.SiLU()
        self.rotary = RotaryEmbedding(z // config.num_heads, config.rope_base)
        self.v_proj = Linear(d, v)
        self.z_proj = Linear(d, z)
        self.gate_proj = Linear(d, v)
        self.skip_proj = Linear(d, d)
        self.out_proj = Linear(v, d, bias=False)
        # Row 0 is for queries, row 1 for keys (eq. 7, 8).  The scale is stored minus one.
        self.qk_scale = nn.Parameter(torch.zeros(2, z))
        self.qk_bias = nn.Parameter(torch.zeros(2, z))
        for linear in (self.v_proj, self.z_proj, self.gate_proj, self.skip_proj, self.out_proj):
            init_linear(linear, config.init_mode)

    def _queries_and_keys(
        self, x_BLD: torch.Tensor, offset: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute rotated queries and keys, (B, L, H, K) each, from one representation (eq. 6 to 8).

        The paper scales a unit vector z by ``gamma + 1``.  The released code, and this, scale a z whose
        root mean square is 1 by ``(gamma + 1) / sqrt(K)``, which is the same.
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
        """Map (B, L, D) to (B, L, D) and the state after the last step (None if not causal)."""
        norm_state, cema_state, attention_state = state or (None, None, None)
        offset = 0 if attention_state is None else attention_state.key.shape[1]
        normed_BLD, norm_state = self.norm(x_BLD, padding_mask_BL, norm_state)
        cema_state = self.cema.start(normed_BLD, padding_mask_BL, cema_state)
        v_BLHV = F.silu(self.v_proj(normed_BLD)).unflatten(-1, (self.num_heads, -1))
        averaged_BLD, cema_state = self.cema(normed_BLD, padding_mask_BL, cema_state())
        mx_BLD = F.dropout(self.cema_norm(averaged_BLD), self.hidden_dropout, self.training)

        q_BLHK, k_BLHK = self._queries_and_keys(mx_BLD, offset)
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
        if not self.causal:
            return h_BLD, None
        return h_BLD, BlockState(norm_state, cema_state, attention_state)

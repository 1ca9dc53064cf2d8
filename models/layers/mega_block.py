"""One block of Mega, the predecessor of Megalodon (arXiv 2209.10655): an encoder's.

Legend: B batch, L length, D model dim, Z width of queries and keys, V value width, N chunks of C steps.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from megalodon_tasks.models.config import MegaConfig
from megalodon_tasks.models.layers.block import drop_path
from megalodon_tasks.models.layers.linear import Linear, init_linear
from megalodon_tasks.models.layers.mega_norm import MegaNorm
from megalodon_tasks.models.layers.position_bias import RotaryPositionBias, SimplePositionBias
from megalodon_tasks.models.layers.real_ema import MegaEMA
from megalodon_tasks.models.layers.rotary import RotaryEmbedding

# With these the Laplace function has the value and the slope of ReLU's square at its mean.
LAPLACE_MEAN, LAPLACE_DEVIATION = 0.707107, 0.282095


class MegaAttention(nn.Module):
    """Compute the attention half of a block (equations 1 and 13 to 21), residual and norm included.

    With x' = x, or its norm if ``prenorm``::

        m = SiLU(EMA(x'))
        u, z, r, g = sigmoid, SiLU, SiLU and no function of one map of m
        q, k = scale * z + bias
        h = SiLU(g + W_h (attention(q, k, SiLU(W_v x')) * r))
        y = u * h + (1 - u) * x

    Scores are ``q . k / sqrt(Z)`` before the softmax, or ``q . k`` divided by the number of keys before
    the Laplace function.  Chunks are counted from the start; the last one may be shorter.
    ``config.drop_path`` drops h, as in Mega's code for images.
    """

    def __init__(self, config: MegaConfig, layer_index: int) -> None:
        super().__init__()
        d, z, v = config.model_dim, config.z_dim, config.value_dim
        self.widths = (d, z, v, d)
        self.chunk_size = config.chunk_size
        self.laplace = config.attention_activation == "laplace"
        self.prenorm = config.prenorm
        self.dropout = config.dropout
        self.attention_dropout = config.attention_dropout
        self.hidden_dropout = config.hidden_dropout
        self.drop_path = config.drop_path_at(layer_index)
        memory = config.cema_memory if config.cema_init == "spread" else None
        self.norm = MegaNorm(config.norm_type, d, config.norm_eps)
        self.ema = MegaEMA(d, config.cema_ndim, bidirectional=True, memory=memory)
        self.v_proj = Linear(d, v)
        self.mx_proj = Linear(d, sum(self.widths))
        self.out_proj = Linear(v, d)
        # Row 0 is for queries, row 1 for keys.
        self.qk_scale = nn.Parameter(torch.randn(2, z) * 0.02)
        self.qk_bias = nn.Parameter(torch.zeros(2, z))
        self.rotary, self.position_bias = _positions(config)
        for linear in (self.v_proj, self.mx_proj, self.out_proj):
            init_linear(linear, config.init_mode)

    def forward(self, x_BLD: torch.Tensor, padding_mask_BL: torch.Tensor | None) -> torch.Tensor:
        """Map (B, L, D) to (B, L, D)."""
        normed_BLD = self.norm(x_BLD, padding_mask_BL) if self.prenorm else x_BLD
        v_BLV = F.silu(self.v_proj(normed_BLD))
        averaged_BLD, _ = self.ema(normed_BLD, padding_mask_BL)
        mx_BLD = F.dropout(F.silu(averaged_BLD), self.dropout, self.training)
        u_BLD, z_BLZ, r_BLV, hx_BLD = self.mx_proj(mx_BLD).split(self.widths, dim=-1)
        q_BLZ, k_BLZ = self._queries_and_keys(F.silu(z_BLZ))
        v_BLV = F.dropout(v_BLV, self.hidden_dropout, self.training)
        attended_BLV = self._in_chunks(q_BLZ, k_BLZ, v_BLV, padding_mask_BL)
        h_BLD = F.silu(hx_BLD + self.out_proj(attended_BLV * F.silu(r_BLV)))
        h_BLD = drop_path(
            F.dropout(h_BLD, self.dropout, self.training), self.drop_path, self.training
        )
        y_BLD = torch.addcmul(x_BLD, u_BLD.sigmoid(), h_BLD - x_BLD)
        return y_BLD if self.prenorm else self.norm(y_BLD, padding_mask_BL)

    def _queries_and_keys(self, z_BLZ: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale_2Z, bias_2Z = self.qk_scale.to(z_BLZ.dtype), self.qk_bias.to(z_BLZ.dtype)
        q_BLZ, k_BLZ = (torch.addcmul(bias_2Z[row], z_BLZ, scale_2Z[row]) for row in (0, 1))
        if self.rotary is None:
            return q_BLZ, k_BLZ
        return tuple(
            self.rotary(each.unsqueeze(2), 0, self.chunk_size).squeeze(2) for each in (q_BLZ, k_BLZ)
        )

    def _in_chunks(
        self,
        q_BLZ: torch.Tensor,
        k_BLZ: torch.Tensor,
        v_BLV: torch.Tensor,
        padding_mask_BL: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attend inside each chunk; steps that fill up the last one are padding."""
        length = q_BLZ.shape[1]
        steps = min(self.chunk_size or length, length)
        missing = -length % steps
        if missing:
            if padding_mask_BL is None:
                padding_mask_BL = q_BLZ.new_zeros(q_BLZ.shape[:2], dtype=torch.bool)
            padding_mask_BL = F.pad(padding_mask_BL, (0, missing), value=True)
            q_BLZ, k_BLZ, v_BLV = (
                F.pad(each, (0, 0, 0, missing)) for each in (q_BLZ, k_BLZ, v_BLV)
            )
        q_BNCZ, k_BNCZ, v_BNCV = (each.unflatten(1, (-1, steps)) for each in (q_BLZ, k_BLZ, v_BLV))
        real_BN1C = None
        if padding_mask_BL is not None:
            real_BN1C = ~padding_mask_BL.unflatten(1, (-1, steps)).unsqueeze(2)
        bias_CC = None
        if self.position_bias is not None:
            bias_CC = self.position_bias(steps).to(q_BLZ.dtype)
        attend = self._laplace if self.laplace else self._softmax
        return attend(q_BNCZ, k_BNCZ, v_BNCV, bias_CC, real_BN1C).flatten(1, 2)[:, :length]

    def _softmax(
        self,
        q_BNCZ: torch.Tensor,
        k_BNCZ: torch.Tensor,
        v_BNCV: torch.Tensor,
        bias_CC: torch.Tensor | None,
        real_BN1C: torch.Tensor | None,
    ) -> torch.Tensor:
        mask = bias_CC
        if real_BN1C is not None:
            # Queries of a chunk of padding, whose output nobody reads, see all keys.
            seen_BN1C = real_BN1C | ~real_BN1C.any(-1, keepdim=True)
            blocked = torch.zeros_like(seen_BN1C, dtype=q_BNCZ.dtype)
            blocked = blocked.masked_fill(~seen_BN1C, -torch.inf)
            mask = blocked if mask is None else mask + blocked
        dropout = self.attention_dropout if self.training else 0.0
        return F.scaled_dot_product_attention(
            q_BNCZ, k_BNCZ, v_BNCV, mask, dropout, scale=q_BNCZ.shape[-1] ** -0.5
        )

    def _laplace(
        self,
        q_BNCZ: torch.Tensor,
        k_BNCZ: torch.Tensor,
        v_BNCV: torch.Tensor,
        bias_CC: torch.Tensor | None,
        real_BN1C: torch.Tensor | None,
    ) -> torch.Tensor:
        keys = q_BNCZ.shape[2]
        if real_BN1C is not None:
            keys = real_BN1C.sum(-1, keepdim=True).clamp(min=1).to(q_BNCZ.dtype)
        scores_BNCC = (q_BNCZ / keys) @ k_BNCZ.transpose(2, 3)
        if bias_CC is not None:
            scores_BNCC = scores_BNCC + bias_CC
        weights_BNCC = laplace(scores_BNCC)
        if real_BN1C is not None:
            weights_BNCC = weights_BNCC * real_BN1C
        return F.dropout(weights_BNCC, self.attention_dropout, self.training) @ v_BNCV


def laplace(scores: torch.Tensor) -> torch.Tensor:
    """Return the share of a normal distribution below each score: a weight in (0, 1)."""
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    distance = (wide - LAPLACE_MEAN) / (LAPLACE_DEVIATION * math.sqrt(2))
    return (0.5 * (1 + torch.erf(distance))).to(scores.dtype)


def _positions(config: MegaConfig) -> tuple[RotaryEmbedding | None, nn.Module | None]:
    """Build what rotates queries and keys, or what adds a bias to the scores."""
    if config.positions == "rope":
        return RotaryEmbedding(config.z_dim, config.rope_base), None
    if config.positions == "rotary":
        return None, RotaryPositionBias(config.z_dim, config.rope_base)
    if config.chunk_size is None:
        return None, SimplePositionBias(config.max_positions, "model.max_positions")
    return None, SimplePositionBias(config.chunk_size, "model.chunk_size")


class MegaFeedForward(nn.Module):
    """Compute ``y + W_2 SiLU(W_1 y + b_1) + b_2``, with the norm before or after."""

    def __init__(self, config: MegaConfig, layer_index: int) -> None:
        super().__init__()
        d, f = config.model_dim, config.ffn_hidden_dim
        self.prenorm = config.prenorm
        self.dropout = config.dropout
        self.hidden_dropout = config.hidden_dropout
        self.drop_path = config.drop_path_at(layer_index)
        self.norm = MegaNorm(config.norm_type, d, config.norm_eps)
        self.fc1 = Linear(d, f)
        self.fc2 = Linear(f, d)
        for linear in (self.fc1, self.fc2):
            init_linear(linear, config.init_mode)

    def forward(self, y_BLD: torch.Tensor, padding_mask_BL: torch.Tensor | None) -> torch.Tensor:
        """Map (B, L, D) to (B, L, D)."""
        normed_BLD = self.norm(y_BLD, padding_mask_BL) if self.prenorm else y_BLD
        hidden_BLF = F.dropout(F.silu(self.fc1(normed_BLD)), self.hidden_dropout, self.training)
        branch_BLD = F.dropout(self.fc2(hidden_BLF), self.dropout, self.training)
        y_BLD = y_BLD + drop_path(branch_BLD, self.drop_path, self.training)
        return y_BLD if self.prenorm else self.norm(y_BLD, padding_mask_BL)


class MegaBlock(nn.Module):
    """One block: gated attention on top of the moving average, then feed-forward."""

    def __init__(self, config: MegaConfig, layer_index: int) -> None:
        super().__init__()
        self.attention = MegaAttention(config, layer_index)
        self.feed_forward = MegaFeedForward(config, layer_index)

    def forward(self, x_BLD: torch.Tensor, padding_mask_BL: torch.Tensor | None) -> torch.Tensor:
        """Map (B, L, D) to (B, L, D).  padding_mask: (B, L) bool, True at padding."""
        return self.feed_forward(self.attention(x_BLD, padding_mask_BL), padding_mask_BL)

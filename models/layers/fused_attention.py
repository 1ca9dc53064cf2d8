"""Softmax attention through PyTorch's fused kernels: the first half of a Transformer's block.

Legend: B batch, L length, D model dim, H heads, K width per head, C chunk, W window, T cached steps.
"""

import torch
from torch import nn
from torch.nn import functional as F

from megalodon_tasks.cuda_ops import ChunkAttentionState
from megalodon_tasks.models.layers.linear import Linear, init_linear
from megalodon_tasks.models.layers.rotary import RotaryEmbedding


class FusedAttention(nn.Module):
    """Compute ``W_o softmax(q k^T / sqrt(K)) v`` with rotary positions, without biases.

    Both directions: with ``chunk_size`` attention stays inside chunks of so many steps.  Causal: with
    ``chunk_size`` W a step sees the last W steps, itself included, wherever the sequence is cut into
    pieces; the state holds the keys and values of the last W - 1 steps, of all steps without
    ``chunk_size``.  Keys are stored as they are before the rotation, whose angles count from the first
    step of the cache: only distances matter, and so precision does not fall with the position.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        chunk_size: int | None,
        causal: bool,
        rope_base: float,
        dropout: float,
        init_mode: str,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.chunk_size = chunk_size
        self.causal = causal
        self.dropout = dropout
        self.rotary = RotaryEmbedding(dim // heads, rope_base)
        self.qkv_proj = Linear(dim, 3 * dim, bias=False)
        self.out_proj = Linear(dim, dim, bias=False)
        for linear in (self.qkv_proj, self.out_proj):
            init_linear(linear, init_mode)

    def forward(
        self,
        x_BLD: torch.Tensor,
        padding_mask_BL: torch.Tensor | None = None,
        state: ChunkAttentionState | None = None,
    ) -> tuple[torch.Tensor, ChunkAttentionState | None]:
        """Map (B, L, D) to (B, L, D) and the state after the last step (None if not causal).

        padding_mask: (B, L) bool, True at padding, which stands at the end of a row and whose output is
        finite.  Raises ``ValueError`` for a state of another number of heads or width.
        """
        q_BLHK, k_BLHK, v_BLHK = self.qkv_proj(x_BLD).unflatten(-1, (3, self.heads, -1)).unbind(2)
        if self.causal:
            y_BLHK, state = self._causal(q_BLHK, k_BLHK, v_BLHK, padding_mask_BL, state)
        else:
            y_BLHK = self._in_chunks(q_BLHK, k_BLHK, v_BLHK, padding_mask_BL)
        return self.out_proj(y_BLHK.flatten(2)), state

    def _in_chunks(
        self,
        q_BLHK: torch.Tensor,
        k_BLHK: torch.Tensor,
        v_BLHK: torch.Tensor,
        padding_mask_BL: torch.Tensor | None,
    ) -> torch.Tensor:
        length = q_BLHK.shape[1]
        chunk = min(self.chunk_size or length, length)
        missing = -length % chunk
        q_BLHK, k_BLHK = (self.rotary(part, 0, None) for part in (q_BLHK, k_BLHK))
        if missing and padding_mask_BL is None:
            padding_mask_BL = q_BLHK.new_zeros(q_BLHK.shape[:2], dtype=torch.bool)
        if padding_mask_BL is not None:
            real_BL = F.pad(~padding_mask_BL, (0, missing), value=False)
            real_BC = real_BL.unflatten(1, (-1, chunk)).flatten(0, 1)
            # Steps of a chunk of padding see each other, so that no softmax is over nothing.
            mask_B11C = (real_BC | ~real_BC.any(1, keepdim=True))[:, None, None]
        else:
            mask_B11C = None
        q_BCHK, k_BCHK, v_BCHK = (
            F.pad(part, (0, 0, 0, 0, 0, missing)).unflatten(1, (-1, chunk)).flatten(0, 1)
            for part in (q_BLHK, k_BLHK, v_BLHK)
        )
        y_BCHK = self._attend(q_BCHK, k_BCHK, v_BCHK, mask_B11C)
        return y_BCHK.unflatten(0, (len(q_BLHK), -1)).flatten(1, 2)[:, :length]

    def _causal(
        self,
        q_BLHK: torch.Tensor,
        k_BLHK: torch.Tensor,
        v_BLHK: torch.Tensor,
        padding_mask_BL: torch.Tensor | None,
        state: ChunkAttentionState | None,
    ) -> tuple[torch.Tensor, ChunkAttentionState]:
        length, cached = q_BLHK.shape[1], 0
        cached_padding_BT = None
        if state is not None:
            self._check_state(state, k_BLHK)
            cached, cached_padding_BT = state.key.shape[1], state.padding_mask
            k_BLHK = torch.cat((state.key.to(k_BLHK.dtype), k_BLHK), 1)
            v_BLHK = torch.cat((state.value.to(v_BLHK.dtype), v_BLHK), 1)
        padding_BS = _joined(cached_padding_BT, padding_mask_BL, cached, length, k_BLHK)
        state = self._last_steps(k_BLHK, v_BLHK, padding_BS)
        # Padding follows the real steps of a piece, which do not see it; only that of the cache counts.
        seen_BS = None if cached_padding_BT is None else ~F.pad(cached_padding_BT, (0, length))
        q_BLHK, k_BLHK = self.rotary(q_BLHK, cached, None), self.rotary(k_BLHK, 0, None)
        window = self.chunk_size or cached + length
        outputs = []
        for start in range(0, length, window):
            stop = min(start + window, length)
            first = max(0, cached + start - window + 1)
            keys = slice(first, cached + stop)
            outputs.append(
                self._attend(
                    q_BLHK[:, start:stop],
                    k_BLHK[:, keys],
                    v_BLHK[:, keys],
                    None if seen_BS is None else seen_BS[:, None, None, keys],
                    window,
                )
            )
        return torch.cat(outputs, 1), state

    def _last_steps(
        self, k_BSHK: torch.Tensor, v_BSHK: torch.Tensor, padding_BS: torch.Tensor | None
    ) -> ChunkAttentionState:
        if self.chunk_size is None:
            return ChunkAttentionState(k_BSHK, v_BSHK, padding_BS)
        first = max(0, k_BSHK.shape[1] - (self.chunk_size - 1))
        # Copies: a view would hold the memory of the whole piece.
        key, value = (part[:, first:].clone() for part in (k_BSHK, v_BSHK))
        return ChunkAttentionState(
            key, value, None if padding_BS is None else padding_BS[:, first:]
        )

    def _attend(
        self,
        q_BLHK: torch.Tensor,
        k_BSHK: torch.Tensor,
        v_BSHK: torch.Tensor,
        seen: torch.Tensor | None,
        window: int | None = None,
    ) -> torch.Tensor:
        """Attend with the last of L queries at the last of S keys, (B, L, H, K).

        seen: bool, keys that may be seen, (B, 1, 1, S); None is all.  window: steps that a query sees,
        its own and those before; None is all keys, of later steps too.
        """
        length, steps = q_BLHK.shape[1], k_BSHK.shape[1]
        plain_causal = window is not None and seen is None and length == steps <= window
        if window is not None and not plain_causal and (length > 1 or steps > window):
            distance_LS = _distances(length, steps, q_BLHK.device)
            in_window_LS = (distance_LS >= 0) & (distance_LS < window)
            seen = in_window_LS if seen is None else in_window_LS & seen
        y_BHLK = F.scaled_dot_product_attention(
            *(part.transpose(1, 2) for part in (q_BLHK, k_BSHK, v_BSHK)),
            attn_mask=seen,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=plain_causal,
        )
        return y_BHLK.transpose(1, 2)

    def _check_state(self, state: ChunkAttentionState, k_BLHK: torch.Tensor) -> None:
        held, needed = tuple(state.key.shape[2:]), tuple(k_BLHK.shape[2:])
        if held != needed:
            raise ValueError(
                f"the state has (heads, width) {held}, this model {needed}; pass a state of this model"
            )


def _distances(length: int, steps: int, device: torch.device) -> torch.Tensor:
    """Return how many steps each key lies before each query, (L, S); the last of each coincide."""
    step = torch.arange(steps, device=device)
    return step[steps - length :, None] - step


def _joined(
    cached_BT: torch.Tensor | None,
    padding_mask_BL: torch.Tensor | None,
    cached: int,
    length: int,
    like_BSHK: torch.Tensor,
) -> torch.Tensor | None:
    """Return the padding of the cache and of this piece, (B, T + L); None where nothing is padding."""
    if cached_BT is None and padding_mask_BL is None:
        return None
    batch = len(like_BSHK)
    parts = [
        part if part is not None else like_BSHK.new_zeros(batch, steps, dtype=torch.bool)
        for part, steps in ((cached_BT, cached), (padding_mask_BL, length))
    ]
    return torch.cat(parts, 1)

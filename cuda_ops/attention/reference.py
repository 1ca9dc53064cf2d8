"""Chunk attention read aloud: all scores, one table of what each query may see, softmax, sum.

Legend: B batch, L queries, S keys (state and new), H heads, K key width, V value width per head.
"""

import torch

from megalodon_tasks.cuda_ops.attention.dropkey import draw_dropkey
from megalodon_tasks.cuda_ops.attention.state import ChunkAttentionState
from megalodon_tasks.cuda_ops.autocast import without_autocast


@without_autocast
def chunk_attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    chunk_size: int | None,
    causal: bool,
    dropout_p: float,
    padding_mask: torch.Tensor | None,
    state: ChunkAttentionState | None,
) -> tuple[torch.Tensor, ChunkAttentionState | None]:
    """Equation 9 of arXiv 2404.08801 inside each chunk, see ``op.py``.

    Half types are promoted to float32; any other dtype is used as it is.
    """
    wide = torch.promote_types(torch.promote_types(q.dtype, v.dtype), torch.float32)
    q_BLHK, k_BSHK, v_BSHV, padded_BS = _join(q, k, v, padding_mask, state)
    past = k_BSHK.shape[1] - q.shape[1]
    seen = _seen(q_BLHK, padded_BS, past, chunk_size, causal)
    drop_BHLW = draw_dropkey(q, past, chunk_size, dropout_p)
    if drop_BHLW is not None:
        offset_S = torch.arange(past + q.shape[1], device=q.device) % drop_BHLW.shape[-1]
        seen = seen & ~drop_BHLW[..., offset_S]
    scores_BHLS = torch.einsum("blhk,bshk->bhls", q_BLHK.to(wide), k_BSHK.to(wide))
    # A row that sees nothing would be 0 / 0: give it equal weights here and zero them after.
    nothing = ~seen.any(-1, keepdim=True)
    weights = scores_BHLS.masked_fill(~(seen | nothing), -torch.inf).softmax(-1)
    weights = weights.masked_fill(nothing, 0.0)
    y_BLHV = torch.einsum("bhls,bshv->blhv", weights, v_BSHV.to(wide))
    y_BLHV = y_BLHV.masked_fill(padded_BS[:, past:, None, None], 0.0)
    if not causal:
        return y_BLHV.to(v.dtype), None
    start = 0 if chunk_size is None else k_BSHK.shape[1] // chunk_size * chunk_size
    carried = past > 0 and start == 0 and state.padding_mask is not None
    mask = padded_BS[:, start:] if carried or padding_mask is not None else None
    return y_BLHV.to(v.dtype), ChunkAttentionState(k_BSHK[:, start:], v_BSHV[:, start:], mask)


def _join(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    padding_mask: torch.Tensor | None,
    state: ChunkAttentionState | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Put the open chunk before the new keys and values; zeros at padding, whatever was there."""
    new = torch.zeros(k.shape[:2], dtype=torch.bool, device=k.device)
    padded_BS = new if padding_mask is None else padding_mask
    q = q.masked_fill(padded_BS[:, :, None, None], 0.0)
    if state is not None:
        old = state.padding_mask
        if old is None:
            old = torch.zeros(state.key.shape[:2], dtype=torch.bool, device=k.device)
        k = torch.cat([state.key.to(k.dtype), k], dim=1)
        v = torch.cat([state.value.to(v.dtype), v], dim=1)
        padded_BS = torch.cat([old, padded_BS], dim=1)
    outside = padded_BS[:, :, None, None]
    return q, k.masked_fill(outside, 0.0), v.masked_fill(outside, 0.0), padded_BS


def _seen(
    q_BLHK: torch.Tensor,
    padded_BS: torch.Tensor,
    past: int,
    chunk_size: int | None,
    causal: bool,
) -> torch.Tensor:
    """Bool (B, 1, L, S): the key is in the query's chunk, not later if causal, and not padding."""
    key_at = torch.arange(padded_BS.shape[1], device=q_BLHK.device)
    query_at = key_at[past:, None]
    seen = torch.ones_like(query_at == key_at)
    if chunk_size is not None:
        seen = seen & (query_at // chunk_size == key_at // chunk_size)
    if causal:
        seen = seen & (key_at <= query_at)
    return seen & ~padded_BS[:, None, None, :]

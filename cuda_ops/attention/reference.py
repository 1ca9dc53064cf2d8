"""Both attentions as the equations are written: all scores, a mask of what each query sees, softmax.

Legend: B batch, L queries, S keys (of the state too), H heads, K key width, V value width per head.
"""

import torch

from megalodon_tasks.cuda_ops.attention.arguments import (
    ChunkAttentionCall,
    ChunkAttentionState,
    CrossAttentionCall,
)
from megalodon_tasks.cuda_ops.attention.dropkey import draw_dropkey
from megalodon_tasks.cuda_ops.autocast import without_autocast


@without_autocast
def chunk_attention_reference(
    call: ChunkAttentionCall,
) -> tuple[torch.Tensor, ChunkAttentionState | None]:
    """Compute equation 9 of arXiv 2404.08801 inside each chunk, from all scores.

    Half types are promoted to float32; any other dtype is used as it is.
    """
    q, k, v, chunk_size, causal, dropout_p, padding_mask, state = call
    wide = torch.promote_types(torch.promote_types(q.dtype, v.dtype), torch.float32)
    q_BLHK, k_BSHK, v_BSHV, padded_BS = _join(call)
    past = k_BSHK.shape[1] - q.shape[1]
    seen = _seen(q_BLHK, padded_BS, past, chunk_size, causal)
    drop_BHLW = draw_dropkey(q, past, chunk_size, dropout_p)
    if drop_BHLW is not None:
        offset_S = torch.arange(past + q.shape[1], device=q.device) % drop_BHLW.shape[-1]
        seen = seen & ~drop_BHLW[..., offset_S]
    y_BLHV = _attend(q_BLHK.to(wide), k_BSHK.to(wide), v_BSHV.to(wide), seen)
    y_BLHV = y_BLHV.masked_fill(padded_BS[:, past:, None, None], 0.0)
    if not causal:
        return y_BLHV.to(v.dtype), None
    start = 0 if chunk_size is None else k_BSHK.shape[1] // chunk_size * chunk_size
    carried = past > 0 and start == 0 and state.padding_mask is not None
    mask = padded_BS[:, start:] if carried or padding_mask is not None else None
    return y_BLHV.to(v.dtype), ChunkAttentionState(k_BSHK[:, start:], v_BSHV[:, start:], mask)


@without_autocast
def cross_attention_reference(call: CrossAttentionCall) -> torch.Tensor:
    """Compute :func:`cross_attention` from all scores, in the dtypes of chunk attention."""
    q, k, v, dropout_p, padding_mask = call
    wide = torch.promote_types(torch.promote_types(q.dtype, v.dtype), torch.float32)
    length, steps = q.shape[1], k.shape[1]
    seen = torch.ones(1, 1, length, steps, dtype=torch.bool, device=q.device)
    if padding_mask is not None:
        k, v = (t.masked_fill(padding_mask[:, :, None, None], 0.0) for t in (k, v))
        seen = seen & ~padding_mask[:, None, None, :]
    drop_BHLS = draw_dropkey(q, steps - length, None, dropout_p)
    if drop_BHLS is not None:
        seen = seen & ~drop_BHLS
    return _attend(q.to(wide), k.to(wide), v.to(wide), seen).to(v.dtype)


def _attend(
    q_BLHK: torch.Tensor, k_BSHK: torch.Tensor, v_BSHV: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    """Return (B, L, H, V).  seen: bool, broadcastable to (B, H, L, S)."""
    scores_BHLS = torch.einsum("blhk,bshk->bhls", q_BLHK, k_BSHK)
    # A query that sees no key would be 0 / 0: give it equal weights here and set them to zero below.
    nothing = ~seen.any(-1, keepdim=True)
    weights_BHLS = scores_BHLS.masked_fill(~(seen | nothing), -torch.inf).softmax(-1)
    weights_BHLS = weights_BHLS.masked_fill(nothing, 0.0)
    return torch.einsum("bhls,bshv->blhv", weights_BHLS, v_BSHV)


def _join(call: ChunkAttentionCall) -> tuple[torch.Tensor, ...]:
    """Put the open chunk before the new keys and values, with zeros at padding; also return the mask."""
    q, k, v, *_, padding_mask, state = call
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
    """Return the mask (B, 1, L, S) of keys in the query's chunk, not later if causal, not padded."""
    key_at = torch.arange(padded_BS.shape[1], device=q_BLHK.device)
    query_at = key_at[past:, None]
    seen = torch.ones_like(query_at == key_at)
    if chunk_size is not None:
        seen = seen & (query_at // chunk_size == key_at // chunk_size)
    if causal:
        seen = seen & (key_at <= query_at)
    return seen & ~padded_BS[:, None, None, :]

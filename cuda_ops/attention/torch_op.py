"""Both attentions by PyTorch's fused attention: whole chunks are one batch of short sequences.

A call is cut into at most three parts: the new steps that finish the chunk left open by the state, the
whole chunks, and the steps that start the next one.  README.md says how the gradient flows.

Legend: B batch, L length, N sequences in a part (B times its chunks), Q queries and S keys of each,
H heads, K key width, V value width per head, W longest chunk.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from megalodon_tasks.cuda_ops.attention.arguments import (
    ChunkAttentionCall,
    ChunkAttentionState,
    CrossAttentionCall,
    extend,
)
from megalodon_tasks.cuda_ops.attention.dropkey import draw_dropkey
from megalodon_tasks.cuda_ops.transforms import data_is_at_hand

# PyTorch has a fused kernel for equal widths of keys and values only.  The unfused form holds the Q x S
# weights.  Beyond LONG keys that is too much: ROWS queries at a time are attended from, and the backward
# pass computes their weights again.
LONG = 2048
ROWS = 512


def chunk_attention_torch(
    call: ChunkAttentionCall,
) -> tuple[torch.Tensor, ChunkAttentionState | None]:
    """Compute equation 9 of arXiv 2404.08801 with whole chunks as a batch of their own."""
    q, k, v, chunk_size, causal, dropout_p, padding_mask, state = call
    length = q.shape[1]
    past = 0 if state is None else state.key.shape[1]
    drop_BHLW = draw_dropkey(q, past, chunk_size, dropout_p)
    zero_padded = _zeroing(padding_mask)
    q = zero_padded(q)
    new = ChunkAttentionState(zero_padded(k), zero_padded(v), padding_mask)
    chunk = past + length if chunk_size is None else chunk_size
    head = min(chunk - past, length) if past else 0
    start = head + (length - head) // chunk * chunk

    outputs = []
    if head:
        opened = _opened(state, _map(lambda t: t[:, :head], new))
        drop = None if drop_BHLW is None else drop_BHLW[:, :, :head, : past + head]
        outputs.append(_attend(q[:, :head], opened, drop, causal))
    if head < start:
        fold = partial(_fold, start=head, stop=start, chunk=chunk)
        drop = None if drop_BHLW is None else fold(drop_BHLW.transpose(1, 2)).transpose(1, 2)
        y_NCHV = _attend(fold(q), _map(fold, new), drop, causal)
        outputs.append(y_NCHV.unflatten(0, (q.shape[0], -1)).flatten(1, 2))
    if start < length:
        drop = None if drop_BHLW is None else drop_BHLW[:, :, start:, : length - start]
        outputs.append(_attend(q[:, start:], _map(lambda t: t[:, start:], new), drop, causal))
    y_BLHV = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    y_BLHV = zero_padded(y_BLHV).to(v.dtype)
    if not causal:
        return y_BLHV, None
    left = past + length if chunk_size is None else (past + length) % chunk
    if past and left == past + length:
        return y_BLHV, opened
    return y_BLHV, new if left == length else _map(lambda t: t[:, length - left :].clone(), new)


def cross_attention_torch(call: CrossAttentionCall) -> torch.Tensor:
    """Compute :func:`cross_attention` as one chunk whose queries are another sequence's."""
    q, k, v, dropout_p, padding_mask = call
    drop_BHLS = draw_dropkey(q, k.shape[1] - q.shape[1], None, dropout_p)
    zero_padded = _zeroing(padding_mask)
    source = ChunkAttentionState(zero_padded(k), zero_padded(v), padding_mask)
    return _attend(q, source, drop_BHLS, causal=False).to(v.dtype)


def _map(
    change: Callable[[torch.Tensor], torch.Tensor], state: ChunkAttentionState
) -> ChunkAttentionState:
    return ChunkAttentionState(*(None if part is None else change(part) for part in state))


def _zeroing(padding_mask: torch.Tensor | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that puts zeros at the padded steps of (batch, length, ...).

    Writing only these steps takes a fraction of the time of ``masked_fill`` over all, but their number
    has to be known.
    """
    if padding_mask is None:
        return lambda tensor_BL: tensor_BL
    if not data_is_at_hand(padding_mask):
        return lambda tensor_BLHK: tensor_BLHK.masked_fill(padding_mask[:, :, None, None], 0.0)
    padded_N = padding_mask.flatten().nonzero()[:, 0]

    def zero_padded(tensor_BL: torch.Tensor) -> torch.Tensor:
        zeroed = tensor_BL.flatten(0, 1).index_fill(0, padded_N, 0.0)
        return zeroed.unflatten(0, tensor_BL.shape[:2])

    return zero_padded


def _fold(tensor_BL: torch.Tensor, start: int, stop: int, chunk: int) -> torch.Tensor:
    """Turn the whole chunks into a batch of their own: (B * chunks, chunk, ...)."""
    return tensor_BL[:, start:stop].unflatten(1, (-1, chunk)).flatten(0, 1)


def _opened(state: ChunkAttentionState, new: ChunkAttentionState) -> ChunkAttentionState:
    """Append new steps to the open chunk, with zeros at its padded steps."""
    opened = extend(state, *new)
    if state.padding_mask is None:
        return opened  # the padded ones among the new steps are zero already
    zero_padded = _zeroing(opened.padding_mask)
    return opened._replace(key=zero_padded(opened.key), value=zero_padded(opened.value))


def _attend(
    q_NQHK: torch.Tensor,
    part: ChunkAttentionState,
    drop_NHQS: torch.Tensor | None,
    causal: bool,
) -> torch.Tensor:
    """Attend from the last Q steps of each sequence to all its S steps; return (N, Q, H, V)."""
    queries, keys = q_NQHK.shape[1], part.key.shape[1]
    # One query sees all keys before it anyway, and PyTorch's causal flag is for equal lengths.
    plain_causal = causal and queries == keys > 1 and part.padding_mask is None
    plain_causal = plain_causal and drop_NHQS is None
    seen = None
    if causal and queries > 1 and not plain_causal:
        seen = torch.ones(queries, keys, dtype=torch.bool, device=q_NQHK.device)
        seen = seen.tril(keys - queries)
    if part.padding_mask is not None:
        real = ~part.padding_mask[:, None, None, :]
        seen = real if seen is None else seen & real
    if drop_NHQS is not None:
        seen = ~drop_NHQS if seen is None else seen & ~drop_NHQS
    if seen is None or seen.dim() == 2:
        return _fused(q_NQHK, part.key, part.value, seen, plain_causal)
    # A query that sees no key would be 0 / 0: let it see all, and set its output to zero.
    nothing = ~_any(seen)
    y_NQHV = _fused(q_NQHK, part.key, part.value, seen | nothing, False)
    return y_NQHV.masked_fill(nothing.transpose(1, 2), 0.0)


def _any(seen: torch.Tensor) -> torch.Tensor:
    """Return ``seen.any(-1, keepdim=True)``; on bytes ``amax`` is ten times as fast."""
    if not data_is_at_hand(seen):
        return seen.any(-1, keepdim=True)
    return seen.view(torch.uint8).amax(-1, keepdim=True) != 0


def _fused(
    q_NQHK: torch.Tensor,
    k_NSHK: torch.Tensor,
    v_NSHV: torch.Tensor,
    seen: torch.Tensor | None,
    causal: bool,
) -> torch.Tensor:
    """Call ``scaled_dot_product_attention`` without temperature on any widths of keys and values."""
    wide = torch.promote_types(torch.promote_types(q_NQHK.dtype, k_NSHK.dtype), v_NSHV.dtype)
    q, k, v = (tensor.to(wide).transpose(1, 2) for tensor in (q_NQHK, k_NSHK, v_NSHV))
    missing = v.shape[-1] - q.shape[-1]
    if missing > 0 and k.shape[-2] > LONG:
        if data_is_at_hand(q_NQHK):
            return _by_rows(q, k, v, seen, causal).transpose(1, 2)
        q, k = F.pad(q, (0, missing)), F.pad(k, (0, missing))
    elif missing > 0 and q.device.type == "cpu" and wide.itemsize >= 4:
        return _unfused(q, k, v, seen, causal).transpose(1, 2)
    elif missing < 0:
        v = F.pad(v, (0, -missing))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal, scale=1.0)
    return y[..., : v_NSHV.shape[-1]].transpose(1, 2)


def _by_rows(
    q_NHQK: torch.Tensor,
    k_NHSK: torch.Tensor,
    v_NHSV: torch.Tensor,
    seen: torch.Tensor | None,
    causal: bool,
) -> torch.Tensor:
    """Attend without temperature from ``ROWS`` queries at a time; return (N, H, Q, V).

    seen: bool, broadcastable to (N, H, Q, S), or None for all.  causal: instead of ``seen``, and Q = S.
    """
    outputs = []
    for start in range(0, q_NHQK.shape[2], ROWS):
        q_NHRK = q_NHQK[:, :, start : start + ROWS]
        stop = start + q_NHRK.shape[2]
        k, v, mask = k_NHSK, v_NHSV, seen
        if causal:
            k, v = k[:, :, :stop], v[:, :, :stop]
        elif seen is not None and seen.shape[-2] > 1:
            mask = seen[..., start:stop, :]
        options = {"use_reentrant": False, "preserve_rng_state": False}
        outputs.append(checkpoint(_unfused, q_NHRK, k, v, mask, causal, **options))
    return torch.cat(outputs, dim=2)


def _unfused(
    q_NHQK: torch.Tensor,
    k_NHSK: torch.Tensor,
    v_NHSV: torch.Tensor,
    seen: torch.Tensor | None,
    causal: bool,
) -> torch.Tensor:
    """Compute equation 9 with all scores, from the last Q of S steps if causal; each query sees a key.

    PyTorch's own unfused form first copies queries and keys, and looks for queries that see no key.
    """
    scores_NHQS = q_NHQK @ k_NHSK.mT
    if causal:
        queries, keys = scores_NHQS.shape[-2:]
        seen = torch.ones(queries, keys, dtype=torch.bool, device=q_NHQK.device)
        seen = seen.tril(keys - queries)
    if seen is not None:
        scores_NHQS = scores_NHQS.masked_fill(~seen, -torch.inf)
    return scores_NHQS.softmax(-1) @ v_NHSV

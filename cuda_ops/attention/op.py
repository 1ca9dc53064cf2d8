"""The public ``chunk_attention``: check the arguments, choose a backend, call it."""

import torch

from megalodon_tasks.cuda_ops import checks
from megalodon_tasks.cuda_ops.attention.arguments import (
    ChunkAttentionCall,
    ChunkAttentionState,
    extend,
    take_open,
)
from megalodon_tasks.cuda_ops.dispatch import pick

OP = "chunk_attention"


def chunk_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    chunk_size: int | None,
    causal: bool,
    dropout_p: float = 0.0,
    padding_mask: torch.Tensor | None = None,
    state: ChunkAttentionState | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, ChunkAttentionState | None]:
    """Softmax attention inside consecutive chunks, equation 9 of arXiv 2404.08801.

    ``y_i = sum_j softmax_j(q_i . k_j) v_j`` over the keys j of the chunk that query i is in, up to i
    if ``causal``.  There is no temperature: q and k arrive scaled (equations 7 and 8).  Chunks are
    counted from the start of the sequence, so a call with a ``state`` continues its open chunk.

    NaN or infinity at a real step of ``q`` reaches the output of that step, and of ``k`` or ``v`` the
    outputs of its own chunk, earlier ones too: a weight of zero times NaN is NaN.  On ``reference``,
    which multiplies all of ``v``, NaN in ``v`` reaches all outputs.

    Args:
        q: queries (B, L, H, K), a real floating dtype.
        k: keys (B, L, H, K).
        v: values (B, L, H, V); V may differ from K.
        chunk_size: steps per chunk, >= 1; None is attention over the whole sequence.
        causal: whether a query sees only keys up to its own step.
        dropout_p: DropKey (appendix B.1): each score is masked with this probability before the
            softmax and nothing is rescaled.  Pass 0 in evaluation.
        padding_mask: bool (B, L), True at padding.  Padded keys are not seen, whatever they hold (NaN
            too).  The output is zero at padded queries and at queries that see no key.
        state: keys and values of the chunk in progress, or None; only if ``causal``.
        backend: ``reference``, ``torch``, ``triton``; None chooses by device (see ``dispatch``).

    Returns:
        ``(y, state)``: y (B, L, H, V) in the dtype of ``v``, and the keys and values of the chunk that
        is open after step L if ``causal``, else None.  Gradients flow through the given and the
        returned state.

    Raises:
        ValueError: a tensor has the wrong shape, dtype or device, ``chunk_size`` is below 1,
            ``dropout_p`` is not in [0, 1], a state is given without ``causal`` or holds a whole
            chunk, or the backend is unknown.
        BackendUnavailable: the backend was asked for by name and cannot run here.
    """
    call = ChunkAttentionCall(q, k, v, chunk_size, causal, dropout_p, padding_mask, state)
    _check_tensors(call)
    _check_choices(chunk_size, dropout_p)
    if state is not None:
        _check_state(call, state)
    if 0 in q.shape[:2]:
        return v.clone(), take_open(
            extend(state, k, v, padding_mask), chunk_size
        ) if causal else None
    wide = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    return pick(OP, backend, q.device, wide, key_width=int(q.shape[-1]))(call)


def _check_tensors(call: ChunkAttentionCall) -> None:
    q, k, v = call[:3]
    checks.check_shape(OP, "q", q, (None, None, None, None), "(batch, length, heads, z_head)")
    batch, length, heads, width = q.shape
    checks.check_shape(OP, "k", k, (batch, length, heads, width), "the shape of q")
    checks.check_shape(OP, "v", v, (batch, length, heads, None), "(batch, length, heads, v_head)")
    for name, tensor in {"q": q, "k": k, "v": v}.items():
        checks.check_float(OP, name, tensor)
    checks.check_padding_mask(OP, call.padding_mask, batch, length)
    checks.check_same_device(OP, q=q, k=k, v=v, padding_mask=call.padding_mask)


def _check_choices(chunk_size: int | None, dropout_p: float) -> None:
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(
            f"{OP}: chunk_size={chunk_size} must be at least 1; "
            "pass None for attention over the whole sequence"
        )
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"{OP}: dropout_p={dropout_p} must be in [0, 1]")


def _check_state(call: ChunkAttentionCall, state: ChunkAttentionState) -> None:
    if not call.causal:
        raise ValueError(
            f"{OP}: a state of {state.key.shape[1]} steps was given with causal=False, which carries "
            "nothing along the sequence; pass state=None"
        )
    batch, _, heads, width = call.k.shape
    layout = "(batch, steps, heads, z_head)"
    checks.check_shape(OP, "state.key", state.key, (batch, None, heads, width), layout)
    steps = state.key.shape[1]
    expected = (batch, steps, heads, call.v.shape[-1])
    checks.check_shape(OP, "state.value", state.value, expected, "(batch, steps, heads, v_head)")
    if call.chunk_size is not None and steps >= call.chunk_size:
        raise ValueError(
            f"{OP}: the state holds {steps} steps, which must be fewer than chunk_size="
            f"{call.chunk_size}; it comes from a call with another chunk_size"
        )
    checks.check_float(OP, "state.key", state.key)
    checks.check_float(OP, "state.value", state.value)
    checks.check_padding_mask(OP, state.padding_mask, batch, steps)
    checks.check_same_device(OP, k=call.k, **{f"state.{n}": t for n, t in state._asdict().items()})

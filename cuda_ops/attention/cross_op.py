"""The public ``cross_attention``: check the arguments, choose a backend, call it."""

import torch

from megalodon_tasks.cuda_ops import checks
from megalodon_tasks.cuda_ops.attention.arguments import CrossAttentionCall
from megalodon_tasks.cuda_ops.dispatch import pick

OP = "cross_attention"


def cross_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    dropout_p: float = 0.0,
    padding_mask: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Attend from each step of one sequence to every step of another.

    ``y_i = sum_j softmax_j(q_i . k_j) v_j``: equation 9 of arXiv 2404.08801 with keys and values of a
    sequence of their own, without chunks and without a temperature.

    Args:
        q: queries (B, L, H, K), a real floating dtype.
        k: keys (B, S, H, K).
        v: values (B, S, H, V); V may differ from K.
        dropout_p: DropKey (appendix B.1): each score is masked with this probability before the
            softmax and nothing is rescaled.  Pass 0 in evaluation.
        padding_mask: bool (B, S), True at padding of the keys, which are not seen, whatever they hold
            (NaN too).  The output is zero at queries that see no key.
        backend: ``reference``, ``torch``, ``triton``; None chooses by device (see ``dispatch``).

    Returns:
        y (B, L, H, V) in the dtype of ``v``.

    Raises:
        ValueError: a tensor has the wrong shape, dtype or device, ``dropout_p`` is not in [0, 1], or
            the backend is unknown.
        BackendUnavailable: the backend was asked for by name and cannot run here.
    """
    checks.check_shape(OP, "q", q, (None, None, None, None), "(batch, length, heads, z_head)")
    batch, _, heads, width = q.shape
    layout = "(batch, source length, heads, z_head)"
    checks.check_shape(OP, "k", k, (batch, None, heads, width), layout)
    checks.check_shape(OP, "v", v, (*k.shape[:3], None), "(batch, source length, heads, v_head)")
    for name, tensor in {"q": q, "k": k, "v": v}.items():
        checks.check_float(OP, name, tensor)
    checks.check_padding_mask(OP, padding_mask, batch, k.shape[1])
    checks.check_same_device(OP, q=q, k=k, v=v, padding_mask=padding_mask)
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"{OP}: dropout_p={dropout_p} must be in [0, 1]")
    if 0 in q.shape[:2] or k.shape[1] == 0:
        # Empty sums let a gradient of zeros flow to all three.
        nothing = q[:, :0].sum() + k[:, :0].sum() + v[:, :0].sum()
        shape = (*q.shape[:3], v.shape[3])
        return v.new_zeros(shape) + nothing.to(v.dtype)
    wide = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    call = CrossAttentionCall(q, k, v, dropout_p, padding_mask)
    return pick(OP, backend, q.device, wide, key_width=int(width))(call)

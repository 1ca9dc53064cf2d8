"""Cross attention as the equation is written: all scores, a mask of what each query sees, softmax.

Legend: B batch, L queries, S keys, H heads, K key width, V value width per head.
"""

import torch

from megalodon_tasks.cuda_ops.attention.cross.op import CrossAttentionCall
from megalodon_tasks.cuda_ops.attention.dropkey import draw_dropkey
from megalodon_tasks.cuda_ops.autocast import without_autocast


@without_autocast
def cross_attention_reference(call: CrossAttentionCall) -> torch.Tensor:
    """Compute :func:`cross_attention` from all scores.

    Half types are promoted to float32; any other dtype is used as it is.
    """
    q_BLHK, k_BSHK, v_BSHV, dropout_p, padding_mask = call
    length, steps = q_BLHK.shape[1], k_BSHK.shape[1]
    wide = torch.promote_types(torch.promote_types(q_BLHK.dtype, v_BSHV.dtype), torch.float32)
    seen_BHLS = torch.ones(1, 1, length, steps, dtype=torch.bool, device=q_BLHK.device)
    if padding_mask is not None:
        k_BSHK = k_BSHK.masked_fill(padding_mask[:, :, None, None], 0.0)
        v_BSHV = v_BSHV.masked_fill(padding_mask[:, :, None, None], 0.0)
        seen_BHLS = seen_BHLS & ~padding_mask[:, None, None, :]
    drop_BHLS = draw_dropkey(q_BLHK, steps - length, None, dropout_p)
    if drop_BHLS is not None:
        seen_BHLS = seen_BHLS & ~drop_BHLS
    scores_BHLS = torch.einsum("blhk,bshk->bhls", q_BLHK.to(wide), k_BSHK.to(wide))
    # A query that sees no key would be 0 / 0: give it equal weights here and set them to zero below.
    nothing = ~seen_BHLS.any(-1, keepdim=True)
    weights_BHLS = scores_BHLS.masked_fill(~(seen_BHLS | nothing), -torch.inf).softmax(-1)
    weights_BHLS = weights_BHLS.masked_fill(nothing, 0.0)
    return torch.einsum("bhls,bshv->blhv", weights_BHLS, v_BSHV.to(wide)).to(v_BSHV.dtype)

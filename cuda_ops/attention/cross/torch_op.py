"""Cross attention by PyTorch's fused attention, with a graph of autograd's."""

import torch

from megalodon_tasks.cuda_ops.attention.arguments import ChunkAttentionState
from megalodon_tasks.cuda_ops.attention.cross.op import CrossAttentionCall
from megalodon_tasks.cuda_ops.attention.dropkey import draw_dropkey
from megalodon_tasks.cuda_ops.attention.torch_op import attend


def cross_attention_torch(call: CrossAttentionCall) -> torch.Tensor:
    """Compute :func:`cross_attention` as one chunk whose queries are another sequence's."""
    q_BLHK, k_BSHK, v_BSHV, dropout_p, padding_mask = call
    drop_BHLS = draw_dropkey(q_BLHK, k_BSHK.shape[1] - q_BLHK.shape[1], None, dropout_p)
    if padding_mask is not None:
        k_BSHK = k_BSHK.masked_fill(padding_mask[:, :, None, None], 0.0)
        v_BSHV = v_BSHV.masked_fill(padding_mask[:, :, None, None], 0.0)
    source = ChunkAttentionState(k_BSHK, v_BSHV, padding_mask)
    return attend(q_BLHK, source, drop_BHLS, causal=False).to(v_BSHV.dtype)

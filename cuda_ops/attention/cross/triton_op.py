"""The ``triton`` backend of cross attention: chunk attention's operator, queries of another sequence."""

import torch

from megalodon_tasks.cuda_ops.attention.cross.op import CrossAttentionCall
from megalodon_tasks.cuda_ops.attention.triton_launch import CROSS
from megalodon_tasks.cuda_ops.attention.triton_op import chunk_attention_op, draw_seed


def cross_attention_triton(call: CrossAttentionCall) -> torch.Tensor:
    """Compute :func:`cross_attention` in Triton, for float32, bfloat16 or float16.

    DropKey's mask is drawn as in ``chunk_attention_triton``.
    """
    q, k, v, dropout_p, padding_mask = call
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    inputs = (tensor.to(dtype) for tensor in (q, k, v))
    seed = draw_seed(q.device) if dropout_p > 0.0 else None
    y, _ = chunk_attention_op(*inputs, padding_mask, seed, CROSS, False, dropout_p)
    return y.to(v.dtype)

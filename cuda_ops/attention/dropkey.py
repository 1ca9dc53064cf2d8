"""DropKey (arXiv 2404.08801, appendix B.1): which scores are masked before the softmax.

Backends that compute in PyTorch all draw the mask here, so that they agree under a seed.
"""

import math

import torch


def draw_dropkey(
    q_BLHK: torch.Tensor, past: int, chunk_size: int | None, dropout_p: float
) -> torch.Tensor | None:
    """Draw the dropped keys of each query from the default generator of the device.

    q_BLHK:    (B, L, H, K), only its shape and device are read.
    past:      number of steps of the open chunk that come before the first query.
    Returns bool (B, H, L, W), True where the key is dropped, or None if ``dropout_p`` rounds to zero.
    Entry w is the key at offset w of the query's own chunk; W is the length of the longest chunk, the
    lesser of ``chunk_size`` and ``past + L``.

    One random word serves four keys.  That is several times faster than a float or a Bernoulli draw for
    each key, and rounds the probability to a multiple of 2^-16.
    """
    if dropout_p < 2**-17:
        return None
    batch, length, heads, _ = q_BLHK.shape
    width = past + length if chunk_size is None else min(chunk_size, past + length)
    shape = batch, heads, length, width
    words = torch.empty(-(-math.prod(shape) // 4), dtype=torch.int64, device=q_BLHK.device)
    words.random_(-(2**63), None)
    level = round(dropout_p * 65536) - 32768
    return (words.view(torch.int16)[: math.prod(shape)] <= level - 1).view(shape)

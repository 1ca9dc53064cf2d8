"""Sequence norm on a GPU: moments of blocks of time in parallel, combined, then one elementwise pass.

The kernels in ``cuda_ops/norms/triton_kernels.py`` find and combine the moments; x is read twice and y
written once.  Backward, with ``g = grad_y * scale``, hats for normalised numbers and means over the real
steps of the sequence and the features of the group::

    grad_x = rstd (g - mean(g) - xhat mean(g xhat))

The two means follow from sums over time of ``grad_y`` and ``grad_y * xhat`` per feature, which are also
the gradients of bias and scale: one kernel takes these sums, one writes ``grad_x``.

Letters as in ``cuda_ops/norms/triton_kernels.py``: B, L, D, G, J, N blocks; tiles are (T, D).
"""

import triton
import triton.language as tl

from megalodon_tasks.cuda_ops.norms.triton_kernels import program
from megalodon_tasks.cuda_ops.triton_helpers import (
    load_pair,
    load_rows,
    load_triple,
    not_padded,
    store_pair,
    store_rows,
)


@triton.jit
def _tile(N, D, BT: tl.constexpr, BD: tl.constexpr):
    """Return the sequence, the steps and the features of this program's tile."""
    i_b, i_n, i_d = program(N, tl.cdiv(D, BD))
    return i_b, i_n * BT + tl.arange(0, BT), i_d * BD + tl.arange(0, BD)


@triton.jit
def _load(source, i_b, o_t, o_d, strides, real, D):
    """Load a tile (BT, BD) in float32, zero outside and at padding."""
    return load_rows((source + i_b * strides[0], o_t, strides[1], real), o_d, D, tl.float32)


@triton.jit
def _normalise(b_x, total, i_b, o_d, real, plane, G, eps, J: tl.constexpr):
    """Return the normalised tile, zero outside, and 1 / deviation of each feature's group."""
    inside_d = o_d < G * J
    high, low, var = load_triple(total, plane, i_b * G + o_d // J, inside_d)
    rstd = 1.0 / tl.sqrt(var + eps)
    normed = ((b_x - high[None, :]) - low[None, :]) * rstd[None, :]
    return tl.where(real[:, None] & inside_d[None, :], normed, 0.0), rstd


@triton.jit
def _store(target, values, i_b, o_t, o_d, real, L, D):
    """Store a tile (BT, BD) in a contiguous tensor (B, L, D), zero at padding."""
    values = tl.where(real[:, None], values, 0.0)
    store_rows((target + i_b * L * D, o_t, D, o_t < L), values, o_d, D)


@triton.jit
def sequence_norm_kernel(
    x,
    scale,
    bias,
    mask,
    total,
    y,
    strides,
    eps,
    L,
    N,
    G,
    plane,
    J: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """Write outputs ``y`` (B, L, D) from ``total`` (3, B, G): mean, its low part, variance."""
    D = G * J
    i_b, o_t, o_d = _tile(N, D, BT, BD)
    real = not_padded(mask, i_b, o_t, o_t < L, L)
    b_x = _load(x, i_b, o_t, o_d, strides, real, D)
    b_x, rstd = _normalise(b_x, total, i_b, o_d, real, plane, G, eps, J)
    b_scale = tl.load(scale + o_d, mask=o_d < D, other=0.0).to(tl.float32)
    b_bias = tl.load(bias + o_d, mask=o_d < D, other=0.0).to(tl.float32)
    _store(y, b_x * b_scale[None, :] + b_bias[None, :], i_b, o_t, o_d, real, L, D)


@triton.jit
def sequence_norm_sums_kernel(
    x,
    grad,
    mask,
    total,
    partial,
    strides,
    grad_strides,
    eps,
    L,
    N,
    G,
    plane,
    blocks,
    J: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """Write sums over ``blocks`` blocks, ``partial`` (B, runs, 2, D): of grad * normalised and grad."""
    D = G * J
    runs = tl.cdiv(N, blocks)
    i_b, i_r, i_d = program(runs, tl.cdiv(D, BD))
    o_d = i_d * BD + tl.arange(0, BD)
    by_scale = tl.zeros((BD,), tl.float32)
    by_bias = tl.zeros((BD,), tl.float32)
    for i_n in range(i_r * blocks, tl.minimum(N, (i_r + 1) * blocks)):
        o_t = i_n * BT + tl.arange(0, BT)
        real = not_padded(mask, i_b, o_t, o_t < L, L)
        b_x = _load(x, i_b, o_t, o_d, strides, real, D)
        b_grad = _load(grad, i_b, o_t, o_d, grad_strides, real, D)
        b_x, rstd = _normalise(b_x, total, i_b, o_d, real, plane, G, eps, J)
        by_scale += tl.sum(b_grad * b_x, 0)
        by_bias += tl.sum(b_grad, 0)
    store_pair(partial, D, (i_b * runs + i_r) * 2 * D + o_d, by_scale, by_bias, o_d < D)


@triton.jit
def sequence_norm_backward_kernel(
    x,
    grad,
    scale,
    mask,
    total,
    means,
    grad_x,
    strides,
    grad_strides,
    eps,
    L,
    N,
    G,
    plane,
    J: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """Write ``grad_x`` (B, L, D) from ``means`` (B, 2, G), of g xhat and of g."""
    D = G * J
    i_b, o_t, o_d = _tile(N, D, BT, BD)
    real = not_padded(mask, i_b, o_t, o_t < L, L)
    b_x = _load(x, i_b, o_t, o_d, strides, real, D)
    b_g = _load(grad, i_b, o_t, o_d, grad_strides, real, D)
    b_x, rstd = _normalise(b_x, total, i_b, o_d, real, plane, G, eps, J)
    b_scale = tl.load(scale + o_d, mask=o_d < D, other=0.0).to(tl.float32)
    along, direct = load_pair(means, G, i_b * 2 * G + o_d // J, o_d < D)
    b_g = (b_g * b_scale[None, :] - direct[None, :] - b_x * along[None, :]) * rstd[None, :]
    _store(grad_x, b_g, i_b, o_t, o_d, real, L, D)

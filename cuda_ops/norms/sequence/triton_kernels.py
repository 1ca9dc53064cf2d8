"""Sequence norm on a GPU: moments of blocks of time in parallel, combined, then one elementwise pass.

The moments are found and combined by the kernels in ``cuda_ops/norms/triton_kernels.py``; x is read
twice and y written once.  Backward, with ``g = grad_y * scale``, hats for normalised numbers and means over the real steps
of the sequence and the features of the group::

    grad_x = rstd (g - mean(g) - xhat mean(g xhat))

Both means follow from sums over time of ``grad_y`` and ``grad_y * xhat`` per feature, which are also
what the gradients of bias and scale are made of: one kernel takes these sums, one writes ``grad_x``.

Letters as in ``cuda_ops/norms/triton_kernels.py``: B, L, D, G, J, N blocks; tiles are (T, D).
"""

import triton
import triton.language as tl

from megalodon_tasks.cuda_ops.norms.triton_kernels import real_steps


@triton.jit
def _offsets(i_n, i_d, D, BT: tl.constexpr, BD: tl.constexpr):
    """Offsets of a tile along steps and features, and which features exist."""
    o_d = i_d * BD + tl.arange(0, BD)
    return i_n * BT + tl.arange(0, BT), o_d, o_d < D


@triton.jit
def _load_tile(source, i_b, o_t, o_d, stride_b, stride_l, inside):
    at = source + i_b * stride_b + o_t.to(tl.int64)[:, None] * stride_l + o_d[None, :]
    return tl.load(at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _normalise(b_x, total, i_b, o_d, inside_d, inside, plane, G, eps, J: tl.constexpr):
    """Normalised tile, zero outside, and 1 / deviation of each feature's group."""
    at = total + i_b * G + o_d // J
    high = tl.load(at, mask=inside_d, other=0.0)
    low = tl.load(at + plane, mask=inside_d, other=0.0)
    var = tl.load(at + 2 * plane, mask=inside_d, other=0.0)
    rstd = 1.0 / tl.sqrt(var + eps)
    normed = ((b_x - high[None, :]) - low[None, :]) * rstd[None, :]
    return tl.where(inside, normed, 0.0), rstd


@triton.jit
def sequence_norm_kernel(
    x,
    scale,
    bias,
    mask,
    total,
    y,
    stride_b,
    stride_l,
    eps,
    L,
    N,
    G,
    plane,
    J: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """Outputs ``y`` (B, L, D) from ``total`` (3, B, G): mean, its low part, variance."""
    D = G * J
    i_b, i_n = (tl.program_id(0) // N).to(tl.int64), tl.program_id(0) % N
    o_t, o_d, inside_d = _offsets(i_n, tl.program_id(1), D, BT, BD)
    real = real_steps(mask, i_b, o_t, L)
    inside = real[:, None] & inside_d[None, :]
    b_x = _load_tile(x, i_b, o_t, o_d, stride_b, stride_l, inside)
    b_x, rstd = _normalise(b_x, total, i_b, o_d, inside_d, inside, plane, G, eps, J)
    b_scale = tl.load(scale + o_d, mask=inside_d, other=0.0).to(tl.float32)
    b_bias = tl.load(bias + o_d, mask=inside_d, other=0.0).to(tl.float32)
    b_y = tl.where(inside, b_x * b_scale[None, :] + b_bias[None, :], 0.0)
    at = y + (i_b * L + o_t.to(tl.int64)[:, None]) * D + o_d[None, :]
    tl.store(at, b_y, mask=(o_t < L)[:, None] & inside_d[None, :])


@triton.jit
def sequence_norm_sums_kernel(
    x,
    grad,
    mask,
    total,
    partial,
    stride_b,
    stride_l,
    grad_stride_b,
    grad_stride_l,
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
    """Sums over ``blocks`` blocks, ``partial`` (B, runs, 2, D): of grad * normalised, and of grad."""
    D = G * J
    runs = tl.cdiv(N, blocks)
    i_b, i_r = (tl.program_id(0) // runs).to(tl.int64), tl.program_id(0) % runs
    o_d = tl.program_id(1) * BD + tl.arange(0, BD)
    inside_d = o_d < D
    by_scale = tl.zeros((BD,), tl.float32)
    by_bias = tl.zeros((BD,), tl.float32)
    for i_n in range(i_r * blocks, tl.minimum(N, (i_r + 1) * blocks)):
        o_t = i_n * BT + tl.arange(0, BT)
        inside = real_steps(mask, i_b, o_t, L)[:, None] & inside_d[None, :]
        b_x = _load_tile(x, i_b, o_t, o_d, stride_b, stride_l, inside)
        b_grad = _load_tile(grad, i_b, o_t, o_d, grad_stride_b, grad_stride_l, inside)
        b_x, rstd = _normalise(b_x, total, i_b, o_d, inside_d, inside, plane, G, eps, J)
        by_scale += tl.sum(b_grad * b_x, 0)
        by_bias += tl.sum(b_grad, 0)
    at = partial + (i_b * runs + i_r) * 2 * D + o_d
    tl.store(at, by_scale, mask=inside_d)
    tl.store(at + D, by_bias, mask=inside_d)


@triton.jit
def sequence_norm_backward_kernel(
    x,
    grad,
    scale,
    mask,
    total,
    means,
    grad_x,
    stride_b,
    stride_l,
    grad_stride_b,
    grad_stride_l,
    eps,
    L,
    N,
    G,
    plane,
    J: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """``grad_x`` (B, L, D) from ``means`` (B, 2, G), of g xhat and of g."""
    D = G * J
    i_b, i_n = (tl.program_id(0) // N).to(tl.int64), tl.program_id(0) % N
    o_t, o_d, inside_d = _offsets(i_n, tl.program_id(1), D, BT, BD)
    inside = real_steps(mask, i_b, o_t, L)[:, None] & inside_d[None, :]
    b_x = _load_tile(x, i_b, o_t, o_d, stride_b, stride_l, inside)
    b_g = _load_tile(grad, i_b, o_t, o_d, grad_stride_b, grad_stride_l, inside)
    b_x, rstd = _normalise(b_x, total, i_b, o_d, inside_d, inside, plane, G, eps, J)
    b_scale = tl.load(scale + o_d, mask=inside_d, other=0.0).to(tl.float32)
    at = means + i_b * 2 * G + o_d // J
    along = tl.load(at, mask=inside_d, other=0.0)
    direct = tl.load(at + G, mask=inside_d, other=0.0)
    b_g = (b_g * b_scale[None, :] - direct[None, :] - b_x * along[None, :]) * rstd[None, :]
    at = grad_x + (i_b * L + o_t.to(tl.int64)[:, None]) * D + o_d[None, :]
    tl.store(at, tl.where(inside, b_g, 0.0), mask=(o_t < L)[:, None] & inside_d[None, :])

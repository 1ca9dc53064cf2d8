"""Timestep norm on a GPU: blocks of time in parallel, between them only the moments of each group.

Forward: the moments of each block, a scan over the blocks (see ``cuda_ops/norms/triton_kernels.py``),
and :func:`timestep_norm_kernel`, which runs along the steps of each block from the moments before it.  x
is read twice and y written once, and nothing of the size of x is allocated but y.

Backward, with ``g = grad_y * scale``, ``N_t = count_t * J`` and hats for normalised numbers::

    a_t = -rstd_t sum_j g_tj        c_t = -rstd_t^2 / 2 sum_j g_tj xhat_tj       (by mean_t, by var_t)
    grad_x_ij = g_ij rstd_i + sum_{t >= i} (a_t + 2 c_t (x_ij - mean_t)) / N_t

because a step moves the mean at t by 1 / N_t and the variance by 2 (x - mean_t) / N_t.  The sum over
later steps is a straight line in x, ``shift + slope (x - base)``, so that two numbers per step and group
are summed backwards.  Lines of different blocks are added with regard to their own bases, which are near
the numbers of their block.

Letters as in ``cuda_ops/norms/triton_kernels.py``: B, L, D, G, J, N blocks; tiles are (T, G, J).
"""

import triton
import triton.language as tl

from megalodon_tasks.cuda_ops.norms.triton_kernels import (
    group_tile,
    load_state,
    load_tile,
    program,
    tile_row,
    two_sum,
)
from megalodon_tasks.cuda_ops.triton_helpers import (
    load_pair,
    load_triple,
    not_padded,
    store_pair,
    store_triple,
)


@triton.jit
def _past(state, before, prefix, i_b, i_n, o_g, N, G, plane):
    """Return steps, mean as two numbers and variance of all that comes before block ``i_n``."""
    if prefix is not None:
        steps = tl.zeros((1,), tl.int64) + tl.load(before + i_b * N + i_n)
        high, low, var = load_triple(prefix, plane, (i_b * N + i_n) * G + o_g, o_g < G)
    else:
        steps, high, low, var = load_state(state, i_b, o_g, G)
    return steps, high, low, var


@triton.jit
def _add_pairs(a_first, a_second, b_first, b_second):
    return a_first + b_first, a_second + b_second


@triton.jit
def _running_sums(first, second, REVERSE: tl.constexpr):
    """Return the running sums over time of two tiles, in one scan."""
    return tl.associative_scan((first, second), 0, _add_pairs, reverse=REVERSE)


@triton.jit
def _taken(real, mask, o_t, start, L):
    """Return the number of real steps of a block, from ``start``, up to each step; (BT,) int32."""
    if mask is None:
        taken = tl.minimum(o_t, L - 1) - start + 1
    else:
        taken = tl.cumsum(real.to(tl.int32), 0)
    return taken


@triton.jit
def _running(b_x, inside, real, taken, past, J: tl.constexpr):
    """Compute moments up to each step of a block, relative to a base that is one of the numbers seen.

    Returns ``x - base`` (BT, BG, BJ), base (BG,), ``mean - base`` and var (BT, BG), steps (BT,) int64.

    The base is the mean of the past or, where there is none, of the first real step.  As the moments
    up to any step contain it, squares around it exceed the variance by no more than the number of
    steps of the block, which bounds what is lost in their difference.
    """
    past_steps, past_high, past_low, past_var = past
    is_first = real & (taken == 1)
    first = tl.sum(tl.where(is_first[:, None], tl.sum(b_x, 2) / J, 0.0), 0)
    fresh = (past_steps == 0) & (tl.max(taken, 0) > 0)
    base = tl.where(fresh, first, past_high)
    past_mean = tl.where(fresh, 0.0, past_low)[None, :]

    b_x = tl.where(inside, b_x - base[None, :, None], 0.0)
    sums, squares = _running_sums(tl.sum(b_x, 2) / J, tl.sum(b_x * b_x, 2) / J, False)
    f_taken = taken.to(tl.float32)[:, None]
    mean = sums / tl.maximum(f_taken, 1.0)
    squares = tl.maximum(squares - sums * mean, 0.0)

    steps = past_steps + taken
    f_steps = tl.maximum(steps.to(tl.float32), 1.0)[:, None]
    weight = f_taken / f_steps
    keep = tl.where(
        steps > 0, past_steps.to(tl.float32) / tl.maximum(steps.to(tl.float32), 1.0), 1.0
    )
    delta = mean - past_mean
    var = (
        past_var[None, :] * keep[:, None]
        + squares / f_steps
        + delta * delta * keep[:, None] * weight
    )
    return b_x, base, past_mean + delta * weight, var, steps


@triton.jit
def _store_tile(target, values, i_b, o_t, o_d, real, inside_d, L, D):
    """Store a tile (BT, BG, BJ) in a contiguous tensor (B, L, D), zero at padding."""
    values = tl.where(real[:, None, None], values, 0.0)
    at = target + (i_b * L + o_t.to(tl.int64)[:, None, None]) * D + o_d
    tl.store(at, values, mask=(o_t < L)[:, None, None] & inside_d)


@triton.jit
def timestep_norm_kernel(
    x,
    scale,
    bias,
    mask,
    state,
    before,
    prefix,
    y,
    end_count,
    end,
    strides,
    eps,
    L,
    N,
    G,
    plane,
    end_plane,
    J: tl.constexpr,
    BT: tl.constexpr,
    BG: tl.constexpr,
    BJ: tl.constexpr,
):
    """Write ``y`` (B, L, D), and from the last block the state ``end`` (3, B, G), ``end_count`` (B,)."""
    i_b, i_n, i_g = program(N, tl.cdiv(G, BG))
    o_t = i_n * BT + tl.arange(0, BT)
    o_g, o_d, inside_d = group_tile(i_g, G, J, BG, BJ)
    real = not_padded(mask, i_b, o_t, o_t < L, L)
    inside = real[:, None, None] & inside_d
    b_x = load_tile(x, i_b, o_t, o_d, strides, inside)
    past = _past(state, before, prefix, i_b, i_n, o_g, N, G, plane)
    taken = _taken(real, mask, o_t, i_n * BT, L)
    b_x, base, b_mean, b_var, steps = _running(b_x, inside, real, taken, past, J)

    b_scale = tl.load(scale + o_d, mask=inside_d, other=0.0).to(tl.float32)
    b_bias = tl.load(bias + o_d, mask=inside_d, other=0.0).to(tl.float32)
    rstd = 1.0 / tl.sqrt(b_var + eps)
    b_y = (b_x - b_mean[:, :, None]) * rstd[:, :, None] * b_scale + b_bias
    _store_tile(y, b_y, i_b, o_t, o_d, real, inside_d, L, G * J)

    if i_n == N - 1:
        is_last = tl.arange(0, BT)[:, None] == BT - 1
        high, low = two_sum(base, tl.sum(tl.where(is_last, b_mean, 0.0), 0))
        last_var = tl.sum(tl.where(is_last, b_var, 0.0), 0)
        store_triple(end, end_plane, i_b * G + o_g, high, low, last_var, o_g < G)
        if i_g == 0:
            tl.store(end_count + i_b, tl.max(steps, 0))


@triton.jit
def _line(b_g, b_normed, b_mean, rstd, steps, real, J: tl.constexpr):
    """Return what each step adds to the line of the steps before it: shift and slope (BT, BG)."""
    elements = (tl.maximum(steps, 1).to(tl.float32) * J)[:, None]
    slope = -rstd * rstd * tl.sum(b_g * b_normed, 2) / elements
    shift = -rstd * tl.sum(b_g, 2) / elements - slope * b_mean
    return tl.where(real[:, None], shift, 0.0), tl.where(real[:, None], slope, 0.0)


@triton.jit
def timestep_norm_lines_kernel(
    x,
    grad,
    scale,
    mask,
    state,
    before,
    prefix,
    lines,
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
    BG: tl.constexpr,
    BJ: tl.constexpr,
):
    """Write base, shift and slope of each block, ``lines`` (3, B, N, G), and sums over its steps.

    A program walks through ``blocks`` blocks and writes ``partial`` (B, runs, 2, D): the gradients of
    scale and bias from these steps.
    """
    runs = tl.cdiv(N, blocks)
    i_b, i_r, i_g = program(runs, tl.cdiv(G, BG))
    o_g, o_d, inside_d = group_tile(i_g, G, J, BG, BJ)
    b_scale = tl.load(scale + o_d, mask=inside_d, other=0.0).to(tl.float32)
    grad_scale = tl.zeros((BG, BJ), tl.float32)
    grad_bias = tl.zeros((BG, BJ), tl.float32)
    for i_n in range(i_r * blocks, tl.minimum(N, (i_r + 1) * blocks)):
        o_t = i_n * BT + tl.arange(0, BT)
        real = not_padded(mask, i_b, o_t, o_t < L, L)
        inside = real[:, None, None] & inside_d
        b_x = load_tile(x, i_b, o_t, o_d, strides, inside)
        b_grad = load_tile(grad, i_b, o_t, o_d, grad_strides, inside)
        past = _past(state, before, prefix, i_b, i_n, o_g, N, G, plane)
        taken = _taken(real, mask, o_t, i_n * BT, L)
        b_x, base, b_mean, b_var, steps = _running(b_x, inside, real, taken, past, J)
        rstd = 1.0 / tl.sqrt(b_var + eps)
        b_x = tl.where(inside, (b_x - b_mean[:, :, None]) * rstd[:, :, None], 0.0)
        grad_scale += tl.sum(b_grad * b_x, 0)
        grad_bias += tl.sum(b_grad, 0)
        shift, slope = _line(b_grad * b_scale, b_x, b_mean, rstd, steps, real, J)
        at = (i_b * N + i_n) * G + o_g
        store_triple(lines, plane, at, base, tl.sum(shift, 0), tl.sum(slope, 0), o_g < G)

    D, o_j = G * J, tl.arange(0, BJ)
    o_2d, inside_2d = o_g[:, None] * J + o_j[None, :], (o_g < G)[:, None] & (o_j < J)[None, :]
    at = (i_b * runs + i_r) * 2 * D + o_2d
    store_pair(partial, D, at, grad_scale, grad_bias, inside_2d)


@triton.jit
def _add_lines(a_base, a_shift, a_slope, b_base, b_shift, b_slope):
    """Return the sum of two lines, relative to the base of the second."""
    return b_base, a_shift + a_slope * (b_base - a_base) + b_shift, a_slope + b_slope


@triton.jit
def timestep_norm_carry_kernel(
    lines,
    end_count,
    end,
    grads,
    state,
    later,
    grad_start,
    N,
    G,
    plane,
    end_plane,
    J: tl.constexpr,
    BN: tl.constexpr,
    BG: tl.constexpr,
):
    """Sum the lines of the steps after each block, from the last block to the first.

    Position 0 of the scan is the line that follows from ``grads``, the gradients of the returned mean
    and variance (B, G) or None; position i is block N - i.  Writes ``later`` (2, B, N, G), shift and
    slope relative to the base of the block, and ``grad_start``, the gradients (B, G) of the mean and
    the variance given in a state, unless None.
    """
    grad_mean, grad_var = grads
    grad_start_mean, grad_start_var = grad_start
    i_b, _, i_g = program(1, tl.cdiv(G, BG))
    o_g = i_g * BG + tl.arange(0, BG)
    inside_g = o_g < G
    at_g = i_b * G + o_g
    total = tl.load(end_count + i_b)
    elements = tl.maximum(total, 1).to(tl.float32) * J
    by_mean = tl.zeros((BG,), tl.float32)
    by_var = tl.zeros((BG,), tl.float32)
    if grad_mean is not None:
        by_mean = tl.load(grad_mean + at_g, mask=inside_g, other=0.0).to(tl.float32)
    if grad_var is not None:
        by_var = tl.load(grad_var + at_g, mask=inside_g, other=0.0).to(tl.float32)
    c_base = tl.load(end + at_g, mask=inside_g, other=0.0)
    c_slope = 2.0 * by_var / elements
    c_shift = by_mean / elements - c_slope * tl.load(
        end + end_plane + at_g, mask=inside_g, other=0.0
    )

    for start in range(0, N + 1, BN):
        o_n = start + tl.arange(0, BN)
        # The line at position 0 is in the carry; an empty one with its base stands for it here.
        inside = ((o_n > 0) & (o_n <= N))[:, None] & inside_g[None, :]
        at = (i_b * N + (N - o_n))[:, None] * G + o_g[None, :]
        base, shift, slope = load_triple(lines, plane, at, inside)
        base = tl.where(inside, base, c_base[None, :])
        base, shift, slope = tl.associative_scan((base, shift, slope), 0, _add_lines)
        base, shift, slope = _add_lines(
            c_base[None, :], c_shift[None, :], c_slope[None, :], base, shift, slope
        )
        keep = (o_n < N)[:, None] & inside_g[None, :]
        own = tl.load(lines + at - G, mask=keep, other=0.0)
        store_pair(later, plane, at - G, shift + slope * (own - base), slope, keep)
        last = tl.minimum(start + BN, N + 1) - 1
        c_base, c_shift = tile_row(base, o_n, last), tile_row(shift, o_n, last)
        c_slope = tile_row(slope, o_n, last)

    if grad_start_mean is not None:
        count, mean, mean_low, _ = state
        elements = tl.load(count + i_b).to(tl.float32) * J
        offset = tl.load(mean + at_g, mask=inside_g, other=0.0) - c_base
        offset += tl.load(mean_low + at_g, mask=inside_g, other=0.0)
        # A state that has met no step at all is returned as it is.
        empty = total == 0
        by_mean = tl.where(empty, by_mean, elements * (c_shift + c_slope * offset))
        by_var = tl.where(empty, by_var, elements * 0.5 * c_slope)
        tl.store(grad_start_mean + at_g, by_mean, mask=inside_g)
        tl.store(grad_start_var + at_g, by_var, mask=inside_g)


@triton.jit
def timestep_norm_backward_kernel(
    x,
    grad,
    scale,
    mask,
    state,
    before,
    prefix,
    later,
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
    BG: tl.constexpr,
    BJ: tl.constexpr,
):
    """Write ``grad_x`` (B, L, D) from the lines of the steps after each block."""
    i_b, i_n, i_g = program(N, tl.cdiv(G, BG))
    o_t = i_n * BT + tl.arange(0, BT)
    o_g, o_d, inside_d = group_tile(i_g, G, J, BG, BJ)
    real = not_padded(mask, i_b, o_t, o_t < L, L)
    inside = real[:, None, None] & inside_d
    b_x = load_tile(x, i_b, o_t, o_d, strides, inside)
    b_g = load_tile(grad, i_b, o_t, o_d, grad_strides, inside)
    b_g *= tl.load(scale + o_d, mask=inside_d, other=0.0).to(tl.float32)
    past = _past(state, before, prefix, i_b, i_n, o_g, N, G, plane)
    taken = _taken(real, mask, o_t, i_n * BT, L)
    b_x, base, b_mean, b_var, steps = _running(b_x, inside, real, taken, past, J)
    rstd = 1.0 / tl.sqrt(b_var + eps)
    b_normed = tl.where(inside, (b_x - b_mean[:, :, None]) * rstd[:, :, None], 0.0)
    shift, slope = _line(b_g, b_normed, b_mean, rstd, steps, real, J)
    later_shift, later_slope = load_pair(later, plane, (i_b * N + i_n) * G + o_g, o_g < G)
    shift, slope = _running_sums(shift, slope, True)
    shift, slope = shift + later_shift[None, :], slope + later_slope[None, :]
    b_grad_x = b_g * rstd[:, :, None] + shift[:, :, None] + slope[:, :, None] * b_x
    _store_tile(grad_x, b_grad_x, i_b, o_t, o_d, real, inside_d, L, G * J)

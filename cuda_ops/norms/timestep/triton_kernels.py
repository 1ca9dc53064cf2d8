"""Timestep norm on a GPU: blocks of time in parallel, between them only the moments of each group.

Forward: the moments of each block, a scan over the blocks (both in ``cuda_ops/norms/triton_kernels.py``),
and :func:`timestep_norm_kernel`, which runs along the steps of each block from the moments before it.  x is
read twice and y written once, and nothing of the size of x is allocated but y.

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

from megalodon_tasks.cuda_ops.norms.triton_kernels import real_steps, two_sum


@triton.jit
def _load_groups(source, i_b, i_n, o_g, N, G, plane):
    """One number per group from each of the three planes of (3, B, N, G)."""
    at = source + (i_b * N + i_n) * G + o_g
    inside = o_g < G
    first = tl.load(at, mask=inside, other=0.0)
    return (
        first,
        tl.load(at + plane, mask=inside, other=0.0),
        tl.load(at + 2 * plane, mask=inside, other=0.0),
    )


@triton.jit
def _past(count, mean, mean_low, var, before, prefix, i_b, i_n, o_g, N, G, plane):
    """Steps, mean as two numbers and variance of what is before block ``i_n``."""
    steps = tl.zeros((1,), tl.int64)
    high = tl.zeros_like(o_g).to(tl.float32)
    low = high
    past_var = high
    if prefix is not None:
        steps += tl.load(before + i_b * N + i_n)
        high, low, past_var = _load_groups(prefix, i_b, i_n, o_g, N, G, plane)
    elif count is not None:
        steps += tl.load(count + i_b)
        at, inside = i_b * G + o_g, o_g < G
        high = tl.load(mean + at, mask=inside, other=0.0)
        low = tl.load(mean_low + at, mask=inside, other=0.0)
        past_var = tl.load(var + at, mask=inside, other=0.0)
    return steps, high, low, past_var


@triton.jit
def _running(
    b_x, inside, real, past_steps, past_high, past_low, past_var, J: tl.constexpr, BT: tl.constexpr
):
    """Moments up to each step of a block, with regard to a base that is one of the numbers seen.

    Returns ``x - base`` (BT, BG, BJ), base (BG,), ``mean - base`` and var (BT, BG), steps (BT,) int64.

    The base is the mean of the past or, where there is none, of the first real step.  As the moments
    up to any step contain it, squares around it exceed the variance by no more than the number of
    steps of the block, which bounds what is lost in their difference.
    """
    taken = tl.cumsum(real.to(tl.int32), 0)
    is_first = real & (taken == 1)
    first = tl.sum(tl.where(is_first[:, None], tl.sum(b_x, 2) / J, 0.0), 0)
    fresh = (past_steps == 0) & (tl.sum(real.to(tl.int32), 0) > 0)
    base = tl.where(fresh, first, past_high)
    past_mean = tl.where(fresh, 0.0, past_low)[None, :]

    b_x = tl.where(inside, b_x - base[None, :, None], 0.0)
    sums = tl.cumsum(tl.sum(b_x, 2) / J, 0)
    squares = tl.cumsum(tl.sum(b_x * b_x, 2) / J, 0)
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
def _tile(i_n, i_g, BT: tl.constexpr, BG: tl.constexpr, BJ: tl.constexpr):
    """Offsets of a tile along steps, groups and features."""
    return i_n * BT + tl.arange(0, BT), i_g * BG + tl.arange(0, BG), tl.arange(0, BJ)


@triton.jit
def _load_tile(source, i_b, o_t, o_d, stride_b, stride_l, inside):
    at = source + i_b * stride_b + o_t.to(tl.int64)[:, None, None] * stride_l + o_d
    return tl.load(at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def timestep_norm_kernel(
    x,
    scale,
    bias,
    mask,
    count,
    mean,
    mean_low,
    var,
    before,
    prefix,
    y,
    end_count,
    end,
    stride_b,
    stride_l,
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
    """Outputs ``y`` (B, L, D), and from the last block ``end`` (3, B, G) and ``end_count`` (B,)."""
    i_b, i_n = (tl.program_id(0) // N).to(tl.int64), tl.program_id(0) % N
    o_t, o_g, o_j = _tile(i_n, tl.program_id(1), BT, BG, BJ)
    real = real_steps(mask, i_b, o_t, L)
    inside_d = (o_g < G)[None, :, None] & (o_j < J)[None, None, :]
    o_d = o_g[None, :, None] * J + o_j[None, None, :]
    inside = real[:, None, None] & inside_d
    b_x = _load_tile(x, i_b, o_t, o_d, stride_b, stride_l, inside)
    past = _past(count, mean, mean_low, var, before, prefix, i_b, i_n, o_g, N, G, plane)
    b_x, base, b_mean, b_var, steps = _running(
        b_x, inside, real, past[0], past[1], past[2], past[3], J, BT
    )

    b_scale = tl.load(scale + o_d, mask=inside_d, other=0.0).to(tl.float32)
    b_bias = tl.load(bias + o_d, mask=inside_d, other=0.0).to(tl.float32)
    rstd = 1.0 / tl.sqrt(b_var + eps)
    b_y = (b_x - b_mean[:, :, None]) * rstd[:, :, None] * b_scale + b_bias
    b_y = tl.where(inside, b_y, 0.0)
    at = y + (i_b * L + o_t.to(tl.int64)[:, None, None]) * (G * J) + o_d
    tl.store(at, b_y, mask=(o_t < L)[:, None, None] & inside_d)

    if i_n == N - 1:
        is_last = tl.arange(0, BT)[:, None] == BT - 1
        high, low = two_sum(base, tl.sum(tl.where(is_last, b_mean, 0.0), 0))
        at_end = end + i_b * G + o_g
        tl.store(at_end, high, mask=o_g < G)
        tl.store(at_end + end_plane, low, mask=o_g < G)
        tl.store(at_end + 2 * end_plane, tl.sum(tl.where(is_last, b_var, 0.0), 0), mask=o_g < G)
        if tl.program_id(1) == 0:
            tl.store(end_count + i_b, tl.max(steps, 0))


@triton.jit
def _line(b_g, b_normed, b_mean, rstd, steps, real, J: tl.constexpr):
    """What each step adds to the line of the steps before it: shift and slope (BT, BG)."""
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
    count,
    mean,
    mean_low,
    var,
    before,
    prefix,
    lines,
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
    BG: tl.constexpr,
    BJ: tl.constexpr,
):
    """Base, shift and slope of each block alone, ``lines`` (3, B, N, G), and sums over its steps.

    A program walks through ``blocks`` blocks and writes ``partial`` (B, runs, 2, D): the gradients of
    scale and bias from these steps.
    """
    runs = tl.cdiv(N, blocks)
    i_b, i_r = (tl.program_id(0) // runs).to(tl.int64), tl.program_id(0) % runs
    o_g, o_j = tl.program_id(1) * BG + tl.arange(0, BG), tl.arange(0, BJ)
    inside_d = (o_g < G)[None, :, None] & (o_j < J)[None, None, :]
    o_d = o_g[None, :, None] * J + o_j[None, None, :]
    b_scale = tl.load(scale + o_d, mask=inside_d, other=0.0).to(tl.float32)
    grad_scale = tl.zeros((BG, BJ), tl.float32)
    grad_bias = tl.zeros((BG, BJ), tl.float32)
    for i_n in range(i_r * blocks, tl.minimum(N, (i_r + 1) * blocks)):
        o_t = i_n * BT + tl.arange(0, BT)
        real = real_steps(mask, i_b, o_t, L)
        inside = real[:, None, None] & inside_d
        b_x = _load_tile(x, i_b, o_t, o_d, stride_b, stride_l, inside)
        b_grad = _load_tile(grad, i_b, o_t, o_d, grad_stride_b, grad_stride_l, inside)
        past = _past(count, mean, mean_low, var, before, prefix, i_b, i_n, o_g, N, G, plane)
        b_x, base, b_mean, b_var, steps = _running(
            b_x, inside, real, past[0], past[1], past[2], past[3], J, BT
        )
        rstd = 1.0 / tl.sqrt(b_var + eps)
        b_x = tl.where(inside, (b_x - b_mean[:, :, None]) * rstd[:, :, None], 0.0)
        grad_scale += tl.sum(b_grad * b_x, 0)
        grad_bias += tl.sum(b_grad, 0)
        shift, slope = _line(b_grad * b_scale, b_x, b_mean, rstd, steps, real, J)
        at = lines + (i_b * N + i_n) * G + o_g
        tl.store(at, base, mask=o_g < G)
        tl.store(at + plane, tl.sum(shift, 0), mask=o_g < G)
        tl.store(at + 2 * plane, tl.sum(slope, 0), mask=o_g < G)

    D = G * J
    o_2d, inside_2d = o_g[:, None] * J + o_j[None, :], (o_g < G)[:, None] & (o_j < J)[None, :]
    at = partial + (i_b * runs + i_r) * 2 * D + o_2d
    tl.store(at, grad_scale, mask=inside_2d)
    tl.store(at + D, grad_bias, mask=inside_2d)


@triton.jit
def _add_lines(a_base, a_shift, a_slope, b_base, b_shift, b_slope):
    """The sum of two lines, with regard to the base of the second."""
    return b_base, a_shift + a_slope * (b_base - a_base) + b_shift, a_slope + b_slope


@triton.jit
def _row(values, o_n, row):
    """One row of a tile (BN, BG)."""
    return tl.sum(tl.where(o_n[:, None] == row, values, 0.0), 0)


@triton.jit
def timestep_norm_carry_kernel(
    lines,
    end_count,
    end,
    grad_mean,
    grad_var,
    count,
    mean,
    mean_low,
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
    """Sum of the lines behind each block, from the last block to the first.

    Position 0 of the scan is the line that the gradients of the state returned, ``grad_mean`` and
    ``grad_var`` (B, G) or None, amount to; position i is block N - i.  Writes ``later`` (2, B, N, G),
    shift and slope with regard to the base of the block, and ``grad_start`` (2, B, G), the gradients of
    the mean and the variance given in a state, unless None.
    """
    i_b = tl.program_id(0).to(tl.int64)
    o_g = tl.program_id(1) * BG + tl.arange(0, BG)
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
        base = tl.load(lines + at, mask=inside, other=0.0)
        base = tl.where(inside, base, c_base[None, :])
        shift = tl.load(lines + plane + at, mask=inside, other=0.0)
        slope = tl.load(lines + 2 * plane + at, mask=inside, other=0.0)
        base, shift, slope = tl.associative_scan((base, shift, slope), 0, _add_lines)
        base, shift, slope = _add_lines(
            c_base[None, :], c_shift[None, :], c_slope[None, :], base, shift, slope
        )
        keep = (o_n < N)[:, None] & inside_g[None, :]
        own = tl.load(lines + at - G, mask=keep, other=0.0)
        tl.store(later + at - G, shift + slope * (own - base), mask=keep)
        tl.store(later + plane + at - G, slope, mask=keep)
        last = tl.minimum(start + BN, N + 1) - 1
        c_base, c_shift, c_slope = (
            _row(base, o_n, last),
            _row(shift, o_n, last),
            _row(slope, o_n, last),
        )

    if grad_start is not None:
        start_steps = tl.load(count + i_b)
        elements = start_steps.to(tl.float32) * J
        offset = tl.load(mean + at_g, mask=inside_g, other=0.0) - c_base
        offset += tl.load(mean_low + at_g, mask=inside_g, other=0.0)
        # A state that has met no step at all is handed on as it is.
        empty = total == 0
        by_mean = tl.where(empty, by_mean, elements * (c_shift + c_slope * offset))
        by_var = tl.where(empty, by_var, elements * 0.5 * c_slope)
        tl.store(grad_start + at_g, by_mean, mask=inside_g)
        tl.store(grad_start + end_plane + at_g, by_var, mask=inside_g)


@triton.jit
def timestep_norm_backward_kernel(
    x,
    grad,
    scale,
    mask,
    count,
    mean,
    mean_low,
    var,
    before,
    prefix,
    later,
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
    BG: tl.constexpr,
    BJ: tl.constexpr,
):
    """``grad_x`` (B, L, D) from the lines behind each block."""
    i_b, i_n = (tl.program_id(0) // N).to(tl.int64), tl.program_id(0) % N
    o_t, o_g, o_j = _tile(i_n, tl.program_id(1), BT, BG, BJ)
    real = real_steps(mask, i_b, o_t, L)
    inside_d = (o_g < G)[None, :, None] & (o_j < J)[None, None, :]
    o_d = o_g[None, :, None] * J + o_j[None, None, :]
    inside = real[:, None, None] & inside_d
    b_x = _load_tile(x, i_b, o_t, o_d, stride_b, stride_l, inside)
    b_g = _load_tile(grad, i_b, o_t, o_d, grad_stride_b, grad_stride_l, inside)
    b_g *= tl.load(scale + o_d, mask=inside_d, other=0.0).to(tl.float32)
    past = _past(count, mean, mean_low, var, before, prefix, i_b, i_n, o_g, N, G, plane)
    b_x, base, b_mean, b_var, steps = _running(
        b_x, inside, real, past[0], past[1], past[2], past[3], J, BT
    )
    rstd = 1.0 / tl.sqrt(b_var + eps)
    b_normed = tl.where(inside, (b_x - b_mean[:, :, None]) * rstd[:, :, None], 0.0)
    shift, slope = _line(b_g, b_normed, b_mean, rstd, steps, real, J)
    at_g = later + (i_b * N + i_n) * G + o_g
    shift = tl.cumsum(shift, 0, reverse=True)
    shift += tl.load(at_g, mask=o_g < G, other=0.0)[None, :]
    slope = tl.cumsum(slope, 0, reverse=True)
    slope += tl.load(at_g + plane, mask=o_g < G, other=0.0)[None, :]
    b_grad_x = b_g * rstd[:, :, None] + shift[:, :, None] + slope[:, :, None] * b_x
    b_grad_x = tl.where(inside, b_grad_x, 0.0)
    at = grad_x + (i_b * L + o_t.to(tl.int64)[:, None, None]) * (G * J) + o_d
    tl.store(at, b_grad_x, mask=(o_t < L)[:, None, None] & inside_d)

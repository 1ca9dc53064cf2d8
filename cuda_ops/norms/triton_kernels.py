"""Moments of each group of features over blocks of time, and their running combination.

The moments of a set of steps are four numbers: how many real steps, the mean as the sum of two float32
``high + low``, and the sum over these steps of the mean square around that mean.  Two sets are combined
by the formula of Chan, Golub and LeVeque (1979), which subtracts only means, never squares: a mean that
is ten thousand deviations from zero costs nothing, and the error grows with the logarithm of the number
of blocks.

Letters: B batch, L length, D dim, G groups, J = D / G features of a group, T steps of a block, N blocks.
Tiles are (T, G, J) of one sequence; ``BT``, ``BG``, ``BJ`` are their sizes.
"""

import triton
import triton.language as tl


@triton.jit
def two_sum(a, b):
    """``a + b`` as a rounded sum and what the rounding took."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


@triton.jit
def combine_moments(a_steps, a_high, a_low, a_squares, b_steps, b_high, b_low, b_squares):
    """Moments of the union of two sets of steps."""
    steps = a_steps + b_steps
    weight = b_steps / tl.maximum(steps, 1.0)
    delta = (b_high - a_high) + (b_low - a_low)
    high, rest = two_sum(a_high, delta * weight)
    high, low = two_sum(high, a_low + rest)
    # An empty set leaves the other as it is, to the last bit.
    both = (a_steps > 0) | (b_steps == 0)
    high, low = tl.where(both, high, b_high), tl.where(both, low, b_low)
    return steps, high, low, a_squares + b_squares + delta * delta * (a_steps * weight)


@triton.jit
def real_steps(mask, i_b, o_t, L):
    """Whether each step of ``o_t`` is inside the sequence and not padding."""
    real = o_t < L
    if mask is not None:
        real = real & (tl.load(mask + i_b * L + o_t, mask=real, other=1) == 0)
    return real


@triton.jit
def moments_kernel(
    x,
    mask,
    steps,
    moments,
    stride_b,
    stride_l,
    L,
    N,
    G,
    plane,
    J: tl.constexpr,
    BT: tl.constexpr,
    BG: tl.constexpr,
    BJ: tl.constexpr,
):
    """Moments of each block alone: ``steps`` (B, N), ``moments`` (3, B, N, G) with plane B N G."""
    i_b, i_n = (tl.program_id(0) // N).to(tl.int64), tl.program_id(0) % N
    o_t, o_g, o_j = (
        i_n * BT + tl.arange(0, BT),
        tl.program_id(1) * BG + tl.arange(0, BG),
        tl.arange(0, BJ),
    )
    real = real_steps(mask, i_b, o_t, L)
    inside = real[:, None, None] & (o_g < G)[None, :, None] & (o_j < J)[None, None, :]
    p_x = x + i_b * stride_b + o_t.to(tl.int64)[:, None, None] * stride_l
    b_x = tl.load(p_x + o_g[None, :, None] * J + o_j[None, None, :], mask=inside, other=0.0)
    b_x = b_x.to(tl.float32)  # (BT, BG, BJ)

    count = tl.sum(real.to(tl.int32), 0)
    elements = tl.maximum(count, 1).to(tl.float32) * J
    # The mean of what is left after a first mean: the second is exact where the first was rounded.
    high = tl.sum(tl.sum(b_x, 2), 0) / elements  # (BG,)
    b_x = tl.where(inside, b_x - high[None, :, None], 0.0)
    low = tl.sum(tl.sum(b_x, 2), 0) / elements
    squares = tl.sum(tl.sum(b_x * b_x, 2), 0) / J
    squares = tl.maximum(squares - low * low * count, 0.0)
    high, low = two_sum(high, low)

    p_m = moments + (i_b * N + i_n) * G + o_g
    tl.store(p_m, high, mask=o_g < G)
    tl.store(p_m + plane, low, mask=o_g < G)
    tl.store(p_m + 2 * plane, squares, mask=o_g < G)
    if tl.program_id(1) == 0:
        tl.store(steps + i_b * N + i_n, count)


@triton.jit
def _row(values, o_n, row):
    """One row of a tile (BN, BG)."""
    return tl.sum(tl.where(o_n[:, None] == row, values, 0), 0)


@triton.jit
def moments_scan_kernel(
    steps,
    moments,
    count,
    mean,
    mean_low,
    var,
    before,
    prefix,
    total,
    total_steps,
    N,
    G,
    plane,
    total_plane,
    BN: tl.constexpr,
    BG: tl.constexpr,
):
    """Moments of all steps before each block, and of all steps.

    The state ``count`` (B,), ``mean``, ``mean_low``, ``var`` (B, G) may be None.  Position 0 of the scan
    is the state and position i the block i - 1, so that its value at i is what comes before block i.
    Writes ``before`` (B, N) and ``prefix`` (3, B, N, G): high, low, variance; and, unless None,
    ``total`` (3, B, G) and ``total_steps`` (B,).
    """
    i_b = tl.program_id(0).to(tl.int64)
    o_g = tl.program_id(1) * BG + tl.arange(0, BG)
    inside_g = o_g < G
    p_state = i_b * G + o_g
    c_steps = tl.zeros((1,), tl.int64)
    c_high = tl.zeros((BG,), tl.float32)
    c_low = tl.zeros((BG,), tl.float32)
    c_squares = tl.zeros((BG,), tl.float32)
    given_var = tl.zeros((BG,), tl.float32)
    if count is not None:
        c_steps += tl.load(count + i_b)
        c_high = tl.load(mean + p_state, mask=inside_g, other=0.0)
        c_low = tl.load(mean_low + p_state, mask=inside_g, other=0.0)
        given_var = tl.load(var + p_state, mask=inside_g, other=0.0)
        c_squares = given_var * c_steps.to(tl.float32)

    for start in range(0, N + 1, BN):
        o_n = start + tl.arange(0, BN)
        block = o_n - 1
        inside_n = (block >= 0) & (block < N)
        inside = inside_n[:, None] & inside_g[None, :]
        n = tl.load(steps + i_b * N + block, mask=inside_n, other=0)
        p_m = moments + (i_b * N + block)[:, None] * G + o_g[None, :]
        high = tl.load(p_m, mask=inside, other=0.0)
        low = tl.load(p_m + plane, mask=inside, other=0.0)
        squares = tl.load(p_m + 2 * plane, mask=inside, other=0.0)
        f_n = n.to(tl.float32)[:, None] + tl.zeros((BN, BG), tl.float32)
        f_n, high, low, squares = tl.associative_scan((f_n, high, low, squares), 0, combine_moments)
        f_n, high, low, squares = combine_moments(
            c_steps.to(tl.float32)[:, None],
            c_high[None, :],
            c_low[None, :],
            c_squares[None, :],
            f_n,
            high,
            low,
            squares,
        )
        after = c_steps + tl.cumsum(n.to(tl.int64), 0)
        if prefix is not None:
            keep_n = o_n < N
            keep = keep_n[:, None] & inside_g[None, :]
            p_p = prefix + (i_b * N + o_n)[:, None] * G + o_g[None, :]
            tl.store(p_p, high, mask=keep)
            tl.store(p_p + plane, low, mask=keep)
            b_var = tl.where(f_n > 0, squares / tl.maximum(f_n, 1.0), given_var[None, :])
            tl.store(p_p + 2 * plane, b_var, mask=keep)
            if tl.program_id(1) == 0:
                tl.store(before + i_b * N + o_n, after, mask=keep_n)
        last = tl.minimum(start + BN, N + 1) - 1
        c_steps += tl.sum(n.to(tl.int64), 0)
        c_high, c_low, c_squares = (
            _row(high, o_n, last),
            _row(low, o_n, last),
            _row(squares, o_n, last),
        )

    if total is not None:
        p_t = total + p_state
        tl.store(p_t, c_high, mask=inside_g)
        tl.store(p_t + total_plane, c_low, mask=inside_g)
        elements = tl.maximum(c_steps.to(tl.float32), 1.0)
        tl.store(p_t + 2 * total_plane, c_squares / elements, mask=inside_g)
        tl.store(total_steps + i_b + tl.zeros((1,), tl.int64), c_steps)

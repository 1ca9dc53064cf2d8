"""Moments of each group of features over blocks of time, and their running combination.

The moments of a set of steps are four numbers: the number of real steps, the mean as the sum of two
float32 ``high + low``, and the sum over these steps of the mean square around that mean.  Two sets are
combined by the formula of Chan, Golub and LeVeque (1979), which subtracts only means, never squares: a
mean that is ten thousand deviations from zero costs no accuracy, and the error grows with the logarithm
of the number of blocks.

Letters: B batch, L length, D dim, G groups, J = D / G features of a group, T steps of a block, N blocks.
Tiles are (T, G, J) of one sequence; ``BT``, ``BG``, ``BJ`` are their sizes.  A ``state`` is a tuple of
pointers (count (B,) int64, mean, mean_low and var (B, G)), all None where no step came before.
"""

import triton
import triton.language as tl

from megalodon_tasks.cuda_ops.triton_helpers import (
    load_triple,
    not_padded,
    store_triple,
)


@triton.jit
def two_sum(a, b):
    """Return ``a + b`` as a rounded sum and the rounding error."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


@triton.jit
def combine_moments(a_steps, a_high, a_low, a_squares, b_steps, b_high, b_low, b_squares):
    """Return the moments of the union of two sets of steps."""
    steps = a_steps + b_steps
    weight = b_steps / tl.maximum(steps, 1.0)
    delta = (b_high - a_high) + (b_low - a_low)
    high, error = two_sum(a_high, delta * weight)
    high, low = two_sum(high, a_low + error)
    # An empty set leaves the other as it is, to the last bit.
    combine = (a_steps > 0) | (b_steps == 0)
    high, low = tl.where(combine, high, b_high), tl.where(combine, low, b_low)
    return steps, high, low, a_squares + b_squares + delta * delta * (a_steps * weight)


@triton.jit
def load_state(state, i_b, o_g, G):
    """Load steps (1,) int64, mean as two numbers and variance of some groups; zeros without a state."""
    count, mean, mean_low, var = state
    steps = tl.zeros((1,), tl.int64)
    high = tl.zeros_like(o_g).to(tl.float32)
    low, b_var = high, high
    if count is not None:
        at, inside = i_b * G + o_g, o_g < G
        steps += tl.load(count + i_b)
        high = tl.load(mean + at, mask=inside, other=0.0)
        low = tl.load(mean_low + at, mask=inside, other=0.0)
        b_var = tl.load(var + at, mask=inside, other=0.0)
    return steps, high, low, b_var


@triton.jit
def program(rows, columns):
    """Return sequence, place among the ``rows`` of a sequence, and column of this program.

    Columns are neighbours in the grid, and so in memory.
    """
    i_row, i_column = tl.program_id(0) // columns, tl.program_id(0) % columns
    return (i_row // rows).to(tl.int64), i_row % rows, i_column


@triton.jit
def group_tile(i_g, G, J: tl.constexpr, BG: tl.constexpr, BJ: tl.constexpr):
    """Return groups of a tile, offsets of their features (1, BG, BJ) and which of these exist."""
    o_g, o_j = i_g * BG + tl.arange(0, BG), tl.arange(0, BJ)
    o_d = o_g[None, :, None] * J + o_j[None, None, :]
    return o_g, o_d, (o_g < G)[None, :, None] & (o_j < J)[None, None, :]


@triton.jit
def load_tile(source, i_b, o_t, o_d, strides, inside):
    """Load a tile (BT, BG, BJ) in float32, zero outside."""
    at = source + i_b * strides[0] + o_t.to(tl.int64)[:, None, None] * strides[1] + o_d
    return tl.load(at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def tile_row(values, o_n, row):
    """Return one row of a tile (BN, BG)."""
    return tl.sum(tl.where(o_n[:, None] == row, values, 0), 0)


@triton.jit
def moments_kernel(
    x,
    mask,
    steps,
    moments,
    strides,
    L,
    N,
    G,
    plane,
    J: tl.constexpr,
    BT: tl.constexpr,
    BG: tl.constexpr,
    BJ: tl.constexpr,
):
    """Write the moments of each block: ``steps`` (B, N), ``moments`` (3, B, N, G) with plane B N G."""
    i_b, i_n, i_g = program(N, tl.cdiv(G, BG))
    o_t = i_n * BT + tl.arange(0, BT)
    o_g, o_d, inside_d = group_tile(i_g, G, J, BG, BJ)
    real = not_padded(mask, i_b, o_t, o_t < L, L)
    inside = real[:, None, None] & inside_d
    b_x = load_tile(x, i_b, o_t, o_d, strides, inside)

    count = tl.sum(real.to(tl.int32), 0)
    elements = tl.maximum(count, 1).to(tl.float32) * J
    # The mean of what is left after a first mean: the second is exact where the first was rounded.
    high = tl.sum(tl.sum(b_x, 2), 0) / elements  # (BG,)
    b_x = tl.where(inside, b_x - high[None, :, None], 0.0)
    low = tl.sum(tl.sum(b_x, 2), 0) / elements
    squares = tl.sum(tl.sum(b_x * b_x, 2), 0) / J
    squares = tl.maximum(squares - low * low * count, 0.0)
    high, low = two_sum(high, low)

    store_triple(moments, plane, (i_b * N + i_n) * G + o_g, high, low, squares, o_g < G)
    if i_g == 0:
        tl.store(steps + i_b * N + i_n, count)


@triton.jit
def moments_scan_kernel(
    steps,
    moments,
    state,
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
    """Write the moments of all steps before each block, and of all steps.

    Position 0 of the scan is the state and position i the block i - 1, so that its value at i is what
    comes before block i.  Writes ``before`` (B, N) and ``prefix`` (3, B, N, G): high, low, variance;
    and, unless None, ``total`` (3, B, G) and ``total_steps`` (B,).
    """
    i_b, _, i_g = program(1, tl.cdiv(G, BG))
    o_g = i_g * BG + tl.arange(0, BG)
    inside_g = o_g < G
    c_steps, c_high, c_low, given_var = load_state(state, i_b, o_g, G)
    c_squares = given_var * c_steps.to(tl.float32)

    for start in range(0, N + 1, BN):
        o_n = start + tl.arange(0, BN)
        block = o_n - 1
        inside_n = (block >= 0) & (block < N)
        inside = inside_n[:, None] & inside_g[None, :]
        n = tl.load(steps + i_b * N + block, mask=inside_n, other=0)
        at = (i_b * N + block)[:, None] * G + o_g[None, :]
        high, low, squares = load_triple(moments, plane, at, inside)
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
            b_var = tl.where(f_n > 0, squares / tl.maximum(f_n, 1.0), given_var[None, :])
            at = (i_b * N + o_n)[:, None] * G + o_g[None, :]
            store_triple(prefix, plane, at, high, low, b_var, keep)
            if i_g == 0:
                tl.store(before + i_b * N + o_n, after, mask=keep_n)
        last = tl.minimum(start + BN, N + 1) - 1
        c_steps += tl.sum(n.to(tl.int64), 0)
        c_high, c_low = tile_row(high, o_n, last), tile_row(low, o_n, last)
        c_squares = tile_row(squares, o_n, last)

    if total is not None:
        b_var = c_squares / tl.maximum(c_steps.to(tl.float32), 1.0)
        store_triple(total, total_plane, i_b * G + o_g, c_high, c_low, b_var, inside_g)
        tl.store(total_steps + i_b + tl.zeros((1,), tl.int64), c_steps)

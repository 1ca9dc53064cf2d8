"""Parts of CEMA's Triton kernels: operands of products, coefficients, tiles.

Letters as in ``triton_kernels``.
"""

import triton
import triton.language as tl

from megalodon_tasks.cuda_ops.triton_helpers import dot, load_pair, not_padded


@triton.jit
def split(a, SPLIT: tl.constexpr, OPERAND: tl.constexpr):
    """Return two bf16 numbers, held in OPERAND, that add up to ``a`` within 2**-16; else ``a`` twice."""
    high, low = a, a
    if SPLIT:
        # Cut off rather than rounded: one bit operation, and the rest is exact in float32.
        bits = a.to(tl.uint32, bitcast=True)
        cut = (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
        high = cut.to(tl.bfloat16).to(OPERAND)
        low = (a - cut).to(tl.bfloat16).to(OPERAND)
    return high, low


@triton.jit
def coefficient(a, SPLIT: tl.constexpr, OPERAND: tl.constexpr):
    """Split ``a`` (BD, K, any) into operands of products that stay in registers, if SPLIT.

    From the result of a product, here with the identity, operands are made within a warp, once.
    """
    high, low = split(a, SPLIT, OPERAND)
    if SPLIT:
        o_k = tl.arange(0, a.shape[1])
        diagonal = o_k[None, :, None] == o_k[None, None, :]
        identity = tl.broadcast_to(diagonal, (a.shape[0], a.shape[1], a.shape[1])).to(OPERAND)
        high, low = tl.dot(identity, high).to(OPERAND), tl.dot(identity, low).to(OPERAND)
    return high, low


@triton.jit
def dot_exact_left(a, b, acc, SPLIT: tl.constexpr):
    """Return ``acc + a b`` where ``a`` is exact as an operand and ``b`` comes from :func:`split`."""
    return tl.dot(a, b[0], tl.dot(a, b[1], acc)) if SPLIT else dot(a, b[0], acc)


@triton.jit
def dot_exact_right(a, b, acc, SPLIT: tl.constexpr):
    """Return ``acc + a b`` where ``a`` comes from :func:`split` and ``b`` is exact as an operand."""
    return tl.dot(a[0], b, tl.dot(a[1], b, acc)) if SPLIT else dot(a[0], b, acc)


@triton.jit
def dot_wide_left(a, b, acc, SPLIT: tl.constexpr, OPERAND: tl.constexpr):
    """Return ``acc + a b`` for ``a`` in float32; the product of the two low halves is left out."""
    if SPLIT:
        high, low = split(a, SPLIT, OPERAND)
        acc = tl.dot(low, b[0], acc)
        acc = tl.dot(high, b[1], acc)
        acc = tl.dot(high, b[0], acc)
    else:
        acc = dot(a, b[0], acc)
    return acc


@triton.jit
def beside(b_x, acc, OPERAND: tl.constexpr):
    """Return ``b_x`` in the registers of the accumulator ``acc``: an operand without bank conflicts.

    The comparison is there for the layout; where ``acc`` is NaN already, so is the result.
    """
    return tl.where(acc == acc, b_x.to(tl.float32), float("nan")).to(OPERAND)


@triton.jit
def power(powers, o_d, exponent, o_n, D, N, C: tl.constexpr):
    """Load q**exponent, real and imaginary, over the broadcast of the three offsets; zero outside."""
    at = powers + ((o_d * (C + 1) + exponent) * 2) * N + o_n
    return load_pair(at, N, 0, (o_d < D) & (o_n < N))


@triton.jit
def load_weight(weight, o_d, o_n, D, N):
    """Load a complex weight (D, N), a pair of pointers, over the broadcast of the two offsets."""
    inside = (o_d < D) & (o_n < N)
    re = tl.load(weight[0] + o_d * N + o_n, mask=inside, other=0.0).to(tl.float32)
    im = tl.zeros_like(re)
    if weight[1] is not None:
        im = tl.load(weight[1] + o_d * N + o_n, mask=inside, other=0.0).to(tl.float32)
    return re, im


@triton.jit
def multiply(a_re, a_im, b_re, b_im):
    """Multiply two complex numbers."""
    return a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re


@triton.jit
def zero_pair(SHAPE: tl.constexpr):
    """Return a complex zero of this shape, real and imaginary."""
    return tl.zeros(SHAPE, dtype=tl.float32), tl.zeros(SHAPE, dtype=tl.float32)


@triton.jit
def tile(D, S, BD: tl.constexpr, BM: tl.constexpr):
    """Return rows and channels of this program, and sequence and segment of each row.

    Neighbouring programs share rows, and so cache lines.
    """
    groups = tl.cdiv(D, BD)
    i_m, i_d = tl.program_id(0) // groups, tl.program_id(0) % groups
    o_m = i_m * BM + tl.arange(0, BM)
    return o_m, i_d * BD + tl.arange(0, BD), o_m // S, o_m % S


@triton.jit
def segments_of(row_s, S, segment, L, REVERSED: tl.constexpr):
    """Return where segments start in processing order, and their lengths.

    All cut a sequence at the same places: the short segment is the last one, or the first if REVERSED.
    """
    short = L - (S - 1) * segment
    start, stop = row_s * segment, tl.minimum((row_s + 1) * segment, L)
    if REVERSED:
        start, stop = tl.maximum(start - segment + short, 0), start + short
    return start, stop - start


@triton.jit
def state_tile(m, d, n, rows, D, N):
    """Return plane, and offsets and mask over the broadcast of rows, channels and components.

    The states of a tile lie in (2, rows, D, N).
    """
    at = (m.to(tl.int64) * D + d) * N + n
    inside = (m < rows) & (d < D) & (n < N)
    return rows.to(tl.int64) * D * N, at, inside


@triton.jit
def coefficient_tile(D, N, BD: tl.constexpr, BN: tl.constexpr):
    """Return channels and components of this program, their offsets in (D, N) and a mask."""
    o_d = tl.program_id(0) * BD + tl.arange(0, BD)
    o_n = tl.arange(0, BN)
    at = o_d[:, None] * N + o_n[None, :]
    return o_d, o_n, at, (o_d < D)[:, None] & (o_n < N)[None, :]


@triton.jit
def positions(tau, valid, row_b, mask, L, REVERSE: tl.constexpr):
    """Return positions in time of a tile (M, C) and which of them exist and are not padding."""
    time = tau
    if REVERSE:
        time = L - 1 - tau
    return time, not_padded(mask, row_b.to(tl.int64)[:, None], time, valid, L)


@triton.jit
def multiple(a, ALIGN: tl.constexpr):
    """Return ``a``, which is a multiple of ALIGN, so that the compiler knows it and loads vectors."""
    return a // ALIGN * ALIGN


@triton.jit
def offsets(row_b, time, o_d, strides, ALIGN: tl.constexpr):
    """Return where a tile (BD, M, C) lies in a tensor (B, L, D) with neighbouring channels together."""
    by_batch, by_time = multiple(strides[0], ALIGN), multiple(strides[1], ALIGN)
    row = row_b.to(tl.int64)[:, None] * by_batch + time.to(tl.int64) * by_time
    return row[None, :, :] + o_d[:, None, None]

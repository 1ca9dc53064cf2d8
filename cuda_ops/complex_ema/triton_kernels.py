"""CEMA on the tensor cores: a scan whose step is a block of C positions and whose work is ``tl.dot``.

Reason for this form.  One step of the recurrence costs 6 N multiply-adds per number, 96 at N = 16, and a
sequence that is cut to fill a GPU needs 4 N more for the states at the cuts: several times what a GPU
can do on its plain units while it reads and writes that number.  Over a block of C positions the same
map is three small matrices per channel: ``kernel`` (C x C, inputs to outputs), ``write`` (C x 2N,
inputs to state) and ``read`` (2N x C, state to outputs), ``2 C + 8 N`` operations per number as matrix
products, 160 at C = N = 16, which tensor cores do in less time than the memory takes.

Tile.  A program owns BD neighbouring channels (16 in bf16, 8 otherwise) and BM = 16 rows; a row is one
segment of one sequence.  Products are batched over the channels, one warp per channel, so that the
states stay in the accumulator registers of their warp from the first block to the last, their decay is
elementwise, and the coefficients stay in registers, in float32 and fp16 in shared memory.  Nothing
crosses a program: a first kernel finds what each segment adds to the state from zero, a small second
one carries the states from segment to segment, a third computes the outputs.  x is read twice, y
written once.  Backward, the first kernel also sums the products of inputs and gradients within each
segment, and the second those of different segments.

Time runs in processing order: position ``tau`` is ``t = tau``, or ``L - 1 - tau`` if REVERSE.  The
adjoint is the same map in the other order with p and eta exchanged.

Precision.  bf16 inputs are exact operands; coefficients and states are split into two bf16 halves, and
the products accumulate in float32.  float32 and fp16 inputs use three tf32 products for one.  Powers of
q are computed in float64 and rounded once.

Letters: B batch, L length, D channels, N order, S segments of a sequence, C positions of a block,
M rows of a tile; i and j are positions in a block, n a component of the state.
"""

import triton
import triton.language as tl

from megalodon_tasks.cuda_ops.complex_ema.triton_helpers import (
    beside,
    coefficient,
    coefficient_tile,
    dot_exact_left,
    dot_exact_right,
    dot_wide_left,
    load_weight,
    multiple,
    multiply,
    offsets,
    positions,
    power,
    segments_of,
    split,
    state_tile,
    tile,
    zero_pair,
)
from megalodon_tasks.cuda_ops.triton_helpers import dot, load_pair, not_padded, store_pair


@triton.jit(do_not_specialize=["segment", "last"])
def cema_tables_kernel(
    coeffs,
    omega,
    powers,
    kernel,
    segment_power,
    D,
    N,
    segment,
    last,
    SHIFT: tl.constexpr,
    C: tl.constexpr,
    BD: tl.constexpr,
    BN: tl.constexpr,
):
    """Tabulate what the other kernels need of the coefficients, in float64 until it is stored.

    coeffs is (p, log_radius, angle, eta_re, eta_im), each (D, N).  Writes powers (D, C + 1, 2, N) =
    q**m; kernel (D, C) = Re sum_n p eta q**(lag - SHIFT), plus omega at lag zero unless SHIFT;
    segment_power (2, 2, D, N) = q**segment and q**last, real and imaginary.
    """
    p, log_radius, angle, eta_re, eta_im = coeffs
    o_d, o_n, at, inside = coefficient_tile(D, N, BD, BN)
    b_log = tl.load(log_radius + at, mask=inside, other=0.0)
    b_angle = tl.load(angle + at, mask=inside, other=0.0)
    b_p = tl.load(p + at, mask=inside, other=0.0)
    c_re = b_p * tl.load(eta_re + at, mask=inside, other=0.0)
    c_im = b_p * tl.load(eta_im + at, mask=inside, other=0.0)
    q_re = tl.exp(b_log) * tl.cos(b_angle)
    q_im = tl.exp(b_log) * tl.sin(b_angle)

    for k in tl.static_range(2):
        steps = (segment if k == 0 else last).to(tl.float64)
        size = tl.exp(steps * b_log)
        to = segment_power + k * 2 * D * N + at
        re, im = size * tl.cos(steps * b_angle), size * tl.sin(steps * b_angle)
        store_pair(to, D * N, 0, re.to(tl.float32), im.to(tl.float32), inside)

    to = powers + o_d[:, None] * (C + 1) * 2 * N + o_n[None, :]
    at_kernel = kernel + o_d * C
    if SHIFT:
        tl.store(at_kernel, tl.zeros([BD], dtype=tl.float32), mask=o_d < D)
    power_re = tl.where(inside, 1.0, 0.0).to(tl.float64)
    power_im = tl.zeros_like(power_re)
    for m in range(C + 1):
        at_m = m * 2 * N
        store_pair(to, N, at_m, power_re.to(tl.float32), power_im.to(tl.float32), inside)
        at_lag = tl.sum(c_re * power_re - c_im * power_im, axis=1)
        if not SHIFT:
            b_omega = tl.load(omega + o_d, mask=o_d < D, other=0.0).to(tl.float64)
            at_lag += tl.where(m == 0, b_omega, 0.0)
        tl.store(at_kernel + m + SHIFT, at_lag.to(tl.float32), mask=(o_d < D) & (m + SHIFT < C))
        power_re, power_im = multiply(power_re, power_im, q_re, q_im)


@triton.jit(do_not_specialize=["rows", "L", "S"])
def cema_ends_kernel(
    x,
    mask,
    powers,
    ends,
    ends_log,
    rows,
    L,
    D,
    N,
    S,
    segment,
    strides,
    REVERSE: tl.constexpr,
    SPLIT: tl.constexpr,
    OPERAND: tl.constexpr,
    ALIGN: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    C: tl.constexpr,
    BN: tl.constexpr,
):
    """Write what each segment adds to the state after it, for input weight one.

    ends (2, B S, D, N) = sum over the segment of ``q**m x`` with m = steps to its end, and ends_log,
    unless None, the same with ``m q**m``, its derivative along log q.
    """
    o_m, o_d, row_b, row_s = tile(D, S, BD, BM)
    o_c, o_n = tl.arange(0, C), tl.arange(0, BN)
    d, n = o_d[:, None, None], o_n[None, None, :]
    inside_d = d < multiple(D, ALIGN)
    q_re, q_im = power(powers, d, C, n, D, N, C)
    exponent = C - 1 - o_c
    w_re, w_im = power(powers, d, exponent[None, :, None], n, D, N, C)
    write_re = coefficient(w_re, SPLIT, OPERAND)
    write_im = coefficient(w_im, SPLIT, OPERAND)
    if ends_log is not None:
        by_steps = exponent.to(tl.float32)[None, :, None]
        v_re = coefficient(w_re * by_steps, SPLIT, OPERAND)
        v_im = coefficient(w_im * by_steps, SPLIT, OPERAND)
        log_re, log_im = zero_pair((BD, BM, BN))
    s_re, s_im = zero_pair((BD, BM, BN))

    # Blocks are counted from the end of the segment: a short one begins with absent positions.
    first, length = segments_of(row_s, S, segment, L, False)
    steps = tl.cdiv(tl.minimum(segment, L), C) * C
    for start in range(0, steps, C):
        local = (length - steps + start)[:, None] + o_c[None, :]
        valid = (local >= 0) & (o_m < rows)[:, None]
        time, valid = positions(first[:, None] + local, valid, row_b, mask, L, REVERSE)
        from_x = x + offsets(row_b, time, o_d, strides, ALIGN)
        b_x = tl.load(from_x, mask=valid[None] & inside_d, other=0.0).to(OPERAND)
        if BN == C:
            b_x = beside(b_x, s_re, OPERAND)
        if ends_log is not None:
            log_re, log_im = multiply(q_re, q_im, log_re + C * s_re, log_im + C * s_im)
            log_re = dot_exact_left(b_x, v_re, log_re, SPLIT)
            log_im = dot_exact_left(b_x, v_im, log_im, SPLIT)
        s_re, s_im = multiply(q_re, q_im, s_re, s_im)
        s_re = dot_exact_left(b_x, write_re, s_re, SPLIT)
        s_im = dot_exact_left(b_x, write_im, s_im, SPLIT)

    plane, at, inside = state_tile(o_m[None, :, None], d, n, rows, D, N)
    store_pair(ends, plane, at, s_re, s_im, inside)
    if ends_log is not None:
        store_pair(ends_log, plane, at, log_re, log_im, inside)


@triton.jit
def _load_rows(ends, plane, at, step, row, S, inside, ROWS: tl.constexpr):
    """Load pairs of ROWS segments from ``row`` on, ``step`` numbers apart, zero after the last."""
    pairs = ()
    for k in tl.static_range(ROWS):
        pairs += (load_pair(ends, plane, at + k * step, inside & (row + k < S)),)
    return pairs


@triton.jit(do_not_specialize=["B", "S", "segment", "last"])
def cema_carry_kernel(
    ends,
    ends_log,
    others,
    others_log,
    carried,
    segment_power,
    weight,
    state,
    final,
    sums,
    finals,
    B,
    S,
    D,
    N,
    segment,
    last,
    REVERSED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Run along the segments of each sequence, ROWS of them loaded at a time.

    ends (2, B, S, D N) is what each segment adds to a state of input weight one, ends_log its derivative
    along log q; ``carried``, which may be the same buffer, and what follows it may be None:

    carried: the states before each segment, ``s <- q**segment s + w end``, where ``weight`` is the
        real and the imaginary part of w, the latter None for zero.  The first is ``state`` (B, D N, 2),
        or zero if None, and the one after the last segment is written to ``final``.
    sums: (B, D, 4, N), with u and v the states of weight one from zero and their derivatives: the sums
        over segments of ``u e`` and of ``v e + u e_log``, real and imaginary, where e and e_log are
        ``others`` and ``others_log``, the same segments processed in the other order.
    finals: (2, B, D N, 2), u and v after the last segment.

    The segment of its own length is the last one, or the first if REVERSED.
    """
    DN = D * N
    parts = tl.cdiv(DN, BLOCK)
    i_b = (tl.program_id(0) // parts).to(tl.int64)
    o = tl.program_id(0) % parts * BLOCK + tl.arange(0, BLOCK)
    inside = o < DN
    q_re, q_im = load_pair(segment_power, DN, o, inside)
    last_re, last_im = load_pair(segment_power + 2 * DN, DN, o, inside)
    s_re, s_im = zero_pair((BLOCK,))
    u_re, u_im = zero_pair((BLOCK,))
    v_re, v_im = zero_pair((BLOCK,))
    a_re, a_im = zero_pair((BLOCK,))
    b_re, b_im = zero_pair((BLOCK,))
    if carried is not None:
        w_re, w_im = load_weight(weight, 0, o, 1, DN)
        if state is not None:
            s_re, s_im = load_pair(state, 1, (i_b * DN + o) * 2, inside)

    plane = B.to(tl.int64) * S * DN
    short = 0 if REVERSED else S - 1
    for start in range(0, S, ROWS):
        # All loads come before the first result is used, and so wait for memory together.
        at = (i_b * S + start) * DN + o
        end = _load_rows(ends, plane, at, DN, start, S, inside, ROWS)
        if ends_log is not None:
            end_log = _load_rows(ends_log, plane, at, DN, start, S, inside, ROWS)
        if sums is not None:
            at = (i_b * S + S - 1 - start) * DN + o
            other = _load_rows(others, plane, at, -DN, start, S, inside, ROWS)
            other_log = _load_rows(others_log, plane, at, -DN, start, S, inside, ROWS)
        for k in tl.static_range(ROWS):
            i_s = start + k
            exists, is_short = i_s < S, i_s == short
            e_re, e_im = end[k]
            # After the last segment nothing decays.
            r_re = tl.where(exists, tl.where(is_short, last_re, q_re), 1.0)
            r_im = tl.where(exists, tl.where(is_short, last_im, q_im), 0.0)
            if carried is not None:
                at_k = (i_b * S + i_s) * DN + o
                store_pair(carried, plane, at_k, s_re, s_im, inside & exists)
                t_re, t_im = multiply(w_re, w_im, e_re, e_im)
                s_re, s_im = multiply(r_re, r_im, s_re, s_im)
                s_re, s_im = s_re + t_re, s_im + t_im
            if ends_log is not None:
                if sums is not None:
                    x_re, x_im = other[k]
                    t_re, t_im = multiply(u_re, u_im, x_re, x_im)
                    a_re, a_im = a_re + t_re, a_im + t_im
                    t_re, t_im = multiply(v_re, v_im, x_re, x_im)
                    b_re, b_im = b_re + t_re, b_im + t_im
                    x_re, x_im = other_log[k]
                    t_re, t_im = multiply(u_re, u_im, x_re, x_im)
                    b_re, b_im = b_re + t_re, b_im + t_im
                f_re, f_im = end_log[k]
                steps = tl.where(exists, tl.where(is_short, last, segment), 0).to(tl.float32)
                v_re, v_im = multiply(r_re, r_im, v_re + steps * u_re, v_im + steps * u_im)
                v_re, v_im = v_re + f_re, v_im + f_im
                u_re, u_im = multiply(r_re, r_im, u_re, u_im)
                u_re, u_im = u_re + e_re, u_im + e_im

    if carried is not None:
        store_pair(final, 1, (i_b * DN + o) * 2, s_re, s_im, inside)
    if sums is not None:
        to = sums + (i_b * D + o // N) * 4 * N + o % N
        store_pair(to, N, 0, a_re, a_im, inside)
        store_pair(to, N, 2 * N, b_re, b_im, inside)
    if finals is not None:
        store_pair(finals, 1, (i_b * DN + o) * 2, u_re, u_im, inside)
        store_pair(finals, 1, ((B + i_b) * DN + o) * 2, v_re, v_im, inside)


@triton.jit(do_not_specialize=["rows", "L", "S"])
def cema_output_kernel(
    x,
    y,
    mask,
    powers,
    kernel,
    write,
    read,
    carried,
    rows,
    L,
    D,
    N,
    S,
    segment,
    strides,
    WRITE_OFFSET: tl.constexpr,
    READ_OFFSET: tl.constexpr,
    REVERSE: tl.constexpr,
    REVERSED: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    SPLIT: tl.constexpr,
    OPERAND: tl.constexpr,
    ALIGN: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    C: tl.constexpr,
    BN: tl.constexpr,
):
    """Write the outputs of every segment from its inputs and the state carried (2, B S, D, N) into it.

    Per block ``y_i = sum_j kernel[i - j] x_j + Re sum_n read_n q_n**(i + READ_OFFSET) s_n`` and
    ``s <- q**C s + sum_j write q**(C - 1 - j + WRITE_OFFSET) x_j``.  y (B, L, D) is contiguous, zero at
    padding, and added to if ACCUMULATE.  ``write`` and ``read`` are weights as in the kernel above.
    """
    o_m, o_d, row_b, row_s = tile(D, S, BD, BM)
    o_c, o_n = tl.arange(0, C), tl.arange(0, BN)
    d, n = o_d[:, None, None], o_n[None, None, :]
    inside_d = d < multiple(D, ALIGN)

    lag = (o_c[None, :] - o_c[:, None])[None, :, :]
    b_kernel = tl.load(kernel + d * C + lag, mask=(lag >= 0) & (d < D), other=0.0)
    b_kernel = coefficient(b_kernel, SPLIT, OPERAND)
    q_re, q_im = power(powers, d, C, n, D, N, C)
    t_re, t_im = power(powers, d, (C - 1 - o_c + WRITE_OFFSET)[None, :, None], n, D, N, C)
    w_re, w_im = load_weight(write, d, n, D, N)
    t_re, t_im = multiply(w_re, w_im, t_re, t_im)
    write_re = coefficient(t_re, SPLIT, OPERAND)
    write_im = coefficient(t_im, SPLIT, OPERAND)
    n_rows = o_n[None, :, None]
    t_re, t_im = power(powers, d, (o_c + READ_OFFSET)[None, None, :], n_rows, D, N, C)
    w_re, w_im = load_weight(read, d, n_rows, D, N)
    t_re, t_im = multiply(w_re, w_im, t_re, t_im)
    read_re = coefficient(t_re, SPLIT, OPERAND)
    read_im = coefficient(-t_im, SPLIT, OPERAND)

    s_re, s_im = zero_pair((BD, BM, BN))
    if carried is not None:
        plane, at, inside = state_tile(o_m[None, :, None], d, n, rows, D, N)
        s_re, s_im = load_pair(carried, plane, at, inside)

    first, length = segments_of(row_s, S, segment, L, REVERSED)
    for start in range(0, tl.minimum(segment, L), C):
        local = start + o_c
        exists = (local[None, :] < length[:, None]) & (o_m < rows)[:, None]
        tau = first[:, None] + local[None, :]
        time, valid = positions(tau, exists, row_b, mask, L, REVERSE)
        from_x = x + offsets(row_b, time, o_d, strides, ALIGN)
        b_x = tl.load(from_x, mask=valid[None] & inside_d, other=0.0).to(OPERAND)
        to_y = y + offsets(row_b, time, o_d, (L.to(tl.int64) * D, D), ALIGN)
        b_y = tl.zeros([BD, BM, C], dtype=tl.float32)
        b_y = dot_wide_left(s_re, read_re, b_y, SPLIT, OPERAND)
        b_y = dot_wide_left(s_im, read_im, b_y, SPLIT, OPERAND)
        b_x = beside(b_x, b_y, OPERAND)
        b_y = dot_exact_left(b_x, b_kernel, b_y, SPLIT)
        s_re, s_im = multiply(q_re, q_im, s_re, s_im)
        s_re = dot_exact_left(b_x, write_re, s_re, SPLIT)
        s_im = dot_exact_left(b_x, write_im, s_im, SPLIT)
        if ACCUMULATE:
            b_y += tl.load(to_y, mask=valid[None] & inside_d, other=0.0).to(tl.float32)
        elif mask is not None:
            padded = (exists & ~valid)[None] & inside_d
            tl.store(to_y, tl.zeros_like(b_y).to(y.dtype.element_ty), mask=padded)
        tl.store(to_y, b_y.to(y.dtype.element_ty), mask=valid[None] & inside_d)


@triton.jit
def _add_rows(to, b_x, acc_re, acc_im, SPLIT: tl.constexpr):
    """Return complex ``acc + to x^T`` for x (BD, BM, C), exact as an operand."""
    x_t = tl.permute(b_x, (0, 2, 1))
    return dot_exact_right(to[0], x_t, acc_re, SPLIT), dot_exact_right(to[1], x_t, acc_im, SPLIT)


@triton.jit
def _add_rows_by_steps(to, b_x, steps, acc_re, acc_im, SPLIT: tl.constexpr, OPERAND: tl.constexpr):
    """Return the same for x times whole numbers up to C, which take two operands."""
    high, low = split(b_x.to(tl.float32) * steps, SPLIT, OPERAND)
    acc_re, acc_im = _add_rows(to, high, acc_re, acc_im, SPLIT)
    if SPLIT:
        low_t = tl.permute(low, (0, 2, 1))
        acc_re, acc_im = tl.dot(to[0][0], low_t, acc_re), tl.dot(to[1][0], low_t, acc_im)
    return acc_re, acc_im


@triton.jit
def _sum_of_four(a):
    """Sum each fourth pair of the last axis, which is what a thread has of the result of a product."""
    quarters = tl.reshape(a, (a.shape[0], a.shape[1], a.shape[2] // 8, 4, 2))
    return tl.sum(tl.sum(quarters, axis=4), axis=2)


@triton.jit
def _add_products(a_re, a_im, b_re, b_im, acc_re, acc_im):
    """Add complex products ``a b`` (BD, BN, BM) to their sums (BD, BN, 4)."""
    re, im = multiply(a_re, a_im, b_re, b_im)
    return acc_re + _sum_of_four(re), acc_im + _sum_of_four(im)


@triton.jit(do_not_specialize=["rows", "L", "S"])
def cema_sums_kernel(
    x,
    grad,
    mask,
    powers,
    ends,
    ends_log,
    partial,
    rows,
    L,
    D,
    N,
    S,
    segment,
    x_strides,
    grad_strides,
    OFFSET: tl.constexpr,
    REVERSE: tl.constexpr,
    SPLIT: tl.constexpr,
    OPERAND: tl.constexpr,
    ALIGN: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    C: tl.constexpr,
    BN: tl.constexpr,
):
    """Write sums over rows and time from which the gradients of the coefficients follow.

    Runs in the order of the adjoint.  With the state ``u_n = sum q_n**(m + OFFSET) grad``, from zero at
    the start of a segment, of the gradients before a block and its derivative v along log q, a program
    stores for its rows (partial (groups, D, C + 4 N)): the products of gradients and inputs of one block
    by lag, then real and imaginary part of ``sum_i q**i x_i u`` and of ``sum_i q**i x_i (v + i u)``.  u
    and v after each segment are written to ends and ends_log, unless None.
    """
    o_m, o_d, row_b, row_s = tile(D, S, BD, BM)
    o_c, o_n = tl.arange(0, C), tl.arange(0, BN)
    d, n = o_d[:, None, None], o_n[None, :, None]
    inside_d = d < multiple(D, ALIGN)
    q_re, q_im = power(powers, d, C, n, D, N, C)
    exponent = C - 1 - o_c
    by_steps = exponent.to(tl.float32)[None, None, :]
    t_re, t_im = power(powers, d, exponent[None, None, :], n, D, N, C)
    to = coefficient(t_re, SPLIT, OPERAND), coefficient(t_im, SPLIT, OPERAND)

    u_re, u_im = zero_pair((BD, BN, BM))
    v_re, v_im = zero_pair((BD, BN, BM))
    lags = tl.zeros([BD, C, C], dtype=tl.float32)
    a_re, a_im = zero_pair((BD, BN, 4))
    b_re, b_im = zero_pair((BD, BN, 4))
    # Blocks as in the kernel of the ends.  The inputs of a block are loaded in reversed order, so that
    # the same powers serve them and the gradients; OFFSET follows at the end.
    first, length = segments_of(row_s, S, segment, L, True)
    steps = tl.cdiv(tl.minimum(segment, L), C) * C
    begin = length - steps
    forth: tl.constexpr = -1 if REVERSE else 1
    block = tl.full((1, 1, 1), forth * C, tl.int64)
    x_tau, g_tau = begin[:, None] + exponent[None, :], begin[:, None] + o_c[None, :]
    x_time, g_time = first[:, None] + x_tau, first[:, None] + g_tau
    if REVERSE:
        x_time, g_time = L - 1 - x_time, L - 1 - g_time
    from_x = x + offsets(row_b, x_time, o_d, x_strides, ALIGN)
    from_grad = grad + offsets(row_b, g_time, o_d, grad_strides, ALIGN)
    inside_m = (o_m < rows)[:, None]
    row = row_b.to(tl.int64)[:, None]
    for start in range(0, steps, C):
        valid = not_padded(mask, row, x_time + forth * start, (x_tau + start >= 0) & inside_m, L)
        b_x = tl.load(from_x, mask=valid[None] & inside_d, other=0.0).to(OPERAND)
        valid = not_padded(mask, row, g_time + forth * start, (g_tau + start >= 0) & inside_m, L)
        b_g = tl.load(from_grad, mask=valid[None] & inside_d, other=0.0).to(OPERAND)
        from_x += block * multiple(x_strides[1], ALIGN)
        from_grad += block * multiple(grad_strides[1], ALIGN)

        x_t = beside(tl.permute(b_x, (0, 2, 1)), lags, OPERAND)
        g_t = beside(tl.permute(b_g, (0, 2, 1)), lags, OPERAND)
        b_x, b_g = beside(b_x, lags, OPERAND), beside(b_g, lags, OPERAND)
        lags = dot(x_t, tl.permute(g_t, (0, 2, 1)), lags)

        p_re, p_im = zero_pair((BD, BN, BM))
        p_re, p_im = _add_rows_by_steps(to, b_x, by_steps, p_re, p_im, SPLIT, OPERAND)
        b_re, b_im = _add_products(u_re, u_im, p_re, p_im, b_re, b_im)
        p_re, p_im = zero_pair((BD, BN, BM))
        p_re, p_im = _add_rows(to, b_x, p_re, p_im, SPLIT)
        b_re, b_im = _add_products(v_re, v_im, p_re, p_im, b_re, b_im)
        a_re, a_im = _add_products(u_re, u_im, p_re, p_im, a_re, a_im)

        v_re, v_im = multiply(q_re, q_im, v_re + C * u_re, v_im + C * u_im)
        v_re, v_im = _add_rows_by_steps(to, b_g, by_steps, v_re, v_im, SPLIT, OPERAND)
        u_re, u_im = multiply(q_re, q_im, u_re, u_im)
        u_re, u_im = _add_rows(to, b_g, u_re, u_im, SPLIT)

    if ends is not None:
        if OFFSET:
            q_re, q_im = power(powers, d, OFFSET, n, D, N, C)
            v_re, v_im = multiply(q_re, q_im, v_re + OFFSET * u_re, v_im + OFFSET * u_im)
            u_re, u_im = multiply(q_re, q_im, u_re, u_im)
        plane, at, inside = state_tile(o_m[None, None, :], d, n, rows, D, N)
        store_pair(ends, plane, at, u_re, u_im, inside)
        store_pair(ends_log, plane, at, v_re, v_im, inside)

    i_m = (tl.program_id(0) // tl.cdiv(D, BD)).to(tl.int64)
    at = partial + (i_m * D + o_d) * (C + 4 * N)
    lag = (exponent[:, None] - o_c[None, :])[None, :, :]
    for k in tl.static_range(C):
        at_lag = tl.sum(tl.sum(tl.where(lag == k, lags, 0.0), axis=2), axis=1)
        tl.store(at + k, at_lag, mask=o_d < D)
    a_re, a_im = tl.sum(a_re, axis=2), tl.sum(a_im, axis=2)
    b_re, b_im = tl.sum(b_re, axis=2), tl.sum(b_im, axis=2)
    if OFFSET:
        q_re, q_im = power(powers, o_d[:, None], OFFSET, o_n[None, :], D, N, C)
        b_re, b_im = multiply(q_re, q_im, b_re + OFFSET * a_re, b_im + OFFSET * a_im)
        a_re, a_im = multiply(q_re, q_im, a_re, a_im)
    at = at[:, None] + C + o_n[None, :]
    inside = (o_d < D)[:, None] & (o_n < N)[None, :]
    store_pair(at, N, 0, a_re, a_im, inside)
    store_pair(at, N, 2 * N, b_re, b_im, inside)


@triton.jit
def cema_finish_kernel(
    sums,
    powers,
    coeffs,
    grads,
    D,
    N,
    SHIFT: tl.constexpr,
    C: tl.constexpr,
    BD: tl.constexpr,
    BN: tl.constexpr,
):
    """Write gradients of the coefficients (D, N) from the sums (D, C + 4 N) of the kernel above.

    With ``a = sum over lags of g q**lag`` and ``b`` its derivative along log q, where g is the product
    of gradients and inputs at a lag: ``dL = Re(a d(p eta)) + Re(p eta b d(log q))``.
    """
    o_d, o_n, at, inside = coefficient_tile(D, N, BD, BN)
    p, _, _, eta_re, eta_im = coeffs
    grad_p, grad_log_radius, grad_angle, grad_eta_re, grad_eta_im = grads
    row = sums + o_d[:, None] * (C + 4 * N) + C + o_n[None, :]
    a_re, a_im = load_pair(row, N, 0, inside)
    b_re, b_im = load_pair(row, N, 2 * N, inside)
    a_re, a_im = a_re.to(tl.float64), a_im.to(tl.float64)
    b_re, b_im = b_re.to(tl.float64), b_im.to(tl.float64)
    for m in range(C - SHIFT):
        at_lag = tl.load(sums + o_d * (C + 4 * N) + m + SHIFT, mask=o_d < D, other=0.0)
        at_lag = at_lag.to(tl.float64)[:, None]
        q_re, q_im = power(powers, o_d[:, None], m, o_n[None, :], D, N, C)
        a_re += at_lag * q_re
        a_im += at_lag * q_im
        b_re += m * at_lag * q_re
        b_im += m * at_lag * q_im
    b_p = tl.load(p + at, mask=inside, other=0.0)
    e_re = tl.load(eta_re + at, mask=inside, other=0.0)
    e_im = tl.load(eta_im + at, mask=inside, other=0.0)
    tl.store(grad_p + at, a_re * e_re - a_im * e_im, mask=inside)
    tl.store(grad_eta_re + at, b_p * a_re, mask=inside)
    tl.store(grad_eta_im + at, -b_p * a_im, mask=inside)
    b_re, b_im = multiply(b_p * e_re, b_p * e_im, b_re, b_im)
    tl.store(grad_log_radius + at, b_re, mask=inside)
    tl.store(grad_angle + at, -b_im, mask=inside)

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
written once.

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

from megalodon_tasks.cuda_ops.triton_helpers import dot, load_pair, not_padded, store_pair


@triton.jit
def _split(a, SPLIT: tl.constexpr, OPERAND: tl.constexpr):
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
def _coefficient(a, SPLIT: tl.constexpr, OPERAND: tl.constexpr):
    """Split ``a`` (BD, K, any) into operands of products that stay in registers, if SPLIT.

    From the result of a product, here with the identity, operands are made within a warp, once.
    """
    high, low = _split(a, SPLIT, OPERAND)
    if SPLIT:
        o_k = tl.arange(0, a.shape[1])
        diagonal = o_k[None, :, None] == o_k[None, None, :]
        identity = tl.broadcast_to(diagonal, (a.shape[0], a.shape[1], a.shape[1])).to(OPERAND)
        high, low = tl.dot(identity, high).to(OPERAND), tl.dot(identity, low).to(OPERAND)
    return high, low


@triton.jit
def _dot(a, b, acc, SPLIT: tl.constexpr):
    """Return ``acc + a b`` where ``a`` is exact as an operand and ``b`` comes from :func:`_split`."""
    return tl.dot(a, b[0], tl.dot(a, b[1], acc)) if SPLIT else dot(a, b[0], acc)


@triton.jit
def _dot_by(a, b, acc, SPLIT: tl.constexpr):
    """Return ``acc + a b`` where ``a`` comes from :func:`_split` and ``b`` is exact as an operand."""
    return tl.dot(a[0], b, tl.dot(a[1], b, acc)) if SPLIT else dot(a[0], b, acc)


@triton.jit
def _dot_split(a, b, acc, SPLIT: tl.constexpr, OPERAND: tl.constexpr):
    """Return ``acc + a b`` for ``a`` in float32; the product of the two low halves is left out."""
    if SPLIT:
        high, low = _split(a, SPLIT, OPERAND)
        acc = tl.dot(low, b[0], acc)
        acc = tl.dot(high, b[1], acc)
        acc = tl.dot(high, b[0], acc)
    else:
        acc = dot(a, b[0], acc)
    return acc


@triton.jit
def _beside(b_x, acc, OPERAND: tl.constexpr):
    """Return ``b_x`` in the registers of the accumulator ``acc``: an operand without bank conflicts.

    The comparison is there for the layout; where ``acc`` is NaN already, so is the result.
    """
    return tl.where(acc == acc, b_x.to(tl.float32), float("nan")).to(OPERAND)


@triton.jit
def _power(powers, o_d, exponent, o_n, D, N, C: tl.constexpr):
    """Load q**exponent, real and imaginary, over the broadcast of the three offsets; zero outside."""
    at = powers + ((o_d * (C + 1) + exponent) * 2) * N + o_n
    return load_pair(at, N, 0, (o_d < D) & (o_n < N))


@triton.jit
def _weight(weight, o_d, o_n, D, N):
    """Load a complex weight (D, N), a pair of pointers, over the broadcast of the two offsets."""
    inside = (o_d < D) & (o_n < N)
    re = tl.load(weight[0] + o_d * N + o_n, mask=inside, other=0.0).to(tl.float32)
    im = tl.zeros_like(re)
    if weight[1] is not None:
        im = tl.load(weight[1] + o_d * N + o_n, mask=inside, other=0.0).to(tl.float32)
    return re, im


@triton.jit
def _times(a_re, a_im, b_re, b_im):
    return a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re


@triton.jit
def _zeros(SHAPE: tl.constexpr):
    """Return a complex zero of this shape, real and imaginary."""
    return tl.zeros(SHAPE, dtype=tl.float32), tl.zeros(SHAPE, dtype=tl.float32)


@triton.jit
def _tile(D, S, BD: tl.constexpr, BM: tl.constexpr):
    """Return rows and channels of this program, and sequence and segment of each row.

    Neighbouring programs share rows, and so cache lines.
    """
    groups = tl.cdiv(D, BD)
    i_m, i_d = tl.program_id(0) // groups, tl.program_id(0) % groups
    o_m = i_m * BM + tl.arange(0, BM)
    return o_m, i_d * BD + tl.arange(0, BD), o_m // S, o_m % S


@triton.jit
def _state_tile(m, d, n, rows, D, N):
    """Return plane, and offsets and mask over the broadcast of rows, channels and components.

    The states of a tile lie in (2, rows, D, N).
    """
    at = (m.to(tl.int64) * D + d) * N + n
    inside = (m < rows) & (d < D) & (n < N)
    return rows.to(tl.int64) * D * N, at, inside


@triton.jit
def _coefficient_tile(D, N, BD: tl.constexpr, BN: tl.constexpr):
    """Return channels and components of this program, their offsets in (D, N) and a mask."""
    o_d = tl.program_id(0) * BD + tl.arange(0, BD)
    o_n = tl.arange(0, BN)
    at = o_d[:, None] * N + o_n[None, :]
    return o_d, o_n, at, (o_d < D)[:, None] & (o_n < N)[None, :]


@triton.jit
def _positions(tau, valid, row_b, mask, L, REVERSE: tl.constexpr):
    """Return positions in time of a tile (M, C) and which of them exist and are not padding."""
    time = tau
    if REVERSE:
        time = L - 1 - tau
    return time, not_padded(mask, row_b.to(tl.int64)[:, None], time, valid, L)


@triton.jit
def _multiple(a, ALIGN: tl.constexpr):
    """Return ``a``, which is a multiple of ALIGN, so that the compiler knows it and loads vectors."""
    return a // ALIGN * ALIGN


@triton.jit
def _offsets(row_b, time, o_d, strides, ALIGN: tl.constexpr):
    """Return where a tile (BD, M, C) lies in a tensor (B, L, D) with neighbouring channels together."""
    by_batch, by_time = _multiple(strides[0], ALIGN), _multiple(strides[1], ALIGN)
    row = row_b.to(tl.int64)[:, None] * by_batch + time.to(tl.int64) * by_time
    return row[None, :, :] + o_d[:, None, None]


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
    o_d, o_n, at, inside = _coefficient_tile(D, N, BD, BN)
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
        power_re, power_im = _times(power_re, power_im, q_re, q_im)


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
    """Write what each segment adds to the state after it, for input weight one.

    ends (2, B S, D, N) = sum over the segment of ``q**m x`` with m = steps to its end + OFFSET, and
    ends_log, unless None, the same with ``m q**m``, its derivative along log q.
    """
    o_m, o_d, row_b, row_s = _tile(D, S, BD, BM)
    o_c, o_n = tl.arange(0, C), tl.arange(0, BN)
    d, n = o_d[:, None, None], o_n[None, None, :]
    inside_d = d < _multiple(D, ALIGN)
    q_re, q_im = _power(powers, d, C, n, D, N, C)
    exponent = C - 1 - o_c + OFFSET
    w_re, w_im = _power(powers, d, exponent[None, :, None], n, D, N, C)
    write_re = _coefficient(w_re, SPLIT, OPERAND)
    write_im = _coefficient(w_im, SPLIT, OPERAND)
    if ends_log is not None:
        times = exponent.to(tl.float32)[None, :, None]
        v_re = _coefficient(w_re * times, SPLIT, OPERAND)
        v_im = _coefficient(w_im * times, SPLIT, OPERAND)
        log_re, log_im = _zeros((BD, BM, BN))
    s_re, s_im = _zeros((BD, BM, BN))

    # Blocks are counted from the end of the segment: a short one begins with absent positions.
    length = tl.minimum(segment, L - row_s * segment)
    steps = tl.cdiv(tl.minimum(segment, L), C) * C
    for start in range(0, steps, C):
        local = (length - steps + start)[:, None] + o_c[None, :]
        valid = (local >= 0) & (o_m < rows)[:, None]
        time, valid = _positions((row_s * segment)[:, None] + local, valid, row_b, mask, L, REVERSE)
        from_x = x + _offsets(row_b, time, o_d, strides, ALIGN)
        b_x = tl.load(from_x, mask=valid[None] & inside_d, other=0.0).to(OPERAND)
        if BN == C:
            b_x = _beside(b_x, s_re, OPERAND)
        if ends_log is not None:
            log_re, log_im = _times(q_re, q_im, log_re + C * s_re, log_im + C * s_im)
            log_re = _dot(b_x, v_re, log_re, SPLIT)
            log_im = _dot(b_x, v_im, log_im, SPLIT)
        s_re, s_im = _times(q_re, q_im, s_re, s_im)
        s_re = _dot(b_x, write_re, s_re, SPLIT)
        s_im = _dot(b_x, write_im, s_im, SPLIT)

    plane, at, inside = _state_tile(o_m[None, :, None], d, n, rows, D, N)
    store_pair(ends, plane, at, s_re, s_im, inside)
    if ends_log is not None:
        store_pair(ends_log, plane, at, log_re, log_im, inside)


@triton.jit(do_not_specialize=["B", "S", "segment", "last"])
def cema_carry_kernel(
    ends,
    ends_log,
    carried,
    segment_power,
    weight,
    state,
    final,
    final_log,
    B,
    S,
    DN,
    segment,
    last,
    BLOCK: tl.constexpr,
):
    """Write the state before each segment, ``s <- q**segment s + w end``, and the last one to ``final``.

    The first state is ``state``, or zero.

    ends and carried (2, B, S, D N) may be one buffer; state and final (B, D N, 2).  ``weight`` is the
    real and the imaginary part of w, the latter None for zero; a real part of None stands for w = 1.
    ends_log, unless None, is replaced by the derivatives along log q of states for w = 1 from zero,
    ``l <- q**segment (l + segment s) + end_log``.  The last segment has its own length and power.
    """
    parts = tl.cdiv(DN, BLOCK)
    i_b = tl.program_id(0) // parts
    o = tl.program_id(0) % parts * BLOCK + tl.arange(0, BLOCK)
    inside = o < DN
    q_re, q_im = load_pair(segment_power, DN, o, inside)
    if weight[0] is not None:
        w_re, w_im = _weight(weight, 0, o, 1, DN)
    s_re, s_im = _zeros((BLOCK,))
    l_re, l_im = _zeros((BLOCK,))
    pair = (i_b.to(tl.int64) * DN + o) * 2
    if state is not None:
        s_re, s_im = load_pair(state, 1, pair, inside)
    steps = segment.to(tl.float32)
    at = i_b.to(tl.int64) * S * DN + o
    plane = B.to(tl.int64) * S * DN
    for i_s in range(S):
        add_re, add_im = load_pair(ends, plane, at, inside)
        store_pair(carried, plane, at, s_re, s_im, inside)
        if i_s == S - 1:
            q_re, q_im = load_pair(segment_power + 2 * DN, DN, o, inside)
            steps = last.to(tl.float32)
        if ends_log is not None:
            log_re, log_im = load_pair(ends_log, plane, at, inside)
            store_pair(ends_log, plane, at, l_re, l_im, inside)
            l_re, l_im = _times(q_re, q_im, l_re + steps * s_re, l_im + steps * s_im)
            l_re += log_re
            l_im += log_im
        if weight[0] is not None:
            add_re, add_im = _times(w_re, w_im, add_re, add_im)
        s_re, s_im = _times(q_re, q_im, s_re, s_im)
        s_re += add_re
        s_im += add_im
        at += DN
    store_pair(final, 1, pair, s_re, s_im, inside)
    if ends_log is not None:
        store_pair(final_log, 1, pair, l_re, l_im, inside)


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
    o_m, o_d, row_b, row_s = _tile(D, S, BD, BM)
    o_c, o_n = tl.arange(0, C), tl.arange(0, BN)
    d, n = o_d[:, None, None], o_n[None, None, :]
    inside_d = d < _multiple(D, ALIGN)

    lag = (o_c[None, :] - o_c[:, None])[None, :, :]
    b_kernel = tl.load(kernel + d * C + lag, mask=(lag >= 0) & (d < D), other=0.0)
    b_kernel = _coefficient(b_kernel, SPLIT, OPERAND)
    q_re, q_im = _power(powers, d, C, n, D, N, C)
    t_re, t_im = _power(powers, d, (C - 1 - o_c + WRITE_OFFSET)[None, :, None], n, D, N, C)
    w_re, w_im = _weight(write, d, n, D, N)
    t_re, t_im = _times(w_re, w_im, t_re, t_im)
    write_re = _coefficient(t_re, SPLIT, OPERAND)
    write_im = _coefficient(t_im, SPLIT, OPERAND)
    n_rows = o_n[None, :, None]
    t_re, t_im = _power(powers, d, (o_c + READ_OFFSET)[None, None, :], n_rows, D, N, C)
    w_re, w_im = _weight(read, d, n_rows, D, N)
    t_re, t_im = _times(w_re, w_im, t_re, t_im)
    read_re = _coefficient(t_re, SPLIT, OPERAND)
    read_im = _coefficient(-t_im, SPLIT, OPERAND)

    s_re, s_im = _zeros((BD, BM, BN))
    if carried is not None:
        plane, at, inside = _state_tile(o_m[None, :, None], d, n, rows, D, N)
        s_re, s_im = load_pair(carried, plane, at, inside)

    for start in range(0, tl.minimum(segment, L), C):
        tau = (row_s * segment + start)[:, None] + o_c[None, :]
        exists = (tau < L) & (o_m < rows)[:, None]
        time, valid = _positions(tau, exists, row_b, mask, L, REVERSE)
        from_x = x + _offsets(row_b, time, o_d, strides, ALIGN)
        b_x = tl.load(from_x, mask=valid[None] & inside_d, other=0.0).to(OPERAND)
        to_y = y + _offsets(row_b, time, o_d, (L.to(tl.int64) * D, D), ALIGN)
        b_y = tl.zeros([BD, BM, C], dtype=tl.float32)
        b_y = _dot_split(s_re, read_re, b_y, SPLIT, OPERAND)
        b_y = _dot_split(s_im, read_im, b_y, SPLIT, OPERAND)
        b_x = _beside(b_x, b_y, OPERAND)
        b_y = _dot(b_x, b_kernel, b_y, SPLIT)
        s_re, s_im = _times(q_re, q_im, s_re, s_im)
        s_re = _dot(b_x, write_re, s_re, SPLIT)
        s_im = _dot(b_x, write_im, s_im, SPLIT)
        if ACCUMULATE:
            b_y += tl.load(to_y, mask=valid[None] & inside_d, other=0.0).to(tl.float32)
        elif mask is not None:
            padded = (exists & ~valid)[None] & inside_d
            tl.store(to_y, tl.zeros_like(b_y).to(y.dtype.element_ty), mask=padded)
        tl.store(to_y, b_y.to(y.dtype.element_ty), mask=valid[None] & inside_d)


@triton.jit(do_not_specialize=["rows", "L", "S"])
def cema_weights_kernel(
    x,
    grad,
    mask,
    powers,
    carried,
    carried_log,
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

    Runs in the order of the adjoint.  With the state ``u_n = sum q_n**m grad`` of the gradients before
    a block and its derivative v along log q, a program stores for its rows (partial (groups, D,
    C + 4 N)): the products of gradients and inputs of one block by lag, then real and imaginary part of
    ``sum_i q**i x_i u`` and of ``sum_i q**i x_i (v + i u)``.
    """
    o_m, o_d, row_b, row_s = _tile(D, S, BD, BM)
    o_c, o_n = tl.arange(0, C), tl.arange(0, BN)
    d, n = o_d[:, None, None], o_n[None, :, None]
    inside_d = d < _multiple(D, ALIGN)
    # States are (BD, BN, BM): first operands of products, which accumulators become within a warp.
    q_re, q_im = _power(powers, d, C, n, D, N, C)
    exponent = C - 1 - o_c + OFFSET
    t_re, t_im = _power(powers, d, exponent[None, None, :], n, D, N, C)
    to_u_re, to_u_im = _coefficient(t_re, SPLIT, OPERAND), _coefficient(t_im, SPLIT, OPERAND)

    u_re, u_im = _zeros((BD, BN, BM))
    v_re, v_im = _zeros((BD, BN, BM))
    if carried is not None:
        plane, at, inside = _state_tile(o_m[None, None, :], d, n, rows, D, N)
        u_re, u_im = load_pair(carried, plane, at, inside)
        v_re, v_im = load_pair(carried_log, plane, at, inside)

    lags = tl.zeros([BD, C, C], dtype=tl.float32)
    a_re, a_im = _zeros((BD, BN, C))
    b_re, b_im = _zeros((BD, BN, C))
    for start in range(0, tl.minimum(segment, L), C):
        tau = (row_s * segment + start)[:, None] + o_c[None, :]
        valid = (tau < L) & (o_m < rows)[:, None]
        time, valid = _positions(tau, valid, row_b, mask, L, REVERSE)
        keep = valid[None] & inside_d
        from_x = x + _offsets(row_b, time, o_d, x_strides, ALIGN)
        b_x = tl.load(from_x, mask=keep, other=0.0).to(OPERAND)
        x_t = _beside(tl.permute(b_x, (0, 2, 1)), lags, OPERAND)
        b_x = tl.permute(x_t, (0, 2, 1))
        from_grad = grad + _offsets(row_b, time, o_d, grad_strides, ALIGN)
        b_g = tl.load(from_grad, mask=keep, other=0.0).to(OPERAND)
        b_times = _beside(b_g, lags, OPERAND)
        g_t = tl.permute(b_times, (0, 2, 1))
        b_g = tl.permute(_beside(tl.permute(b_g, (0, 2, 1)), lags, OPERAND), (0, 2, 1))
        lags = dot(x_t, b_g, lags)
        a_re = _dot_by(_split(u_re, SPLIT, OPERAND), b_x, a_re, SPLIT)
        a_im = _dot_by(_split(u_im, SPLIT, OPERAND), b_x, a_im, SPLIT)
        b_re = _dot_by(_split(v_re, SPLIT, OPERAND), b_x, b_re, SPLIT)
        b_im = _dot_by(_split(v_im, SPLIT, OPERAND), b_x, b_im, SPLIT)
        v_re, v_im = _times(q_re, q_im, v_re + C * u_re, v_im + C * u_im)
        b_times = b_times.to(tl.float32) * exponent.to(tl.float32)[None, None, :]
        high, low = _split(b_times, SPLIT, OPERAND)
        high, low = tl.permute(high, (0, 2, 1)), tl.permute(low, (0, 2, 1))
        v_re = _dot_by(to_u_re, high, v_re, SPLIT)
        v_im = _dot_by(to_u_im, high, v_im, SPLIT)
        if SPLIT:
            v_re = tl.dot(to_u_re[0], low, v_re)
            v_im = tl.dot(to_u_im[0], low, v_im)
        u_re, u_im = _times(q_re, q_im, u_re, u_im)
        u_re = _dot_by(to_u_re, g_t, u_re, SPLIT)
        u_im = _dot_by(to_u_im, g_t, u_im, SPLIT)

    i_m = (tl.program_id(0) // tl.cdiv(D, BD)).to(tl.int64)
    to = partial + (i_m * D + o_d) * (C + 4 * N)
    lag = (o_c[:, None] - o_c[None, :])[None, :, :]
    for k in tl.static_range(C):
        at_lag = tl.sum(tl.sum(tl.where(lag == k, lags, 0.0), axis=2), axis=1)
        tl.store(to + k, at_lag, mask=o_d < D)
    t_re, t_im = _power(powers, d, o_c[None, None, :], n, D, N, C)
    position = o_c.to(tl.float32)[None, None, :]
    b_re, b_im = _times(t_re, t_im, b_re + position * a_re, b_im + position * a_im)
    a_re, a_im = _times(t_re, t_im, a_re, a_im)
    to = to[:, None] + C + o_n[None, :]
    inside = (o_d < D)[:, None] & (o_n < N)[None, :]
    store_pair(to, N, 0, tl.sum(a_re, axis=2), tl.sum(a_im, axis=2), inside)
    store_pair(to, N, 2 * N, tl.sum(b_re, axis=2), tl.sum(b_im, axis=2), inside)


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
    o_d, o_n, at, inside = _coefficient_tile(D, N, BD, BN)
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
        q_re, q_im = _power(powers, o_d[:, None], m, o_n[None, :], D, N, C)
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
    b_re, b_im = _times(b_p * e_re, b_p * e_im, b_re, b_im)
    tl.store(grad_log_radius + at, b_re, mask=inside)
    tl.store(grad_angle + at, -b_im, mask=inside)

"""Chunk attention with an online softmax: the weights of a chunk exist one tile at a time.

A forward program owns BM queries of a chunk and BV features of the values, and walks over the keys of
its chunk, BN at a time.  It keeps the largest score m so far, the sum of exp(score - m) and the same sum
of values, and rescales them when m grows.  What is left per query is ``lse = log2 sum exp``, from
which the backward computes each tile of weights again.  With ``D_i = sum_v grad_y_iv y_iv``::

    P_ij = exp(q_i k_j) / sum        dP_ij = grad_y_i v_j        dS_ij = P_ij (dP_ij - D_i)
    grad_v_j = sum_i P_ij grad_y_i   grad_q_i = sum_j dS_ij k_j  grad_k_j = sum_i dS_ij q_i

so that one kernel owns queries (grad_q) and one owns keys (grad_k, grad_v): no sum crosses programs.
The mask of DropKey is a function of a seed and of where the score is, drawn again by each kernel.

Megalodon's values are much wider than its keys.  Where they do not fit a tile, the forward and grad_v
split them over programs, which each compute the scores; dP runs over them in pieces.

Positions: a chunk starts at a multiple of C in the sequence of keys, (B, S); ``past`` of these come
before the first query, so that query i is at position past + i.  Scores are taken to base 2.
``lse`` is +inf for a query that sees no key, which makes all its weights zero.

Letters: B batch, L queries, S keys, H heads, K key width, V value width, C chunk length.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _dot(a, b, acc):
    # Three tf32 products for one where the operands are float32; no effect on bf16 and fp16.
    return tl.dot(a, b, acc, input_precision="tf32x3")


@triton.jit
def _load_rows(source, o_s, o_c, stride, inside_s, width, OPERAND: tl.constexpr):
    """Rows of one head, (rows, features), zero where they are not inside."""
    at = source + o_s.to(tl.int64)[:, None] * stride + o_c[None, :]
    inside = inside_s[:, None] & (o_c < width)[None, :]
    return tl.load(at, mask=inside, other=0.0).to(OPERAND)


@triton.jit
def _store_rows(target, values, o_s, o_c, stride, inside_s, width):
    at = target + o_s.to(tl.int64)[:, None] * stride + o_c[None, :]
    tl.store(at, values, mask=inside_s[:, None] & (o_c < width)[None, :])


@triton.jit
def _products(
    a,
    b,
    o_a,
    o_b,
    a_stride,
    b_stride,
    real_a,
    real_b,
    WIDTH: tl.constexpr,
    BA: tl.constexpr,
    BB: tl.constexpr,
    PIECE: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Inner products of rows of ``a`` and rows of ``b``, (BA, BB), over pieces of their features."""
    acc = tl.zeros((BA, BB), tl.float32)
    for start in range(0, WIDTH, PIECE):
        o_c = start + tl.arange(0, PIECE)
        b_a = _load_rows(a, o_a, o_c, a_stride, real_a, WIDTH, OPERAND)
        b_b = _load_rows(b, o_b, o_c, b_stride, real_b, WIDTH, OPERAND)
        acc = _dot(b_a, tl.trans(b_b), acc)
    return acc


@triton.jit
def _not_padded(mask, i_b, position, inside, S):
    """``inside`` without padding; the mask is (B, S) or None."""
    if mask is not None:
        inside = inside & (tl.load(mask + i_b * S + position, mask=inside, other=1) == 0)
    return inside


@triton.jit
def _dropped(seed, i_bh, o_l, o_w, dropout_p):
    """Whether DropKey masks the score of query ``o_l`` and the key at offset ``o_w`` of its chunk."""
    zero = (o_l + o_w) * 0
    word, _, _, _ = tl.philox(seed, zero + o_w, zero + o_l, zero + i_bh, zero)
    return tl.uint_to_uniform_float(word) < dropout_p


@triton.jit
def _seen(seed, i_bh, o_q, o_k, real_k, start, past, dropout_p, CAUSAL: tl.constexpr):
    """Which of the keys at positions ``o_k`` the queries at ``o_q`` see; axes as they broadcast."""
    seen = real_k
    if CAUSAL:
        seen = seen & (o_k <= o_q)
    if seed is not None:
        seen = seen & ~_dropped(tl.load(seed), i_bh, o_q - past, o_k - start, dropout_p)
    return seen


@triton.jit
def dropkey_kernel(seed, drop, dropout_p, L, W, BM: tl.constexpr, BN: tl.constexpr):
    """Write the mask of DropKey (B, H, L, W), True where the key is dropped."""
    i_bh = tl.program_id(0)
    o_l = tl.program_id(1) * BM + tl.arange(0, BM)[:, None]
    o_w = tl.program_id(2) * BN + tl.arange(0, BN)[None, :]
    dropped = _dropped(tl.load(seed), i_bh, o_l, o_w, dropout_p)
    at = drop + (i_bh.to(tl.int64) * L + o_l) * W + o_w
    tl.store(at, dropped.to(tl.uint8), mask=(o_l < L) & (o_w < W))


@triton.jit
def chunk_attention_kernel(
    q,
    k,
    v,
    mask,
    seed,
    y,
    lse,
    q_stride_b,
    q_stride_l,
    q_stride_h,
    k_stride_b,
    k_stride_l,
    k_stride_h,
    v_stride_b,
    v_stride_l,
    v_stride_h,
    dropout_p,
    L,
    S,
    H,
    C,
    past,
    blocks,
    K: tl.constexpr,
    V: tl.constexpr,
    CAUSAL: tl.constexpr,
    OPERAND: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    BC: tl.constexpr,
):
    """Outputs ``y`` (B, L, H, V) and ``lse`` (B, H, L); ``blocks`` of queries in all chunks."""
    splits: tl.constexpr = (V + BV - 1) // BV
    i_v, i_m, i_bh = tl.program_id(0) % splits, tl.program_id(0) // splits, tl.program_id(1)
    i_b, i_h = (i_bh // H).to(tl.int64), (i_bh % H).to(tl.int64)
    # Long programs first: the last queries of a causal chunk see the most.
    i_m = blocks - 1 - i_m
    blocks_of_chunk = tl.cdiv(tl.minimum(C, S), BM)
    start, first = (i_m // blocks_of_chunk) * C, (i_m % blocks_of_chunk) * BM
    stop = tl.minimum(start + C, S)
    o_m, o_k, o_v = first + tl.arange(0, BM), tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    o_q = start + o_m
    inside_q = (o_q < stop) & (o_q >= past)
    real_q = _not_padded(mask, i_b, o_q, inside_q, S)
    q += i_b * q_stride_b + i_h * q_stride_h
    k += i_b * k_stride_b + i_h * k_stride_h
    v += i_b * v_stride_b + i_h * v_stride_h
    if K <= BC:
        b_q = _load_rows(q, o_q - past, o_k, q_stride_l, real_q, K, OPERAND)

    highest = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, BV), tl.float32)
    end = stop
    if CAUSAL:
        end = tl.minimum(stop, start + first + BM)
    for at_s in range(start, end, BN):
        o_s = at_s + tl.arange(0, BN)
        real_s = _not_padded(mask, i_b, o_s, o_s < end, S)
        if K <= BC:
            b_k = _load_rows(k, o_s, o_k, k_stride_l, real_s, K, OPERAND)
            scores = _dot(b_q, tl.trans(b_k), tl.zeros((BM, BN), tl.float32))
        else:
            scores = _products(
                q,
                k,
                o_q - past,
                o_s,
                q_stride_l,
                k_stride_l,
                real_q,
                real_s,
                K,
                BM,
                BN,
                BC,
                OPERAND,
            )
        scores *= LOG2E
        seen = _seen(
            seed, i_bh, o_q[:, None], o_s[None, :], real_s[None, :], start, past, dropout_p, CAUSAL
        )
        scores = tl.where(seen, scores, float("-inf"))
        raised = tl.maximum(highest, tl.max(scores, 1))
        # Where no key was seen yet all differences would be inf - inf.
        pivot = tl.where(raised == float("-inf"), 0.0, raised)
        weights = tl.exp2(scores - pivot[:, None])
        shrink = tl.exp2(highest - pivot)
        total = total * shrink + tl.sum(weights, 1)
        highest = raised
        b_v = _load_rows(v, o_s, o_v, v_stride_l, real_s, V, OPERAND)
        acc = _dot(weights.to(OPERAND), b_v, acc * shrink[:, None])

    some = real_q & (total > 0)
    safe = tl.where(some, total, 1.0)
    b_y = tl.where(some[:, None], acc / safe[:, None], 0.0)
    y += (i_b * L * H + i_h) * V
    _store_rows(y, b_y.to(y.dtype.element_ty), o_q - past, o_v, H * V, inside_q, V)
    if i_v == 0:
        b_lse = tl.where(some, highest + tl.log2(safe), float("inf"))
        tl.store(lse + i_bh.to(tl.int64) * L + o_q - past, b_lse, mask=inside_q)


@triton.jit
def chunk_attention_delta_kernel(
    y,
    grad,
    mask,
    delta,
    grad_stride_b,
    grad_stride_l,
    grad_stride_h,
    L,
    S,
    H,
    past,
    V: tl.constexpr,
    BM: tl.constexpr,
    BV: tl.constexpr,
):
    """``delta`` (B, H, L), the sum over features of y and its gradient, zero at padding."""
    i_bh = tl.program_id(1)
    i_b, i_h = (i_bh // H).to(tl.int64), (i_bh % H).to(tl.int64)
    o_l = tl.program_id(0) * BM + tl.arange(0, BM)
    real = _not_padded(mask, i_b, past + o_l, o_l < L, S)
    y += (i_b * L * H + i_h) * V
    grad += i_b * grad_stride_b + i_h * grad_stride_h
    acc = tl.zeros((BM,), tl.float32)
    for at_v in range(0, V, BV):
        o_v = at_v + tl.arange(0, BV)
        b_y = _load_rows(y, o_l, o_v, H * V, real, V, tl.float32)
        acc += tl.sum(b_y * _load_rows(grad, o_l, o_v, grad_stride_l, real, V, tl.float32), 1)
    tl.store(delta + i_bh.to(tl.int64) * L + o_l, acc, mask=o_l < L)


@triton.jit
def chunk_attention_queries_kernel(
    q,
    k,
    v,
    grad,
    mask,
    seed,
    lse,
    delta,
    grad_q,
    q_stride_b,
    q_stride_l,
    q_stride_h,
    k_stride_b,
    k_stride_l,
    k_stride_h,
    v_stride_b,
    v_stride_l,
    v_stride_h,
    grad_stride_b,
    grad_stride_l,
    grad_stride_h,
    dropout_p,
    L,
    S,
    H,
    C,
    past,
    blocks,
    K: tl.constexpr,
    V: tl.constexpr,
    CAUSAL: tl.constexpr,
    OPERAND: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    BC: tl.constexpr,
):
    """``grad_q`` (B, L, H, K)."""
    i_bh = tl.program_id(1)
    i_b, i_h = (i_bh // H).to(tl.int64), (i_bh % H).to(tl.int64)
    i_m = blocks - 1 - tl.program_id(0)
    blocks_of_chunk = tl.cdiv(tl.minimum(C, S), BM)
    start, first = (i_m // blocks_of_chunk) * C, (i_m % blocks_of_chunk) * BM
    stop = tl.minimum(start + C, S)
    o_q, o_k, o_v = start + first + tl.arange(0, BM), tl.arange(0, BK), tl.arange(0, BV)
    inside_q = (o_q < stop) & (o_q >= past)
    real_q = _not_padded(mask, i_b, o_q, inside_q, S)
    q += i_b * q_stride_b + i_h * q_stride_h
    k += i_b * k_stride_b + i_h * k_stride_h
    v += i_b * v_stride_b + i_h * v_stride_h
    grad += i_b * grad_stride_b + i_h * grad_stride_h
    if K <= BC:
        b_q = _load_rows(q, o_q - past, o_k, q_stride_l, real_q, K, OPERAND)
    at_q = i_bh.to(tl.int64) * L + o_q - past
    b_lse = tl.load(lse + at_q, mask=real_q, other=float("inf"))[:, None]
    b_delta = tl.load(delta + at_q, mask=real_q, other=0.0)[:, None]
    if V <= BV:
        b_grad = _load_rows(grad, o_q - past, o_v, grad_stride_l, real_q, V, OPERAND)

    acc = tl.zeros((BM, BK), tl.float32)
    end = stop
    if CAUSAL:
        end = tl.minimum(stop, start + first + BM)
    for at_s in range(start, end, BN):
        o_s = at_s + tl.arange(0, BN)
        real_s = _not_padded(mask, i_b, o_s, o_s < end, S)
        b_k = _load_rows(k, o_s, o_k, k_stride_l, real_s, K, OPERAND)
        if K <= BC:
            scores = _dot(b_q, tl.trans(b_k), tl.zeros((BM, BN), tl.float32))
        else:
            scores = _products(
                q,
                k,
                o_q - past,
                o_s,
                q_stride_l,
                k_stride_l,
                real_q,
                real_s,
                K,
                BM,
                BN,
                BC,
                OPERAND,
            )
        scores *= LOG2E
        seen = _seen(
            seed, i_bh, o_q[:, None], o_s[None, :], real_s[None, :], start, past, dropout_p, CAUSAL
        )
        weights = tl.exp2(tl.where(seen, scores - b_lse, float("-inf")))
        if V <= BV:
            b_v = _load_rows(v, o_s, o_v, v_stride_l, real_s, V, OPERAND)
            by_weight = _dot(b_grad, tl.trans(b_v), tl.zeros((BM, BN), tl.float32))
        else:
            by_weight = _products(
                grad,
                v,
                o_q - past,
                o_s,
                grad_stride_l,
                v_stride_l,
                real_q,
                real_s,
                V,
                BM,
                BN,
                BV,
                OPERAND,
            )
        by_score = weights * (by_weight - b_delta)
        acc = _dot(by_score.to(OPERAND), b_k, acc)
    grad_q += (i_b * L * H + i_h) * K
    _store_rows(grad_q, acc.to(grad_q.dtype.element_ty), o_q - past, o_k, H * K, inside_q, K)


@triton.jit
def chunk_attention_keys_kernel(
    q,
    k,
    v,
    grad,
    mask,
    seed,
    lse,
    delta,
    grad_k,
    grad_v,
    q_stride_b,
    q_stride_l,
    q_stride_h,
    k_stride_b,
    k_stride_l,
    k_stride_h,
    v_stride_b,
    v_stride_l,
    v_stride_h,
    grad_stride_b,
    grad_stride_l,
    grad_stride_h,
    dropout_p,
    L,
    S,
    H,
    C,
    past,
    K: tl.constexpr,
    V: tl.constexpr,
    CAUSAL: tl.constexpr,
    OPERAND: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    BC: tl.constexpr,
):
    """``grad_k`` (B, S, H, K) and ``grad_v`` (B, S, H, V), or one of them where the other is None.

    Without ``grad_k`` a program owns BV features of the values; with both, V fits in BV.
    """
    splits: tl.constexpr = 1 if grad_k is not None else (V + BV - 1) // BV
    i_v, i_n, i_bh = tl.program_id(0) % splits, tl.program_id(0) // splits, tl.program_id(1)
    i_b, i_h = (i_bh // H).to(tl.int64), (i_bh % H).to(tl.int64)
    blocks_of_chunk = tl.cdiv(tl.minimum(C, S), BN)
    start, first = (i_n // blocks_of_chunk) * C, (i_n % blocks_of_chunk) * BN
    stop = tl.minimum(start + C, S)
    o_s, o_k = start + first + tl.arange(0, BN), tl.arange(0, BK)
    o_v = i_v * BV + tl.arange(0, BV)
    inside_s = o_s < stop
    real_s = _not_padded(mask, i_b, o_s, inside_s, S)
    q += i_b * q_stride_b + i_h * q_stride_h
    k += i_b * k_stride_b + i_h * k_stride_h
    v += i_b * v_stride_b + i_h * v_stride_h
    grad += i_b * grad_stride_b + i_h * grad_stride_h
    if K <= BC:
        b_k = _load_rows(k, o_s, o_k, k_stride_l, real_s, K, OPERAND)
    if grad_k is not None:
        acc_k = tl.zeros((BN, BK), tl.float32)
        if V <= BV:
            b_v = _load_rows(v, o_s, o_v, v_stride_l, real_s, V, OPERAND)
    if grad_v is not None:
        acc_v = tl.zeros((BN, BV), tl.float32)

    begin = tl.maximum(start, past)
    if CAUSAL:
        begin = tl.maximum(begin, start + first)
    for at_q in range(begin, stop, BM):
        o_q = at_q + tl.arange(0, BM)
        real_q = _not_padded(mask, i_b, o_q, o_q < stop, S)
        if K <= BC or grad_k is not None:
            b_q = _load_rows(q, o_q - past, o_k, q_stride_l, real_q, K, OPERAND)
        at_l = i_bh.to(tl.int64) * L + o_q - past
        b_lse = tl.load(lse + at_l, mask=real_q, other=float("inf"))[None, :]
        if K <= BC:
            scores = _dot(b_k, tl.trans(b_q), tl.zeros((BN, BM), tl.float32))
        else:
            scores = _products(
                k,
                q,
                o_s,
                o_q - past,
                k_stride_l,
                q_stride_l,
                real_s,
                real_q,
                K,
                BN,
                BM,
                BC,
                OPERAND,
            )
        scores *= LOG2E
        seen = _seen(
            seed, i_bh, o_q[None, :], o_s[:, None], real_s[:, None], start, past, dropout_p, CAUSAL
        )
        weights = tl.exp2(tl.where(seen, scores - b_lse, float("-inf")))
        if V <= BV or grad_v is not None:
            b_grad = _load_rows(grad, o_q - past, o_v, grad_stride_l, real_q, V, OPERAND)
        if grad_v is not None:
            acc_v = _dot(weights.to(OPERAND), b_grad, acc_v)
        if grad_k is not None:
            if V <= BV:
                by_weight = _dot(b_v, tl.trans(b_grad), tl.zeros((BN, BM), tl.float32))
            else:
                by_weight = _products(
                    v,
                    grad,
                    o_s,
                    o_q - past,
                    v_stride_l,
                    grad_stride_l,
                    real_s,
                    real_q,
                    V,
                    BN,
                    BM,
                    BV,
                    OPERAND,
                )
            b_delta = tl.load(delta + at_l, mask=real_q, other=0.0)[None, :]
            by_score = weights * (by_weight - b_delta)
            acc_k = _dot(by_score.to(OPERAND), b_q, acc_k)
    if grad_k is not None:
        grad_k += (i_b * S * H + i_h) * K
        _store_rows(grad_k, acc_k.to(grad_k.dtype.element_ty), o_s, o_k, H * K, inside_s, K)
    if grad_v is not None:
        grad_v += (i_b * S * H + i_h) * V
        _store_rows(grad_v, acc_v.to(grad_v.dtype.element_ty), o_s, o_v, H * V, inside_s, V)

"""Chunk attention with an online softmax: the weights of a chunk exist one tile at a time.

A forward program owns BM queries of a chunk and BV features of the values, and walks over the keys of
its chunk, BN at a time.  It keeps the largest score m so far, the sum of exp(score - m) and the same sum
of values, and rescales them when m grows.  Saved per query is ``lse = log2 sum exp``, from which the
backward computes each tile of weights again.  With ``D_i = sum_v grad_y_iv y_iv``::

    P_ij = exp(q_i k_j) / sum        dP_ij = grad_y_i v_j        dS_ij = P_ij (dP_ij - D_i)
    grad_v_j = sum_i P_ij grad_y_i   grad_q_i = sum_j dS_ij k_j  grad_k_j = sum_i dS_ij q_i

so that one kernel owns queries (grad_q) and one owns keys (grad_k, grad_v): no sum crosses programs.
The mask of DropKey is a function of a seed and of the position of the score; each kernel draws it again.

Megalodon's values are much wider than its keys.  Where they do not fit a tile, the forward and grad_v
split them over programs, which each compute the scores; dP runs over them in parts.

Positions: a chunk starts at a multiple of C <= S in the sequence of keys, (B, S); ``past`` of these come
before the first query, so that query i is at position past + i.  Scores are taken to base 2.
``lse`` is +inf for a query that sees no key, which makes all its weights zero.  With CROSS the queries
are another sequence: L of them from position 0 on, in one chunk with all S keys; the mask is of keys.

Letters: B batch, L queries, S keys, H heads, K key width, V value width, C chunk length; BK and BV
features of a tile of keys and values, BC features of queries and keys that are multiplied at a time.
"""

import triton
import triton.language as tl

from megalodon_tasks.cuda_ops.triton_helpers import dot, load_rows, not_padded, store_rows

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _head(pointer, i_bh, H, strides):
    """Return where the rows of one head start in a tensor (B, any, H, any)."""
    i_b, i_h = (i_bh // H).to(tl.int64), (i_bh % H).to(tl.int64)
    return pointer + i_b * strides[0] + i_h * strides[2]


@triton.jit
def _dense_head(pointer, i_bh, steps, H, width):
    """Return where the rows of one head start in a contiguous tensor (B, steps, H, width)."""
    return pointer + ((i_bh // H).to(tl.int64) * steps * H + i_bh % H) * width


@triton.jit
def _program(C, S, ROWS: tl.constexpr, SPLITS: tl.constexpr):
    """Return the head, the block of ROWS rows among those of its chunks, and the part of the values."""
    per_head = tl.cdiv(S, C) * tl.cdiv(C, ROWS) * SPLITS
    i_bh, i = tl.program_id(0) // per_head, tl.program_id(0) % per_head
    return i_bh, i // SPLITS, i % SPLITS


@triton.jit
def _block(i, C, S, ROWS: tl.constexpr):
    """Return where the chunk of block ``i`` starts, where the block starts, and where the chunk ends."""
    blocks_of_chunk = tl.cdiv(C, ROWS)
    start = (i // blocks_of_chunk) * C
    return start, start + (i % blocks_of_chunk) * ROWS, start + tl.minimum(C, S - start)


@triton.jit
def _last_block_first(i, C, S, ROWS: tl.constexpr):
    """Do the same from the other end: the last queries of a causal chunk see the most keys."""
    return _block(tl.cdiv(S, C) * tl.cdiv(C, ROWS) - 1 - i, C, S, ROWS)


@triton.jit
def _products(a, b, WIDTH: tl.constexpr, PART: tl.constexpr, OPERAND: tl.constexpr):
    """Multiply rows of ``a`` with rows of ``b``, PART of their features at a time."""
    acc = tl.zeros((a[1].shape[0], b[1].shape[0]), tl.float32)
    for start in range(0, WIDTH, PART):
        o_c = start + tl.arange(0, PART)
        b_a = load_rows(a, o_c, WIDTH, OPERAND)
        acc = dot(b_a, tl.trans(load_rows(b, o_c, WIDTH, OPERAND)), acc)
    return acc


@triton.jit
def _place(o, base, BIT: tl.constexpr):
    """Split positions ``base + o``, where 16 divides ``base``: the number without a bit, and the bit."""
    return base + (o & ~BIT), (o & BIT) != 0


@triton.jit
def _dropped(drop, q_place, k_place):
    """Tell whether DropKey masks the score of a query and a key at these places of their chunk.

    ``drop`` is the seed, the indices of head and chunk and the probability.  One draw of four words
    serves the four scores that differ only in bit 3 of the query and bit 0 of the key.  Where queries
    are the rows of a product's result, a thread has all four, and where keys are, two of them, so that
    the compiler finds one draw where several are written.
    """
    seed, i_bh, i_c, dropout_p = drop
    o_q, high_q = q_place
    o_k, odd_k = k_place
    zero = (o_q + o_k) * 0
    words = tl.philox(tl.load(seed), zero + o_k, zero + o_q, zero + i_bh, zero + i_c)
    of_low_query = tl.where(odd_k, words[1], words[0])
    of_high_query = tl.where(odd_k, words[3], words[2])
    return tl.uint_to_uniform_float(tl.where(high_q, of_high_query, of_low_query)) < dropout_p


@triton.jit
def _masked(scores, lse, real_k, o_q, o_k, drop, q_place, k_place, CAUSAL: tl.constexpr):
    """Take scores to base 2 and subtract ``lse``; -inf where query ``o_q`` does not see key ``o_k``.

    The seed in ``drop`` is None without DropKey.  Positions and ``real_k`` broadcast to the scores.
    """
    seen = real_k
    if CAUSAL:
        seen = seen & (o_k <= o_q)
    if drop[0] is not None:
        seen = seen & ~_dropped(drop, q_place, k_place)
    return tl.where(seen, scores * LOG2E - lse, float("-inf"))


@triton.jit
def dropkey_kernel(seed, drop, dropout_p, L, W, C, past, BM: tl.constexpr, BN: tl.constexpr):
    """Write the mask of DropKey (B, H, L, W), True where the key is dropped."""
    across, down = tl.cdiv(W, BN), tl.cdiv(L, BM)
    i_w, i_l = tl.program_id(0) % across, tl.program_id(0) // across % down
    i_bh = tl.program_id(0) // across // down
    o_l = i_l * BM + tl.arange(0, BM)[:, None]
    o_w = i_w * BN + tl.arange(0, BN)[None, :]
    i_c, o_q = (past + o_l) // C, (past + o_l) % C
    dropped = _dropped((seed, i_bh, i_c, dropout_p), _place(o_q, 0, 8), _place(o_w, 0, 1))
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
    q_strides,
    k_strides,
    v_strides,
    dropout_p,
    L,
    S,
    H,
    C,
    past,
    K: tl.constexpr,
    V: tl.constexpr,
    CAUSAL: tl.constexpr,
    CROSS: tl.constexpr,
    OPERAND: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    BC: tl.constexpr,
):
    """Write outputs ``y`` (B, L, H, V) and ``lse`` (B, H, L)."""
    splits: tl.constexpr = (V + BV - 1) // BV
    steps, chunk = L if CROSS else S, L if CROSS else C
    i_bh, i_m, i_v = _program(chunk, steps, BM, splits)
    row = (i_bh // H).to(tl.int64)
    start, first, stop = _last_block_first(i_m, chunk, steps, BM)
    o_q, o_k, o_v = first + tl.arange(0, BM), tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    inside_q = (o_q < stop) & (o_q >= past)
    real_q = inside_q if CROSS else not_padded(mask, row, o_q, inside_q, S)
    queries = (_head(q, i_bh, H, q_strides), o_q - past, q_strides[1], real_q)
    k, v = _head(k, i_bh, H, k_strides), _head(v, i_bh, H, v_strides)
    if K <= BC:
        b_q = load_rows(queries, o_k, K, OPERAND)

    highest = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, BV), tl.float32)
    drop = (seed, i_bh, start // chunk, dropout_p)
    q_place = _place(tl.arange(0, BM)[:, None], first - start, 8)
    end = S if CROSS else stop
    if CAUSAL:
        end = tl.minimum(stop, first + BM)
    for at_s in range(start, end, BN):
        o_s = at_s + tl.arange(0, BN)
        real_s = not_padded(mask, row, o_s, o_s < end, S)
        keys = (k, o_s, k_strides[1], real_s)
        if K <= BC:
            b_k = load_rows(keys, o_k, K, OPERAND)
            scores = dot(b_q, tl.trans(b_k), tl.zeros((BM, BN), tl.float32))
        else:
            scores = _products(queries, keys, K, BC, OPERAND)
        k_place = _place(tl.arange(0, BN)[None, :], at_s - start, 1)
        scores = _masked(
            scores, 0.0, real_s[None, :], o_q[:, None], o_s[None, :], drop, q_place, k_place, CAUSAL
        )
        raised = tl.maximum(highest, tl.max(scores, 1))
        # Where no key was seen yet all differences would be inf - inf.
        pivot = tl.where(raised == float("-inf"), 0.0, raised)
        weights = tl.exp2(scores - pivot[:, None])
        shrink = tl.exp2(highest - pivot)
        total = total * shrink + tl.sum(weights, 1)
        highest = raised
        b_v = load_rows((v, o_s, v_strides[1], real_s), o_v, V, OPERAND)
        acc = dot(weights.to(OPERAND), b_v, acc * shrink[:, None])

    # Not > 0, which would hide NaN.
    some = real_q & (total != 0)
    safe = tl.where(some, total, 1.0)
    b_y = tl.where(some[:, None], acc / safe[:, None], 0.0)
    store_rows((_dense_head(y, i_bh, L, H, V), o_q - past, H * V, inside_q), b_y, o_v, V)
    if i_v == 0:
        b_lse = tl.where(some, highest + tl.log2(safe), float("inf"))
        tl.store(lse + i_bh.to(tl.int64) * L + o_q - past, b_lse, mask=inside_q)


@triton.jit
def chunk_attention_delta_kernel(
    y,
    grad,
    mask,
    delta,
    grad_strides,
    L,
    S,
    H,
    past,
    V: tl.constexpr,
    BM: tl.constexpr,
    BV: tl.constexpr,
):
    """Write ``delta`` (B, H, L), the sum over features of y and its gradient, zero at padding."""
    per_head = tl.cdiv(L, BM)
    i_bh = tl.program_id(0) // per_head
    o_l = tl.program_id(0) % per_head * BM + tl.arange(0, BM)
    real = not_padded(mask, (i_bh // H).to(tl.int64), past + o_l, o_l < L, S)
    outputs = (_dense_head(y, i_bh, L, H, V), o_l, H * V, real)
    grads = (_head(grad, i_bh, H, grad_strides), o_l, grad_strides[1], real)
    acc = tl.zeros((BM,), tl.float32)
    for at_v in range(0, V, BV):
        o_v = at_v + tl.arange(0, BV)
        b_y = load_rows(outputs, o_v, V, tl.float32)
        acc += tl.sum(b_y * load_rows(grads, o_v, V, tl.float32), 1)
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
    q_strides,
    k_strides,
    v_strides,
    grad_strides,
    dropout_p,
    L,
    S,
    H,
    C,
    past,
    K: tl.constexpr,
    V: tl.constexpr,
    CAUSAL: tl.constexpr,
    CROSS: tl.constexpr,
    OPERAND: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    BC: tl.constexpr,
):
    """Write ``grad_q`` (B, L, H, K)."""
    steps, chunk = L if CROSS else S, L if CROSS else C
    i_bh, i_m, _ = _program(chunk, steps, BM, 1)
    row = (i_bh // H).to(tl.int64)
    start, first, stop = _last_block_first(i_m, chunk, steps, BM)
    o_q, o_k, o_v = first + tl.arange(0, BM), tl.arange(0, BK), tl.arange(0, BV)
    inside_q = (o_q < stop) & (o_q >= past)
    real_q = inside_q if CROSS else not_padded(mask, row, o_q, inside_q, S)
    queries = (_head(q, i_bh, H, q_strides), o_q - past, q_strides[1], real_q)
    grads = (_head(grad, i_bh, H, grad_strides), o_q - past, grad_strides[1], real_q)
    k, v = _head(k, i_bh, H, k_strides), _head(v, i_bh, H, v_strides)
    if K <= BC:
        b_q = load_rows(queries, o_k, K, OPERAND)
    at_q = i_bh.to(tl.int64) * L + o_q - past
    b_lse = tl.load(lse + at_q, mask=real_q, other=float("inf"))[:, None]
    b_delta = tl.load(delta + at_q, mask=real_q, other=0.0)[:, None]
    if V <= BV:
        b_grad = load_rows(grads, o_v, V, OPERAND)

    acc = tl.zeros((BM, BK), tl.float32)
    drop = (seed, i_bh, start // chunk, dropout_p)
    q_place = _place(tl.arange(0, BM)[:, None], first - start, 8)
    end = S if CROSS else stop
    if CAUSAL:
        end = tl.minimum(stop, first + BM)
    for at_s in range(start, end, BN):
        o_s = at_s + tl.arange(0, BN)
        real_s = not_padded(mask, row, o_s, o_s < end, S)
        keys, values = (k, o_s, k_strides[1], real_s), (v, o_s, v_strides[1], real_s)
        b_k = load_rows(keys, o_k, K, OPERAND)
        if K <= BC:
            scores = dot(b_q, tl.trans(b_k), tl.zeros((BM, BN), tl.float32))
        else:
            scores = _products(queries, keys, K, BC, OPERAND)
        k_place = _place(tl.arange(0, BN)[None, :], at_s - start, 1)
        scores = _masked(
            scores,
            b_lse,
            real_s[None, :],
            o_q[:, None],
            o_s[None, :],
            drop,
            q_place,
            k_place,
            CAUSAL,
        )
        weights = tl.exp2(scores)
        if V <= BV:
            b_v = load_rows(values, o_v, V, OPERAND)
            by_weight = dot(b_grad, tl.trans(b_v), tl.zeros((BM, BN), tl.float32))
        else:
            by_weight = _products(grads, values, V, BV, OPERAND)
        by_score = weights * (by_weight - b_delta)
        acc = dot(by_score.to(OPERAND), b_k, acc)
    store_rows((_dense_head(grad_q, i_bh, L, H, K), o_q - past, H * K, inside_q), acc, o_k, K)


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
    q_strides,
    k_strides,
    v_strides,
    grad_strides,
    dropout_p,
    L,
    S,
    H,
    C,
    past,
    K: tl.constexpr,
    V: tl.constexpr,
    CAUSAL: tl.constexpr,
    CROSS: tl.constexpr,
    OPERAND: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    BC: tl.constexpr,
):
    """Write ``grad_k`` (B, S, H, K) and ``grad_v`` (B, S, H, V), or one of them if the other is None.

    Without ``grad_k`` a program owns BV features of the values; with both, V fits in BV.
    """
    splits: tl.constexpr = 1 if grad_k is not None else (V + BV - 1) // BV
    chunk = S if CROSS else C
    i_bh, i_n, i_v = _program(chunk, S, BN, splits)
    row = (i_bh // H).to(tl.int64)
    start, first, stop = _block(i_n, chunk, S, BN)
    o_s, o_k, o_v = first + tl.arange(0, BN), tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    inside_s = o_s < stop
    real_s = not_padded(mask, row, o_s, inside_s, S)
    keys = (_head(k, i_bh, H, k_strides), o_s, k_strides[1], real_s)
    values = (_head(v, i_bh, H, v_strides), o_s, v_strides[1], real_s)
    q, grad = _head(q, i_bh, H, q_strides), _head(grad, i_bh, H, grad_strides)
    if K <= BC:
        b_k = load_rows(keys, o_k, K, OPERAND)
    if grad_k is not None:
        acc_k = tl.zeros((BN, BK), tl.float32)
        if V <= BV:
            b_v = load_rows(values, o_v, V, OPERAND)
    if grad_v is not None:
        acc_v = tl.zeros((BN, BV), tl.float32)

    drop = (seed, i_bh, start // chunk, dropout_p)
    k_place = _place(tl.arange(0, BN)[:, None], first - start, 1)
    begin = start + tl.maximum(past - start, 0) // 16 * 16
    if CAUSAL:
        begin = tl.maximum(begin, first)
    end = L if CROSS else stop
    for at_q in range(begin, end, BM):
        o_q = at_q + tl.arange(0, BM)
        inside_q = (o_q >= past) & (o_q < end)
        real_q = inside_q if CROSS else not_padded(mask, row, o_q, inside_q, S)
        queries = (q, o_q - past, q_strides[1], real_q)
        grads = (grad, o_q - past, grad_strides[1], real_q)
        if K <= BC or grad_k is not None:
            b_q = load_rows(queries, o_k, K, OPERAND)
        at_l = i_bh.to(tl.int64) * L + o_q - past
        b_lse = tl.load(lse + at_l, mask=real_q, other=float("inf"))[None, :]
        if K <= BC:
            scores = dot(b_k, tl.trans(b_q), tl.zeros((BN, BM), tl.float32))
        else:
            scores = _products(keys, queries, K, BC, OPERAND)
        q_place = _place(tl.arange(0, BM)[None, :], at_q - start, 8)
        scores = _masked(
            scores,
            b_lse,
            real_s[:, None],
            o_q[None, :],
            o_s[:, None],
            drop,
            q_place,
            k_place,
            CAUSAL,
        )
        weights = tl.exp2(scores)
        if V <= BV or grad_v is not None:
            b_grad = load_rows(grads, o_v, V, OPERAND)
        if grad_v is not None:
            acc_v = dot(weights.to(OPERAND), b_grad, acc_v)
        if grad_k is not None:
            if V <= BV:
                by_weight = dot(b_v, tl.trans(b_grad), tl.zeros((BN, BM), tl.float32))
            else:
                by_weight = _products(values, grads, V, BV, OPERAND)
            b_delta = tl.load(delta + at_l, mask=real_q, other=0.0)[None, :]
            by_score = weights * (by_weight - b_delta)
            acc_k = dot(by_score.to(OPERAND), b_q, acc_k)
    if grad_k is not None:
        store_rows((_dense_head(grad_k, i_bh, S, H, K), o_s, H * K, inside_s), acc_k, o_k, K)
    if grad_v is not None:
        store_rows((_dense_head(grad_v, i_bh, S, H, V), o_s, H * V, inside_s), acc_v, o_v, V)

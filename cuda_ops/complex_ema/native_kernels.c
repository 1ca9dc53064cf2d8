/* CEMA on a CPU: the products over blocks of README.md, without a change of layout.
 *
 * A lane of a vector is a channel, so that x (batch, length, dim) is read and written as it lies in
 * memory.  A tile of LANES channels keeps its matrices in the second cache; ROWS blocks of STEPS steps,
 * a group, are worked on together, so that a number of a matrix that was loaded is used ROWS times:
 *
 *     sums   = inputs x write                      (6) of README.md
 *     states = what the blocks before leave        in turn, double precision from group to group
 *     y      = [states | inputs] x matrix          (5)
 *
 * Only the second line passes from group to group, and it is short.  So where tiles and sequences are
 * fewer than threads, all threads share one: each takes some groups of a window for the first line, some
 * components for the second, and its groups again for the third.  Results are the same bit for bit.
 *
 * B batch, L length, D dim, N order, c = STEPS, K = 2N columns of the states, rounded up to a multiple
 * of TILE; real and imaginary parts in turn.  One call does one direction: its blocks are taken from the
 * first to the last with lags >= 0, or, `reverse`, from the last to the first with lags < 0.
 */

#include "native.h"

#define STEPS 16
#define ROWS 16
#define TILE 4
/* Groups of a window for each thread that shares it. */
#define SHARE 8

typedef double wide __attribute__((vector_size(8 * LANES)));
#define WIDE(v) __builtin_convertvector(v, wide)
#define NARROW(v) __builtin_convertvector(v, vec)

/* Outputs are set, added to, or, where they are far larger than the caches, set around them. */
enum storing { SET, ADD, STREAM };

/* What Python passes; where it says so a pointer may be NULL. */
struct call {
    int64_t batch, length, dim, order;
    int64_t reverse;         /* the direction */
    int64_t storing;         /* how outputs are stored, see above */
    int64_t splits;          /* parts of the batch that are worked on at once */
    int64_t threads;
    const double *p, *q_re, *q_im, *eta_re, *eta_im; /* (D, N) */
    const double *omega;     /* (D), or NULL for zeros */
    const uint8_t *padding;  /* (B, L), or NULL */
    const float *x;          /* (B, L, D); backward: NULL if no coefficient wants a gradient */
    float *y;                /* (B, L, D) */
    const double *state;     /* (B, D, N, 2) before the first step, or NULL for zeros */
    double *last_state;      /* (B, D, N, 2) after the last step, or NULL */
    float *kept;             /* (B, groups, tiles, 2N, LANES) states before each group, or NULL */
    /* Backward only. */
    const float *grad_y;     /* (B, L, D) */
    const double *grad_last; /* (B, D, N, 2), or NULL for zeros */
    float *grad_x;           /* (B, L, D), or NULL */
    double *grad_state;      /* (B, D, N, 2), or NULL */
    double *grad_coefficients; /* (splits, 5, D, N): p, log_radius, angle, eta_re, eta_im */
    double *grad_omega;      /* (splits, D) */
};

/* The threads that work on one tile of one part of the batch: one, or all. */
struct team {
    int64_t member, members;
    int64_t window;    /* groups that they work on at once */
    vec *shared, *own; /* memory of the team, and of its members in turn */
    int64_t own_size;
};

static void wait_for(const struct team *team) {
    if (team->members > 1) {
#pragma omp barrier
    }
}

static vec *memory_of(const struct team *team, int64_t member) {
    return team->own + member * team->own_size;
}

static void stream(float *to, vec value) {
#if defined(__AVX512F__)
    _mm512_stream_ps(to, (__m512)value);
#elif defined(__AVX__)
    _mm256_stream_ps(to, (__m256)value);
#else
    *(vec *)to = value;
#endif
}

/* Steps of the last block. */
static int64_t steps_left(const struct call *call) { return (call->length - 1) % STEPS + 1; }

typedef wide pair[2]; /* complex numbers, one in each lane */

INLINE void multiply_pair(const pair a, const pair b, pair result) {
    const wide re = a[0] * b[0] - a[1] * b[1];
    result[1] = a[0] * b[1] + a[1] * b[0];
    result[0] = re;
}

/* The coefficients of one component of the channels of a tile; zeros in lanes beyond the last one. */
struct component {
    wide p;
    pair eta, powers[STEPS + 1]; /* q to the power of 0 .. c */
};

static void load_component(const struct call *call, int64_t channel, int64_t n, struct component *c) {
    pair q = {{0}, {0}};
    *c = (struct component){0};
    for (int64_t lane = 0; lane < least(LANES, call->dim - channel); lane++) {
        const int64_t at = (channel + lane) * call->order + n;
        c->p[lane] = call->p[at], c->eta[0][lane] = call->eta_re[at], c->eta[1][lane] = call->eta_im[at];
        q[0][lane] = call->q_re[at], q[1][lane] = call->q_im[at];
    }
    c->powers[0][0] += 1;
    for (int64_t t = 0; t < STEPS; t++) multiply_pair(c->powers[t], q, c->powers[t + 1]);
}

/* Exponents of q: from step t of a block to the states after it, and from those before to step t. */
static int64_t write_power(int reverse, int64_t t) { return reverse ? t : STEPS - 1 - t; }
static int64_t read_power(int reverse, int64_t t) { return reverse ? STEPS - 1 - t : t + 1; }
/* The lag with k_m of (3), or of (4), in it. */
static int64_t lag_of(int reverse, int64_t m) { return reverse ? -1 - m : m; }

/* One direction of the map, or its adjoint, for the channels of a tile. */
struct matrices {
    int64_t states;    /* K */
    int reverse;       /* the order of its blocks */
    vec *write;        /* [K / TILE][c][TILE] */
    vec *matrix;       /* [c / TILE][K + c][TILE] */
    wide *decay;       /* [N][2], of a block */
    wide *group_decay; /* [N][2], of a full group */
    wide *last_decay;  /* [N][2], of the last block */
};

static void put(wide *target, int64_t n, const pair value, int adjoint) {
    target[2 * n] = value[0];
    target[2 * n + 1] = adjoint ? -value[1] : value[1];
}

/* What component n adds to the matrices, and, in `kernel`, to the kernel. */
static void fill_component(const struct matrices *m, const struct call *call, int64_t n,
                           const struct component *c, int adjoint, wide *kernel) {
    const int64_t columns = m->states + STEPS;
    const int reverse = call->reverse;
    pair group = {c->powers[STEPS][0], c->powers[STEPS][1]};
    for (int64_t rows = 1; rows < ROWS; rows *= 2) multiply_pair(group, group, group);
    put(m->decay, n, c->powers[STEPS], adjoint);
    put(m->group_decay, n, group, adjoint);
    put(m->last_decay, n, c->powers[steps_left(call)], adjoint);
    for (int64_t t = 0; t < STEPS; t++) {
        const wide *write = c->powers[write_power(reverse, t)];
        pair read, both;
        multiply_pair(c->eta, c->powers[read_power(reverse, t)], read);
        multiply_pair(c->eta, c->powers[t], both);
        if (lag_of(reverse, t) > -STEPS) kernel[STEPS - 1 + lag_of(reverse, t)] += c->p * both[0];
        /* The minus stands for that of the product of two imaginary parts. */
        const vec to[2] = {NARROW(c->p * write[0]), NARROW(c->p * write[1])};
        const vec from[2] = {NARROW(read[0]), NARROW(-read[1])};
        for (int64_t k = 2 * n; k < 2 * n + 2; k++) {
            m->write[(k / TILE * STEPS + t) * TILE + k % TILE] = adjoint ? from[k % 2] : to[k % 2];
            m->matrix[(t / TILE * columns + k) * TILE + t % TILE] = adjoint ? to[k % 2] : from[k % 2];
        }
    }
}

/* The matrices of both a map and, if there is one, its adjoint. */
static void fill_matrices(struct matrices *m, struct matrices *adjoint, const struct call *call,
                          int64_t channel) {
    wide kernel[2 * STEPS - 1] = {{0}}, unused[2 * STEPS - 1] = {{0}};
    struct component c;
    for (int64_t n = 0; n < call->order; n++) {
        load_component(call, channel, n, &c);
        fill_component(m, call, n, &c, 0, kernel);
        if (adjoint) fill_component(adjoint, call, n, &c, 1, unused);
    }
    for (int64_t lane = 0; call->omega && lane < least(LANES, call->dim - channel); lane++)
        kernel[STEPS - 1][lane] += call->omega[channel + lane];
    for (int64_t i = 0; i < STEPS; i++)
        for (int64_t j = 0; j < STEPS; j++) {
            const int64_t at = (j / TILE * (m->states + STEPS) + m->states + i) * TILE + j % TILE;
            m->matrix[at] = NARROW(kernel[STEPS - 1 + j - i]);
            if (adjoint) adjoint->matrix[at] = NARROW(kernel[STEPS - 1 + i - j]);
        }
}

/* Four rows of `left` times TILE columns: sums += products over [begin, end) of the inner index. */
INLINE void multiply(const vec *left, int64_t pitch, const vec *table, int64_t begin, int64_t end,
                     vec sums[4][TILE]) {
    for (int64_t i = begin; i < end; i++) {
        const vec *t = table + i * TILE;
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) {
            const vec l = left[r * pitch + i];
#pragma GCC unroll 4
            for (int j = 0; j < TILE; j++) sums[r][j] += l * t[j];
        }
    }
}

/* The same over TILE steps for the columns of these steps: not for those before a step, or, `reverse`,
 * after it, because NaN times zero is NaN. */
INLINE void multiply_triangle(const vec *left, int64_t pitch, const vec *table,
                              int reverse, vec sums[4][TILE]) {
#pragma GCC unroll 4
    for (int i = 0; i < TILE; i++)
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++)
#pragma GCC unroll 4
            for (int j = 0; j < TILE; j++)
                if (reverse ? j <= i : j >= i)
                    sums[r][j] += left[r * pitch + i] * table[i * TILE + j];
}

INLINE void put_tile(vec sums[4][TILE], vec *out, int64_t pitch) {
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++)
#pragma GCC unroll 4
        for (int j = 0; j < TILE; j++) out[r * pitch + j] = sums[r][j];
}

/* out[i][j] += sum over rows of left[row][i] * right[row][j], for TILE x TILE of them. */
static void add_outer(const vec *left, const vec *right, int64_t pitch, int64_t rows, vec *out,
                      int64_t out_pitch) {
    vec sums[TILE][TILE] = {{{0}}};
    for (int64_t row = 0; row < rows; row++) {
        const vec *l = left + row * pitch, *r = right + row * pitch;
#pragma GCC unroll 4
        for (int i = 0; i < TILE; i++)
#pragma GCC unroll 4
            for (int j = 0; j < TILE; j++) sums[i][j] += l[i] * r[j];
    }
#pragma GCC unroll 4
    for (int i = 0; i < TILE; i++)
#pragma GCC unroll 4
        for (int j = 0; j < TILE; j++) out[i * out_pitch + j] += sums[i][j];
}

/* Where the steps of a group lie. */
struct place {
    int64_t start, steps, lanes, dim;
    const uint8_t *padding; /* of the sequence, or NULL */
};

/* Steps -> the columns after the states of each row; zeros at padding and after the end. */
static void load(const float *source, const struct place *at, int64_t rows, vec *buffer, int64_t K) {
    const float *from = source + at->start * at->dim;
    for (int64_t row = 0; row < rows; row++) {
        vec *to = buffer + row * (K + STEPS) + K;
        const int64_t steps = least(STEPS, at->steps - row * STEPS);
        if (steps == STEPS && at->lanes == LANES) {
            for (int64_t t = 0; t < STEPS; t++, from += at->dim) to[t] = *(const unaligned *)from;
        } else {
            memset(to, 0, STEPS * sizeof(vec));
            for (int64_t t = 0; t < steps; t++, from += at->dim)
                memcpy(to + t, from, at->lanes * sizeof(float));
        }
        if (!at->padding) continue;
        for (int64_t t = 0; t < steps; t++)
            if (at->padding[at->start + row * STEPS + t]) to[t] = (vec){0};
    }
}

static void store(const vec *rows, const struct place *at, float *target, int64_t storing) {
    for (int64_t t = 0; t < at->steps; t++) {
        float *to = target + (at->start + t) * at->dim;
        vec value = rows[t];
        if (at->padding && at->padding[at->start + t]) value = (vec){0};
        if (at->lanes < LANES) {
            for (int64_t lane = 0; lane < at->lanes; lane++)
                to[lane] = storing == ADD ? to[lane] + value[lane] : value[lane];
        } else if (storing == ADD) {
            *(unaligned *)to += value;
        } else if (storing == STREAM && (uintptr_t)to % sizeof(vec) == 0) {
            stream(to, value);
        } else {
            *(unaligned *)to = value;
        }
    }
}

/* What stands at `source` + `offset`, or zeros for no source. */
static void load_state(const double *source, int64_t offset, int64_t order, int64_t lanes, wide *state) {
    memset(state, 0, 2 * order * sizeof(wide));
    if (!source) return;
    for (int64_t k = 0; k < 2 * order; k++)
        for (int64_t lane = 0; lane < lanes; lane++)
            state[k][lane] = source[offset + lane * 2 * order + k];
}

/* What the inputs of each row add to the states: into the columns of the states. */
static void sum_inputs(const struct matrices *m, vec *buffer, int64_t rows) {
    const int64_t K = m->states, pitch = K + STEPS;
    for (int64_t k = 0; k < K; k += TILE)
        for (int64_t row = 0; row < rows; row += 4) {
            vec sums[4][TILE] = {{{0}}};
            multiply(buffer + row * pitch + K, pitch, m->write + k * STEPS, 0, STEPS, sums);
            put_tile(sums, buffer + row * pitch + k, pitch);
        }
}

/* The states of two components after a row, of which `sums` are what its inputs add.  A row waits for
 * the one before it; the two components do not wait for each other. */
INLINE void advance(const vec q[4], const vec *sums, vec state[4]) {
#pragma GCC unroll 2
    for (int i = 0; i < 4; i += 2) {
        const vec re = sums[i] + q[i] * state[i] - q[i + 1] * state[i + 1];
        state[i + 1] = sums[i + 1] + q[i] * state[i + 1] + q[i + 1] * state[i];
        state[i] = re;
    }
}

/* What the rows of a group add to the states after it, from their sums. */
static void sum_rows(const struct matrices *m, const vec *buffer, int64_t rows, vec *added) {
    const int64_t K = m->states, pitch = K + STEPS;
    const vec *row = buffer + (m->reverse ? rows - 1 : 0) * pitch;
    const int64_t next = m->reverse ? -pitch : pitch;
    for (int64_t k = 0; k < K; k += 4) {
        vec q[4], state[4] = {{0}};
        for (int i = 0; i < 4; i++) q[i] = NARROW(m->decay[k + i]);
        for (int64_t i = 0; i < rows; i++) advance(q, row + i * next + k, state);
        for (int i = 0; i < 4; i++) added[k + i] = state[i];
    }
}

/* Replace the sums of each row by the states before it, from those before the group. */
static void place_states(const struct matrices *m, const vec *before, int64_t rows, vec *buffer) {
    const int64_t K = m->states, pitch = K + STEPS;
    vec *row = buffer + (m->reverse ? rows - 1 : 0) * pitch;
    const int64_t next = m->reverse ? -pitch : pitch;
    for (int64_t k = 0; k < K; k += 4) {
        vec q[4], state[4];
        for (int i = 0; i < 4; i++) q[i] = NARROW(m->decay[k + i]), state[i] = before[k + i];
        for (int64_t i = 0; i < rows; i++) {
            vec *at = row + i * next + k, old[4];
            for (int j = 0; j < 4; j++) old[j] = state[j];
            advance(q, at, state);
            for (int j = 0; j < 4; j++) at[j] = old[j];
        }
    }
}

/* Take the states of component n over a group.
 *
 * Within a group sums are of single precision.  What goes from group to group is double, so that no
 * error of the decay grows along the sequence. */
static void pass_group(const struct matrices *m, int64_t n, int64_t rows, const vec *added, wide *state) {
    const wide *power = (rows == ROWS ? m->group_decay : m->decay) + 2 * n;
    for (int64_t i = 0; i < (rows == ROWS ? 1 : rows); i++) {
        const wide passed = power[0] * state[2 * n] - power[1] * state[2 * n + 1];
        state[2 * n + 1] = power[0] * state[2 * n + 1] + power[1] * state[2 * n];
        state[2 * n] = passed;
    }
    state[2 * n] += WIDE(added[2 * n]);
    state[2 * n + 1] += WIDE(added[2 * n + 1]);
}

/* Outputs of four rows at the TILE steps from j on.  Not inlined: addresses of many would be spilled. */
static __attribute__((noinline)) void output_tile(const vec *left, int64_t K, const vec *table, int64_t j,
                                                  int reverse, vec *out) {
    const int64_t pitch = K + STEPS;
    vec sums[4][TILE] = {{{0}}};
    multiply(left, pitch, table, 0, reverse ? K : K + j, sums);
    if (reverse) {
        multiply(left, pitch, table, K + j + TILE, pitch, sums);
        multiply_triangle(left + K + j, pitch, table + (K + j) * TILE, 1, sums);
    } else {
        multiply_triangle(left + K + j, pitch, table + (K + j) * TILE, 0, sums);
    }
    put_tile(sums, out, STEPS);
}

static void outputs(const struct matrices *m, const vec *buffer, int64_t rows, vec *out) {
    const int64_t K = m->states, pitch = K + STEPS;
    for (int64_t j = 0; j < STEPS; j += TILE)
        for (int64_t row = 0; row < rows; row += 4)
            output_tile(buffer + row * pitch, K, m->matrix + j * pitch, j, m->reverse,
                        out + row * STEPS + j);
}

/* Hands out parts of one piece of memory, in vectors. */
static vec *part(vec **memory, int64_t vectors) {
    vec *result = *memory;
    *memory += vectors;
    return result;
}

#define MATRICES(K) (6 * (K) + (K)*STEPS + ((K) + STEPS) * STEPS)

static struct matrices room_for_matrices(vec **memory, int64_t K) {
    struct matrices m = {.states = K};
    m.decay = (wide *)part(memory, 2 * K);
    m.group_decay = (wide *)part(memory, 2 * K);
    m.last_decay = (wide *)part(memory, 2 * K);
    m.write = part(memory, K * STEPS);
    m.matrix = part(memory, (K + STEPS) * STEPS);
    return m;
}

/* The groups of a window. */
struct window {
    wide *state;  /* [K] after the last one so far */
    vec *before;  /* [group][K] states; zeros in columns beyond 2N */
    vec *added;   /* [group][K] what each adds to the states */
    vec *rows;    /* [group][ROWS][K + c] */
    int64_t row_size;
};

#define WINDOW(K) (ROWS * ((K) + STEPS) + 2 * (K))

static struct window room_for_window(vec **memory, int64_t K, int64_t groups) {
    struct window w = {.state = (wide *)part(memory, 2 * K), .row_size = ROWS * (K + STEPS)};
    w.before = part(memory, groups * K);
    w.added = part(memory, groups * K);
    w.rows = part(memory, groups * w.row_size);
    return w;
}

static struct place place_of(const struct call *call, int64_t b, int64_t channel, int64_t group) {
    struct place at = {.start = group * ROWS * STEPS, .dim = call->dim};
    at.steps = least(ROWS * STEPS, call->length - at.start);
    at.lanes = least(LANES, call->dim - channel);
    at.padding = call->padding ? call->padding + b * call->length : NULL;
    return at;
}

static int64_t columns_of(const struct call *call) { return divided(2 * call->order, TILE) * TILE; }
static int64_t groups_of(const struct call *call) { return divided(call->length, ROWS * STEPS); }

/* The group that comes at `step` in the order of the recurrence. */
static int64_t in_turn(const struct matrices *m, const struct call *call, int64_t step) {
    return m->reverse ? groups_of(call) - 1 - step : step;
}

/* Fill the memory that a team shares with zeros. */
static void clear(const struct team *team, int64_t vectors) {
    wait_for(team);
    if (team->member == 0) memset(team->shared, 0, vectors * sizeof(vec));
    wait_for(team);
}

/* The rows of a buffer that are worked on, fours. */
static int64_t rows_of(const struct place *at) { return divided(divided(at->steps, STEPS), 4) * 4; }

static int64_t begin_of(const struct call *call, int64_t split) {
    return call->batch * split / call->splits;
}

/* A number of a matrix that writes steps into states; in the last block for the step after it. */
static const vec *last_write(const struct matrices *m, const struct call *call, int64_t t, int64_t k) {
    t += STEPS - steps_left(call);
    return m->write + (k / TILE * STEPS + t) * TILE + k % TILE;
}

/* (6) for the steps that the last block has; only forward in time. */
static void store_last_state(const struct matrices *m, const struct call *call, const vec *row,
                             int64_t numbers, int64_t lanes) {
    for (int64_t n = 0; n < call->order; n++) {
        const wide q_re = m->last_decay[2 * n], q_im = m->last_decay[2 * n + 1];
        const wide re = WIDE(row[2 * n]), im = WIDE(row[2 * n + 1]);
        vec written[2] = {{0}, {0}};
        for (int64_t t = 0; t < steps_left(call); t++)
            for (int64_t k = 0; k < 2; k++)
                written[k] += row[m->states + t] * *last_write(m, call, t, 2 * n + k);
        const wide state[2] = {q_re * re - q_im * im + WIDE(written[0]),
                               q_re * im + q_im * re + WIDE(written[1])};
        for (int64_t lane = 0; lane < lanes; lane++)
            for (int64_t k = 0; k < 2; k++)
                call->last_state[numbers + (lane * call->order + n) * 2 + k] = state[k][lane];
    }
}

/* Take the states over the groups of a window, and note those before each. */
static void pass_window(const struct matrices *m, const struct call *call, const struct window *w,
                        int64_t first, int64_t count, const struct team *team) {
    const int64_t K = m->states;
    wait_for(team);
    for (int64_t n = team->member; n < call->order; n += team->members)
        for (int64_t i = 0; i < count; i++) {
            const struct place at = place_of(call, 0, 0, in_turn(m, call, first + i));
            for (int64_t k = 2 * n; k < 2 * n + 2; k++) w->before[i * K + k] = NARROW(w->state[k]);
            pass_group(m, n, divided(at.steps, STEPS), w->added + i * K, w->state);
        }
    wait_for(team);
}

static void forward_job(const struct call *call, int64_t tile, int64_t split, const struct team *team) {
    const int64_t N = call->order, K = columns_of(call), channel = tile * LANES;
    const int64_t tiles = divided(call->dim, LANES), groups = groups_of(call);
    vec *rest = team->shared, *out = memory_of(team, team->member);
    struct matrices m = room_for_matrices(&rest, K);
    struct window w = room_for_window(&rest, K, team->window);
    clear(team, MATRICES(K) + (2 + team->window) * K);
    m.reverse = call->reverse;
    if (team->member == 0) fill_matrices(&m, NULL, call, channel);
    wait_for(team);
    for (int64_t b = begin_of(call, split); b < begin_of(call, split + 1); b++) {
        const int64_t offset = b * call->length * call->dim + channel;
        const int64_t numbers = (b * call->dim + channel) * N * 2;
        if (team->member == 0)
            load_state(call->state, numbers, N, least(LANES, call->dim - channel), w.state);
        for (int64_t first = 0; first < groups; first += team->window) {
            const int64_t count = least(team->window, groups - first);
            for (int64_t i = team->member; i < count; i += team->members) {
                const struct place at = place_of(call, b, channel, in_turn(&m, call, first + i));
                vec *rows = w.rows + i * w.row_size;
                load(call->x + offset, &at, rows_of(&at), rows, K);
                sum_inputs(&m, rows, rows_of(&at));
                sum_rows(&m, rows, divided(at.steps, STEPS), w.added + i * K);
            }
            pass_window(&m, call, &w, first, count, team);
            for (int64_t i = team->member; i < count; i += team->members) {
                const int64_t group = in_turn(&m, call, first + i);
                const struct place at = place_of(call, b, channel, group);
                const int64_t used = divided(at.steps, STEPS);
                vec *rows = w.rows + i * w.row_size, *before = w.before + i * K;
                if (call->kept) {
                    vec *kept = (vec *)call->kept + ((b * groups + group) * tiles + tile) * 2 * N;
                    for (int64_t k = 0; k < 2 * N; k++) *(unaligned *)(kept + k) = before[k];
                }
                place_states(&m, before, used, rows);
                if (call->last_state && group == groups - 1)
                    store_last_state(&m, call, rows + (used - 1) * (K + STEPS), numbers, at.lanes);
                outputs(&m, rows, rows_of(&at), out);
                store(out, &at, call->y + offset, call->storing);
            }
        }
    }
}

/* Sums over all rows for the gradients of the matrices. */
struct sums {
    vec *by_read;                    /* [K + c][c] */
    vec *by_write;                   /* [c][K] */
    wide *by_decay, *by_last_decay;  /* [N][2] */
};

#define SUMS(K) (4 * (K) + ((K) + STEPS) * STEPS + (K)*STEPS)

/* What a member of a team has for itself. */
#define OWN_FORWARD (ROWS * STEPS)
#define OWN_BACKWARD(K) (SUMS(K) + ROWS * ((K) + 2 * STEPS) + 2 * (K))

static struct sums room_for_sums(vec **memory, int64_t K) {
    struct sums sums = {.by_decay = (wide *)part(memory, 2 * K)};
    sums.by_last_decay = (wide *)part(memory, 2 * K);
    sums.by_read = part(memory, (K + STEPS) * STEPS);
    sums.by_write = part(memory, K * STEPS);
    return sums;
}

/* Gradients of a component: `grad` is that of `factor` q^exponent, which gives that of the factor, and
 * of log q by (10). */
INLINE void add_power(const pair grad, const pair factor, const pair power, int64_t exponent,
                      pair of_factor, pair of_log) {
    const pair conjugate = {power[0], -power[1]}, turned = {factor[0], -factor[1]};
    pair by_factor, by_log;
    multiply_pair(conjugate, grad, by_factor);
    multiply_pair(turned, by_factor, by_log);
    for (int k = 0; k < 2; k++) {
        of_factor[k] += by_factor[k];
        of_log[k] += (double)exponent * by_log[k];
    }
}

/* From the sums to the gradients of the coefficients of one component. */
static void finish_component(const struct call *call, const struct sums *sums, int64_t K,
                             const wide *kernel, int64_t channel, int64_t n, wide gradients[5]) {
    struct component c;
    load_component(call, channel, n, &c);
    const pair p = {c.p, {0}}, both = {c.p * c.eta[0], c.p * c.eta[1]}, one = {(wide){0} + 1, {0}};
    pair of_p = {{0}}, of_eta = {{0}}, of_both = {{0}}, of_log = {{0}}, unused = {{0}};
    for (int64_t t = 0; t < STEPS; t++) {
        const vec *write = sums->by_write + t * K + 2 * n;
        const vec *read_re = sums->by_read + 2 * n * STEPS + t, *read_im = read_re + STEPS;
        const int64_t writing = write_power(call->reverse, t), reading = read_power(call->reverse, t);
        const int64_t lag = lag_of(call->reverse, t);
        const pair by_write = {WIDE(write[0]), WIDE(write[1])};
        const pair by_read = {WIDE(*read_re), -WIDE(*read_im)};
        add_power(by_write, p, c.powers[writing], writing, of_p, of_log);
        add_power(by_read, c.eta, c.powers[reading], reading, of_eta, of_log);
        if (lag <= -STEPS) continue;
        const pair by_kernel = {kernel[STEPS - 1 + lag], {0}};
        add_power(by_kernel, both, c.powers[t], t, of_both, of_log);
    }
    const int64_t left = steps_left(call);
    add_power(sums->by_decay + 2 * n, one, c.powers[STEPS], STEPS, unused, of_log);
    add_power(sums->by_last_decay + 2 * n, one, c.powers[left], left, unused, of_log);
    gradients[0] = of_p[0] + c.eta[0] * of_both[0] + c.eta[1] * of_both[1];
    gradients[1] = of_log[0];
    gradients[2] = of_log[1];
    gradients[3] = of_eta[0] + c.p * of_both[0];
    gradients[4] = of_eta[1] + c.p * of_both[1];
}

/* Add up the sums of all members, in those of the first. */
static void add_members(const struct team *team, int64_t K) {
    wait_for(team);
    for (int64_t member = 1; member < team->members; member++) {
        vec *total = memory_of(team, 0), *one = memory_of(team, member);
        for (int64_t i = team->member; i < 2 * K; i += team->members) ((wide *)total)[i] += ((wide *)one)[i];
        for (int64_t i = 4 * K + team->member; i < SUMS(K); i += team->members) total[i] += one[i];
    }
    wait_for(team);
}

static void finish(const struct call *call, int64_t K, int64_t channel, int64_t split,
                   const struct team *team) {
    const int64_t N = call->order, D = call->dim, lanes = least(LANES, D - channel);
    vec *memory = memory_of(team, 0);
    const struct sums total = room_for_sums(&memory, K), *sums = &total;
    wide kernel[2 * STEPS - 1] = {{0}}, gradients[5];
    add_members(team, K);
    if (team->member) return;
    for (int64_t i = 0; i < STEPS; i++)
        for (int64_t j = 0; j < STEPS; j++)
            kernel[STEPS - 1 + j - i] += WIDE(sums->by_read[(K + i) * STEPS + j]);
    for (int64_t lane = 0; lane < lanes; lane++)
        call->grad_omega[split * D + channel + lane] = kernel[STEPS - 1][lane];
    for (int64_t n = 0; n < N; n++) {
        finish_component(call, sums, K, kernel, channel, n, gradients);
        for (int64_t i = 0; i < 5; i++) {
            double *row = call->grad_coefficients + ((split * 5 + i) * D + channel) * N + n;
            for (int64_t lane = 0; lane < lanes; lane++) row[lane * N] = gradients[i][lane];
        }
    }
}

/* (8) and (9) of README.md: the sums over the rows for the gradients of the matrices. */
static void add_moments(const struct sums *t, int reverse, const vec *x_rows, const vec *g_rows,
                        int64_t rows, int64_t K, int64_t N) {
    const int64_t pitch = K + STEPS;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t n = 0; n < N; n++) {
            const vec *s = x_rows + row * pitch + 2 * n, *r = g_rows + row * pitch + 2 * n;
            t->by_decay[2 * n] += WIDE(s[0] * r[0] + s[1] * r[1]);
            t->by_decay[2 * n + 1] += WIDE(s[0] * r[1] - s[1] * r[0]);
        }
    for (int64_t j = 0; j < STEPS; j += TILE) {
        const vec *g = g_rows + K + j;
        for (int64_t k = 0; k < K; k += TILE) {
            add_outer(x_rows + k, g, pitch, rows, t->by_read + k * STEPS + j, STEPS);
            add_outer(x_rows + K + j, g_rows + k, pitch, rows, t->by_write + j * K + k, K);
        }
        const int64_t begin = reverse ? j : 0, end = reverse ? STEPS : j + TILE;
        for (int64_t i = begin; i < end; i += TILE)
            add_outer(x_rows + K + i, g, pitch, rows, t->by_read + (K + i) * STEPS + j, STEPS);
    }
}

/* The gradient W of the state after the last step, as it reaches what store_last_state started from:
 * the states before the last block, its steps, and for the coefficients the sums. */
static void add_last_decay(const struct matrices *adjoint, int64_t order, const vec *W, vec *sums) {
    for (int64_t n = 0; n < order; n++) {
        const vec q_re = NARROW(adjoint->last_decay[2 * n]), q_im = NARROW(adjoint->last_decay[2 * n + 1]);
        sums[2 * n] += q_re * W[2 * n] - q_im * W[2 * n + 1];
        sums[2 * n + 1] += q_re * W[2 * n + 1] + q_im * W[2 * n];
    }
}

static void add_last_outputs(const struct matrices *m, const struct call *call, const vec *W, vec *out) {
    for (int64_t t = 0; t < steps_left(call); t++)
        for (int64_t k = 0; k < 2 * call->order; k++) out[t] += W[k] * *last_write(m, call, t, k);
}

static void add_last_moments(const struct sums *sums, const struct call *call, int64_t K, const vec *row,
                             const vec *W) {
    const int64_t steps = steps_left(call);
    for (int64_t t = 0; t < steps; t++)
        for (int64_t k = 0; k < 2 * call->order; k++)
            sums->by_write[(STEPS - steps + t) * K + k] += row[K + t] * W[k];
    for (int64_t n = 0; n < call->order; n++) {
        const vec *s = row + 2 * n, *w = W + 2 * n;
        sums->by_last_decay[2 * n] += WIDE(s[0] * w[0] + s[1] * w[1]);
        sums->by_last_decay[2 * n + 1] += WIDE(s[0] * w[1] - s[1] * w[0]);
    }
}

/* The second half of the backward of a group: the products with its inputs. */
static void add_group(const struct matrices *m, const struct call *call, const struct place *at,
                      const float *x, const vec *before, const vec *g_rows, const vec *grad_last,
                      vec *x_rows, const struct sums *sums) {
    const int64_t K = m->states, used = divided(at->steps, STEPS);
    load(x, at, rows_of(at), x_rows, K);
    sum_inputs(m, x_rows, rows_of(at));
    place_states(m, before, used, x_rows);
    add_moments(sums, m->reverse, x_rows, g_rows, used, K, call->order);
    if (grad_last) add_last_moments(sums, call, K, x_rows + (used - 1) * (K + STEPS), grad_last);
}

static void backward_job(const struct call *call, int64_t tile, int64_t split, const struct team *team) {
    const int64_t N = call->order, K = columns_of(call), channel = tile * LANES;
    const int64_t tiles = divided(call->dim, LANES), groups = groups_of(call), pitch = K + STEPS;
    const int64_t lanes = least(LANES, call->dim - channel);
    vec *rest = team->shared, *own = memory_of(team, team->member);
    struct matrices m = room_for_matrices(&rest, K), adjoint = room_for_matrices(&rest, K);
    struct window w = room_for_window(&rest, K, team->window);
    struct sums sums = room_for_sums(&own, K);
    vec *x_rows = part(&own, ROWS * pitch), *out = part(&own, ROWS * STEPS);
    vec *grad_last = part(&own, K), *before = part(&own, K);
    clear(team, 2 * MATRICES(K) + (2 + team->window) * K);
    memset(memory_of(team, team->member), 0, OWN_BACKWARD(K) * sizeof(vec));
    m.reverse = call->reverse, adjoint.reverse = !call->reverse;
    if (team->member == 0) fill_matrices(&m, &adjoint, call, channel);
    wait_for(team);
    for (int64_t b = begin_of(call, split); b < begin_of(call, split + 1); b++) {
        const int64_t offset = b * call->length * call->dim + channel;
        const int64_t numbers = (b * call->dim + channel) * N * 2;
        if (team->member == 0) memset(w.state, 0, 2 * K * sizeof(vec));
        for (int64_t k = 0; k < 2 * N && call->grad_last; k++)
            for (int64_t lane = 0; lane < lanes; lane++)
                grad_last[k][lane] = call->grad_last[numbers + lane * 2 * N + k];
        for (int64_t first = 0; first < groups; first += team->window) {
            const int64_t count = least(team->window, groups - first);
            for (int64_t i = team->member; i < count; i += team->members) {
                const int64_t group = in_turn(&adjoint, call, first + i);
                const struct place at = place_of(call, b, channel, group);
                const int64_t used = divided(at.steps, STEPS);
                vec *rows = w.rows + i * w.row_size;
                load(call->grad_y + offset, &at, rows_of(&at), rows, K);
                sum_inputs(&adjoint, rows, rows_of(&at));
                if (call->grad_last && group == groups - 1)
                    add_last_decay(&adjoint, N, grad_last, rows + (used - 1) * pitch);
                sum_rows(&adjoint, rows, used, w.added + i * K);
            }
            pass_window(&adjoint, call, &w, first, count, team);
            for (int64_t i = team->member; i < count; i += team->members) {
                const int64_t group = in_turn(&adjoint, call, first + i);
                const struct place at = place_of(call, b, channel, group);
                const int64_t used = divided(at.steps, STEPS);
                const int takes_last = call->grad_last && group == groups - 1;
                vec *rows = w.rows + i * w.row_size;
                place_states(&adjoint, w.before + i * K, used, rows);
                if (call->grad_x) {
                    outputs(&adjoint, rows, rows_of(&at), out);
                    if (takes_last) add_last_outputs(&m, call, grad_last, out + (used - 1) * STEPS);
                    store(out, &at, call->grad_x + offset, call->storing);
                }
                if (!call->x) continue;
                const vec *kept = (vec *)call->kept + ((b * groups + group) * tiles + tile) * 2 * N;
                for (int64_t k = 0; k < 2 * N; k++) before[k] = *(const unaligned *)(kept + k);
                add_group(&m, call, &at, call->x + offset, before, rows, takes_last ? grad_last : NULL,
                          x_rows, &sums);
            }
        }
        if (call->grad_state && team->member == 0)
            for (int64_t k = 0; k < 2 * N; k++)
                for (int64_t lane = 0; lane < lanes; lane++)
                    call->grad_state[numbers + lane * 2 * N + k] = w.state[k][lane];
    }
    if (call->x) finish(call, K, channel, split, team);
}

typedef void job(const struct call *call, int64_t tile, int64_t split, const struct team *team);

/* Whether all threads share each job, because jobs are too few or divide badly.  The unit is the time of
 * a group; sharing must gain a fifth. */
static int is_shared(const struct call *call, int64_t jobs) {
    const int64_t groups = groups_of(call), threads = call->threads;
    return 4 * divided(jobs, threads) * groups > 5 * jobs * divided(groups, threads);
}

static int run(const struct call *call, job *work, int64_t matrices, int64_t own_size) {
    const int64_t jobs = divided(call->dim, LANES) * call->splits, K = columns_of(call);
    const int shared = is_shared(call, jobs);
    const int64_t window = shared ? least(SHARE * call->threads, groups_of(call)) : 1;
    const int64_t size = matrices + 2 * K + window * WINDOW(K);
    const int64_t sizes = (shared ? 1 : call->threads) * size + call->threads * own_size;
    vec *memory = aligned_alloc(2 * sizeof(vec), divided(sizes, 2) * 2 * sizeof(vec));
    if (!memory) return 1;
#pragma omp parallel num_threads(call->threads)
    {
        const uint64_t before = flush_denormals();
        const int64_t thread = this_thread();
        struct team team = {.member = thread, .members = running_threads(), .window = window};
        team.shared = memory;
        team.own = memory + size, team.own_size = own_size;
        if (shared) {
            for (int64_t index = 0; index < jobs; index++)
                work(call, index / call->splits, index % call->splits, &team);
        } else {
            team.member = 0, team.members = 1, team.shared = memory + thread * (size + own_size);
            team.own = team.shared + size;
#pragma omp for schedule(dynamic)
            for (int64_t index = 0; index < jobs; index++)
                work(call, index / call->splits, index % call->splits, &team);
        }
        restore_denormals(before);
    }
    free(memory);
    return 0;
}

int cema_lanes(void) { return LANES; }
int cema_forward(const struct call *call) {
    const int64_t K = columns_of(call);
    if (call->storing == STREAM) ask_for_large_pages(call->y, call->batch * call->length * call->dim);
    return run(call, forward_job, MATRICES(K), OWN_FORWARD);
}

int cema_backward(const struct call *call) {
    const int64_t K = columns_of(call);
    if (call->storing == STREAM && call->grad_x)
        ask_for_large_pages(call->grad_x, call->batch * call->length * call->dim);
    return run(call, backward_job, 2 * MATRICES(K), OWN_BACKWARD(K));
}

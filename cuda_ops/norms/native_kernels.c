/* Timestep norm and sequence norm on a CPU.
 *
 * A job is a strip: some whole groups of features of one sequence, over all its steps.  Sums over the
 * numbers of a few steps are of single precision, relative to a number among them; what is added up from
 * these on is double.  A mean is stored as the sum of two floats, high and low.
 *
 * B batch, L length, D dim, G groups, J = D / G features of a group.  Padded steps are not read.
 */

#include "native.h"

/* Steps over which sums are of single precision. */
#define STEPS 32

typedef float quad __attribute__((vector_size(16)));
typedef float unaligned_quad __attribute__((vector_size(16), aligned(4), may_alias));

/* What Python passes; where it says so a pointer may be NULL. */
struct norm {
    int64_t batch, length, dim, groups;
    int64_t parts; /* strips of a sequence */
    int64_t threads;
    double eps;
    const float *x;          /* (B, L, D) */
    const uint8_t *padding;  /* (B, L), or NULL */
    const float *scale;      /* (D) */
    const float *bias;       /* (D); forward */
    float *y;                /* (B, L, D); forward */
    double *total;           /* (3, B, G): mean, variance, steps; of the steps so far at the end */
    const double *before;    /* timestep norm: (3, B, G), before the first step, or NULL for no steps */
    float *moments;          /* timestep norm: (3, B, L, G) high, low, 1 / deviation of each step; forward:
                              * NULL if there is no backward */
    const float *grad_y;     /* (B, L, D); backward, as all that follows */
    const double *grad_total; /* timestep norm: (2, B, G), of mean and variance */
    float *grad_x;           /* (B, L, D) */
    double *grad_before;     /* timestep norm: (2, B, G) */
    double *grad_weights;    /* (B, 2, D): of scale and bias, for each sequence */
};

/* The strip of a job. */
struct strip {
    int64_t b, first, groups; /* sequence and groups */
    int64_t features, width;  /* of a group, and of the strip */
    int64_t at;               /* of its first number in x */
    int64_t group;            /* of its first group in (B, G) */
};

static struct strip strip_of(const struct norm *call, int64_t job) {
    const int64_t b = job / call->parts, part = job % call->parts, J = call->dim / call->groups;
    const int64_t first = call->groups * part / call->parts;
    const int64_t groups = call->groups * (part + 1) / call->parts - first;
    return (struct strip){b, first, groups, J, groups * J, b * call->length * call->dim + first * J,
                          b * call->groups + first};
}

static int is_padded(const struct norm *call, const struct strip *s, int64_t t) {
    return call->padding && call->padding[s->b * call->length + t];
}

/* `code` for j in [from, to): vectors of LANES numbers, then of 4, then single ones.  In it AT(T, p) is
 * the T at p + j. */
#define AT(T, p) (*(T *)((p) + j))
#define OVER(from, to, code)                                               \
    do {                                                                   \
        int64_t j = (from);                                                \
        for (; j + LANES <= (to); j += LANES) { code(unaligned, vec) }     \
        for (; j + 4 <= (to); j += 4) { code(unaligned_quad, quad) }       \
        for (; j < (to); j++) { code(float, float) }                       \
    } while (0)

/* Sums of a group, in four numbers that are added up later. */
INLINE quad add_lanes(vec sum) {
    union { vec v; quad q[LANES / 4]; } lanes = {sum};
    for (int width = LANES / 8; width; width /= 2)
        for (int i = 0; i < width; i++) lanes.q[i] += lanes.q[i + width];
    return lanes.q[0];
}

static void add_quads(const float *quads, int64_t count, float *sums) {
    for (int64_t i = 0; i < count; i++)
        sums[i] = (quads[4 * i] + quads[4 * i + 1]) + (quads[4 * i + 2] + quads[4 * i + 3]);
}

/* Two sums over the J features of a group at once, of `first` and `second`; kind: vec, quad, float. */
#define SUM_PAIR(J, out_a, out_b, code)                                    \
    do {                                                                   \
        vec vec_a = {0}, vec_b = {0};                                      \
        quad quad_a = {0}, quad_b = {0};                                   \
        float float_a = 0, float_b = 0;                                    \
        OVER(0, J, code);                                                  \
        quad_a += add_lanes(vec_a), quad_b += add_lanes(vec_b);            \
        quad_a[0] += float_a, quad_b[0] += float_b;                        \
        *(unaligned_quad *)(out_a) = quad_a, *(unaligned_quad *)(out_b) = quad_b; \
    } while (0)

/* --- Sequence norm --- */

struct features {
    float *a, *b, *c, *d;      /* [width] */
    double *mean, *square;     /* [width] */
};

static struct features features_of(double *memory, int64_t width) {
    float *floats = (float *)(memory + 2 * width);
    return (struct features){floats, floats + width, floats + 2 * width, floats + 3 * width, memory,
                             memory + width};
}

#define FEATURES(width) (4 * (width)) /* doubles */

/* Mean, and sum of squared differences from it, of each feature over the real steps; their number. */
static int64_t moments_of_features(const struct norm *call, const struct strip *s,
                                   const struct features *f) {
    float *shift = f->a, *sum = f->b, *square = f->c;
    int64_t count = 0, t = 0;
    memset(f->mean, 0, 2 * s->width * sizeof(double));
    while (t < call->length) {
        int64_t steps = 0;
        memset(sum, 0, 2 * s->width * sizeof(float)); /* and square */
        for (; t < call->length && steps < STEPS; t++) {
            if (is_padded(call, s, t)) continue;
            const float *x = call->x + s->at + t * call->dim;
            if (steps == 0 && count == 0) memcpy(shift, x, s->width * sizeof(float));
            if (steps++ == 0 && count)
                for (int64_t j = 0; j < s->width; j++) shift[j] = f->mean[j];
#define CODE(T, kind)                                                      \
    const kind distance = AT(const T, x) - AT(const T, shift);             \
    AT(T, sum) += distance;                                                \
    AT(T, square) += distance * distance;
            OVER(0, s->width, CODE);
#undef CODE
        }
        if (!steps) break;
        const double share = (double)steps / (count + steps), weight = share * count;
        for (int64_t j = 0; j < s->width; j++) {
            const double mean = (double)sum[j] / steps, moved = shift[j] + mean - f->mean[j];
            f->mean[j] += moved * share;
            f->square[j] += square[j] - mean * sum[j] + moved * moved * weight;
        }
        count += steps;
    }
    return count;
}

static void sequence_forward(const struct norm *call, int64_t job, double *memory) {
    const struct strip s = strip_of(call, job);
    const struct features f = features_of(memory, s.width);
    const int64_t count = moments_of_features(call, &s, &f), J = s.features;
    const int64_t plane = call->batch * call->groups;
    for (int64_t g = 0; g < s.groups; g++) {
        const double *means = f.mean + g * J;
        double mean = 0, square = 0;
        for (int64_t j = 0; j < J; j++) mean += means[j] / J;
        for (int64_t j = 0; j < J; j++)
            square += f.square[g * J + j] + count * (means[j] - mean) * (means[j] - mean);
        const double var = count ? square / (count * J) : 0, rstd = 1 / sqrt(var + call->eps);
        double *total = call->total + s.group + g;
        total[0] = mean, total[plane] = var, total[2 * plane] = count;
        for (int64_t j = g * J; j < (g + 1) * J; j++) {
            const float high = mean;
            const double factor = rstd * call->scale[s.first * J + j];
            f.a[j] = high, f.b[j] = factor;
            f.c[j] = call->bias[s.first * J + j] - (mean - high) * factor;
        }
    }
    for (int64_t t = 0; t < call->length; t++) {
        const float *x = call->x + s.at + t * call->dim;
        float *y = call->y + s.at + t * call->dim;
        if (is_padded(call, &s, t)) {
            memset(y, 0, s.width * sizeof(float));
            continue;
        }
#define CODE(T, kind)                                                      \
    AT(T, y) = (AT(const T, x) - AT(const T, f.a)) * AT(const T, f.b) + AT(const T, f.c);
        OVER(0, s.width, CODE);
#undef CODE
    }
}

/* Sums over time, per feature: of the gradient, and of the gradient times x - high. */
static void sums_of_features(const struct norm *call, const struct strip *s, const struct features *f) {
    const float *high = f->a;
    float *sum = f->b, *along = f->c;
    memset(f->mean, 0, 2 * s->width * sizeof(double));
    for (int64_t t = 0; t < call->length;) {
        memset(sum, 0, 2 * s->width * sizeof(float)); /* and along */
        for (const int64_t end = least(call->length, t + STEPS); t < end; t++) {
            if (is_padded(call, s, t)) continue;
            const float *x = call->x + s->at + t * call->dim, *grad = call->grad_y + s->at + t * call->dim;
#define CODE(T, kind)                                                      \
    const kind g = AT(const T, grad);                                      \
    AT(T, sum) += g;                                                       \
    AT(T, along) += g * (AT(const T, x) - AT(const T, high));
            OVER(0, s->width, CODE);
#undef CODE
        }
        for (int64_t j = 0; j < s->width; j++) f->mean[j] += sum[j], f->square[j] += along[j];
    }
}

static void sequence_backward(const struct norm *call, int64_t job, double *memory) {
    const struct strip s = strip_of(call, job);
    const struct features f = features_of(memory, s.width);
    const int64_t J = s.features, plane = call->batch * call->groups;
    const double *total = call->total + s.group, count = total[2 * plane];
    double *grad_scale = call->grad_weights + s.b * 2 * call->dim + s.first * J;
    double *grad_bias = grad_scale + call->dim;
    for (int64_t j = 0; j < s.width; j++) f.a[j] = total[j / J];
    sums_of_features(call, &s, &f);
    for (int64_t g = 0; g < s.groups; g++) {
        const double mean = total[g], rstd = 1 / sqrt(total[plane + g] + call->eps);
        const double low = mean - (float)mean, elements = count * J;
        const float *scale = call->scale + s.first * J;
        double direct = 0, slope = 0;
        for (int64_t j = g * J; j < (g + 1) * J; j++) {
            grad_bias[j] = f.mean[j];
            grad_scale[j] = (f.square[j] - low * f.mean[j]) * rstd;
            direct += scale[j] * grad_bias[j];
            slope += scale[j] * grad_scale[j];
        }
        if (count) direct /= elements, slope /= elements;
        for (int64_t j = g * J; j < (g + 1) * J; j++) {
            f.b[j] = rstd * scale[j];
            f.c[j] = (low * rstd * slope - direct) * rstd;
            f.d[j] = -rstd * rstd * slope;
        }
    }
    for (int64_t t = 0; t < call->length; t++) {
        const float *x = call->x + s.at + t * call->dim, *grad = call->grad_y + s.at + t * call->dim;
        float *grad_x = call->grad_x + s.at + t * call->dim;
        if (is_padded(call, &s, t)) {
            memset(grad_x, 0, s.width * sizeof(float));
            continue;
        }
#define CODE(T, kind)                                                                        \
    AT(T, grad_x) = AT(const T, grad) * AT(const T, f.b) + AT(const T, f.c) +                \
                    (AT(const T, x) - AT(const T, f.a)) * AT(const T, f.d);
        OVER(0, s.width, CODE);
#undef CODE
    }
}

/* --- Timestep norm --- */

/* Numbers of a strip: running ones, and those of a step. */
struct step {
    double *mean, *square;                  /* [groups]: running */
    float *first, *sum, *along;             /* [groups] */
    float *high, *low, *rstd;               /* [groups] */
    float *offset, *tilt;                   /* [groups] */
    float *quads_a, *quads_b;               /* [groups][4] */
    float *by_scale, *by_bias;              /* [width] */
};

#define STEP(groups, width) (10 * (groups) + (width)) /* doubles */

static struct step step_of(double *memory, int64_t G, int64_t width) {
    float *f = (float *)(memory + 2 * G), *last = f + 16 * G;
    return (struct step){memory,    memory + G, f,         f + G,     f + 2 * G,  f + 3 * G, f + 4 * G,
                         f + 5 * G, f + 6 * G,  f + 7 * G, f + 8 * G, f + 12 * G, last,      last + width};
}

/* The first number of each group of a step, and sums of the distances from it and of their squares. */
static void sum_step(const struct strip *s, const float *x, const struct step *c) {
    const int64_t J = s->features;
    for (int64_t g = 0; g < s->groups; g++, x += J) {
        const float shift = x[0];
        c->first[g] = shift;
#define CODE(T, kind)                                                      \
    const kind distance = AT(const T, x) - shift;                          \
    kind##_a += distance;                                                  \
    kind##_b += distance * distance;
        SUM_PAIR(J, c->quads_a + 4 * g, c->quads_b + 4 * g, CODE);
#undef CODE
    }
    add_quads(c->quads_a, s->groups, c->sum);
    add_quads(c->quads_b, s->groups, c->along);
}

/* Welford's recurrence over one step, for all groups; `count` real steps with this one. */
static void pass_step(const struct norm *call, const struct strip *s, const struct step *c,
                      double count) {
    const double J = s->features, share = 1 / count, weight = J * (count - 1) * share;
    const double part = 1 / J, each = part * share;
    const float *first = c->first, *sum = c->sum, *square = c->along;
    float *high = c->high, *low = c->low, *rstd = c->rstd;
    double *means = c->mean, *squares = c->square;
    for (int64_t g = 0; g < s->groups; g++) {
        const double off = sum[g] * part, moved = first[g] + off - means[g];
        const double mean = means[g] + moved * share;
        const double total = squares[g] + (square[g] - off * sum[g]) + moved * moved * weight;
        const float var = total * each + call->eps;
        means[g] = mean, squares[g] = total;
        high[g] = mean, low[g] = mean - (float)mean, rstd[g] = 1 / sqrtf(var);
    }
}

static void normalise_step(const struct norm *call, const struct strip *s, const struct step *c,
                           const float *x, float *y) {
    const int64_t J = s->features;
    const float *scale = call->scale + s->first * J, *bias = call->bias + s->first * J;
    for (int64_t g = 0; g < s->groups; g++, x += J, y += J, scale += J, bias += J) {
        const float high = c->high[g], low = c->low[g], rstd = c->rstd[g];
#define CODE(T, kind)                                                                               \
    AT(T, y) = ((AT(const T, x) - high) - low) * rstd * AT(const T, scale) + AT(const T, bias);
        OVER(0, J, CODE);
#undef CODE
    }
}

/* Where moments of a step are saved for the backward. */
static float *moments_at(const struct norm *call, const struct strip *s, int64_t t, int64_t plane) {
    return call->moments + ((plane * call->batch + s->b) * call->length + t) * call->groups + s->first;
}

/* Save the moments of a step, for a backward that will come; zeros at padding. */
static void save_moments(const struct norm *call, const struct strip *s, int64_t t, const float *high,
                         const float *low, const float *rstd) {
    const float *moments[3] = {high, low, rstd};
    for (int64_t plane = 0; plane < 3 && call->moments; plane++) {
        float *to = moments_at(call, s, t, plane);
        if (high) memcpy(to, moments[plane], s->groups * sizeof(float));
        else memset(to, 0, s->groups * sizeof(float));
    }
}

static void timestep_forward(const struct norm *call, int64_t job, double *memory) {
    const struct strip s = strip_of(call, job);
    const struct step c = step_of(memory, s.groups, s.width);
    const int64_t plane = call->batch * call->groups;
    const double *before = call->before ? call->before + s.group : NULL;
    double count = before ? before[2 * plane] : 0;
    for (int64_t g = 0; g < s.groups; g++) {
        c.mean[g] = count ? before[g] : 0;
        c.square[g] = count ? before[plane + g] * count * s.features : 0;
    }
    for (int64_t t = 0; t < call->length; t++) {
        const int64_t at = s.at + t * call->dim;
        if (is_padded(call, &s, t)) {
            memset(call->y + at, 0, s.width * sizeof(float));
            save_moments(call, &s, t, NULL, NULL, NULL);
            continue;
        }
        count++;
        sum_step(&s, call->x + at, &c);
        pass_step(call, &s, &c, count);
        normalise_step(call, &s, &c, call->x + at, call->y + at);
        save_moments(call, &s, t, c.high, c.low, c.rstd);
    }
    for (int64_t g = 0; g < s.groups; g++) {
        double *total = call->total + s.group + g;
        total[0] = count ? c.mean[g] : before ? before[g] : 0;
        total[plane] = count ? c.square[g] / (count * s.features) : before ? before[plane + g] : 0;
        total[2 * plane] = count;
    }
}

/* Of each group of a step: sums of the gradient times scale, and of that times the normalised numbers;
 * of each feature: sums over steps for scale and bias. */
static void sum_gradients(const struct norm *call, const struct strip *s, const struct step *c,
                          const float *x, const float *grad) {
    const int64_t J = s->features;
    const float *scale = call->scale + s->first * J;
    float *by_scale = c->by_scale, *by_bias = c->by_bias;
    for (int64_t g = 0; g < s->groups; g++, x += J, grad += J, scale += J, by_scale += J, by_bias += J) {
        const float high = c->high[g], low = c->low[g], rstd = c->rstd[g];
#define CODE(T, kind)                                                      \
    const kind one = AT(const T, grad), scaled = one * AT(const T, scale); \
    const kind normed = ((AT(const T, x) - high) - low) * rstd;            \
    AT(T, by_bias) += one;                                                 \
    AT(T, by_scale) += one * normed;                                       \
    kind##_a += scaled;                                                    \
    kind##_b += scaled * normed;
        SUM_PAIR(J, c->quads_a + 4 * g, c->quads_b + 4 * g, CODE);
#undef CODE
    }
    add_quads(c->quads_a, s->groups, c->sum);
    add_quads(c->quads_b, s->groups, c->along);
}

/* (7) to (10) of the README for one step: what reaches its inputs through the moments, as an offset and
 * a slope along the normalised numbers.  `direct` and `slope` are the sums over the steps from here on. */
static void pass_back(const struct strip *s, const struct step *c, const double *end, double count,
                      double *direct, double *slope) {
    const double each = 1 / (count * s->features);
    const float *sum = c->sum, *along = c->along, *high = c->high, *low = c->low, *rstd = c->rstd;
    float *offset = c->offset, *tilt = c->tilt;
    for (int64_t g = 0; g < s->groups; g++) {
        const double r = rstd[g], distance = (double)high[g] + low[g] - end[g];
        const double by_var = -r * r * along[g] * each;
        direct[g] -= r * sum[g] * each + by_var * distance;
        slope[g] += by_var;
        offset[g] = direct[g] + slope[g] * distance;
        tilt[g] = slope[g] / r;
    }
}

static void write_gradients(const struct norm *call, const struct strip *s, const struct step *c,
                            const float *x, const float *grad, float *grad_x) {
    const int64_t J = s->features;
    const float *scale = call->scale + s->first * J;
    for (int64_t g = 0; g < s->groups; g++, x += J, grad += J, grad_x += J, scale += J) {
        const float high = c->high[g], low = c->low[g], rstd = c->rstd[g];
        const float offset = c->offset[g], tilt = c->tilt[g] * rstd;
#define CODE(T, kind)                                                                           \
    AT(T, grad_x) = AT(const T, grad) * AT(const T, scale) * rstd + offset +                    \
                    ((AT(const T, x) - high) - low) * tilt;
        OVER(0, J, CODE);
#undef CODE
    }
}

static void timestep_backward(const struct norm *call, int64_t job, double *memory) {
    const struct strip s = strip_of(call, job);
    struct step c = step_of(memory, s.groups, s.width);
    const int64_t J = s.features, plane = call->batch * call->groups;
    const double *end = call->total + s.group, *grad_end = call->grad_total + s.group;
    const double *before = call->before ? call->before + s.group : NULL;
    double *direct = c.mean, *slope = c.square, count = end[2 * plane];
    double *grad_scale = call->grad_weights + s.b * 2 * call->dim + s.first * J;
    double *grad_bias = grad_scale + call->dim;
    for (int64_t g = 0; g < s.groups; g++) {
        direct[g] = count ? grad_end[g] / (count * J) : 0;
        slope[g] = count ? 2 * grad_end[plane + g] / (count * J) : 0;
    }
    memset(c.by_scale, 0, 2 * s.width * sizeof(float)); /* and by_bias */
    for (int64_t t = call->length - 1; t >= 0; t--) {
        const int64_t at = s.at + t * call->dim;
        if (is_padded(call, &s, t)) {
            memset(call->grad_x + at, 0, s.width * sizeof(float));
        } else {
            c.high = moments_at(call, &s, t, 0);
            c.low = moments_at(call, &s, t, 1);
            c.rstd = moments_at(call, &s, t, 2);
            sum_gradients(call, &s, &c, call->x + at, call->grad_y + at);
            pass_back(&s, &c, end, count, direct, slope);
            write_gradients(call, &s, &c, call->x + at, call->grad_y + at, call->grad_x + at);
            count--;
        }
        if (t % STEPS) continue;
        for (int64_t j = 0; j < s.width; j++) grad_scale[j] += c.by_scale[j], grad_bias[j] += c.by_bias[j];
        memset(c.by_scale, 0, 2 * s.width * sizeof(float));
    }
    for (int64_t g = 0; before && g < s.groups; g++) {
        const int nothing = end[2 * plane] == 0;
        double *grad = call->grad_before + s.group + g;
        grad[0] = nothing ? grad_end[g] : count * J * (direct[g] + slope[g] * (before[g] - end[g]));
        grad[plane] = nothing ? grad_end[plane + g] : count * J * slope[g] / 2;
    }
}

typedef void strip_job(const struct norm *call, int64_t job, double *memory);

static int run(const struct norm *call, strip_job *work, float *output) {
    const int64_t width = call->dim;
    const int64_t size = divided(FEATURES(width) + STEP(call->groups, width), 8) * 8;
    double *memory = aligned_alloc(64, call->threads * size * sizeof(double));
    if (!memory) return 1;
    ask_for_large_pages(output, call->batch * call->length * call->dim);
#pragma omp parallel num_threads(call->threads)
    {
        const uint64_t before = flush_denormals();
#pragma omp for schedule(dynamic)
        for (int64_t job = 0; job < call->batch * call->parts; job++)
            work(call, job, memory + this_thread() * size);
        restore_denormals(before);
    }
    free(memory);
    return 0;
}

int sequence_norm_forward(const struct norm *call) { return run(call, sequence_forward, call->y); }
int sequence_norm_backward(const struct norm *call) { return run(call, sequence_backward, call->grad_x); }
int timestep_norm_forward(const struct norm *call) { return run(call, timestep_forward, call->y); }
int timestep_norm_backward(const struct norm *call) { return run(call, timestep_backward, call->grad_x); }

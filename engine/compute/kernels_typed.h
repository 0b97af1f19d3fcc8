// The kernels for one type of element, T; kernels.c includes this for each.

// y [N, D] = x root w, root [N] = 1 / sqrt(mean(x^2) + eps). Zhang and Sennrich 2019, arXiv 1910.07467.
void NAME(rms_norm)(i64 n, i64 d, const T *x, const T *w, f32 eps, T *y, f32 *root) {
#pragma omp parallel for schedule(static) if (n * d > WORTH)
    for (i64 row = 0; row < n; row++) {
        const T *from = x + row * d;
        T *to = y + row * d;
        f32 sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (i64 i = 0; i < d; i++) sum += WIDEN(from[i]) * WIDEN(from[i]);
        f32 r = 1.0f / sqrtf(sum / (f32)d + eps);
        root[row] = r;
#pragma omp simd
        for (i64 i = 0; i < d; i++) to[i] = NARROW(WIDEN(from[i]) * r * WIDEN(w[i]));
    }
}

// The same y again from a kept root.
void NAME(rms_again)(i64 n, i64 d, const T *x, const T *w, const f32 *root, T *y) {
#pragma omp parallel for schedule(static) if (n * d > WORTH)
    for (i64 row = 0; row < n; row++) {
        f32 r = root[row];
#pragma omp simd
        for (i64 i = 0; i < d; i++) y[row * d + i] = NARROW(WIDEN(x[row * d + i]) * r * WIDEN(w[i]));
    }
}

// dx = root (g w) - x root^3 mean(g w x).
void NAME(rms_backward)(i64 n, i64 d, const T *grad, const T *x, const T *w, const f32 *root, T *out) {
#pragma omp parallel for schedule(static) if (n * d > WORTH)
    for (i64 row = 0; row < n; row++) {
        const T *g = grad + row * d, *from = x + row * d;
        f32 r = root[row], sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (i64 i = 0; i < d; i++) sum += WIDEN(g[i]) * WIDEN(w[i]) * WIDEN(from[i]);
        f32 drag = sum / (f32)d * r * r * r;
#pragma omp simd
        for (i64 i = 0; i < d; i++) out[row * d + i] = NARROW(r * WIDEN(g[i]) * WIDEN(w[i]) - drag * WIDEN(from[i]));
    }
}

INLINE void NAME(gated_kind)(int kind, i64 n, i64 width, const T *gate_up, T *y) {
#pragma omp parallel for schedule(static) if (n * width > WORTH)
    for (i64 row = 0; row < n; row++) {
        const T *gate = gate_up + 2 * row * width, *up = gate + width;
#pragma omp simd
        for (i64 i = 0; i < width; i++) {
            f32 value, slope;
            activate(kind, WIDEN(gate[i]), &value, &slope);
            y[row * width + i] = NARROW(value * WIDEN(up[i]));
        }
    }
}

// y [N, I] = act(gate) up, both halves of gate_up [N, 2I]. Shazeer 2020, arXiv 2002.05202.
void NAME(gated)(i64 n, i64 width, i64 kind, const T *gate_up, T *y) {
    if (kind == SILU)
        NAME(gated_kind)(SILU, n, width, gate_up, y);
    else
        NAME(gated_kind)(GELU_TANH, n, width, gate_up, y);
}

INLINE void NAME(gated_backward_kind)(int kind, i64 n, i64 width, const T *grad, const T *gate_up, T *out, T *y) {
#pragma omp parallel for schedule(static) if (n * width > WORTH)
    for (i64 row = 0; row < n; row++) {
        const T *gate = gate_up + 2 * row * width, *up = gate + width, *g = grad + row * width;
        T *out_gate = out + 2 * row * width, *out_up = out_gate + width;
#pragma omp simd
        for (i64 i = 0; i < width; i++) {
            f32 value, slope, through = WIDEN(g[i]), other = WIDEN(up[i]);
            activate(kind, WIDEN(gate[i]), &value, &slope);
            out_gate[i] = NARROW(through * other * slope);
            out_up[i] = NARROW(through * value);
            y[row * width + i] = NARROW(value * other);
        }
    }
}

// The gradient by gate_up [N, 2I], and y again.
void NAME(gated_backward)(i64 n, i64 width, i64 kind, const T *grad, const T *gate_up, T *out, T *y) {
    if (kind == SILU)
        NAME(gated_backward_kind)(SILU, n, width, grad, gate_up, out, y);
    else
        NAME(gated_backward_kind)(GELU_TANH, n, width, grad, gate_up, out, y);
}

// One head's norm (w NULL: none) and rotation, rounded to T.
INLINE void NAME(rotated)(i64 e, const T *x, const T *w, f32 eps, const T *cos, const T *sin, T *out) {
    f32 values[MOST_HEAD], r = 1.0f;
    i64 half = e / 2;
    if (w) {
        f32 sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (i64 i = 0; i < e; i++) sum += WIDEN(x[i]) * WIDEN(x[i]);
        r = 1.0f / sqrtf(sum / (f32)e + eps);
    }
#pragma omp simd
    for (i64 i = 0; i < e; i++) values[i] = WIDEN(x[i]) * r;
    if (w)
#pragma omp simd
        for (i64 i = 0; i < e; i++) values[i] *= WIDEN(w[i]);
#pragma omp simd
    for (i64 i = 0; i < half; i++) out[i] = NARROW(values[i] * WIDEN(cos[i]) - values[i + half] * WIDEN(sin[i]));
#pragma omp simd
    for (i64 i = 0; i < half; i++)
        out[half + i] = NARROW(values[half + i] * WIDEN(cos[half + i]) + values[i] * WIDEN(sin[half + i]));
}

// qkv [N, (H + 2J) E] to normed, rotated q [S, H, L, E] and k, v [S, J, L, E]. ``places`` [S L] is the token of each
// place, counted from ``start`` (NULL: in order); padding repeats token 0.
void NAME(split_heads)(i64 count, i64 length, i64 start, const i64 *places, i64 heads, i64 keys, i64 e, const T *qkv,
                       const T *norm, f32 eps, const T *cos, const T *sin, T *q, T *k, T *v) {
    i64 width = (heads + 2 * keys) * e;
#pragma omp parallel for schedule(static) if (count * length * width > WORTH)
    for (i64 place = 0; place < count * length; place++) {
        i64 token = start + (places ? places[place] : place), s = place / length, t = place % length;
        const T *row = qkv + token * width, *c = cos + token * e, *z = sin + token * e;
        for (i64 h = 0; h < heads; h++)
            NAME(rotated)(e, row + h * e, norm ? norm + h * e : 0, eps, c, z, q + ((s * heads + h) * length + t) * e);
        for (i64 j = 0; j < keys; j++) {
            i64 at = ((s * keys + j) * length + t) * e;
            NAME(rotated)(e, row + (heads + j) * e, norm ? norm + (heads + j) * e : 0, eps, c, z, k + at);
            memcpy(v + at, row + (heads + keys + j) * e, e * sizeof(T));
        }
    }
}

INLINE void NAME(rotated_backward)(i64 e, const T *grad, const T *x, const T *w, f32 eps, const T *cos, const T *sin,
                                   T *out) {
    f32 g[MOST_HEAD];
    i64 half = e / 2;
#pragma omp simd
    for (i64 i = 0; i < half; i++) g[i] = WIDEN(grad[i]) * WIDEN(cos[i]) + WIDEN(grad[half + i]) * WIDEN(sin[half + i]);
#pragma omp simd
    for (i64 i = 0; i < half; i++)
        g[half + i] = WIDEN(grad[half + i]) * WIDEN(cos[half + i]) - WIDEN(grad[i]) * WIDEN(sin[i]);
    f32 r = 1.0f, drag = 0.0f;
    if (w) {
        f32 squares = 0.0f, sum = 0.0f;
#pragma omp simd reduction(+ : squares, sum)
        for (i64 i = 0; i < e; i++) {
            g[i] *= WIDEN(w[i]);
            squares += WIDEN(x[i]) * WIDEN(x[i]);
            sum += g[i] * WIDEN(x[i]);
        }
        r = 1.0f / sqrtf(squares / (f32)e + eps);
        drag = sum / (f32)e * r * r * r;
    }
#pragma omp simd
    for (i64 i = 0; i < e; i++) out[i] = NARROW(r * g[i] - drag * WIDEN(x[i]));
}

// The way back: gradients by q, k, v to the gradient [N, (H + 2J) E] by qkv. ``real`` [n] is the place of each token.
void NAME(merge_heads)(i64 tokens, i64 length, i64 start, const i64 *real, i64 heads, i64 keys, i64 e, const T *q,
                       const T *k, const T *v, const T *qkv, const T *norm, f32 eps, const T *cos, const T *sin,
                       T *out) {
    i64 width = (heads + 2 * keys) * e;
#pragma omp parallel for schedule(static) if (tokens * width > WORTH)
    for (i64 i = 0; i < tokens; i++) {
        i64 place = real ? real[i] : i, s = place / length, t = place % length, token = start + i;
        const T *x = qkv + token * width, *c = cos + token * e, *z = sin + token * e;
        T *to = out + token * width;
        for (i64 h = 0; h < heads; h++)
            NAME(rotated_backward)(e, q + ((s * heads + h) * length + t) * e, x + h * e, norm ? norm + h * e : 0, eps,
                                   c, z, to + h * e);
        for (i64 j = 0; j < keys; j++) {
            i64 at = ((s * keys + j) * length + t) * e, h = heads + j;
            NAME(rotated_backward)(e, k + at, x + h * e, norm ? norm + h * e : 0, eps, c, z, to + h * e);
            memcpy(to + (h + keys) * e, v + at, e * sizeof(T));
        }
    }
}

// [S, H, L, E] to tokens [N, H E], and back with zeros for padding.
void NAME(pack_heads)(i64 tokens, i64 length, i64 start, const i64 *real, i64 heads, i64 e, const T *x, T *out) {
#pragma omp parallel for schedule(static) if (tokens * heads * e > WORTH)
    for (i64 i = 0; i < tokens; i++) {
        i64 place = real ? real[i] : i, s = place / length, t = place % length;
        for (i64 h = 0; h < heads; h++)
            memcpy(out + ((start + i) * heads + h) * e, x + ((s * heads + h) * length + t) * e, e * sizeof(T));
    }
}

void NAME(pad_heads)(i64 count, i64 length, i64 start, const i64 *places, i64 heads, i64 e, const T *x, T *out) {
#pragma omp parallel for schedule(static) if (count * length * heads * e > WORTH)
    for (i64 place = 0; place < count * length; place++) {
        i64 token = places ? places[place] : place, s = place / length, t = place % length;
        int padding = places && token == 0 && place != 0;
        for (i64 h = 0; h < heads; h++) {
            T *to = out + ((s * heads + h) * length + t) * e;
            if (padding)
                memset(to, 0, e * sizeof(T));
            else
                memcpy(to, x + ((start + token) * heads + h) * e, e * sizeof(T));
        }
    }
}

// In place: scores [S J, G L, L] to softmax(scale scores) over what each query sees; zeros elsewhere. A window counts
// the positions a query sees, itself included (0: all). Trees bring ``position`` and ``branch`` [S, L] of each token:
// a token sees what came before it on the prefix (branch 0) and on its own branch.
void NAME(softmax_causal)(i64 blocks, i64 group, i64 length, i64 keys, f32 scale, i64 window, const i64 *position,
                          const i64 *branch, T *scores) {
#pragma omp parallel for schedule(static) if (blocks * group * length * length > WORTH)
    for (i64 row = 0; row < blocks * group * length; row++) {
        f32 values[MOST_LENGTH];
        T *x = scores + row * length;
        i64 query = row % length, tree = row / (group * length) / keys * length;
        i64 first = branch == 0 && window && query >= window ? query - window + 1 : 0;
        f32 top = -INFINITY, sum = 0.0f;
#pragma omp simd
        for (i64 i = first; i <= query; i++) values[i] = WIDEN(x[i]) * scale;
        if (branch) {
            const i64 *b = branch + tree, *p = position + tree;
            for (i64 i = 0; i <= query; i++) {
                int apart = b[i] != 0 && b[i] != b[query];
                if (apart || (window && p[query] - p[i] >= window)) values[i] = -INFINITY;
            }
        }
#pragma omp simd reduction(max : top)
        for (i64 i = first; i <= query; i++) top = values[i] > top ? values[i] : top;
#pragma omp simd reduction(+ : sum)
        for (i64 i = first; i <= query; i++) {
            values[i] = exp_of(values[i] - top);
            sum += values[i];
        }
        f32 share = 1.0f / sum;
        memset(x, 0, first * sizeof(T));
#pragma omp simd
        for (i64 i = first; i <= query; i++) x[i] = NARROW(values[i] * share);
        memset(x + query + 1, 0, (length - query - 1) * sizeof(T));
    }
}

// In place: grad [rows, L] by the weights to the gradient by the scores, scale P (g - sum(P g)).
void NAME(softmax_backward)(i64 rows, i64 length, f32 scale, const T *weights, T *grad) {
#pragma omp parallel for schedule(static) if (rows * length > WORTH)
    for (i64 row = 0; row < rows; row++) {
        const T *p = weights + row * length;
        T *g = grad + row * length;
        f32 sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (i64 i = 0; i < length; i++) sum += WIDEN(p[i]) * WIDEN(g[i]);
#pragma omp simd
        for (i64 i = 0; i < length; i++) g[i] = NARROW(scale * WIDEN(p[i]) * (WIDEN(g[i]) - sum));
    }
}

INLINE f32 NAME(most)(i64 v, const T *x) {
    f32 top = -INFINITY;
#pragma omp simd reduction(max : top)
    for (i64 i = 0; i < v; i++) top = WIDEN(x[i]) > top ? WIDEN(x[i]) : top;
    return top;
}

// Sum of e^(x - top), a strip at a time: a running sum over a whole vocabulary in fp32 loses its last digits.
INLINE f32 NAME(mass)(i64 v, const T *x, f32 top) {
    f32 total = 0.0f;
    for (i64 from = 0; from < v; from += STRIP) {
        i64 to = from + STRIP < v ? from + STRIP : v;
        f32 sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (i64 i = from; i < to; i++) sum += exp_of(WIDEN(x[i]) - top);
        total += sum;
    }
    return total;
}

// out [N] = log sum exp of logits [N, V].
void NAME(log_sum_exp)(i64 n, i64 v, const T *logits, f32 *out) {
#pragma omp parallel for schedule(static) if (n * v > WORTH)
    for (i64 row = 0; row < n; row++) {
        const T *x = logits + row * v;
        f32 top = NAME(most)(v, x);
        out[row] = top + logf(NAME(mass)(v, x, top));
    }
}

// out [N, V] = sum over a row's pairs (target, g) of g (onehot(target) - softmax(logits)). Row r is row rows[r] of the
// logits and of their log sum exp. Pairs are sorted by row; those of row r are first[r] to first[r + 1].
void NAME(logits_backward)(i64 n, i64 v, const i64 *rows, const T *logits, const f32 *lse, const i64 *first,
                           const i64 *targets, const f32 *grads, T *out) {
#pragma omp parallel for schedule(static) if (n * v > WORTH)
    for (i64 row = 0; row < n; row++) {
        const T *x = logits + rows[row] * v;
        T *to = out + row * v;
        f32 total = 0.0f, l = lse[rows[row]];
        for (i64 pair = first[row]; pair < first[row + 1]; pair++) total += grads[pair];
#pragma omp simd
        for (i64 i = 0; i < v; i++) to[i] = NARROW(-total * exp_of(WIDEN(x[i]) - l));
        for (i64 pair = first[row]; pair < first[row + 1]; pair++) {
            i64 target = targets[pair];
            f32 g = 0.0f;
            for (i64 other = first[row]; other < first[row + 1]; other++)
                if (targets[other] == target) g += grads[other];
            to[target] = NARROW(g - total * exp_of(WIDEN(x[target]) - l));
        }
    }
}

// Draw a token a row by inverting the cumulative distribution at ``uniform`` of its mass; temperature 0 takes the
// likeliest. ``logprobs`` are those of the untempered distribution.
void NAME(choose)(i64 rows, i64 v, const T *logits, const f32 *temperatures, const double *uniform, i64 *tokens,
                  f32 *logprobs) {
    i64 strips = (v + STRIP - 1) / STRIP;
#pragma omp parallel if (rows * v > WORTH)
    {
        f32 *sums = malloc(strips * sizeof(f32));
#pragma omp for schedule(static)
        for (i64 row = 0; row < rows; row++) {
            const T *x = logits + row * v;
            f32 top = NAME(most)(v, x), cold = temperatures[row] == 0.0f ? 1.0f : 1.0f / temperatures[row];
            i64 chosen = -1;
            if (temperatures[row] == 0.0f) {
                for (chosen = 0; chosen < v - 1 && WIDEN(x[chosen]) != top;) chosen++;
            } else {
                double total = 0.0;
                for (i64 strip = 0; strip < strips; strip++) {
                    i64 from = strip * STRIP, to = from + STRIP < v ? from + STRIP : v;
                    f32 sum = 0.0f;
#pragma omp simd reduction(+ : sum)
                    for (i64 i = from; i < to; i++) sum += exp_of((WIDEN(x[i]) - top) * cold);
                    sums[strip] = sum;
                    total += sum;
                }
                double target = uniform[row] * total, passed = 0.0;
                if (target >= total) target = nextafter(total, 0.0);
                for (i64 strip = 0; strip < strips && chosen < 0; strip++) {
                    double running = passed;
                    passed += sums[strip];
                    if (!(passed > target)) continue;
                    i64 from = strip * STRIP, to = from + STRIP < v ? from + STRIP : v;
                    for (i64 i = from; i < to && !(running > target); i++) {
                        f32 weight = exp_of((WIDEN(x[i]) - top) * cold);
                        // One at a time the weights may add up to less than the strip: the last with any is the one.
                        if (weight > 0.0f) chosen = i;
                        running += weight;
                    }
                }
                if (chosen < 0) chosen = 0;  // the logits are nan, and so is the log-probability
            }
            tokens[row] = chosen;
            logprobs[row] = WIDEN(x[chosen]) - top - logf(NAME(mass)(v, x, top));
        }
        free(sums);
    }
}

// Attention of one key head's queries [G, E] over the places of a row: two runs of keys and values [.., E]. Where E and
// G are constants the sums stay in registers, and each key and value is read once for the group.
INLINE void NAME(mix)(const i64 e, const i64 group, const f32 *q, const i64 *counts, const T *const *k,
                      const T *const *v, f32 *scores, T *out) {
    const i64 all = counts[0] + counts[1], lanes = e / 16;
    for (i64 run = 0, at = 0; run < 2; at += counts[run], run++)
        for (i64 i = 0; i < counts[run]; i++) {
            v16 key[MOST_HEAD / 16];
            for (i64 lane = 0; lane < lanes; lane++) key[lane] = LOAD(k[run] + i * e + 16 * lane);
            for (i64 g = 0; g < group; g++) {
                v16 sum = {0};
                for (i64 lane = 0; lane < lanes; lane++) sum += key[lane] * *(const v16 *)(q + g * e + 16 * lane);
                scores[g * all + at + i] = sum_of(sum);
            }
        }
    v16 sums[MOST_GROUP][MOST_HEAD / 16];
    f32 share[MOST_GROUP];
    for (i64 g = 0; g < group; g++) {
        f32 *s = scores + g * all, top = -INFINITY, mass = 0.0f;
#pragma omp simd reduction(max : top)
        for (i64 i = 0; i < all; i++) top = s[i] > top ? s[i] : top;
#pragma omp simd reduction(+ : mass)
        for (i64 i = 0; i < all; i++) {
            s[i] = exp_of(s[i] - top);
            mass += s[i];
        }
        share[g] = 1.0f / mass;
        for (i64 lane = 0; lane < lanes; lane++) sums[g][lane] = (v16){0};
    }
    for (i64 run = 0, at = 0; run < 2; at += counts[run], run++)
        for (i64 i = 0; i < counts[run]; i++)
            for (i64 lane = 0; lane < lanes; lane++) {
                v16 value = LOAD(v[run] + i * e + 16 * lane);
                for (i64 g = 0; g < group; g++) sums[g][lane] += scores[g * all + at + i] * value;
            }
    for (i64 g = 0; g < group; g++)
        for (i64 lane = 0; lane < lanes; lane++)
            for (int i = 0; i < 16; i++) out[g * e + 16 * lane + i] = NARROW(sums[g][lane][i] * share[g]);
}

#define MIX(size, group) NAME(mix)(size, group, q, counts, k, v, scores, out)
static void NAME(mix_any)(i64 e, i64 group, const f32 *q, const i64 *counts, const T *const *k, const T *const *v,
                          f32 *scores, T *out) {
    if (e == 64 && group == 1)
        MIX(64, 1);
    else if (e == 64 && group == 2)
        MIX(64, 2);
    else if (e == 64 && group == 4)
        MIX(64, 4);
    else if (e == 128 && group == 1)
        MIX(128, 1);
    else if (e == 128 && group == 2)
        MIX(128, 2);
    else
        MIX(e, group);
}
#undef MIX

// Attention of q [H, N, E] over k, v [J, N, E], a query at a time: token t sees first[t] to until[t], and own[t] to
// itself. What it gets does not depend on what else is packed, or on how what it sees is cut in two: out [N, H E].
void NAME(attend_rows)(i64 n, i64 heads, i64 keys, i64 e, const T *q, const T *k, const T *v, f32 scale,
                       const i64 *first, const i64 *until, const i64 *own, T *out) {
    i64 group = heads / keys, most = 0;
    for (i64 t = 0; t < n; t++) {
        i64 seen = until[t] - first[t] + t + 1 - own[t];
        most = seen > most ? seen : most;
    }
#pragma omp parallel if (n * heads * e > WORTH)
    {
        f32 *scores = malloc(group * most * sizeof(f32)), *wide = malloc(group * e * sizeof(f32));
#pragma omp for schedule(static)
        for (i64 task = 0; task < n * keys; task++) {
            i64 t = task / keys, j = task % keys;
            for (i64 g = 0; g < group; g++)
                for (i64 i = 0; i < e; i++) wide[g * e + i] = WIDEN(q[((j * group + g) * n + t) * e + i]) * scale;
            i64 counts[2] = {until[t] - first[t], t + 1 - own[t]};
            const T *const both_k[2] = {k + (j * n + first[t]) * e, k + (j * n + own[t]) * e};
            const T *const both_v[2] = {v + (j * n + first[t]) * e, v + (j * n + own[t]) * e};
            NAME(mix_any)(e, group, wide, counts, both_k, both_v, scores, out + (t * heads + j * group) * e);
        }
        free(scores);
        free(wide);
    }
}

// One step of sampling in one layer: norm and rotate qkv [B, (H + 2J) E], store k and v as the newest place of the
// tails [B, J, capacity, E], and attend over the prompt [C, J, P, E] and the tail of each row: out [B, H E]. ``owner``
// is each row's prompt, ``prompt`` how long it is, ``joined`` its first place of the tail, ``position`` its position.
void NAME(decode)(i64 rows, i64 heads, i64 keys, i64 e, const T *qkv, const T *norm, f32 eps, const T *cos,
                  const T *sin, f32 scale, i64 window, const T *prompt_k, const T *prompt_v, i64 places,
                  const i64 *owner, const i64 *prompt, T *tail_k, T *tail_v, i64 capacity, i64 written,
                  const i64 *joined, const i64 *position, T *out) {
    i64 group = heads / keys, width = (heads + 2 * keys) * e;
#pragma omp parallel if (rows * width > WORTH / 4)
    {
        f32 *scores = malloc(group * (places + capacity) * sizeof(f32)), *q = malloc(group * e * sizeof(f32));
        T *rounded = malloc(e * sizeof(T));
#pragma omp for schedule(static)
        for (i64 task = 0; task < rows * keys; task++) {
            i64 row = task / keys, j = task % keys;
            const T *x = qkv + row * width, *c = cos + row * e, *z = sin + row * e;
            for (i64 g = 0; g < group; g++) {
                i64 h = j * group + g;
                NAME(rotated)(e, x + h * e, norm ? norm + h * e : 0, eps, c, z, rounded);
                for (i64 i = 0; i < e; i++) q[g * e + i] = WIDEN(rounded[i]) * scale;
            }
            i64 tail = (row * keys + j) * capacity, before = (owner[row] * keys + j) * places;
            T *newest = tail_k + (tail + written - 1) * e;
            NAME(rotated)(e, x + (heads + j) * e, norm ? norm + (heads + j) * e : 0, eps, c, z, newest);
            memcpy(tail_v + (tail + written - 1) * e, x + (heads + keys + j) * e, e * sizeof(T));
            i64 start = window && position[row] >= window ? position[row] - window + 1 : 0;
            i64 since = window && written - window > joined[row] ? written - window : joined[row];
            i64 counts[2] = {start < prompt[row] ? prompt[row] - start : 0, written - since};
            const T *const k[2] = {prompt_k + (before + start) * e, tail_k + (tail + since) * e};
            const T *const v[2] = {prompt_v + (before + start) * e, tail_v + (tail + since) * e};
            T *to = out + (row * heads + j * group) * e;
            NAME(mix_any)(e, group, q, counts, k, v, scores, to);
        }
        free(scores);
        free(q);
        free(rounded);
    }
}

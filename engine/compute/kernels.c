// Loops of a Llama-like layer that torch runs as many small operations, each over memory: norms, rotation, the gate,
// softmax with its masks, log-probabilities, attention while sampling, and drawing a token. Compiled where the engine
// runs (see kernels.py); matrix products stay torch's.
//
// Every row is computed by one thread in one order, so that results do not depend on the number of threads. Arithmetic
// is fp32 inside and rounds once, on writing. Nothing is checked here: see kernels.py.
//
// Axes: N tokens, D hidden size, I intermediate size, S sequences of one length L, H query heads, J key heads, E head
// size, V vocabulary, B rows being sampled.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MOST_HEAD 512
#define MOST_LENGTH 1024
#define MOST_GROUP 64
#define STRIP 128
// Fewer elements than this are not worth waking other threads for.
#define WORTH 16384
#define INLINE static inline __attribute__((always_inline))

typedef int64_t i64;
typedef float f32;
typedef uint16_t bf16;
typedef float v16 __attribute__((vector_size(64), aligned(4)));
typedef uint16_t u16x16 __attribute__((vector_size(32), aligned(2)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));

INLINE f32 widen_f32(f32 x) { return x; }
INLINE f32 narrow_f32(f32 x) { return x; }
INLINE v16 load_f32(const f32 *x) { return *(const v16 *)x; }

INLINE f32 widen_bf16(bf16 x) {
    union { uint32_t bits; f32 value; } word = {(uint32_t)x << 16};
    return word.value;
}

// Round to nearest, ties to even; nan stays nan.
INLINE bf16 narrow_bf16(f32 x) {
    union { f32 value; uint32_t bits; } word = {x};
    uint32_t rounded = (word.bits + 0x7fffu + ((word.bits >> 16) & 1u)) >> 16;
    return (word.bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : (bf16)rounded;
}

INLINE v16 load_bf16(const bf16 *x) {
    union { u32x16 bits; v16 value; } word = {__builtin_convertvector(*(const u16x16 *)x, u32x16) << 16};
    return word.value;
}

// e^x by Cody and Waite's reduction and Cephes' polynomial: within 2 units of the last place; 0 below -87.3.
INLINE f32 exp_of(f32 x) {
    f32 bounded = x > 88.37f ? 88.37f : x;
    bounded = bounded < -87.33f ? -87.33f : bounded;
    f32 shifted = bounded * 1.44269504088896341f + 12582912.0f;
    f32 whole = shifted - 12582912.0f;
    f32 rest = bounded - whole * 0.693359375f;
    rest = rest + whole * 2.12194440e-4f;
    f32 p = 1.9875691500e-4f;
    p = p * rest + 1.3981999507e-3f;
    p = p * rest + 8.3334519073e-3f;
    p = p * rest + 4.1665795894e-2f;
    p = p * rest + 1.6666665459e-1f;
    p = p * rest + 5.0000001201e-1f;
    p = p * rest * rest + rest + 1.0f;
    union { int32_t bits; f32 value; } power = {((int32_t)whole + 127) << 23};
    return x < -87.33f ? 0.0f : p * power.value;
}

typedef float v8 __attribute__((vector_size(32)));
typedef float v4 __attribute__((vector_size(16)));

INLINE f32 sum_of(v16 x) {
    union { v16 whole; v8 half[2]; } a = {x};
    union { v8 whole; v4 half[2]; } b = {a.half[0] + a.half[1]};
    v4 four = b.half[0] + b.half[1];
    return (four[0] + four[1]) + (four[2] + four[3]);
}

// Activations of the gate: value and slope.
enum { SILU = 0, GELU_TANH = 1 };

INLINE void activate(int kind, f32 x, f32 *value, f32 *slope) {
    if (kind == SILU) {
        f32 s = 1.0f / (1.0f + exp_of(-x));
        *value = x * s;
        *slope = s + x * s * (1.0f - s);
    } else {
        // (1 + tanh(u)) / 2 is the sigmoid of 2 u, which keeps its digits where tanh comes close to -1.
        f32 s = 1.0f / (1.0f + exp_of(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
        *value = x * s;
        *slope = s + x * s * (1.0f - s) * 1.5957691216057308f * (1.0f + 0.134145f * x * x);
    }
}

#define JOIN_(name, suffix) name##_##suffix
#define JOIN(name, suffix) JOIN_(name, suffix)
#define NAME(name) JOIN(name, T)
#define WIDEN(x) JOIN(widen, T)(x)
#define NARROW(x) JOIN(narrow, T)(x)
#define LOAD(x) JOIN(load, T)(x)

#define T f32
#include "kernels_typed.h"
#undef T
#define T bf16
#include "kernels_typed.h"
#undef T

// Whether this build has ``lora_add_bf16``: it needs instructions that multiply pairs of bf16.
#if defined(__AVX512BF16__) && defined(__AVX512F__)
#include <immintrin.h>

int has_lora_add(void) { return 1; }

#define TOGETHER 4
#define MOST_LOW 1024

// thin [rows, ranks] from ``first`` on, ``count`` ranks of as many rows of x; the sums stay in registers.
INLINE void lora_low(const int count, i64 d_in, const i64 *span, const bf16 *const *x, const bf16 *a, i64 first,
                     bf16 thin[TOGETHER][MOST_LOW]) {
    __m512 sums[TOGETHER][4];
    for (int k = 0; k < TOGETHER; k++)
        for (int r = 0; r < count; r++) sums[k][r] = _mm512_setzero_ps();
    for (i64 i = span[0]; i < span[1]; i += 32) {
        __m512bh weights[4];
        for (int r = 0; r < count; r++) weights[r] = (__m512bh)_mm512_loadu_si512(a + (first + r) * d_in + i);
        for (int k = 0; k < TOGETHER; k++) {
            __m512bh values = (__m512bh)_mm512_loadu_si512(x[k] + i);
            for (int r = 0; r < count; r++) sums[k][r] = _mm512_dpbf16_ps(sums[k][r], values, weights[r]);
        }
    }
    for (int k = 0; k < TOGETHER; k++)
        for (int r = 0; r < count; r++) thin[k][first + r] = narrow_bf16(sum_of((v16)sums[k][r]));
}

// y [N, d_out] += scaling (x A^T) B^T, and low [N, ranks] = x A^T, for thin A [ranks, d_in] and B, which lies as
// [ranks / outs / 2, d_out, 2], pairs of ranks side by side. ``in`` [ins, 2] are the columns of x that each of as many
// equal runs of ranks reads, ``out`` [outs, 2] the columns of y that each of as many runs adds to: the pairs of several
// matrices stacked are zero elsewhere. Rows go four at a time, because A and B come from the second-level cache.
void lora_add_bf16(i64 n, i64 d_in, i64 d_out, i64 ranks, i64 ins, const i64 *in, i64 outs, const i64 *out,
                   const bf16 *x, const bf16 *a, const bf16 *b, f32 scaling, bf16 *y, bf16 *low) {
    i64 run = ranks / ins, rank = ranks / outs, step = run % 4 ? 2 : 4;
#pragma omp parallel for schedule(static) if (n * (d_in + d_out) * ranks > WORTH)
    for (i64 first = 0; first < n; first += TOGETHER) {
        i64 count = n - first < TOGETHER ? n - first : TOGETHER;
        const bf16 *rows[TOGETHER];
        bf16 thin[TOGETHER][MOST_LOW];
        for (i64 k = 0; k < TOGETHER; k++) rows[k] = x + (first + (k < count ? k : 0)) * d_in;
        for (i64 r = 0; r < ranks; r += step)
            if (step == 4)
                lora_low(4, d_in, in + 2 * (r / run), rows, a, r, thin);
            else
                lora_low(2, d_in, in + 2 * (r / run), rows, a, r, thin);
        for (i64 k = 0; k < count; k++) memcpy(low + (first + k) * ranks, thin[k], ranks * sizeof(bf16));
        for (i64 block = 0; block < outs; block++)
            for (i64 column = out[2 * block]; column < out[2 * block + 1]; column += 32) {
                __m512 sums[TOGETHER][2];
                for (int k = 0; k < TOGETHER; k++) sums[k][0] = sums[k][1] = _mm512_setzero_ps();
                for (i64 pair = 0; pair < rank / 2; pair++) {
                    const bf16 *from = b + (pair * d_out + column) * 2;
                    __m512bh left = (__m512bh)_mm512_loadu_si512(from);
                    __m512bh right = (__m512bh)_mm512_loadu_si512(from + 32);
                    for (int k = 0; k < TOGETHER; k++) {
                        int32_t both;
                        memcpy(&both, &thin[k][block * rank + 2 * pair], sizeof both);
                        __m512bh values = (__m512bh)_mm512_set1_epi32(both);
                        sums[k][0] = _mm512_dpbf16_ps(sums[k][0], values, left);
                        sums[k][1] = _mm512_dpbf16_ps(sums[k][1], values, right);
                    }
                }
                for (i64 k = 0; k < count; k++)
                    for (int side = 0; side < 2; side++) {
                        bf16 *to = y + (first + k) * d_out + column + 16 * side;
                        v16 total = load_bf16(to) + scaling * (v16)sums[k][side];
                        _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh((__m512)total));
                    }
            }
    }
}
#else
int has_lora_add(void) { return 0; }
#endif

/* The alignment search of one batch item, in C so that the compiler sees plain loops to vectorise.
 *
 * Glow-TTS (Kim et al. 2020, section 3.3, algorithm 1): with x[f, t] the log-likelihood of frame f under token t,
 *
 *     Q[f, t] = x[f, t] + max(Q[f - 1, t], Q[f - 1, t - 1]),    Q[-1, -1] = 0,    all else unreachable, -inf
 *
 * Only the last row of Q is kept: within a row no cell depends on another, so a row is a vector operation. What the
 * way back needs is one byte a cell: did the best path come from the token before? A tie stays on the token.
 *
 * Never compile this with -ffast-math: unreachable cells are -inf and NaN has to be seen.
 */
#ifndef MONOTONIC_ALIGN_SEARCH_H
#define MONOTONIC_ALIGN_SEARCH_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#ifdef _OPENMP
#include <omp.h>
#define ALIGN_MAX_THREADS() omp_get_max_threads()
#define ALIGN_TEAM_SIZE() omp_get_num_threads()
#else
#define ALIGN_MAX_THREADS() 1
#define ALIGN_TEAM_SIZE() 1
#endif

/* One portable binary, the widest vectors of the machine it runs on (GNU indirect functions: glibc only). */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ >= 12
#define ALIGN_FOR_EVERY_CPU __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define ALIGN_FOR_EVERY_CPU __attribute__((target_clones("avx2", "default")))
#endif
#else
#define ALIGN_FOR_EVERY_CPU
#endif

#define ALIGN_INLINE static inline __attribute__((always_inline))

/* Cells handled together: a constant trip count leaves the compiler no remainder loop. */
#define ALIGN_BLOCK 64
/* Floats between the cell in work and the one asked of memory: the hardware prefetcher stops at each 4 KiB page. */
#define ALIGN_PREFETCH 2048

/* `count` cells of one row. previous[-1] is readable. Returns nonzero if a score is NaN or +inf. */
ALIGN_INLINE int align_cells(const float *scores, ptrdiff_t step, const float *restrict previous, float *restrict next,
                             uint8_t *restrict moved, ptrdiff_t count) {
    int bad = 0;
    for (ptrdiff_t t = 0; t < count; t++) {
        const float score = scores[t * step];
        const float stay = previous[t], move = previous[t - 1];
        const int moves = move > stay;
        bad |= !(score < INFINITY);
        next[t] = score + (moves ? move : stay);
        moved[t] = (uint8_t)moves;
    }
    return bad;
}

/* One row in whole blocks. The last one overlaps the one before it rather than leave a remainder: it reads
 * `previous` and writes `next`, so the cells that are computed twice come out the same. */
ALIGN_INLINE int align_row(const float *scores, ptrdiff_t step, const float *previous, float *next, uint8_t *moved,
                           ptrdiff_t tokens) {
    if (tokens < ALIGN_BLOCK) return align_cells(scores, step, previous, next, moved, tokens);
    int bad = 0;
    for (ptrdiff_t t = 0;;) {
        for (ptrdiff_t line = 0; line < ALIGN_BLOCK; line += 16)
            __builtin_prefetch((const void *)((uintptr_t)(scores + t * step) + sizeof(float) * (ALIGN_PREFETCH + line)));
        bad |= align_cells(scores + t * step, step, previous + t, next + t, moved + t, ALIGN_BLOCK);
        if (t == tokens - ALIGN_BLOCK) return bad;
        t = t + 2 * ALIGN_BLOCK <= tokens ? t + ALIGN_BLOCK : tokens - ALIGN_BLOCK;
    }
}

/* All rows. Every cell of the item is read, reachable or not, so that no NaN goes unseen. */
ALIGN_INLINE int align_rows(const float *scores, ptrdiff_t frame_step, ptrdiff_t token_step, ptrdiff_t frames,
                            ptrdiff_t tokens, float *values, uint8_t *moved) {
    float *previous = values + 1, *next = previous + tokens + 1;
    for (ptrdiff_t t = 0; t < tokens; t++) previous[t] = -INFINITY;
    previous[-1] = 0.0f; /* the start, one token and one frame before the first */
    next[-1] = -INFINITY;
    int bad = 0;
    for (ptrdiff_t f = 0; f < frames; f++) {
        bad |= align_row(scores + f * frame_step, token_step, previous, next, moved + f * tokens, tokens);
        previous[-1] = -INFINITY;
        float *const row = previous;
        previous = next;
        next = row;
    }
    return bad;
}

/* A constant step of 1 is what vectorises; other steps serve transposed and sliced inputs without a copy. */
ALIGN_FOR_EVERY_CPU
static int align_forward(const float *scores, ptrdiff_t frame_step, ptrdiff_t token_step, ptrdiff_t frames,
                         ptrdiff_t tokens, float *values, uint8_t *moved) {
    if (token_step == 1) return align_rows(scores, frame_step, 1, frames, tokens, values, moved);
    return align_rows(scores, frame_step, token_step, frames, tokens, values, moved);
}

/* Aligns one item: 1 <= tokens <= frames. `values` holds 2 * (tokens + 1) floats, `moved` frames * tokens bytes and
 * `durations` tokens zeros, which become the frames of each token. Returns nonzero, with durations untouched, if a
 * score is NaN or +inf. */
static int align_item(const float *scores, ptrdiff_t frame_step, ptrdiff_t token_step, ptrdiff_t frames,
                      ptrdiff_t tokens, float *values, uint8_t *moved, int32_t *durations) {
    if (align_forward(scores, frame_step, token_step, frames, tokens, values, moved)) return 1;
    ptrdiff_t token = tokens - 1;
    for (ptrdiff_t f = frames - 1; f > 0; f--) {
        durations[token]++;
        /* On the diagonal staying is impossible, whatever a tie between two -inf has left in the byte. */
        token -= token == f || moved[f * tokens + token];
    }
    durations[0]++;
    return 0;
}

#endif

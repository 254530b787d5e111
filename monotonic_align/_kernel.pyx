# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The compiled alignment search: a batch spread over threads, one item at a time on each. See `_search.h`."""

from cython.parallel cimport prange, threadid
from libc.stdint cimport int32_t, uint8_t


cdef extern from "_search.h" nogil:
    int ALIGN_MAX_THREADS()
    int ALIGN_TEAM_SIZE()
    int align_item(
        const float *scores, Py_ssize_t frame_step, Py_ssize_t token_step, Py_ssize_t frames, Py_ssize_t tokens,
        float *values, uint8_t *moved, int32_t *durations,
    )


def max_threads():
    """Threads that OpenMP uses unless told otherwise (`OMP_NUM_THREADS`, else the cores); 1 without OpenMP."""
    return ALIGN_MAX_THREADS()


def search(
    const float[:, :, :] log_likelihood,
    const int32_t[::1] token_lengths,
    const int32_t[::1] frame_lengths,
    float[:, ::1] values,
    uint8_t[:, ::1] moved,
    int32_t[:, ::1] durations,
    uint8_t[::1] bad,
):
    """Aligns a batch that has been checked already; `monotonic_align.search` is the way in.

    Args:
        log_likelihood: float32 [B, F, T], any strides that are multiples of four bytes; read in place.
        token_lengths: int32 [B], each at least 1 and at most its frame length.
        frame_lengths: int32 [B].
        values: scratch, [threads, at least 2 * (most tokens + 1)]. Its first size is the number of threads.
        moved: scratch, [threads, at least the largest frames * tokens of an item]. See `search.scratch`.
        durations: [B, T] zeros, receives the frames of each token.
        bad: [B], receives 1 where the item holds NaN or +inf; the durations of such an item stay 0.

    Returns:
        How many threads OpenMP really gave.
    """
    cdef Py_ssize_t item, worker
    cdef Py_ssize_t items = log_likelihood.shape[0]
    cdef Py_ssize_t frame_step = log_likelihood.strides[1] // <Py_ssize_t>sizeof(float)
    cdef Py_ssize_t token_step = log_likelihood.strides[2] // <Py_ssize_t>sizeof(float)
    cdef int threads = <int>values.shape[0]
    cdef int team = 0
    for item in prange(items, nogil=True, schedule="dynamic", chunksize=1, num_threads=threads):
        worker = threadid()
        team = ALIGN_TEAM_SIZE()
        bad[item] = align_item(
            &log_likelihood[item, 0, 0], frame_step, token_step, frame_lengths[item], token_lengths[item],
            &values[worker, 0], &moved[worker, 0], &durations[item, 0],
        )
    return team

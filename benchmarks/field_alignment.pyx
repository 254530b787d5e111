# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The dynamic programme that VITS trainers use, written anew as the baseline of `benchmarks/alignment.py`.

A value matrix filled in place by a two-branch loop over the reachable band, and a way back that compares its values
again and writes a dense path. Shapes: B batch, F frames, T tokens.
"""

from cython.parallel cimport prange


cdef void align_item(int[:, ::1] path, float[:, ::1] value, int frames, int tokens) noexcept nogil:
    cdef int frame, token
    cdef float stay, move
    cdef float unreachable = -1e9
    for frame in range(frames):
        for token in range(max(0, tokens + frame - frames), min(tokens, frame + 1)):
            if token == frame:
                stay = unreachable
            else:
                stay = value[frame - 1, token]
            if token == 0:
                if frame == 0:
                    move = 0.0
                else:
                    move = unreachable
            else:
                move = value[frame - 1, token - 1]
            value[frame, token] += max(stay, move)
    token = tokens - 1
    for frame in range(frames - 1, -1, -1):
        path[frame, token] = 1
        if token != 0 and (token == frame or value[frame - 1, token] < value[frame - 1, token - 1]):
            token -= 1


def search(int[:, :, ::1] path, float[:, :, ::1] value, int[::1] frame_lengths, int[::1] token_lengths, int threads):
    """Fills `path` [B, F, T] (zeros on entry) with ones along each item's path. Destroys `value` [B, F, T]."""
    cdef int item
    for item in prange(path.shape[0], nogil=True, num_threads=threads):
        align_item(path[item], value[item], frame_lengths[item], token_lengths[item])

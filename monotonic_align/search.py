"""The public side of the alignment search: checks, containers and scratch memory around the kernel.

Shapes: B batch, F frames, T tokens.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from monotonic_align import _kernel

if TYPE_CHECKING:
    import torch

PAGE_BYTES = 4096


class LikelihoodError(ValueError):
    """NaN or +inf inside an item: no path can be told from another."""


@overload
def maximum_path(
    log_likelihood: NDArray[np.float32],
    token_lengths: NDArray[np.int32],
    frame_lengths: NDArray[np.int32],
    *,
    dense: Literal[False] = False,
    threads: int | None = None,
) -> NDArray[np.int32]: ...


@overload
def maximum_path(
    log_likelihood: NDArray[np.float32],
    token_lengths: NDArray[np.int32],
    frame_lengths: NDArray[np.int32],
    *,
    dense: Literal[True],
    threads: int | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]: ...


@overload
def maximum_path(
    log_likelihood: torch.Tensor,
    token_lengths: torch.Tensor,
    frame_lengths: torch.Tensor,
    *,
    dense: Literal[False] = False,
    threads: int | None = None,
) -> torch.Tensor: ...


@overload
def maximum_path(
    log_likelihood: torch.Tensor,
    token_lengths: torch.Tensor,
    frame_lengths: torch.Tensor,
    *,
    dense: Literal[True],
    threads: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]: ...


def maximum_path(
    log_likelihood: Any,
    token_lengths: Any,
    frame_lengths: Any,
    *,
    dense: bool = False,
    threads: int | None = None,
) -> Any:
    """Finds how many frames each token takes on the most likely monotonic alignment.

    The path begins at the first token and frame, ends at the last of both, and from one frame to the next
    stays on its token or goes to the following one: every token has at least one frame, every frame exactly
    one token. Where two paths are equally likely, the way back from the end stays on the current token.
    Monotonic alignment search of Glow-TTS (Kim et al. 2020, section 3.3).

    Args:
        log_likelihood: float32 [B, F, T], of each frame under each token. A NumPy array or a torch tensor.
            Read in place, whatever its strides (fastest when tokens are adjacent in memory); the padding
            beyond an item's lengths is never looked at. A tensor on another device is first copied to the
            CPU, which waits for that device. -inf is legal and means "this frame is not that token": such a
            cell is used only when no path avoids them all.
        token_lengths: int32 [B], tokens of each item, from 1 to T. Same kind of container.
        frame_lengths: int32 [B], frames of each item, from its number of tokens to F. Same kind of container.
        dense: also return the path as a matrix.
        threads: at most so many threads; by default what OpenMP says (`OMP_NUM_THREADS`, else the cores).
            Never more than there are items.

    Returns:
        int32 [B, T], the frames of each token: positive, summing to the item's frames, 0 in the padding. With
        `dense`, a pair of that and the path, float32 [B, F, T] (the likelihood's dtype, ready to be
        multiplied with): 1 where the frame belongs to the token, 0 elsewhere. In the container and on the
        device of `log_likelihood`, without gradient.

    Raises:
        ValueError: A shape or dtype is wrong; or, naming every such batch item, a length is out of range or an
            item has more tokens than frames.
        LikelihoodError: There is NaN or +inf inside an item; it names every such one.
        TypeError: An argument is neither a NumPy array nor a torch tensor.
    """
    scores_BFT = _as_array("log_likelihood", log_likelihood, np.dtype(np.float32), 3)
    tokens_B = _as_array("token_lengths", token_lengths, np.dtype(np.int32), 1)
    frames_B = _as_array("frame_lengths", frame_lengths, np.dtype(np.int32), 1)
    _check_lengths(scores_BFT, tokens_B, frames_B)
    if threads is not None and threads < 1:
        raise ValueError(
            f"threads is {threads}; it must be at least 1, or None to leave the choice to OpenMP"
        )
    durations_BT = _search(scores_BFT, tokens_B, frames_B, threads or _kernel.max_threads())
    results: tuple[Any, ...] = (durations_BT,)
    if dense:
        results += (_dense_path(durations_BT, frames=scores_BFT.shape[1]),)
    if not isinstance(log_likelihood, np.ndarray):
        results = tuple(_as_tensor(result, like=log_likelihood) for result in results)
    return results if dense else results[0]


def _as_array(name: str, value: Any, dtype: np.dtype[Any], dimensions: int) -> NDArray[Any]:
    """The argument as a NumPy array over the same memory, its dtype and number of dimensions checked."""
    torch = sys.modules.get("torch")  # whoever holds a tensor has imported torch: this package need not
    is_tensor = torch is not None and isinstance(value, torch.Tensor)
    if not is_tensor and not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array or a torch tensor, not {type(value).__name__}")
    # Before the conversion, because NumPy knows no bfloat16. The other byte order has another name: ">f4".
    if str(value.dtype).removeprefix("torch.") != dtype.name or value.ndim != dimensions:
        raise ValueError(
            f"{name} must be {dtype.name} of {dimensions} dimension{'s'[: dimensions > 1]}; "
            f"got {value.dtype} of shape {tuple(value.shape)}"
        )
    array: NDArray[Any] = value.numpy(force=True) if is_tensor else value
    if not array.flags.aligned:
        raise ValueError(f"{name} is not aligned in memory: pass a copy of it")
    return array


def _as_tensor(array: NDArray[Any], like: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.from_numpy(array).to(like.device)


def _check_lengths(
    scores_BFT: NDArray[np.float32], tokens_B: NDArray[np.int32], frames_B: NDArray[np.int32]
) -> None:
    """Raises ValueError naming every item whose lengths do not fit."""
    B, F, T = scores_BFT.shape
    for name, lengths_B in (("token_lengths", tokens_B), ("frame_lengths", frames_B)):
        if lengths_B.shape != (B,):
            raise ValueError(
                f"{name} has {lengths_B.size} entries, log_likelihood {(B, F, T)} has {B} batch items: "
                f"batch item {min(lengths_B.size, B)} has no counterpart"
            )
    problems = []
    for item, (tokens, frames) in enumerate(zip(tokens_B.tolist(), frames_B.tolist(), strict=True)):
        if not 1 <= tokens <= T:
            problems.append(f"batch item {item}: token length {tokens} is not within 1 to T = {T}")
        elif not 1 <= frames <= F:
            problems.append(f"batch item {item}: frame length {frames} is not within 1 to F = {F}")
        elif tokens > frames:
            problems.append(
                f"batch item {item}: {tokens} tokens cannot share {frames} frames, each needs at least one; "
                "drop the item or shorten its text"
            )
    if problems:
        raise ValueError("\n".join(problems))


def _search(
    scores_BFT: NDArray[np.float32], tokens_B: NDArray[np.int32], frames_B: NDArray[np.int32], threads: int
) -> NDArray[np.int32]:
    """Runs the kernel on checked arguments and turns its findings into a LikelihoodError."""
    B, _, T = scores_BFT.shape
    durations_BT = np.zeros((B, T), np.int32)
    if B == 0:
        return durations_BT
    threads = min(threads, B)
    bad_B = np.zeros(B, np.uint8)
    _kernel.search(
        scores_BFT,
        np.ascontiguousarray(tokens_B),
        np.ascontiguousarray(frames_B),
        *scratch(threads, int(tokens_B.max()), int((tokens_B.astype(np.int64) * frames_B).max())),
        durations_BT,
        bad_B,
    )
    if bad_B.any():
        items = [int(item) for item in np.flatnonzero(bad_B)]
        raise LikelihoodError(
            "\n".join(_describe(item, scores_BFT[item, : frames_B[item], : tokens_B[item]]) for item in items)
        )
    return durations_BT


def scratch(threads: int, tokens: int, cells: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The kernel's working memory: two rows of values and a byte a cell for each thread.

    Each thread's part ends a page before the next begins. Without that gap two threads write to one cache line
    in every row, which was measured to eat the whole gain of the second thread.

    Args:
        threads: number of threads.
        tokens: of the item with the most.
        cells: frames times tokens of the largest item.

    Returns:
        float32 [threads, at least 2 * (tokens + 1)] and uint8 [threads, at least cells], uninitialised.
    """
    values = np.empty((threads, 2 * (tokens + 1) + PAGE_BYTES // 4), np.float32)
    moved = np.empty((threads, cells + PAGE_BYTES), np.uint8)
    return values, moved


def _describe(item: int, scores_FT: NDArray[np.float32]) -> str:
    """One sentence about the first score of an item that no search can use."""
    bad_FT = ~(scores_FT < np.inf)
    frame, token = (int(index) for index in np.argwhere(bad_FT)[0])
    value = "NaN" if np.isnan(scores_FT[frame, token]) else "+inf"
    return (
        f"batch item {item}: log_likelihood is {value} at frame {frame}, token {token} "
        f"({int(bad_FT.sum())} of {bad_FT.size} values are NaN or +inf)"
    )


def _dense_path(durations_BT: NDArray[np.int32], frames: int) -> NDArray[np.float32]:
    """float32 [B, F, T], 1 where the frame belongs to the token."""
    B, T = durations_BT.shape
    path_BFT = np.zeros((B, frames, T), np.float32)
    for path_FT, durations_T in zip(path_BFT, durations_BT, strict=True):
        tokens = np.repeat(np.arange(T), durations_T)
        path_FT[np.arange(tokens.size), tokens] = 1.0
    return path_BFT

"""The alignment search: kernel against reference and brute force, its contract, and its refusals."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray

from monotonic_align import LikelihoodError, _kernel, maximum_path
from monotonic_align.reference import reference_durations
from monotonic_align.search import scratch

Rng = np.random.Generator
Case = tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int32]]
Size = tuple[int, int, int]

SCORES: dict[str, Callable[[Rng, Size], NDArray[np.generic]]] = {
    "normal": lambda rng, size: rng.normal(-50, 20, size),
    "ties": lambda rng, size: rng.integers(-1, 2, size),
    "large negative": lambda rng, size: rng.choice([-1e9, -1e12, -3e9, -1e30, -1.0], size),
    "overflowing": lambda rng, size: rng.choice([-3.4e38, -2e38, 3e38, 0.0, -np.inf], size),
    "minus infinity": lambda rng, size: np.where(rng.random(size) < 0.4, -np.inf, rng.integers(-3, 3, size)),
    "constant": lambda rng, size: np.full(size, rng.choice([0.0, -1e9, -np.inf])),
}


def ragged_case(rng: Rng, kind: str, batch: int) -> Case:
    """One kind of scores, NaN in the padding; some items of one token, some with tokens = frames."""
    tokens_B = rng.integers(1, 15, batch)
    tokens_B[rng.random(batch) < 0.2] = 1
    frames_B = tokens_B + rng.integers(0, 20, batch)
    square_B = rng.random(batch) < 0.2
    frames_B[square_B] = tokens_B[square_B]
    F, T = int(frames_B.max() + rng.integers(0, 3)), int(tokens_B.max() + rng.integers(0, 3))
    scores_BFT = SCORES[kind](rng, (batch, F, T)).astype(np.float32)
    for scores_FT, tokens, frames in zip(scores_BFT, tokens_B, frames_B, strict=True):
        scores_FT[frames:] = np.nan
        scores_FT[:, tokens:] = np.nan
    return scores_BFT, tokens_B.astype(np.int32), frames_B.astype(np.int32)


def full_case(scores_BFT: NDArray[np.float32]) -> Case:
    """Every item as long as the array."""
    B, F, T = scores_BFT.shape
    return scores_BFT, np.full(B, T, np.int32), np.full(B, F, np.int32)


def normal_case(B: int = 4, F: int = 12, T: int = 5) -> Case:
    return full_case(np.random.default_rng(0).normal(-50, 20, (B, F, T)).astype(np.float32))


def assert_right(case: Case) -> None:
    """The reference's durations to the last frame, and the contract of durations."""
    durations_BT = maximum_path(*case)
    np.testing.assert_array_equal(durations_BT, reference_durations(*case))
    assert durations_BT.dtype == np.int32
    for durations_T, tokens, frames in zip(durations_BT, *case[1:], strict=True):
        assert durations_T[:tokens].min() >= 1
        assert durations_T.sum() == frames
        assert not durations_T[tokens:].any()


@pytest.mark.parametrize("kind", SCORES)
def test_agrees_with_the_reference_on_seeded_cases(kind: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(700):
        assert_right(ragged_case(rng, kind, batch=int(rng.integers(1, 5))))


# Rows are worked on in blocks of 64 cells, the last overlapping the one before it.
@pytest.mark.parametrize("tokens", [15, 16, 17, 63, 64, 65, 100, 127, 128, 129, 191, 192, 200])
@pytest.mark.parametrize("kind", SCORES)
def test_agrees_with_the_reference_around_block_sizes(kind: str, tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    for frames in (tokens, tokens + 1, 2 * tokens):
        assert_right(full_case(SCORES[kind](rng, (2, frames, tokens)).astype(np.float32)))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_agrees_with_the_reference_on_generated_cases(data: st.DataObject) -> None:
    F = data.draw(st.integers(1, 12), "frames")
    T = data.draw(st.integers(1, F), "tokens")
    B = data.draw(st.integers(1, 3), "batch")
    # Every float32 but NaN and +inf; few distinct values, so that ties come up.
    floats = st.floats(width=32, allow_nan=False, max_value=2.0**127)
    values = data.draw(st.lists(floats, min_size=1, max_size=4))
    scores_BFT = data.draw(st_numpy.arrays(np.float32, (B, F, T), elements=st.sampled_from(values)))
    tokens_B = data.draw(st_numpy.arrays(np.int32, B, elements=st.integers(1, T)))
    frames_B = np.array([data.draw(st.integers(int(tokens), F)) for tokens in tokens_B], np.int32)
    assert_right((scores_BFT, tokens_B, frames_B))


def shares(frames: int, tokens: int) -> list[NDArray[np.int64]]:
    """All ways to share the frames among the tokens."""
    cuts = itertools.combinations(range(1, frames), tokens - 1)
    return [np.diff([0, *cut, frames]) for cut in cuts]


def test_no_path_is_better() -> None:
    """Brute force: of all ways to share the frames, the one found has the largest sum."""
    rng = np.random.default_rng(2)
    for frames, tokens in ((F, T) for F in range(1, 9) for T in range(1, F + 1)):
        scores_BFT = rng.normal(-5, 3, (4, frames, tokens)).astype(np.float32)
        ways = shares(frames, tokens)
        for scores_FT, found_T in zip(scores_BFT, maximum_path(*full_case(scores_BFT)), strict=True):
            sums = [scores_FT[np.arange(frames), np.repeat(np.arange(tokens), way)].sum() for way in ways]
            np.testing.assert_array_equal(found_T, ways[int(np.argmax(sums))])


def test_a_tie_stays_on_the_current_token() -> None:
    """With nothing to choose, the way back stays on the last token until only the diagonal is left."""
    np.testing.assert_array_equal(maximum_path(*full_case(np.zeros((1, 7, 3), np.float32))), [[1, 1, 5]])


def test_minus_infinity_forbids_a_cell() -> None:
    scores_BFT = np.zeros((1, 5, 2), np.float32)
    scores_BFT[0, 2:, 0] = -np.inf
    scores_BFT[0, 1, 1] = -np.inf
    np.testing.assert_array_equal(maximum_path(*full_case(scores_BFT)), [[2, 3]])


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_the_dense_path_is_the_durations_drawn_out(threads: int | None) -> None:
    case = ragged_case(np.random.default_rng(3), "normal", batch=6)
    durations_BT, path_BFT = maximum_path(*case, dense=True, threads=threads)
    assert path_BFT.dtype == np.float32
    assert path_BFT.shape == case[0].shape
    np.testing.assert_array_equal(durations_BT, maximum_path(*case))
    np.testing.assert_array_equal(path_BFT.sum(1), durations_BT)
    for path_FT, tokens, frames in zip(path_BFT, *case[1:], strict=True):
        np.testing.assert_array_equal(path_FT.sum(1), np.arange(path_FT.shape[0]) < frames)
        assert path_FT[0, 0] == path_FT[frames - 1, tokens - 1] == 1
        assert set(np.diff(path_FT[:frames].argmax(1))) <= {0, 1}


def test_an_empty_batch_is_legal() -> None:
    none_B = np.zeros(0, np.int32)
    assert maximum_path(np.zeros((0, 4, 3), np.float32), none_B, none_B).shape == (0, 3)


# --- containers and memory


def test_a_tensor_gives_tensors_without_gradient() -> None:
    case = normal_case()
    expected_BT, expected_BFT = maximum_path(*case, dense=True)
    scores, tokens, frames = (torch.from_numpy(array) for array in case)
    durations, path = maximum_path(scores.requires_grad_(), tokens, frames, dense=True)
    assert durations.dtype == torch.int32
    assert path.dtype == torch.float32
    assert not durations.requires_grad
    assert not path.requires_grad
    np.testing.assert_array_equal(durations.numpy(), expected_BT)
    np.testing.assert_array_equal(path.numpy(), expected_BFT)
    np.testing.assert_array_equal(maximum_path(scores, tokens, frames).numpy(), expected_BT)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_tensor_elsewhere_comes_back_there() -> None:
    case = normal_case()
    scores, tokens, frames = (torch.from_numpy(array).cuda() for array in case)
    durations = maximum_path(scores, tokens, frames)
    assert durations.device == scores.device
    np.testing.assert_array_equal(durations.cpu().numpy(), maximum_path(*case))


@pytest.mark.parametrize("tokens", [9, 130])
def test_any_strides_are_read_in_place(tokens: int) -> None:
    scores_BFT = np.random.default_rng(4).normal(-50, 20, (3, 150, tokens)).astype(np.float32)
    expected_BT = reference_durations(*full_case(scores_BFT))
    wide = np.full((3, 300, 2 * tokens + 1), np.nan, np.float32)
    wide[:, ::2, 1::2] = scores_BFT
    views = {
        "transposed": np.ascontiguousarray(scores_BFT.transpose(2, 1, 0)).transpose(2, 1, 0),
        "reversed": np.ascontiguousarray(scores_BFT[::-1, ::-1, ::-1])[::-1, ::-1, ::-1],
        "sliced": wide[:, ::2, 1::2],
        "broadcast": np.broadcast_to(scores_BFT[:1], scores_BFT.shape),
    }
    for name, view_BFT in views.items():
        assert not view_BFT.flags.c_contiguous
        expected = np.broadcast_to(expected_BT[:1], expected_BT.shape) if name == "broadcast" else expected_BT
        np.testing.assert_array_equal(maximum_path(*full_case(view_BFT)), expected, err_msg=name)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_input_is_neither_copied_nor_changed(transposed: bool) -> None:
    scores_BFT = np.random.default_rng(5).normal(size=(16, 128, 64)).astype(np.float32)
    if transposed:
        scores_BFT = scores_BFT.transpose(0, 2, 1)[:, :, :40]
    before_BFT = scores_BFT.copy()
    scores_BFT.flags.writeable = False
    tracemalloc.start()
    try:
        maximum_path(*full_case(scores_BFT), threads=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < scores_BFT.nbytes / 8, "one byte a cell of one item is all the memory a search may take"
    np.testing.assert_array_equal(scores_BFT, before_BFT)


def test_works_without_torch() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from monotonic_align import maximum_path\n"
        "two, three = np.full(1, 2, np.int32), np.full(1, 3, np.int32)\n"
        "print(maximum_path(np.zeros((1, 3, 2), np.float32), two, three))"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "[[1 2]]\n"


def test_importing_it_does_not_import_torch() -> None:
    program = "import sys, monotonic_align; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "False\n"


# --- threads


def run_kernel(case: Case, threads: int) -> tuple[int, NDArray[np.int32]]:
    scores_BFT, tokens_B, frames_B = case
    B, F, T = scores_BFT.shape
    durations_BT = np.zeros((B, T), np.int32)
    values, moved = scratch(threads, T, F * T)
    team = _kernel.search(scores_BFT, tokens_B, frames_B, values, moved, durations_BT, np.zeros(B, np.uint8))
    return team, durations_BT


@pytest.mark.skipif(sys.platform == "darwin", reason="built without OpenMP there")
def test_two_threads_are_really_two() -> None:
    """The ancestor's prange was serial: its build forgot the OpenMP flag, and nothing noticed."""
    case = normal_case(B=16, F=200, T=70)
    teams = {threads: run_kernel(case, threads) for threads in (1, 2, 3)}
    assert {threads: team for threads, (team, _) in teams.items()} == {1: 1, 2: 2, 3: 3}
    for _, durations_BT in teams.values():
        np.testing.assert_array_equal(durations_BT, reference_durations(*case))


@pytest.mark.skipif(sys.platform == "darwin", reason="built without OpenMP there")
def test_the_environment_sets_the_number_of_threads() -> None:
    program = "from monotonic_align import _kernel; print(_kernel.max_threads())"
    for threads in ("1", "3"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        output = subprocess.check_output([sys.executable, "-c", program], text=True, env=environment)
        assert output.strip() == threads


def test_the_number_of_threads_does_not_change_the_result() -> None:
    rng = np.random.default_rng(6)
    for kind in SCORES:
        case = ragged_case(rng, kind, batch=9)
        for threads in (1, 2, 3, 64):
            np.testing.assert_array_equal(maximum_path(*case, threads=threads), reference_durations(*case))


def test_no_two_threads_share_a_cache_line() -> None:
    """Sharing one costs the whole gain of the second thread, and shows in no result."""
    values, moved = scratch(2, 100, 12345)
    assert values.strides[0] - 2 * (100 + 1) * values.itemsize >= 128
    assert moved.strides[0] - 12345 >= 128


def test_no_threads_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="threads is 0"):
        maximum_path(*normal_case(), threads=0)


# --- refusals


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf])
def test_one_bad_value_anywhere_inside_an_item_is_found(value: float, layout: str) -> None:
    """Also in the corners that no path reaches, and wherever in a block of 64 cells it falls."""
    F, T = 90, 70
    case = normal_case(B=3, F=F, T=T)
    for frame, token in [
        (0, 0),
        (0, T - 1),
        (F - 1, 0),
        (F - 1, T - 1),
        (40, 63),
        (40, 64),
        (41, 5),
        (89, 69),
        (1, 69),
    ]:
        scores_BFT = case[0].copy()
        scores_BFT[1, frame, token] = value
        if layout == "transposed":
            scores_BFT = np.asfortranarray(scores_BFT)
        name = re.escape("NaN" if np.isnan(value) else "+inf")
        with pytest.raises(
            LikelihoodError, match=rf"batch item 1: .* {name} at frame {frame}, token {token}\b"
        ) as error:
            maximum_path(scores_BFT, *case[1:])
        assert "item 0" not in str(error.value)
        assert "item 2" not in str(error.value)


def test_every_item_with_nan_is_named() -> None:
    case = normal_case(B=4)
    case[0][[1, 3], 2, 2] = np.nan
    with pytest.raises(LikelihoodError, match=r"(?s)batch item 1:.*batch item 3:"):
        maximum_path(*case)


@pytest.mark.parametrize(
    ("tokens", "frames", "message"),
    [
        (6, 5, "6 tokens cannot share 5 frames"),
        (0, 5, "token length 0 is not within 1 to T = 8"),
        (-1, 5, "token length -1"),
        (9, 10, "token length 9 is not within 1 to T = 8"),
        (3, 11, "frame length 11 is not within 1 to F = 10"),
        (3, 0, "frame length 0 is not within 1 to F = 10"),
        (3, -2, "frame length -2"),
    ],
)
def test_lengths_that_do_not_fit_are_refused_by_item(tokens: int, frames: int, message: str) -> None:
    """The ancestor's check of lengths could never fail."""
    tokens_B, frames_B = (
        np.array([4, tokens, 8, tokens], np.int32),
        np.array([10, frames, 8, frames], np.int32),
    )
    with pytest.raises(ValueError, match=f"^batch item 1: {message}.*\nbatch item 3: {message}[^\n]*$"):
        maximum_path(np.zeros((4, 10, 8), np.float32), tokens_B, frames_B)


def test_missing_or_surplus_lengths_name_the_item() -> None:
    scores_BFT, tokens_B, frames_B = normal_case(B=4)
    with pytest.raises(ValueError, match=r"token_lengths has 3 entries.* batch item 3 "):
        maximum_path(scores_BFT, tokens_B[:3], frames_B)
    with pytest.raises(ValueError, match=r"frame_lengths has 5 entries.* batch item 4 "):
        maximum_path(scores_BFT, tokens_B, np.full(5, 12, np.int32))


def test_wrong_dtypes_and_dimensions_are_refused() -> None:
    scores_BFT, tokens_B, frames_B = normal_case()
    with pytest.raises(ValueError, match=r"log_likelihood must be float32 of 3 dimensions; got float64"):
        maximum_path(scores_BFT.astype(np.float64), tokens_B, frames_B)
    with pytest.raises(ValueError, match=r"log_likelihood must be .* shape \(12, 5\)"):
        maximum_path(scores_BFT[0], tokens_B, frames_B)
    with pytest.raises(ValueError, match="token_lengths must be int32 of 1 dimension; got int64"):
        maximum_path(scores_BFT, tokens_B.astype(np.int64), frames_B)
    with pytest.raises(ValueError, match="frame_lengths must be int32 of 1 dimension; got int32"):
        maximum_path(scores_BFT, tokens_B, frames_B[:, None])
    with pytest.raises(ValueError, match=r"log_likelihood must be float32 .* got torch\.bfloat16"):
        maximum_path(
            torch.from_numpy(scores_BFT).bfloat16(), torch.from_numpy(tokens_B), torch.from_numpy(frames_B)
        )
    with pytest.raises(TypeError, match="token_lengths must be a NumPy array or a torch tensor, not list"):
        maximum_path(scores_BFT, tokens_B.tolist(), frames_B)


def test_memory_that_the_kernel_cannot_read_is_refused() -> None:
    scores_BFT, tokens_B, frames_B = normal_case()
    packed = np.zeros(scores_BFT.shape, np.dtype([("flag", np.uint8), ("score", np.float32)]))
    with pytest.raises(ValueError, match="log_likelihood is not aligned in memory"):
        maximum_path(packed["score"], tokens_B, frames_B)
    with pytest.raises(ValueError, match=r"log_likelihood must be float32 .* got [<>]f4"):
        maximum_path(scores_BFT.astype(scores_BFT.dtype.newbyteorder()), tokens_B, frames_B)

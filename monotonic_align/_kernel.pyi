import numpy as np
from numpy.typing import NDArray

def max_threads() -> int: ...
def search(
    log_likelihood: NDArray[np.float32],
    token_lengths: NDArray[np.int32],
    frame_lengths: NDArray[np.int32],
    values: NDArray[np.float32],
    moved: NDArray[np.uint8],
    durations: NDArray[np.int32],
    bad: NDArray[np.uint8],
) -> int: ...

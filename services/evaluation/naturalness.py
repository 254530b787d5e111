"""Two opinions on how natural speech sounds, from networks trained on people's opinions.

They hear different things: DNSMOS passes decoders that DistillMOS rejects, so neither is enough alone.

Shapes: S samples.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from shared.errors import MissingExtraError

#: Two judges state requirements that are not needed and do harm (docs/evaluation.md), so they are installed without.
WITHOUT_DEPENDENCIES = "pip install --no-deps distillmos==0.9.1 xls-r-sqa==0.1.0 resemblyzer==0.1.4"


class MissingJudgeError(MissingExtraError):
    """A judge is not installed here, or does not load; the message says what to do."""


class Dnsmos:
    """DNSMOS P.835, overall quality, from the package ``speechmos``.

    Raises:
        MissingJudgeError: It cannot be loaded.
    """

    def __init__(self) -> None:
        try:
            with _quiet_import():
                from speechmos import dnsmos
        except (ImportError, OSError) as error:
            raise missing("DNSMOS", error, "pip install 'vits-suite[judges]'") from error
        self._run = dnsmos.run

    def __call__(self, samples: NDArray[np.float32]) -> float:
        """The opinion of [S] samples at 16 kHz. A clip shorter than 9 s is heard over and over, as it was trained."""
        with warnings.catch_warnings():  # librosa, on the way to the mel spectrogram that is not used here
            warnings.simplefilter("ignore")
            return float(self._run(samples, sr=16_000)["ovrl_mos"])


class DistillMos:
    """DistillMOS, variant 7, from the package ``distillmos``.

    Raises:
        MissingJudgeError: It cannot be loaded.
    """

    def __init__(self) -> None:
        try:
            with _quiet_import(), _without_torchaudio():
                import torch
                from distillmos import sqa
        except (ImportError, OSError) as error:
            raise missing(
                "DistillMOS", error, f"pip install 'vits-suite[judges]' && {WITHOUT_DEPENDENCIES}"
            ) from error
        self._torch = torch
        self._model = sqa.ConvTransformerSQAModel(load_weights=False)  # its own loading prints
        weights = torch.load(sqa.DEFAULT_WEIGHTS_CHKPT, map_location="cpu", weights_only=True)
        self._model.load_state_dict(weights["model"])
        self._model.eval()

    def __call__(self, samples: NDArray[np.float32]) -> float:
        """The opinion of [S] samples at 16 kHz. A clip shorter than 7.68 s is followed by silence."""
        with self._torch.inference_mode():
            return float(self._model(self._torch.from_numpy(samples)[None])[0, 0])


def missing(name: str, error: Exception, remedy: str) -> MissingJudgeError:
    """What to say of a judge that did not load."""
    if isinstance(error, ModuleNotFoundError):
        return MissingJudgeError(f"{name} needs the package {error.name!r}, which is not installed: {remedy}")
    return MissingJudgeError(f"{name} does not load ({type(error).__name__}: {error}): {remedy}")


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Import others' libraries without their warnings, which are not ours to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _without_torchaudio() -> Iterator[None]:
    """Let ``distillmos`` be imported without torchaudio.

    It reads files with it, which we do not ask of it; and torchaudio's published build needs CUDA's libraries,
    so that beside a CPU build of torch its import fails, and with it parts of `transformers`.
    """
    before = sys.modules.get("torchaudio")
    sys.modules["torchaudio"] = before or ModuleType("torchaudio")
    try:
        yield
    finally:
        if before is None:
            del sys.modules["torchaudio"]

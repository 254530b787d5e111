"""Two opinions on how natural speech sounds, from networks trained on people's opinions.

They hear different things: DNSMOS passes decoders that DistillMOS rejects, so neither is enough alone.

Shapes: S samples.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from shared.errors import MissingExtraError

#: Two judges state requirements that are not needed and do harm (docs/evaluation.md), so they are installed without.
WITHOUT_DEPENDENCIES = "pip install --no-deps distillmos==0.9.1 xls-r-sqa==0.1.0 resemblyzer==0.1.4"


class MissingJudgeError(MissingExtraError):
    """A judge is not installed here, or does not load; the message says what to do."""


class Dnsmos:
    """DNSMOS P.835, overall quality, from the weights in the package ``speechmos``.

    The package itself computes three opinions more with each, for several times the work, by way of librosa.

    Raises:
        MissingJudgeError: They cannot be loaded.
    """

    #: Samples of what is heard at once, and how far apart its beginnings lie.
    SEGMENT, HOP = int(9.01 * 16_000), 16_000

    def __init__(self) -> None:
        try:
            import onnxruntime

            spec = importlib.util.find_spec("speechmos")
            if spec is None or spec.origin is None:
                raise ModuleNotFoundError(name="speechmos")
            file = Path(spec.origin).parent / "dnsmos_models" / "sig_bak_ovr.onnx"
            weights = file.read_bytes()
        except (ImportError, OSError) as error:
            raise missing("DNSMOS", error, "pip install 'vits-suite[judges]'") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Other judges work between two clips; threads that spin while they wait would take their processors.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])

    def __call__(self, samples: NDArray[np.float32]) -> float:
        """The opinion of [S] samples at 16 kHz. A clip shorter than 9 s is heard over and over, as it was trained.

        It is the mean over segments of 9.01 s, a second apart, of ``-0.0677 x² + 1.1155 x + 0.0460``, x being what
        the network says (the polynomial is the authors').
        """
        while len(samples) < self.SEGMENT:
            samples = np.append(samples, samples)
        count = int(len(samples) // self.HOP - 9.01) + 1
        starts = [
            number * self.HOP for number in range(count) if number * self.HOP + self.SEGMENT <= len(samples)
        ]
        opinions = []
        for start in starts:
            segment = samples[start : start + self.SEGMENT].astype(np.float32)[None]
            raw = float(self._session.run(None, {"input_1": segment})[0][0][2])
            opinions.append(-0.06766283 * raw**2 + 1.11546468 * raw + 0.04602535)
        return float(np.mean(opinions))


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

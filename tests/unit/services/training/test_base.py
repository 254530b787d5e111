"""What a run starts from: the base's weights, its symbols and its speakers, made to fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import VitsModel, VitsTokenizer

from services.training.base import Base, fit_speakers, load_base
from services.training.config import TrainingConfig
from services.training.data import read_recordings
from services.training.dataset import prepare
from services.training.features import FeatureSettings
from services.training.steps import Seen, Steps, new_discriminator
from shared.container import IMAGE
from shared.errors import ConfigError, ModelError
from shared.modeling import load_model, save_model, synthesize
from shared.modeling.loading import DISCRIMINATOR_FILE
from shared.registry import Registry
from shared.store import Store
from shared.text import FrontEnd
from tests.conftest import ALPHABET, write_small_model

MakeConfig = Callable[..., TrainingConfig]
Load = Callable[..., Base]
PIPER = {
    "kind": "piper",
    "vocab": {symbol: [i] for i, symbol in enumerate("_^$ abcdefghijklmnoprstuvz")},
    "espeak_voice": "es-419",
}


@pytest.fixture
def load(make_config: MakeConfig) -> Load:
    """Load a base as a run with these changes to its configuration would."""

    def start(**changes: Any) -> Base:
        config = make_config(**changes)
        return load_base(config, Store.open(str(config.store)))

    return start


@pytest.fixture
def model_folder(spanish_model: Path, tmp_path: Path) -> Path:
    """A copy of the small Spanish model to change."""
    return shutil.copytree(spanish_model, tmp_path / "base")


def test_a_folder_that_is_not_there_has_to_be_mounted_in_a_container(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"there is no folder \./models/nosuch\.$"):
        load(model_name_or_path="./models/nosuch")
    monkeypatch.setenv(IMAGE, "vits-train")
    with pytest.raises(ModelError, match=r"there is no folder \./models/nosuch\. .* mount it at /models"):
        load(model_name_or_path="./models/nosuch")


@pytest.mark.parametrize("typed", ["base@best", "base", "base/{}"])
def test_a_base_in_the_store_is_called_by_its_version(
    make_config: MakeConfig, spanish_model: Path, typed: str
) -> None:
    config = make_config()
    registry = Registry(Store.open(str(config.store)))
    first, second = (
        registry.publish("models", "base", spanish_model, licence="MIT", sources=[], consent=None, lineage={})
        for _ in range(2)
    )
    registry.move_alias("models", "base", "best", first.id)
    registry.move_alias("models", "base", "latest", first.id)
    config = make_config(model_name_or_path=typed.format(first.id))
    base = load_base(config, registry.store)
    registry.move_alias("models", "base", "best", second.id)
    assert base.reference == f"base/{first.id}"


def test_a_base_in_a_folder_is_called_by_its_path(
    load: Load, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(model_name_or_path=str(model_folder)).reference == str(model_folder)
    monkeypatch.chdir(model_folder.parent)
    assert load(model_name_or_path=model_folder.name).reference == f"./{model_folder.name}"


def weight(base: Base, name: str) -> Tensor:
    value: Tensor = base.model.state_dict()[name]
    return value


def table(base: Base) -> Tensor:
    return weight(base, "text_encoder.embed_tokens.weight")


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), encoding="utf-8")


def test_a_base_that_fits_is_taken_as_it_is(load: Load, spanish_model: Path) -> None:
    base = load()
    stored = load_model(spanish_model).state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in base.model.state_dict().items())
    assert base.front_end == FrontEnd.from_folder(spanish_model)
    assert (base.untrained, base.notes, base.speakers, base.discriminator) == ((), [], {}, None)
    assert base.provenance.licence == "CC-BY-NC-4.0"


# -- Symbols ---------------------------------------------------------------------------------------


def test_added_symbols_get_rows_and_old_rows_stay_to_the_bit(
    load: Load, spanish_model: Path, tmp_path: Path
) -> None:
    """finetune-hf-vits #47, #56. The saved folder speaks them in stock ``transformers`` too."""
    base, old = load(vocabulary_additions=["¿", "?", "a", "¿"]), table(load())
    size = len(ALPHABET)
    assert table(base).shape == (size + 2, 8)
    assert torch.equal(table(base)[:size], old)
    assert table(base)[size:].any(1).all()
    assert base.model.config.vocab_size == size + 2
    assert base.front_end.tokenize("¿y?").symbols[1::2] == ("¿", "y", "?")
    assert base.notes == [f"vocabulary: {size} symbols keep their embeddings; new: '¿', '?'"]
    assert base.untrained == ()

    folder = tmp_path / "saved"
    save_model(base.model, folder, companions=spanish_model)
    (folder / "added_tokens.json").write_text(json.dumps({"<unk>": size}), encoding="utf-8")
    base.front_end.save(folder)
    assert FrontEnd.from_folder(folder) == base.front_end
    (folder / "front_end.json").unlink()
    assert FrontEnd.from_folder(folder) == base.front_end  # from the tokenizer's files alone
    stock = VitsTokenizer.from_pretrained(folder)
    ids = stock("¿cómo?")["input_ids"]
    assert ids == list(base.front_end.tokenize("¿cómo?").ids)
    assert max(ids) == size + 1
    VitsModel.from_pretrained(folder)(torch.tensor([ids]))
    again = load(model_name_or_path=str(folder), vocabulary_additions=["?"])
    assert torch.equal(table(again), table(base))
    assert again.notes == ["vocabulary_additions: the vocabulary has every one of them already"]


def test_symbols_that_no_text_could_contain_are_all_refused(load: Load) -> None:
    with pytest.raises(ConfigError) as caught:
        load(vocabulary_additions=["ch", "q", "<breath>"])
    assert [problem.split()[0] for problem in caught.value.problems] == ["'ch'", "'<breath>'"]


def test_added_phonemes_are_decomposed(load: Load, model_folder: Path) -> None:
    """Piper's layout knows ``ç`` as two symbols, of which this base has the first."""
    (model_folder / "front_end.json").write_text(json.dumps(PIPER), encoding="utf-8")
    base = load(model_name_or_path=str(model_folder), vocabulary_additions=["ç", "ʝ"])
    size = len(PIPER["vocab"])
    assert base.front_end.symbols["\u0327"] == (size,)
    assert base.front_end.symbols["ʝ"] == (size + 1,)
    # The base has more rows than symbols. The first two of those are what is new; nothing else moves.
    old = load_model(model_folder).state_dict()["text_encoder.embed_tokens.weight"]
    same = [torch.equal(row, before) for row, before in zip(table(base), old, strict=True)]
    assert same == [row not in {size, size + 1} for row in range(len(ALPHABET))]


def write_tokenizer(folder: Path, symbols: str) -> Path:
    folder.mkdir()
    spec = {"kind": "characters", "vocab": {s: i for i, s in enumerate(symbols)}, "pad_token": "_"}
    FrontEnd.from_spec(spec).save(folder)
    return folder


def test_another_vocabulary_keeps_the_rows_of_shared_symbols(load: Load, tmp_path: Path) -> None:
    """A warm start with a new symbol set, larger or smaller, in whatever order."""
    old = table(load())
    for symbols in ("_zyñ!x ", "_" + ALPHABET[:0:-1] + "!?.,"):
        folder = write_tokenizer(tmp_path / f"of-{len(symbols)}", symbols)
        base = load(tokenizer_name=str(folder))
        assert base.front_end == FrontEnd.from_folder(folder)
        assert len(table(base)) == len(symbols) == base.model.config.vocab_size
        for row, symbol in enumerate(symbols):
            if symbol in ALPHABET:
                assert torch.equal(table(base)[row], old[ALPHABET.index(symbol)]), symbol
            else:
                assert not (table(base)[row] == old).all(1).any(), symbol
        assert "new: '!'" in base.notes[0]
    assert "no longer there" not in base.notes[0]


def test_fresh_embeddings_of_another_size(load: Load, tmp_path: Path) -> None:
    """``override_vocabulary_embeddings``, as the ancestor has it: with the new tokenizer's size."""
    old = table(load())
    folder = write_tokenizer(tmp_path / "tokenizer", "_abc ")
    base = load(tokenizer_name=str(folder), override_vocabulary_embeddings=True)
    assert len(table(base)) == 5
    assert not (table(base)[0] == old[0]).any()
    own = load(override_vocabulary_embeddings=True)
    assert table(own).shape == old.shape
    assert not (table(own) == old).any()
    assert torch.equal(table(own), table(load(override_vocabulary_embeddings=True)))  # on every process
    assert not torch.equal(table(own), table(load(override_vocabulary_embeddings=True, seed=1)))


def test_a_base_without_a_tokenizer(load: Load, model_folder: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "tokenizer_config.json"):
        (model_folder / name).unlink()
    base = str(model_folder)
    with pytest.raises(ModelError, match=r"neither front_end\.json nor vocab\.json"):
        load(model_name_or_path=base)
    fitting = str(write_tokenizer(tmp_path / "fitting", ALPHABET))
    assert torch.equal(table(load(model_name_or_path=base, tokenizer_name=fitting)), table(load()))
    larger = str(write_tokenizer(tmp_path / "larger", ALPHABET + "!"))
    with pytest.raises(ModelError, match=r"36 symbols and the base 35 embeddings.*override_vocabulary"):
        load(model_name_or_path=base, tokenizer_name=larger)
    fresh = load(model_name_or_path=base, tokenizer_name=larger, override_vocabulary_embeddings=True)
    assert len(table(fresh)) == 36


def test_lower_casing_is_a_part_of_the_front_end(load: Load, tmp_path: Path) -> None:
    """finetune-hf-vits, defect 14: the sample text skips ``do_lower_case``. A model that learnt lower case reads so."""
    folder = write_tokenizer(tmp_path / "tokenizer", "_abAB ")
    cased, lower = (load(tokenizer_name=str(folder), do_lower_case=value) for value in (False, True))
    assert cased.front_end.tokenize("Ab").symbols[1::2] == ("A", "b")
    assert lower.front_end.tokenize("Ab").symbols[1::2] == ("a", "b")
    lower.front_end.save(folder)
    assert FrontEnd.from_folder(folder).tokenize("Ab").symbols[1::2] == ("a", "b")


# -- Weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"train_from_scratch": True}], ids=["trained", "from scratch"])
def test_how_much_a_model_varies_is_published_with_it(
    load: Load, spanish_model: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    model = load(noise_scale=0.25, **changes).model
    save_model(model, tmp_path / "out")
    published, own = (
        VitsModel.from_pretrained(folder).config for folder in (tmp_path / "out", spanish_model)
    )
    assert (published.noise_scale, published.noise_scale_duration) == (0.25, own.noise_scale_duration)
    assert load(noise_scale_duration=0.0, **changes).model.config.noise_scale_duration == 0
    assert load(**changes).model.config.noise_scale == own.noise_scale != 0.25


def test_a_misspelt_folder_is_told_its_neighbour(load: Load, model_folder: Path) -> None:
    with pytest.raises(ModelError, match=f"no folder .*/bsae, did you mean '{model_folder}'"):
        load(model_name_or_path=str(model_folder.with_name("bsae")))


def test_another_configuration_must_fit(load: Load, model_folder: Path, spanish_model: Path) -> None:
    change(model_folder / "config.json", posterior_encoder_num_wavenet_layers=3, noise_scale=0.5)
    with pytest.raises(ModelError, match=r"do not fit .*in_layers\.2.*allow_missing_weights"):
        load(config_name=str(model_folder))
    change(model_folder / "config.json", posterior_encoder_num_wavenet_layers=2)
    assert load(config_name=str(model_folder)).model.config.noise_scale == 0.5
    with pytest.raises(ModelError, match=r"no config\.json"):
        load(config_name=str(spanish_model.parent))


def test_what_the_base_lacks_is_fresh_listed_and_taught_first(load: Load, model_folder: Path) -> None:
    """Beside what the base says of itself."""
    change(model_folder / "config.json", untrained_modules=["posterior_encoder"])
    weights = model_folder / "model.safetensors"
    state = {k: v for k, v in load_file(weights).items() if not k.startswith("duration_predictor.")}
    save_file(state, weights, {"format": "pt"})
    with pytest.raises(ModelError, match="lacks"):
        load(model_name_or_path=str(model_folder))
    base = load(model_name_or_path=str(model_folder), allow_missing_weights=True)
    assert base.untrained == ("duration_predictor", "posterior_encoder")
    assert base.notes == ["initialised afresh, as the base has no such weights: duration_predictor"]
    again = load(model_name_or_path=str(model_folder), allow_missing_weights=True)
    assert all(
        torch.equal(value, again.model.state_dict()[name]) for name, value in base.model.state_dict().items()
    )


def test_presets_over_a_trained_base(load: Load) -> None:
    light = load(model_presets=["light-decoder"], allow_missing_weights=True)
    assert light.model.config.model_type == "vits_resblock2"
    assert light.untrained == ("decoder.resblocks",)
    both = load(model_presets=["light-decoder", "small-encoder"], allow_missing_weights=True)
    assert both.model.config.hidden_size == 128
    assert both.untrained == (
        "decoder.resblocks", "duration_predictor", "flow", "posterior_encoder", "text_encoder",
    )  # fmt: skip
    assert any(line.startswith("not used of the base's weights") for line in both.notes)


def test_nothing_of_the_base_fits(load: Load, model_folder: Path) -> None:
    """With everything new there is nothing that could teach the rest: one stage."""
    save_file({"x": torch.ones(1)}, model_folder / "model.safetensors", {"format": "pt"})
    base = load(model_name_or_path=str(model_folder), allow_missing_weights=True)
    assert base.untrained == ()
    assert "one stage" in base.notes[-1]


# -- From scratch ----------------------------------------------------------------------------------


def test_from_scratch_takes_the_architecture_alone(load: Load, model_folder: Path, tmp_path: Path) -> None:
    """finetune-hf-vits, defect 28. Neither weights nor judges nor speakers nor licence; another rate if asked for."""
    (model_folder / "model.safetensors").unlink()
    change(model_folder / "config.json", untrained_modules=["posterior_encoder"])
    options = {"model_name_or_path": str(model_folder), "train_from_scratch": True, "sampling_rate": 22050}
    base = load(**options)
    assert base.model.config.sampling_rate == 22050
    assert (base.untrained, base.discriminator, base.speakers) == ((), None, {})
    assert base.provenance.licence == "unknown"
    assert base.notes == [
        "from scratch: 0.0 million parameters, 22050 Hz; everything is new and learns in one stage"
    ]
    for coupling in range(2):
        assert not weight(base, f"flow.flows.{coupling}.conv_post.weight").any()
    again, other = load(**options).model.state_dict(), load(**options, seed=1).model.state_dict()
    name = "decoder.conv_pre.weight"
    assert torch.equal(base.model.state_dict()[name], again[name])  # on every process
    assert not torch.equal(again[name], other[name])
    folder = write_tokenizer(tmp_path / "tokenizer", "_abc ")
    small = load(**options, tokenizer_name=str(folder), model_presets=["small-encoder"])
    assert small.model.config.vocab_size == 5
    assert small.model.config.hidden_size == 128


def test_from_scratch_at_another_rate_it_learns(
    load: Load, make_config: MakeConfig, small_discriminator: None, recordings_folder: Path, tmp_path: Path
) -> None:
    """finetune-hf-vits #26, #45. Twenty joint steps at 22.05 kHz.

    The alignment moves all the while, so that neither the KL loss nor the duration loss falls so early.
    """
    base = load(train_from_scratch=True, sampling_rate=22050)
    settings = FeatureSettings(sampling_rate=22050, hop_length=256, n_fft=1024)
    config = make_config(discriminator_periods=[2, 3])
    examples, dropped = prepare(
        read_recordings(recordings_folder, split="train"), base.front_end, settings, config,
        speakers={}, cache=tmp_path / "cache",
    )  # fmt: skip
    assert not dropped
    model = base.model
    model.decoder.apply_weight_norm()
    model.train()
    judge = new_discriminator(0, config.discriminator_periods)
    optimizers = [torch.optim.AdamW(network.parameters(), lr=2e-3) for network in (model, judge)]
    steps = Steps(Accelerator(cpu=True), config, settings, model, optimizers[0], judge, optimizers[1])
    batch = Seen.of(examples.collate([examples[index] for index in range(4)]), settings)
    history = [{k: float(v) for k, v in steps.joint([batch], step).items()} for step in range(20)]
    for name, share in (("mel", 0.5), ("discriminator", 0.8)):
        early, late = (sum(losses[name] for losses in part) for part in (history[:4], history[-4:]))
        assert late < share * early, name
    spoken = synthesize(model, torch.tensor(base.front_end.tokenize("hola").ids), seed=0)
    assert spoken.sampling_rate == 22050


# -- The discriminator -----------------------------------------------------------------------------


@pytest.mark.usefixtures("small_discriminator")
def test_new_periods_are_announced(load: Load, model_folder: Path) -> None:
    save_file(new_discriminator(0).folded_state_dict(), model_folder / DISCRIMINATOR_FILE)
    base = load(model_name_or_path=str(model_folder), discriminator_periods=[2, 3, 5])
    assert base.discriminator is not None
    assert base.notes == []
    base = load(model_name_or_path=str(model_folder), discriminator_periods=[2, 13, 17])
    assert base.notes == ["discriminator: its networks of period 13, 17 are initialised afresh"]


# -- Speakers --------------------------------------------------------------------------------------


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """A model of three speakers, two of them with names."""
    folder = write_small_model(tmp_path / "several", num_speakers=3)
    (folder / "speakers.json").write_text('{"eva": 2, "ana": 0}', encoding="utf-8")
    return folder


def fit(make_config: MakeConfig, *names: str, **changes: Any) -> Base:
    config = make_config(**changes)
    base = load_base(config, Store.open(str(config.store)))
    assert fit_speakers(base, names, config) == base.speakers
    return base


def speaker_rows(base: Base) -> Tensor:
    return weight(base, "embed_speaker.weight")


@pytest.mark.parametrize("names", [(), ("ana",), ("ana", "ana")])
def test_one_speaker_stays_one(make_config: MakeConfig, names: tuple[str, ...]) -> None:
    base = fit(make_config, *names)
    assert (base.speakers, base.notes, base.model.config.num_speakers) == ({}, [], 1)


@pytest.mark.parametrize("override", [False, True])
def test_several_speakers_on_a_base_of_one(make_config: MakeConfig, override: bool, load: Load) -> None:
    base = fit(make_config, "luis", "ana", "luis", override_speaker_embeddings=override)
    assert base.speakers == {"ana": 0, "luis": 1}  # sorted, so stable whatever the order
    assert base.model.config.num_speakers == 2
    assert "filter_on_speaker_id" in base.notes[0]
    ids = torch.tensor([1, 2, 3])
    alone = synthesize(load().model, ids, seed=0).samples
    assert (synthesize(base.model, ids, seed=0, speaker_id=1).samples == alone).all()


def test_known_speakers_keep_ids_and_embeddings_and_new_ones_follow(
    make_config: MakeConfig, several: Path
) -> None:
    """finetune-hf-vits #48: a speaker added to a trained model. Who has no name is called by number."""
    old = load_model(several).embed_speaker.weight
    base = fit(make_config, "zoe", "ana", "bea", model_name_or_path=str(several))
    assert base.speakers == {"eva": 2, "ana": 0, "1": 1, "bea": 3, "zoe": 4}
    assert torch.equal(speaker_rows(base)[:3], old)
    assert base.model.config.num_speakers == 5
    assert base.notes == ["speakers: 2 more than the base's 3: bea, zoe"]
    again = fit(make_config, "bea", "zoe", "ana", model_name_or_path=str(several))
    assert torch.equal(speaker_rows(again), speaker_rows(base))  # on every process, and when it goes on
    known = fit(make_config, "eva", "1", model_name_or_path=str(several))
    assert known.speakers == {"eva": 2, "ana": 0, "1": 1}
    assert torch.equal(speaker_rows(known), old)


def test_data_that_name_no_speaker(make_config: MakeConfig, several: Path) -> None:
    base = fit(make_config, model_name_or_path=str(several))
    assert base.speakers == {"eva": 2, "ana": 0, "1": 1}
    assert "speaker_id_column_name" in base.notes[0]


def test_fresh_embeddings_for_the_datas_speakers_alone(make_config: MakeConfig, several: Path) -> None:
    old = load_model(several).embed_speaker.weight
    options = {"model_name_or_path": str(several), "override_speaker_embeddings": True}
    base = fit(make_config, "ana", "luis", "eva", "bea", **options)
    assert base.speakers == {"ana": 0, "bea": 1, "eva": 2, "luis": 3}
    assert speaker_rows(base).shape == (4, 4)
    assert not torch.isin(speaker_rows(base), old).any()
    assert fit(make_config, "ana", **options).model.config.num_speakers == 2  # a table has two at least
    assert fit(make_config, **options).model.config.num_speakers == 3


def test_from_scratch_the_datas_speakers_are_the_models(make_config: MakeConfig, several: Path) -> None:
    base = fit(make_config, "luis", "ana", model_name_or_path=str(several), train_from_scratch=True)
    assert base.speakers == {"ana": 0, "luis": 1}
    assert len(speaker_rows(base)) == 2


@pytest.mark.parametrize("content", ["[", "[1]", '{"ana": 3}', '{"ana": "0"}'])
def test_names_that_are_another_models(load: Load, several: Path, content: str) -> None:
    (several / "speakers.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=r"speakers\.json"):
        load(model_name_or_path=str(several))

"""Adding speakers: whoever spoke before sounds the same to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import VitsModel

from monotonic_align import maximum_path
from shared.errors import ModelError
from shared.modeling import VitsForTraining, fold_weight_norm, load_model, save_model, synthesize
from shared.modeling.speakers import add_speakers, replace_speakers

MakeModel = Callable[..., VitsForTraining]
IDS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
SEVERAL = {"num_speakers": 3, "speaker_embedding_size": 4}
KINDS: dict[str, dict[str, Any]] = {
    "stochastic durations": {},
    "deterministic durations": {"use_stochastic_duration_prediction": False},
    "second residual block": {"resblock_type": "2"},
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    return KINDS[request.param]


def trained(model: VitsForTraining, speaker_id: Tensor | None) -> dict[str, Tensor]:
    """What one training forward of a fixed float64 batch yields."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    output = model.training_forward(
        torch.randint(1, 20, (3, 6), generator=generator),
        torch.tensor([6, 3, 5]),
        normal(3, 9, 20).abs(),
        torch.tensor([20, 12, 17]),
        aligner=lambda scores, *lengths: cast("Tensor", maximum_path(scores.float(), *lengths)),
        speaker_id=speaker_id,
        segment_frames=8,
        slice_starts=torch.zeros(3, dtype=torch.int64),
        posterior_noise=normal(3, 4, 20),
        duration_noise=normal(3, 2, 6),
    )
    return vars(output)


def test_a_single_voice_becomes_several_that_sound_like_it(
    make_model: MakeModel, kind: dict[str, Any]
) -> None:
    """In text to speech and in the training forward, through every module that now conditions."""
    alone, several = make_model(**kind), make_model(**kind)
    assert add_speakers(several, 3, embedding_size=16, seed=1) is several
    assert (several.config.num_speakers, several.config.speaker_embedding_size) == (3, 16)
    before = synthesize(alone, IDS, seed=5).samples
    for speaker in range(3):
        assert (synthesize(several, IDS, seed=5, speaker_id=speaker).samples == before).all()
    alone.double()
    several.double()
    expected = trained(alone, None)
    for name, value in trained(several, torch.tensor([2, 0, 1])).items():
        torch.testing.assert_close(value, expected[name], atol=0, rtol=0, msg=name)


def test_it_has_what_transformers_builds_for_several(make_model: MakeModel, kind: dict[str, Any]) -> None:
    """The same tensors of the same shapes as a model that was configured so from the start."""
    grown = add_speakers(make_model(**kind), 3, embedding_size=4).state_dict()
    built = make_model(**SEVERAL, **kind).state_dict()
    assert {name: value.shape for name, value in grown.items()} == {
        name: value.shape for name, value in built.items()
    }
    norms = [name for name in grown if name.endswith("cond_layer.parametrizations.weight.original0")]
    assert len(norms) == 3  # the posterior encoder's and two flows'
    for name in norms:
        assert not grown[name].any()
        assert grown[name.replace("original0", "original1")].any()  # a direction to grow in
    assert grown["embed_speaker.weight"].std().item() == pytest.approx(4**-0.5, rel=0.5)


def test_stock_transformers_reads_it_and_speaks_the_same(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    expected = synthesize(model, IDS, seed=0, noise_scale=0.0, noise_scale_duration=0.0).samples
    save_model(add_speakers(model, 2), tmp_path)
    stock, report = cast("Any", VitsModel).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    stock.noise_scale = stock.noise_scale_duration = 0.0
    with torch.no_grad():
        spoken = stock(IDS[None], speaker_id=1).waveform[0].numpy()
    assert abs(spoken - expected).max() < 1e-6
    again = load_model(tmp_path)
    assert again.config.num_speakers == 2
    assert torch.equal(again.embed_speaker.weight, model.embed_speaker.weight)


def test_every_new_layer_learns(make_model: MakeModel) -> None:
    """Zero, but not stuck there: after one step the speakers differ, and then the embeddings learn too."""
    model = add_speakers(make_model(), 2, embedding_size=4)
    model.double()
    ids = torch.tensor([0, 1, 1])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    for _ in range(2):
        optimizer.zero_grad()
        output = trained(model, ids)
        loss = (
            (output["waveform"] ** 2).sum()
            + output["duration_loss"].sum()
            + (output["flow_latents"] ** 2).sum()
        )
        loss.backward()
        optimizer.step()
    grown = {name: p for name, p in model.named_parameters() if "cond" in name and "conv_" not in name}
    assert len(grown) == 2 * 2 + 3 * 3
    still = [name for name, p in grown.items() if p.grad is None or not p.grad.any()]
    assert still == []
    assert model.embed_speaker.weight.grad is not None
    assert model.embed_speaker.weight.grad.abs().amax(1).min() > 0
    assert not torch.equal(trained(model, ids)["waveform"], trained(model, 1 - ids)["waveform"])


def test_folded_models_get_plain_layers(make_model: MakeModel) -> None:
    model = make_model()
    fold_weight_norm(model)
    expected = synthesize(model, IDS, seed=0).samples
    add_speakers(model, 2)
    assert not any("parametrizations" in name for name in model.state_dict())
    assert (synthesize(model, IDS, seed=0, speaker_id=1).samples == expected).all()


def test_conditioning_that_was_never_used_is_silenced(make_model: MakeModel) -> None:
    """One speaker, and layers for embeddings all the same: they never spoke, so they must not begin to."""
    model = make_model(num_speakers=1, speaker_embedding_size=4)
    expected = synthesize(model, IDS, seed=0).samples
    add_speakers(model, 2, embedding_size=6)
    assert (synthesize(model, IDS, seed=0, speaker_id=1).samples == expected).all()


def test_growing_keeps_every_old_row_to_the_bit(make_model: MakeModel) -> None:
    """finetune-hf-vits #48: a speaker more in a model that was trained."""
    model = make_model(**SEVERAL)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    voices = [synthesize(model, IDS, seed=1, speaker_id=speaker).samples for speaker in range(3)]
    add_speakers(model, 5, seed=3)
    assert model.config.num_speakers == 5
    for name, value in model.state_dict().items():
        assert torch.equal(value[:3] if name == "embed_speaker.weight" else value, before[name]), name
    for speaker, voice in enumerate(voices):
        assert (synthesize(model, IDS, seed=1, speaker_id=speaker).samples == voice).all()
    old, new = model.embed_speaker.weight[:3], model.embed_speaker.weight[3:]
    assert not torch.equal(new[0], new[1])
    assert ((new - old.mean(0)).abs() < 0.5 * old.std(0)).all()
    again = add_speakers(make_model(**SEVERAL), 5, seed=3)
    assert torch.equal(again.embed_speaker.weight, model.embed_speaker.weight)
    assert not torch.equal(
        add_speakers(make_model(**SEVERAL), 5, seed=4).embed_speaker.weight, again.embed_speaker.weight
    )


def test_replacing_changes_the_table_alone(make_model: MakeModel) -> None:
    model = make_model(**SEVERAL)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(0)
    replace_speakers(model, 40, seed=2)
    assert model.config.num_speakers == 40
    assert model.embed_speaker.weight.std().item() == pytest.approx(4**-0.5, rel=0.2)
    assert all(
        torch.equal(value, before[name])
        for name, value in model.state_dict().items()
        if name != "embed_speaker.weight"
    )
    torch.manual_seed(1)  # whatever was drawn before, the seed alone decides
    again = make_model(**SEVERAL)
    replace_speakers(again, 40, seed=2)
    assert torch.equal(again.embed_speaker.weight, model.embed_speaker.weight)


@pytest.mark.parametrize(("several", "count"), [(False, 1), (False, 0), (True, 2)])
def test_a_table_only_grows(make_model: MakeModel, several: bool, count: int) -> None:
    model = make_model(**(SEVERAL if several else {}))
    with pytest.raises(ModelError, match=f"cannot be made into one of {count}"):
        add_speakers(model, count)

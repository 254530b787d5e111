"""The voice against PyTorch beyond what each export checks: whole batches, long sentences, every kind of model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import VitsModel

from services.export import parity
from services.export.export import EXACT, describe
from services.export.graphs import SIGNATURES, build_graph
from services.export.parity import TOLERANCE, Case, Reference
from shared.errors import QualityError
from shared.modeling import load_model
from shared.provenance import Provenance
from shared.text import FrontEnd, Tokens
from shared.voice import Utterance, Voice
from shared.voice.durations import expand_prior
from shared.voice.engine import Arrays
from shared.voice.latents import Latents
from shared.voice.windows import plan_windows

from .conftest import Exported, MakeModel, decode_together

#: 199 characters, and with the blanks between them 399 tokens.
PARAGRAPH = parity.SENTENCES[-1]
LENGTHS = (1, 2, 7, 39, 100, 199)


def untouched(exported: Exported) -> VitsModel:
    """`transformers.VitsModel` itself; ours for the second residual block, which it does not know."""
    model = exported.model()
    if getattr(model.config, "resblock_type", "1") == "2":
        return model
    return VitsModel.from_pretrained(exported.model_folder)


def cases_of(voice: Voice) -> list[Case]:
    """Beginnings of a real sentence, the speakers in turn."""
    speakers = voice.spec.num_speakers
    return [
        Case(
            f"{length} characters",
            voice.front_end.tokenize(PARAGRAPH[:length]).ids,
            number % speakers,
            number,
        )
        for number, length in enumerate(LENGTHS)
    ]


@pytest.mark.parametrize("variant", EXACT)
def test_real_sentences_of_up_to_400_tokens(exported: Exported, variant: str) -> None:
    model = untouched(exported)
    with exported.voice(variant) as voice:
        cases = cases_of(voice)
        figures = [parity.compare(voice, parity.reference(model, case), case) for case in cases]
    assert [row.tokens for row in figures] == [2 * length + 1 for length in LENGTHS]
    assert figures[-1].frames > 400
    assert parity.Parity(figures, {}).failures() == []


def stacked(rows: Sequence[NDArray[Any]], more: int = 0) -> NDArray[Any]:
    """Rows of different lengths, filled up with zeros, and ``more`` of them after the longest."""
    longest = max(row.shape[-1] for row in rows) + more
    return np.stack([np.pad(row, [(0, 0)] * (row.ndim - 1) + [(0, longest - row.shape[-1])]) for row in rows])


def speak_together(voice: Voice, cases: Sequence[Case], expected: Sequence[Reference]) -> NDArray[np.float32]:
    """Encoder, flow and decoder once for all rows, with the reference's durations: ``[B, S]``."""
    speaker_id = np.array([case.speaker_id for case in cases])
    ids = [np.array(case.ids) for case in cases]
    encoder = {
        "input_ids": stacked(ids),
        "attention_mask": stacked([np.ones_like(row) for row in ids]),
        "duration_noise": stacked([row.duration_noise for row in expected]),
        "speaker_id": speaker_id,
    }
    prior = voice.engine.run("encoder", encoder)
    samples = [
        expand_prior(mean[: len(case.ids)], log_std[: len(case.ids)], row.durations, row.prior_noise)
        for mean, log_std, case, row in zip(
            prior["prior_mean"], prior["prior_log_std"], cases, expected, strict=True
        )
    ]
    halo = voice.spec.decoder.halo_frames
    flow = {
        "prior_sample": stacked(samples, halo),
        "frame_mask": stacked([np.ones_like(sample[:1]) for sample in samples], halo),
        "speaker_id": speaker_id,
    }
    latents = voice.engine.run("flow", flow)["latents"]
    return voice.engine.run("decoder", {"latents": latents, "speaker_id": speaker_id})["waveform"]


@pytest.mark.parametrize("variant", EXACT)
def test_rows_of_a_batch_are_what_the_model_says_of_each_alone(exported: Exported, variant: str) -> None:
    model = untouched(exported)
    with exported.voice(variant) as voice:
        cases = cases_of(voice)
        expected = [parity.reference(model, case) for case in cases]
        waveform = speak_together(voice, cases, expected)
        hop, halo = voice.spec.hop_length, voice.spec.decoder.halo_frames
    assert {case.speaker_id for case in cases} == set(range(voice.spec.num_speakers))
    for row, samples in zip(expected, waveform, strict=True):
        # Its last halo hears zero latents here, and nothing where it was alone.
        common = max(0, row.latents.shape[1] - halo) * hop
        np.testing.assert_allclose(samples[:common], row.waveform[:common], atol=TOLERANCE)


@pytest.mark.parametrize("variant", EXACT)
def test_a_batch_and_packed_windows_are_pytorchs_batch(exported: Exported, variant: str) -> None:
    """The decoder alone, to the very last sample of rows of mixed lengths and speakers."""
    model = untouched(exported)
    with exported.voice(variant) as voice:
        cases = cases_of(voice)
        latents = [parity.reference(model, case).latents for case in cases]
        halo, hop = voice.spec.decoder.halo_frames, voice.spec.hop_length
        speaker_id = np.array([case.speaker_id for case in cases])
        batch = stacked(latents, halo)
        together = voice.engine.run("decoder", {"latents": batch, "speaker_id": speaker_id})["waveform"]
        utterances = [
            Utterance(
                Tokens(case.ids, (), ()),
                np.zeros(0, np.int64),
                Latents.known(row),
                plan_windows(row.shape[1], voice.spec.decoder),
                case.speaker_id,
                case.seed,
            )
            for case, row in zip(cases, latents, strict=True)
        ]
        packed = decode_together(voice, utterances, most=3, order=Random(0))  # noqa: S311
    with torch.no_grad():
        speakers = None
        if voice.spec.num_speakers > 1:
            speakers = model.embed_speaker(torch.tensor(speaker_id)).unsqueeze(-1)
        expected = model.decoder(torch.tensor(batch), speakers)[:, 0].numpy()
    for row, whole, windowed, theirs in zip(latents, together, packed, expected, strict=True):
        end = row.shape[1] * hop
        np.testing.assert_allclose(whole[:end], theirs[:end], atol=TOLERANCE)
        np.testing.assert_allclose(windowed, theirs[:end], atol=TOLERANCE)


class TorchEngine:
    """The modules that are exported, before they are."""

    streams = 1

    def __init__(self, model: VitsModel) -> None:
        self.graphs: dict[str, nn.Module] = {name: build_graph(name, model) for name in SIGNATURES}

    def run(self, graph: str, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        names, outputs = SIGNATURES[graph]
        with torch.no_grad():
            found = self.graphs[graph](*(torch.tensor(inputs[name]) for name in names))
        found = found if isinstance(found, tuple) else (found,)
        return {name: value.numpy() for name, value in zip(outputs, found, strict=True)}

    def close(self) -> None:
        self.graphs.clear()


@pytest.mark.parametrize("resblock_type", ["1", "2"])
@pytest.mark.parametrize("num_speakers", [1, 3])
@pytest.mark.parametrize("stochastic", [True, False])
def test_every_kind_of_model_has_its_graphs(
    make_model: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
    resblock_type: str,
    num_speakers: int,
    stochastic: bool,
) -> None:
    """Alone and in a mixed batch; the exporter, which is slow, is left out."""
    kind = {"resblock_type": "2"} if resblock_type == "2" else {}
    folder: Path = make_model(
        use_stochastic_duration_prediction=stochastic,
        num_speakers=num_speakers,
        speaker_embedding_size=3 if num_speakers > 1 else 0,
        **kind,
    )
    front_end = FrontEnd.from_folder(folder)
    model = load_model(folder)
    spec = describe(model, front_end, speakers={}, provenance=Provenance(), model=None, language=None)
    voice = Voice(spec, TorchEngine(load_model(folder)))
    monkeypatch.setattr(parity, "RANDOM_LENGTHS", (1, 7, 60))
    found = parity.measure(model, voice)
    assert found.batch.keys() == set(parity.OUTPUTS) - {"voice"}
    assert {case.speaker_id for case in parity.choose_cases(model, front_end)} == set(range(num_speakers))
    assert max(found.batch.values()) <= TOLERANCE


class Company(TorchEngine):
    """A decoder whose rows hear one another."""

    def run(self, graph: str, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        outputs = super().run(graph, inputs)
        if graph == "decoder" and len(outputs["waveform"]) > 1:
            outputs["waveform"] = outputs["waveform"] + outputs["waveform"][::-1]
        return outputs


def test_a_decoder_that_is_right_only_alone_is_found_out(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "RANDOM_LENGTHS", (7, 60))
    with exported.voice() as voice, pytest.raises(QualityError) as caught:
        parity.measure(exported.model(), Voice(voice.spec, Company(exported.model())))
    (line,) = str(caught.value).splitlines()[1:]
    assert "a mixed batch: waveform differs by" in line


def test_rounding_in_a_batch_is_allowed_and_reported() -> None:
    figures = parity.Figures("x", 1, 1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0.0)
    batch = {"log_duration": 2e-4, "waveform": 3e-4}
    assert len(parity.Parity([figures], batch).failures()) == 2
    found = parity.Parity([figures], batch, 6e-5, 8e-5)
    assert found.failures() == []
    said = found.to_json()
    assert (said["batch_duration_rounding"], said["batch_rounding"]) == (6e-5, 8e-5)

"""A whole export: parity, the law of a voice on real graphs, and that nothing bad is ever published."""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import onnx
import pytest
import torch
from onnx import numpy_helper
from transformers import VitsModel

from services import store_cli
from services.export import build, cli, export, parity
from services.export.build import Wishes, build_voice
from services.export.cli import main
from services.export.export import export_voice
from services.export.progress import Progress
from shared.errors import (
    CorruptObjectError,
    ModelError,
    NotFoundError,
    QualityError,
    StoreError,
    UserError,
)
from shared.manifests import Kind
from shared.model_source import ModelSource
from shared.modeling import load_model
from shared.provenance import Provenance
from shared.registry import Registry, Version
from shared.store import Store
from shared.voice import VoiceSpec
from shared.voice.noise import Stream, standard_normal

from .conftest import Exported, FakeJudges

TEXT = "la persona con la que desea hablar no se encuentra en este momento, por favor espere."


def test_the_voice_agrees_with_torch(exported: Exported) -> None:
    report = json.loads((exported.folder / "report.json").read_text())["parity"]
    assert {case["tokens"] for case in report["cases"]} >= {1, 2, 399, 400}
    assert max(report["max_abs_difference"].values()) < 1e-4
    assert max(report["max_abs_difference_in_a_batch"].values()) < 1e-4
    assert report["durations"]["tokens"] > 500
    assert report["durations"]["largest_distance_to_integer"] <= 1e-4


def test_the_voice_agrees_with_stock_transformers(
    deterministic: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another road than the export's own check: the noise is put into stock `VitsModel.forward` by hand."""
    voice = deterministic.voice()
    utterance = voice.prepare(TEXT, seed=7)
    frames = utterance.latents.shape[1]
    noise = torch.tensor(
        standard_normal(7, Stream.PRIOR, length=frames, channels=voice.spec.latent_channels)
    )[None]
    monkeypatch.setattr(torch, "randn_like", lambda like: noise)
    with torch.no_grad():
        stock = VitsModel.from_pretrained(deterministic.model_folder)(torch.tensor([utterance.tokens.ids]))
    samples = voice.synthesize(TEXT, seed=7).samples
    common = len(samples) - voice.spec.decoder.halo_frames * voice.spec.hop_length
    assert stock.waveform.shape[1] == len(samples)
    np.testing.assert_allclose(samples[:common], stock.waveform[0, :common].numpy(), atol=1e-4)


def test_streamed_whole_alone_and_in_a_crowd(exported: Exported) -> None:
    voice = exported.voice()
    seeds = range(6)
    alone = [voice.synthesize(TEXT, seed=seed, speaker=seed % voice.spec.num_speakers) for seed in seeds]
    with ThreadPoolExecutor(4) as crowd:
        together = list(
            crowd.map(
                lambda seed: np.concatenate(
                    list(voice.stream(TEXT, seed=seed, speaker=seed % voice.spec.num_speakers))
                ),
                seeds,
            )
        )
    for seed in seeds:
        np.testing.assert_allclose(together[seed], alone[seed].samples, atol=1e-5)
        utterance = voice.prepare(TEXT, seed=seed, speaker=seed % voice.spec.num_speakers)
        assert len(utterance.windows) > 2
        halo = voice.spec.decoder.halo_frames
        whole = np.pad(utterance.latents, ((0, 0), (0, halo)))[None]
        inputs = {"latents": whole, "speaker_id": np.array([utterance.speaker_id])}
        decoded = voice.engine.run("decoder", inputs)["waveform"][0, : -halo * voice.spec.hop_length]
        np.testing.assert_allclose(alone[seed].samples, decoded, atol=1e-5)


def test_the_flow_in_parts_is_the_flow_at_once(exported: Exported) -> None:
    voice = exported.voice()
    speaker = voice.spec.num_speakers - 1
    parts = voice.prepare(TEXT, seed=1, speaker=speaker)
    assert not parts.flow.until(0)[:, -1].any()  # there are two, the second of which nobody has asked for
    voice.spec = voice.spec.model_copy(update={"flow_halo_frames": None})
    whole = voice.prepare(TEXT, seed=1, speaker=speaker)
    np.testing.assert_allclose(parts.latents, whole.latents, atol=1e-5)


def test_text_past_the_largest_bucket(exported: Exported) -> None:
    voice = exported.voice()
    speech = voice.synthesize(TEXT * 4, seed=0)
    tokens = sum(len(segment.tokens.ids) for segment in speech.script.segments)
    assert tokens > voice.spec.token_buckets[-1]
    frames = sum(int(durations.sum()) for durations in speech.durations)
    pauses = sum(segment.pause_samples(voice.sampling_rate) for segment in speech.script.segments)
    assert len(speech.samples) == frames * voice.spec.hop_length + pauses


def test_what_the_voice_says_of_itself(stochastic: Exported, deterministic: Exported) -> None:
    spec = VoiceSpec.read(stochastic.folder)
    assert spec.speakers == {"ana": 0, "luis": 1, "eva": 2}
    assert (spec.num_speakers, spec.hop_length, spec.latent_channels) == (3, 8, 4)
    assert (spec.language, spec.licence) == ("spa", "CC0-1.0")
    assert VoiceSpec.read(deterministic.folder).speakers == {}


@pytest.fixture
def no_exporter(monkeypatch: pytest.MonkeyPatch, deterministic: Exported) -> None:
    """Graphs that were exported before stand in for the exporter, which is slow."""

    def copy(name: str, model: VitsModel, path: Path) -> None:
        shutil.copy(deterministic.folder / "fp32" / f"{name}.onnx", path)

    monkeypatch.setattr(export, "export_graph", copy)


@pytest.mark.usefixtures("no_exporter")
def test_a_folder_in_and_a_published_voice_out(
    deterministic: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "store")
    arguments = [str(deterministic.model_folder), "--name", "eva", "--store", store, "--alias", "production"]
    arguments += ["--variants", "fp32"]
    assert main([*arguments, "--output", str(tmp_path / "voice"), "--language", "es"]) == 0
    (tmp_path / "ordinary").mkdir()
    assert (tmp_path / "voice").stat().st_mode == (tmp_path / "ordinary").stat().st_mode

    registry = Registry(Store.open(store))
    version = registry.resolve("voices", "eva@production")
    assert registry.aliases("voices", "eva") == {"latest": version.id, "production": version.id}
    files = {entry.path for entry in version.manifest.files}
    assert files == {"voice.json", "report.json", "fp32/encoder.onnx", "fp32/flow.onnx", "fp32/decoder.onnx"}
    assert version.manifest.licence == "unknown"
    for folder in (registry.fetch(version), tmp_path / "voice"):
        spec = VoiceSpec.read(folder)
        assert (spec.language, spec.model) == ("es", None)
    printed = capsys.readouterr().out
    assert "Warning: nobody said what licence" in printed
    assert f"eva@production is now {version.id}" in printed


@pytest.mark.usefixtures("no_exporter")
def test_a_registered_model_hands_down_its_origin(deterministic: Exported, tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    registry = Registry(store)
    model = registry.publish(
        "models",
        "eva",
        deterministic.model_folder,
        licence="CC-BY-SA-3.0",
        sources=["Allison"],
        consent="a letter",
        lineage={},
    )
    assert main(["eva", "--store", store.url, "--variants", "fp32"]) == 0
    manifest = registry.resolve("voices", "eva@latest").manifest
    assert (manifest.licence, manifest.sources, manifest.consent) == (
        "CC-BY-SA-3.0",
        ("Allison",),
        "a letter",
    )
    assert manifest.lineage == {
        "model": {"name": "eva", "version": model.id},
        "settings": {"variants": ["fp32"]},
    }
    spec = VoiceSpec.read(registry.fetch(registry.resolve("voices", "eva")))
    assert spec.model is not None
    assert (spec.model.version, spec.licence, spec.sources) == (model.id, "CC-BY-SA-3.0", ["Allison"])


@pytest.fixture
def published(deterministic: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A store with the model ``eva``, of which voices are made at once."""

    def write(source: ModelSource, folder: Path, arguments: argparse.Namespace) -> VoiceSpec:
        shutil.copytree(deterministic.folder, folder, dirs_exist_ok=True)
        return VoiceSpec.read(folder)

    monkeypatch.setattr(cli, "write_voice", write)
    registry = Registry(Store.open(str(tmp_path / "store")))
    publish(registry, deterministic)
    return registry


def publish(registry: Registry, exported: Exported) -> Version:
    return registry.publish(
        "models", "eva", exported.model_folder, licence="CC0-1.0", sources=[], consent=None, lineage={}
    )


class Builder:
    """Stands for `build_voice`: remembers what was wished for, and writes a voice that was exported before."""

    def __init__(self, voice: Exported) -> None:
        self.voice = voice
        self.asked: list[tuple[str | None, Wishes]] = []
        self.reports: tuple[str, ...] = ()

    def __call__(self, source: ModelSource, folder: Path, wishes: Wishes, progress: Progress) -> VoiceSpec:
        self.asked.append((source.version.id if source.version else None, wishes))
        shutil.copytree(self.voice.folder, folder, dirs_exist_ok=True)
        for name in self.reports:
            (folder / name).touch()
        return VoiceSpec.read(folder)


@pytest.fixture
def builder(deterministic: Exported, monkeypatch: pytest.MonkeyPatch) -> Builder:
    made = Builder(deterministic)
    monkeypatch.setattr(build, "build_voice", made)
    return made


@pytest.mark.parametrize(
    ("options", "wishes"),
    [
        ("", Wishes()),
        ("--no-gate", Wishes(judge=False)),
        ("--variants bf16,fp32-openvino", Wishes(variants=("bf16", "fp32-openvino"))),
        ("--language es --sentences lines.txt", Wishes(language="es", sentences=Path("lines.txt"))),
        ("--recogniser whisper", Wishes(recogniser=Path("whisper"))),
    ],
)
def test_what_is_typed_is_what_is_wished_for(
    deterministic: Exported,
    builder: Builder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: str,
    wishes: Wishes,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lines.txt").write_text("hola\n")
    registry = Registry(Store.open(str(tmp_path / "store")))
    model = publish(registry, deterministic)
    registry.move_alias("models", "eva", "best", model.id)
    publish(registry, deterministic)
    command = ["--model", "eva@best", "--voice", "ana", "--store", registry.store.url, *options.split()]
    assert main(command) == 0
    assert builder.asked == [(model.id, wishes)]
    assert registry.names("voices") == ["ana"]
    assert registry.resolve("voices", "ana@latest").manifest.lineage["model"] == {
        "name": "eva",
        "version": model.id,
    }


@pytest.mark.parametrize("page", ["report.html", "report.json"])
def test_where_the_figures_are_is_said(
    deterministic: Exported,
    builder: Builder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    page: str,
) -> None:
    builder.reports = (page,)
    output, store = tmp_path / "voice", Store.open(str(tmp_path / "store"))
    command = [str(deterministic.model_folder), "--name", "eva", "--output", str(output)]
    assert main([*command, "--store", store.url]) == 0
    printed = capsys.readouterr().out
    version = Registry(store).resolve("voices", "eva")
    for path in (output / page, tmp_path / "store" / version.prefix / page):
        assert path.is_file()
        assert f"figures are in {path}" in printed
    bucket = cli.where_to_read(Store.open("memory://voices"), version, page)
    assert bucket == (
        f"memory://voices/{version.prefix}/{page}; 'vits voices copy {version.reference} ./copy "
        f"--store memory://voices' puts it into ./copy/{version.prefix}/{page}"
    )


def test_what_was_asked_for_by_name_and_did_not_pass_is_an_error_beside_the_voice(
    deterministic: Exported, builder: Builder, tmp_path: Path
) -> None:
    store = Store.open(str(tmp_path / "store"))
    command = [str(deterministic.model_folder), "--name", "eva", "--store", store.url, "--variants"]
    assert main([*command, "fp32,bf16"]) == 0
    for wished, refused in (
        ("fp32,int8", "int8"),  # the exact one is always made, and tells nothing of the other
        ("bf16,int8,int8-bf16", "int8, int8-bf16"),
    ):
        with pytest.raises(QualityError, match=f"for, {refused} did not.*has fp32, fp32-openvino, bf16"):
            main([*command, wished])
    version = Registry(store).resolve("voices", "eva@latest")
    assert len(Registry(store).versions("voices", "eva")) == 3
    assert "fp32/decoder.onnx" in {entry.path for entry in version.manifest.files}


def test_a_full_disk_is_told_with_the_folder(
    deterministic: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    command = [str(deterministic.model_folder), "--store", str(tmp_path / "store")]
    with monkeypatch.context() as patch:
        patch.setattr(build, "build_voice", full)
        with pytest.raises(UserError, match=r"vits-export-.*/voice cannot be written \(No space.*TMPDIR"):
            main(command)
    monkeypatch.setattr("tempfile.TemporaryDirectory", full)
    monkeypatch.setenv("TMPDIR", "/full")
    with pytest.raises(UserError, match=r"/full cannot be written \(No space.*TMPDIR"):
        main(command)
    assert not (tmp_path / "store").exists()


@pytest.mark.usefixtures("no_exporter")
def test_every_choice_is_in_the_report(
    deterministic: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the model to a voice with every link in its place but the exporter and the judges."""
    monkeypatch.setattr("shared.voice.engine.cpu_features", lambda: frozenset({"avx512_vnni"}))
    monkeypatch.setenv("VITS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "Judges", lambda **_: FakeJudges(wrong=100))
    monkeypatch.setattr(parity, "RANDOM_LENGTHS", (7,))
    folder = tmp_path / "voice"
    folder.mkdir()
    source = ModelSource(deterministic.model_folder, "eva", Provenance(), None)
    wishes = Wishes(variants=("int8-onnxruntime",), language="es")
    spec = build_voice(source, folder, wishes)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report.keys() == {"schema_version", "parity", "parity_of_variants", "quantisation", "gate"}
    assert report["parity"].keys() >= {"versions", "tolerance", "max_abs_difference", "durations", "cases"}
    assert report["quantisation"].keys() == {
        "sentences",
        "calibration",
        "equalisation_alpha",
        "search",
        "int8_layers",
        "decoder_size_against_fp32",
    }
    assert report["quantisation"]["calibration"].keys() == {"sentences", "seconds", "seed", "percentile"}
    assert report["gate"].keys() >= {"judged", "why_not_judged", "about", "limits", "reference", "variants"}
    assert report["gate"]["about"]["computed_by"]["cpu_features"] == "avx512_vnni"
    (speed,) = report["gate"]["variants"]["int8-onnxruntime"]["measures"]
    assert (speed["name"], report["gate"]["judged"]) == ("speed against fp32", False)
    assert ("int8-onnxruntime" in spec.variants) == speed["passed"]
    assert (folder / "report.html").is_file()


def export_if_new(registry: Registry, *options: str) -> list[str]:
    """Export the model ``eva``, if new; the voice's versions."""
    arguments = ["eva", "--store", registry.store.url, "--variants", "fp32", "--if-new", *options]
    assert main(arguments) == 0
    return registry.versions("voices", "eva")


def test_what_is_there_is_not_made_again_and_a_rollback_is_left_alone(
    published: Registry, deterministic: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where a machine is started again whose start exports."""
    (first,) = export_if_new(published)
    publish(published, deterministic)
    assert len(versions := export_if_new(published)) == 2  # of another version of the model
    published.roll_back("voices", "eva", "latest")
    assert export_if_new(published) == versions
    assert published.alias("voices", "eva", "latest") == first
    assert f"has eva/{versions[1]}, made of the same" in capsys.readouterr().out


@pytest.mark.parametrize("here", [True, False], ids=["of this store's model", "of another store's"])
def test_a_voice_folder_keeps_its_licence_and_its_model_when_it_is_published(
    deterministic: Exported, tmp_path: Path, here: bool
) -> None:
    registry = Registry(Store.open(str(tmp_path / "store")))
    model = registry.publish(
        "models", "eva", deterministic.model_folder, licence="x", sources=[], consent="a letter", lineage={}
    )
    folder = shutil.copytree(deterministic.folder, tmp_path / "voice")
    spec = json.loads((folder / "voice.json").read_text())
    reference = {"name": "eva", "version": model.id if here else "20260101T000000-00000000"}
    spec |= {"licence": "CC-BY-SA-3.0", "sources": ["Allison"], "model": reference}
    (folder / "voice.json").write_text(json.dumps(spec))
    assert store_cli.main(["voices", "publish", str(folder), "eva", "--store", registry.store.url]) == 0
    manifest = registry.resolve("voices", "eva").manifest
    assert (manifest.licence, manifest.sources) == ("CC-BY-SA-3.0", ("Allison",))
    assert manifest.consent == ("a letter" if here else None)
    assert manifest.lineage == ({"model": reference} if here else {"folder": str(folder)})


@pytest.mark.parametrize("fault", [CorruptObjectError("damaged"), NotFoundError("deleted meanwhile")])
def test_a_voice_that_cannot_be_read_does_not_stand_in_the_way(
    published: Registry, deterministic: Exported, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    (first,) = export_if_new(published)
    publish(published, deterministic)
    _, newer = export_if_new(published)
    resolve = Registry.resolve

    def damaged(self: Registry, kind: Kind, reference: str) -> Version:
        if reference == f"eva/{newer}":
            raise fault
        return resolve(self, kind, reference)

    monkeypatch.setattr(Registry, "resolve", damaged)
    assert export_if_new(published)[:2] == [first, newer]


@pytest.mark.parametrize("other", [["--language", "es"], ["--variants", "fp32,fp32-openvino"], ["--no-gate"]])
def test_the_same_model_with_other_settings_is_another_voice(published: Registry, other: list[str]) -> None:
    assert len(export_if_new(published)) == 1
    assert len(export_if_new(published, *other)) == 2
    assert len(export_if_new(published, *other)) == 2


def test_an_alias_that_has_never_pointed_to_it_does_so_then(published: Registry) -> None:
    """It was not asked for the first time, or the export broke off between the voice and its alias."""
    (voice,) = export_if_new(published)
    export_if_new(published, "--alias", "production")
    assert published.aliases("voices", "eva") == {"latest": voice, "production": voice}
    published.store.delete("aliases/voices/eva/latest/0000000001.json")
    assert export_if_new(published) == [voice]
    assert published.alias("voices", "eva", "latest") == voice


def test_if_new_needs_a_model_and_a_voice_in_the_store(published: Registry, deterministic: Exported) -> None:
    store = ["--if-new", "--store", published.store.url]
    with pytest.raises(UserError, match="has none"):
        main([str(deterministic.model_folder), *store])
    with pytest.raises(UserError, match="leave out --output"):
        main(["eva", *store, "--output", "voice"])
    with pytest.raises(UserError, match="nowhere cannot be read"):
        main(["eva", *store, "--sentences", "nowhere"])
    assert published.names("voices") == []


def test_what_cannot_be_written_is_said_before_anything_is_made(
    published: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only store was told of after an hour of judging."""
    monkeypatch.setattr(cli, "write_voice", lambda *_: pytest.fail("the voice was made first"))
    (tmp_path / "file").touch()
    output = ["--output", str(tmp_path / "file/voice")]
    for format_ in ([], ["--format", "piper"]):
        with pytest.raises(UserError, match=r"file/voice cannot be written .*give another --output"):
            main(["eva", "--store", published.store.url, *output, *format_])
    (tmp_path / "store/voices").touch()  # in the way of any voice
    with pytest.raises(StoreError, match=r"could not create .*/voices/eva/.*/claim\.json"):
        main(["eva", "--store", published.store.url])


def spoil(path: Path, number: float) -> None:
    """Change one weight of a graph."""
    model = onnx.load(path)
    largest = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    weights = numpy_helper.to_array(largest).copy()
    weights.flat[0] = number
    largest.CopyFrom(numpy_helper.from_array(weights, largest.name))
    onnx.save(model, path)


@pytest.mark.parametrize("graph", ["encoder", "flow", "decoder"])
@pytest.mark.parametrize("number", [5.0, float("nan")])
def test_nothing_is_published_when_a_graph_differs(
    deterministic: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph: str, number: float
) -> None:
    def copy_and_spoil(name: str, model: VitsModel, path: Path) -> None:
        shutil.copy(deterministic.folder / "fp32" / f"{name}.onnx", path)
        if name == graph:
            spoil(path, number)

    monkeypatch.setattr(export, "export_graph", copy_and_spoil)
    monkeypatch.setattr(parity, "RANDOM_LENGTHS", (60, 7))
    monkeypatch.setattr(parity, "SENTENCES", parity.SENTENCES[:-1])
    arguments = [
        str(deterministic.model_folder),
        "--store",
        str(tmp_path / "store"),
        "--output",
        str(tmp_path / "out"),
    ]
    with pytest.raises(QualityError) as caught:
        main(arguments)
    assert "differs by" in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "store").exists()


def test_durations_may_differ_only_at_whole_numbers() -> None:
    figures = parity.Figures("x", 1, 1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1, 5e-5)
    assert parity.Parity([figures], {}).failures() == []
    figures = parity.Figures("x", 1, 1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1, 2e-4)
    assert "from a whole number" in parity.Parity([figures], {}).failures()[0]
    figures = parity.Figures("x", 1, 1, 0.0, 0.0, 0.0, 0.0, 0.0, float("nan"), 0, 0.0)
    assert "voice differs by nan" in parity.Parity([figures], {}).failures()[0]


def test_samples_may_differ_as_much_as_pytorch_rounds_and_nothing_else_may() -> None:
    figures = parity.Figures("x", 1, 1, 0.0, 0.0, 0.0, 0.0, 2e-4, 3e-4, 0, 0.0)
    assert figures.beyond()
    assert len(parity.Parity([figures], {}).failures()) == 2
    assert parity.Parity([replace(figures, rounding=8e-5)], {}).failures() == []
    assert len(parity.Parity([replace(figures, rounding=6e-5)], {}).failures()) == 1
    figures = parity.Figures("x", 1, 1, 0.0, 0.0, 0.0, 2e-4, 0.0, 0.0, 0, 0.0, rounding=1.0)
    assert "latents differs by" in parity.Parity([figures], {}).failures()[0]


def test_log_durations_may_differ_as_much_as_pytorch_rounds_them() -> None:
    """In the demo, once, a batch of random tokens differed by 1.04e-4 and no voice came of it."""
    figures = parity.Figures("x", 1, 1, 0.0, 0.0, 1.04e-4, 0.0, 0.0, 0.0, 0, 0.0, rounding=1.0)
    assert parity.Parity([figures], {}).failures() == [
        "x: log_duration differs by 0.000104, more than 0.0001"
    ]
    assert parity.Parity([replace(figures, duration_rounding=3e-5)], {}).failures() == []
    batch = {"prior_mean": 0.0, "log_duration": 1.04e-4}
    assert len(parity.Parity([], batch).failures()) == 1
    assert parity.Parity([], batch, batch_duration_rounding=3e-5).failures() == []
    assert len(parity.Parity([], batch | {"prior_mean": 1.04e-4}, 1.0).failures()) == 1


def test_what_pytorch_rounds_of_durations_is_little_and_found_without_a_trace(
    deterministic: Exported,
) -> None:
    model = load_model(deterministic.model_folder)
    case = parity.Case("x", (1, 2, 3, 2, 1), 0, seed=0)
    before = parity.reference(model, case)
    assert 0 < parity.duration_rounding(model, before, case) < 1e-5
    np.testing.assert_array_equal(parity.reference(model, case).waveform, before.waveform)


def test_the_rounding_is_pytorchs_own(exported: Exported) -> None:
    model, voice = exported.model(), exported.voice()
    case = parity.choose_cases(model, voice.front_end)[0]
    found = parity.rounding(model, parity.reference(model, case), case)
    assert 0 < found < 1e-4


def test_a_tokenizer_of_another_model(deterministic: Exported, tmp_path: Path) -> None:
    shutil.copytree(deterministic.model_folder, tmp_path / "model")
    (tmp_path / "model" / "vocab.json").write_text(json.dumps({"_": 0, "a": 99}))
    with pytest.raises(ModelError, match="token ids up to 99"):
        export_voice(tmp_path / "model", tmp_path / "out", provenance=Provenance())
    assert not (tmp_path / "out").exists()


def test_a_model_whose_training_went_astray(deterministic: Exported, tmp_path: Path) -> None:
    model = deterministic.model()
    with torch.no_grad():
        model.text_encoder.project.weight[0, 0, 0] = float("nan")
    shutil.copytree(deterministic.model_folder, tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match=r"not numbers \(text_encoder.project.weight and 0 more\)"):
        export_voice(tmp_path / "model", tmp_path / "out", provenance=Provenance())


@pytest.mark.parametrize("speakers", ["[1]", '{"ana": "0"}', "{"])
def test_a_bad_table_of_speakers(deterministic: Exported, tmp_path: Path, speakers: str) -> None:
    shutil.copytree(deterministic.model_folder, tmp_path / "model")
    (tmp_path / "model" / "speakers.json").write_text(speakers)
    with pytest.raises(ModelError, match=r"speakers\.json"):
        export_voice(tmp_path / "model", tmp_path / "out", provenance=Provenance())


def test_a_model_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotFoundError):
        main(["nobody", "--store", str(tmp_path)])
    with pytest.raises(UserError, match="There is no folder"):
        main(["./nobody", "--store", str(tmp_path)])
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        main([str(tmp_path / "model"), "--store", str(tmp_path)])
    assert "Warning" not in capsys.readouterr().out  # of a licence that nothing has
    with pytest.raises(UserError, match="cannot be a voice's name"):
        main([str(tmp_path / "model"), "--name", "Not A Name", "--store", str(tmp_path)])


@pytest.mark.usefixtures("no_exporter")
def test_a_store_without_space_is_told_and_holds_no_voice(
    deterministic: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(str(tmp_path / "store"))
    put = obstore.put

    def full(client: Any, path: str, data: Any, **options: Any) -> Any:
        if path.endswith("decoder.onnx"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return put(client, path, data, **options)

    monkeypatch.setattr(obstore, "put", full)
    arguments = [str(deterministic.model_folder), "--name", "eva", "--store", store.url, "--variants", "fp32"]
    with pytest.raises(StoreError, match=r"No space left on device.*Free some space there"):
        main(arguments)
    monkeypatch.undo()
    registry = Registry(store)
    with pytest.raises(NotFoundError):
        registry.resolve("voices", "eva")
    assert registry.aliases("voices", "eva") == {}


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("config.json", '{"model_type": "bert"}', "a model of type 'bert'; only VITS models"),
        ("vocab.json", None, r"vocab\.json"),
        ("model.safetensors", "not weights", "weights in .* cannot be loaded"),
    ],
)
def test_what_is_no_model_is_told_and_nothing_is_written(
    deterministic: Exported, tmp_path: Path, file: str, text: str | None, complaint: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(deterministic.model_folder, folder)
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text)
    with pytest.raises(ModelError, match=complaint):
        main([str(folder), "--store", str(tmp_path / "store"), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "store").exists()

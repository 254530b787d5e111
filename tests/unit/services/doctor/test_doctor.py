"""``vits doctor`` as a command, and what it says of datasets and configurations."""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from services.cli import main
from services.doctor import cli, machine, training
from services.doctor.finding import Finding, fail, note, ok
from services.training.config import TrainingConfig
from shared.audio import write_wav
from shared.registry import Registry
from shared.store import Store
from tests.conftest import write_small_model


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    import numpy as np

    folder = tmp_path / "data"
    folder.mkdir()
    rows = ["file_name,text"]
    for number in range(4):
        samples = np.sin(np.arange(16000) / 20).astype(np.float32)
        write_wav(folder / f"{number}.wav", samples, 16000)
        rows.append(f"{number}.wav,hola")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("doctor") / "model")


def write_config(folder: Path, **keys: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(keys), encoding="utf-8")
    return path


def make_config(**keys: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"model_name_or_path": "m", "dataset_name": "d", **keys})


def findings(path: Path) -> dict[str, Finding]:
    return {finding.check: finding for finding in training.configuration(path)}


def test_a_configuration_that_can_be_trained(
    tmp_path: Path, model: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: argparse.Namespace(free=1e12))
    monkeypatch.setattr(training, "memory_free", lambda: 64.0)
    path = write_config(
        tmp_path,
        model_name_or_path=str(model),
        dataset_name=str(recordings),
        output_dir=str(tmp_path / "out"),
    )
    found = findings(path)
    assert {finding.status for finding in found.values()} <= {"ok", "note"}
    assert set(found) >= {"configuration", "model", "dataset", "memory of a step", "disk of the run"}
    assert "4 recordings" in found["dataset"].said


def test_a_configuration_with_faults_lists_them_all(tmp_path: Path) -> None:
    path = write_config(tmp_path, learning_rat=1, seed="x", dataset_name="d", model_name_or_path="m")
    found = findings(path)
    assert list(found) == ["configuration"]
    assert found["configuration"].status == "fail"
    assert "learning_rat" in found["configuration"].said
    assert "seed" in found["configuration"].said
    path.write_text("{nonsense")
    assert findings(path)["configuration"].status == "fail"


def test_a_model_that_is_nowhere(tmp_path: Path, recordings: Path) -> None:
    keys = {"dataset_name": str(recordings), "store": str(tmp_path / "store")}
    for name, says in (
        ("./absent", "config.json cannot be read"),
        ("owner/absent", "hub cannot be reached"),
        ("absent@production", "has no 'absent'"),
    ):
        found = findings(write_config(tmp_path, model_name_or_path=name, **keys))["model"]
        assert found.status == "fail"
        assert says in found.said
        assert found.remedy


def test_a_misspelt_model_folder_is_told_its_neighbour(
    tmp_path: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/spanish voice").mkdir(parents=True)
    keys = {"dataset_name": str(recordings), "store": str(tmp_path / "store")}
    found = findings(write_config(tmp_path, model_name_or_path="models/spanish voce", **keys))["model"]
    assert found.status == "fail"
    assert "did you mean 'models/spanish voice'?" in found.said


def test_a_model_in_the_store_is_not_fetched(
    tmp_path: Path, model: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    registry = Registry(Store.open(str(store)))
    registry.publish("models", "tiny", model, licence="CC0-1.0", sources=[], consent=None, lineage={})
    monkeypatch.setattr(Registry, "fetch", lambda *_: pytest.fail("it was fetched"))
    path = write_config(tmp_path, model_name_or_path="tiny", dataset_name=str(recordings), store=str(store))
    assert findings(path)["model"].status == "ok"


def test_a_dataset_with_bad_rows_and_one_that_is_not_there(
    tmp_path: Path, model: Path, recordings: Path
) -> None:
    (recordings / "2.wav").unlink()
    path = write_config(tmp_path, model_name_or_path=str(model), dataset_name=str(recordings))
    found = findings(path)["dataset"]
    assert found.status == "fail"
    assert "2.wav" in found.said
    assert "vits data inspect" in found.remedy
    (absent,) = training.dataset(str(tmp_path / "absent"))
    assert absent.status == "fail"
    (recordings / "metadata.csv").write_text("file_name,words\n1.wav,hola\n")
    (columns,) = training.dataset(str(recordings))
    assert columns.status == "fail"
    assert "words" in columns.said


def test_splits_that_are_not_there(tmp_path: Path, model: Path, recordings: Path) -> None:
    """As training has them: it holds validation and test out of a dataset that names no splits."""
    keys = {"model_name_or_path": str(model), "dataset_name": str(recordings)}
    path = write_config(tmp_path, **keys, eval_split_name="validation", do_eval=True)
    assert findings(path)["dataset"].status == "ok"
    path = write_config(tmp_path, **keys, train_split_name="trian", eval_split_name="held-out", do_eval=True)
    told = [finding for finding in training.configuration(path) if finding.check == "dataset"]
    assert [finding.status for finding in told] == ["fail", "fail"]
    assert "no recordings in split 'trian'" in told[0].said
    assert "no recordings in split 'held-out'" in told[1].said
    assert "validation (1)" in told[1].said
    assert "eval_split_name" in told[1].remedy
    path = write_config(tmp_path, **keys, eval_split_name="held-out")
    assert findings(path)["dataset"].status == "ok", "nothing is evaluated"


def test_slices_that_are_longer_than_the_default_are_named_where_memory_does_not_suffice(
    tmp_path: Path, model: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"model_name_or_path": str(model), "dataset_name": str(recordings), "output_dir": str(tmp_path)}
    monkeypatch.setattr(training, "memory_free", lambda: 4.0)
    usual, longer = (
        findings(write_config(tmp_path, **keys, per_device_train_batch_size=64, segment_size=size))[
            "memory of a step"
        ]
        for size in (8192, 16384)
    )
    assert "segment_size" not in usual.remedy
    assert "gradient_checkpointing, segment_size 8192, a smaller" in longer.remedy


def test_memory_that_does_not_fit_names_a_batch_that_does(
    tmp_path: Path, model: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(
        tmp_path,
        model_name_or_path=str(model),
        dataset_name=str(recordings),
        output_dir=str(tmp_path),
        per_device_train_batch_size=64,
    )
    monkeypatch.setattr(training, "memory_free", lambda: 4.0)
    found = findings(path)["memory of a step"]
    assert found.status == "fail"
    batch = int(re.search(r"per_device_train_batch_size (\d+) fits", found.remedy)[1])  # type: ignore[index]
    config, size = make_config(), training.size_of(model)
    longest = training.step_bytes(config, size, batch) / 1e9
    assert longest <= 4.0 < training.step_bytes(config, size, batch + 1) / 1e9
    monkeypatch.setattr(training, "memory_free", lambda: 0.5)
    assert "not even one recording" in findings(path)["memory of a step"].remedy


@pytest.mark.parametrize(("use_cpu", "said"), [(False, "6.0 GB free on the GPU"), (True, "4.0 GB free")])
def test_where_a_step_is_taken_on_a_gpu_its_memory_counts(
    tmp_path: Path,
    model: Path,
    recordings: Path,
    monkeypatch: pytest.MonkeyPatch,
    use_cpu: bool,
    said: str,
) -> None:
    path = write_config(
        tmp_path,
        model_name_or_path=str(model),
        dataset_name=str(recordings),
        output_dir=str(tmp_path),
        use_cpu=use_cpu,
    )
    monkeypatch.setattr(training, "memory_free", lambda: 4.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (6_000_000_000, 24_000_000_000))
    assert findings(path)["memory of a step"].said.endswith(said)


def test_the_estimate_of_memory_is_what_was_measured() -> None:
    """The figures of docs/log.md: MMS's size, on the CPU."""
    size = training.Size(36.3e6, 62.5)
    for bf16, saving, batch, frames, measured in (
        (False, False, 16, 400, 7.06),
        (False, True, 16, 400, 3.76),
        (True, False, 4, 300, 2.55),
        (True, False, 8, 400, 3.49),
        (True, False, 16, 400, 5.11),
        (True, False, 32, 400, 7.81),
        (True, True, 8, 400, 2.45),
        (True, True, 16, 400, 2.93),
    ):
        config = make_config(bf16=bf16, gradient_checkpointing=saving, max_duration_in_seconds=frames / 62.5)
        assert training.step_bytes(config, size, batch) / 1e9 == pytest.approx(measured, rel=0.05)


def test_the_estimate_grows_with_the_slices() -> None:
    """What longer slices took: MMS's size, 400 frames a recording, on the CPU, as in docs/log.md."""
    size = training.Size(36.3e6, 62.5)

    def estimated(batch: int, segment: int, **changes: Any) -> float:
        config = make_config(max_duration_in_seconds=400 / 62.5, segment_size=segment, **changes)
        return training.step_bytes(config, size, batch) / 1e9

    for batch, frames, changes, more in (
        (8, 64, {"bf16": True}, 0.69),
        (8, 128, {"bf16": True}, 2.20),
        (8, 64, {"bf16": True, "gradient_checkpointing": True}, 0.33),
        (8, 128, {"bf16": True, "gradient_checkpointing": True}, 0.94),
        (4, 96, {}, 1.30),
        (4, 96, {"gradient_checkpointing": True}, 0.58),
    ):
        grown = estimated(batch, 256 * frames, **changes) - estimated(batch, 8192, **changes)
        assert grown == pytest.approx(more, rel=0.1)
    empty = (training.BASE_BYTES + 16 * (size.parameters + training.DISCRIMINATOR_PARAMETERS)) / 1e9
    assert estimated(16, 8192) == pytest.approx(
        empty + 16 * 400 * training.FRAME_BYTES / 1e9
    )  # the default's own
    for other in ({}, {"bf16": True}, {"max_frames_per_batch": 400}, {"gradient_checkpointing": True}):
        found = [estimated(16, segment, **other) for segment in (2048, 4096, 8192, 16384, 32768)]
        assert all(less < more for less, more in itertools.pairwise(found))
        assert found[0] > empty  # shorter slices are not less than nothing


def test_disk_that_does_not_suffice(
    tmp_path: Path, model: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(
        tmp_path,
        model_name_or_path=str(model),
        dataset_name=str(recordings),
        output_dir=str(tmp_path / "out"),
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: argparse.Namespace(free=1e9))
    found = findings(path)["disk of the run"]
    assert found.status == "fail"
    assert "save_total_limit" in found.remedy


def test_without_the_extra_train_a_configuration_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("services.training.config_sources.load", missing)
    (found,) = training.configuration(tmp_path / "x.json")
    assert found.status == "fail"
    assert "vits-suite[train]" in found.remedy


def only(monkeypatch: pytest.MonkeyPatch, *chosen: Finding) -> None:
    monkeypatch.setattr(cli, "checks", lambda arguments: {"some": lambda: list(chosen)})


def test_command_ends_with_0_unless_something_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only(monkeypatch, ok("disk", "much"), note("hub", "away", "go on"))
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "→ go on" in printed
    assert "all is well, with 1 note" in printed
    only(monkeypatch, ok("disk", "much"), fail("store", "broken", "mend it"))
    assert main(["doctor"]) == 1
    assert "to be mended: store" in capsys.readouterr().out


def test_json_has_every_finding(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    only(monkeypatch, ok("disk", "much"), fail("store", "broken", "mend it"))
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == [
        {"check": "disk", "status": "ok", "said": "much", "remedy": ""},
        {"check": "store", "status": "fail", "said": "broken", "remedy": "mend it"},
    ]


def test_a_check_that_breaks_keeps_no_other_from_being_run() -> None:
    def breaks() -> list[Finding]:
        raise RuntimeError("surprise")

    def lacks() -> list[Finding]:
        raise ModuleNotFoundError("No module named 'av'", name="av")

    found = list(cli.run({"a": breaks, "b": lacks, "c": lambda: [ok("c", "well")]}))
    assert [finding.status for finding in found] == ["fail", "fail", "ok"]
    assert "surprise" in found[0].said
    assert "'av'" in found[1].said


def test_a_users_mistake_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITS_CACHE", "s3://bucket/cache")
    (found,) = cli.run({"disk": cli.checks(cli.parser().parse_args([]))["disk"]})
    assert found.said.startswith("VITS_CACHE cannot be used: 's3://bucket/cache' is an address")
    assert found.remedy == "", "the error says what to do, and it is nothing to report"


def test_whole_command_on_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recordings: Path
) -> None:
    main(["doctor", "--json", "--store", str(tmp_path / "store"), "--data", str(recordings)])
    looked_at = {
        finding["check"].partition(":")[0].split(" ")[0] for finding in json.loads(capsys.readouterr().out)
    }
    assert looked_at >= {
        "versions", "kernel", "processor", "GPU", "memory", "disk", "phonemizer", "audio", "store", "hub", "dataset"
    }  # fmt: skip


def test_it_works_where_no_extra_is_installed(tmp_path: Path) -> None:
    """A process in which nothing but the suite's own dependencies can be imported."""
    absent = [
        "torch",
        "transformers",
        "datasets",
        "onnxruntime",
        "openvino",
        "bentoml",
        "grpc",
        "huggingface_hub",
        "phonemizer",
        "matplotlib",
        "accelerate",
    ]
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n"
        "from services.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    config = write_config(tmp_path, model_name_or_path="owner/name", dataset_name=str(tmp_path))
    ran = subprocess.run(
        [sys.executable, "-c", program, "doctor", "--json", "--store", tmp_path / "s", "--config", config],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1, ran.stderr
    found = {finding["check"]: finding for finding in json.loads(ran.stdout)}
    assert found["phonemizer"]["status"] == "note"
    assert "vits-suite[train]" in found["model"]["remedy"]
    assert "could not be looked at" not in ran.stdout


HEAVY = ("torch", "transformers", "onnxruntime", "datasets", "bentoml")


def test_nothing_is_imported_that_takes_seconds() -> None:
    program = (
        "import sys; from services.cli import main; main(['doctor', '--json', '--store', 'memory://x']); "
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stderr.strip().endswith("[]")


def test_memory_free_of_this_machine_is_some() -> None:
    assert 0 < machine.memory_free() < 1e5

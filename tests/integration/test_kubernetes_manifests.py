"""The manifests of ``deploy/kubernetes``: rendered, checked against the schemas, and held to what they promise."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.cli import SUBCOMMANDS
from services.synthesis.grpc.server import CONNECTION_MILLISECONDS
from services.synthesis.http.requests import MAX_BATCH_BYTES
from services.synthesis.settings import PREFIX, Settings
from services.training.config_sources import load, read_overrides
from shared.cache import default_limit
from tests.integration.manifests import (
    KUBERNETES,
    ROOT,
    Object,
    RenderError,
    compose,
    containers,
    find,
    pod_templates,
    problems,
    render,
    shipped,
)

#: A recent version of Kubernetes and the newest.
VERSIONS = ("1.34", "1.37")
SHIPPED = ("overlays/dev", "overlays/production", "training/job", "training/trainjob", "training/export")
#: Components that are in no overlay, and what each is rendered with.
COMPOSED = {
    "keda": (("base",), ("keda", "monitoring")),
    "scale-to-zero": (("base",), ("scale-to-zero",)),
    "gpu": (("base", "training/job"), ("gpu",)),
    "gpus of several nodes": (("training/trainjob",), ("gpu",)),
    "kueue": (("training/job", "training/trainjob"), ("kueue",)),
    "one machine's training": (("training/job", "training/export"), ("store-volume",)),
}
AUTOSCALERS = ("hpa", "keda", "scale-to-zero")
#: What the old Kubernetes of the e2e overlay says for the newer names.
OLD = {
    "autoscaling/v2beta2": "autoscaling/v2",
    "policy/v1beta1": "policy/v1",
    "batch/v1beta1": "batch/v1",
}
#: Our kinds whose schema nobody publishes in a form that can be had from Python.
WITHOUT_SCHEMA = {"GRPCRoute"}
#: How variables and files are called that hold what nobody else is to know.
SECRET = re.compile("KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL", re.IGNORECASE)
PAGE = (ROOT / "docs" / "kubernetes.md").read_text()


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Object]]:
    """All that can be rendered, by name."""
    composed = {
        name: compose(tmp_path_factory.mktemp(name), resources=resources, components=components)
        for name, (resources, components) in COMPOSED.items()
        if name != "kueue"
    }
    # A Job and a TrainJob have the same configuration map, so each gets its own rendering.
    for kind in ("job", "trainjob"):
        name = f"kueue-{kind}"
        folder = tmp_path_factory.mktemp(name)
        composed[name] = compose(folder, resources=(f"training/{kind}",), components=("kueue",))
    return {name: shipped(name) for name in SHIPPED} | composed


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_strictly_valid(everything: dict[str, list[Object]], version: str) -> None:
    wrong = {}
    without_schema = set()
    for name, objects in everything.items():
        for thing in objects:
            try:
                found = problems(thing, version)
            except LookupError:
                without_schema.add(thing["kind"])
                continue
            if found:
                wrong[f"{name}: {thing['kind']}/{thing['metadata']['name']}"] = found
    assert not wrong
    assert without_schema == WITHOUT_SCHEMA


@pytest.mark.parametrize(
    ("rendered", "kind", "path"),
    [
        ("overlays/dev", "Deployment", "spec.template.spec.containers.0.readinessProbes"),
        ("overlays/production", "ServiceMonitor", "spec.endpoints.0.intervals"),
        ("keda", "ScaledObject", "spec.advanced.behaviour"),
        ("training/trainjob", "TrainJob", "spec.trainer.nodes"),
        ("training/trainjob", "TrainingRuntime", "spec.template.spec.failurePolicies"),
    ],
)
def test_an_unknown_field_is_a_problem(
    everything: dict[str, list[Object]], rendered: str, kind: str, path: str
) -> None:
    thing = copy.deepcopy(find(everything[rendered], kind))
    *parents, field = path.split(".")
    inside: Any = thing
    for name in parents:
        inside = inside[int(name)] if isinstance(inside, list) else inside[name]
    inside[field] = 1
    assert problems(thing, VERSIONS[-1])


def test_every_component_is_rendered_and_explained(everything: dict[str, list[Object]]) -> None:
    known = {path.name for path in (KUBERNETES / "components").iterdir()}
    used = {name for _, components in COMPOSED.values() for name in components}
    for overlay in ("dev", "production"):
        text = (KUBERNETES / "overlays" / overlay / "kustomization.yaml").read_text()
        used |= set(re.findall(r"\.\./\.\./components/([\w-]+)", text))
    assert used == known
    assert [name for name in sorted(known) if f"`{name}`" not in PAGE] == []


def test_what_the_e2e_overlay_runs_is_the_base_in_older_words() -> None:
    rendered = copy.deepcopy(shipped("overlays/e2e"))
    versions = {thing["apiVersion"] for thing in rendered}
    assert set(OLD) <= versions
    for thing in rendered:
        thing["apiVersion"] = OLD.get(thing["apiVersion"], thing["apiVersion"])
        assert problems(thing, VERSIONS[-1]) == []
    # Every way in which it differs from the production's service is one that its comment tells of.
    told = (KUBERNETES / "overlays/e2e/kustomization.yaml").read_text()
    downgraded = {
        "preStop.sleep",
        "podFailurePolicy",
        "podReplacementPolicy",
        "unhealthyPodEvictionPolicy",
        "matchLabelKeys",
    }
    assert "matchLabelKeys" not in str(rendered)
    assert [name for name in downgraded if name not in told] == []
    for component in (path.name for path in (KUBERNETES / "components").iterdir()):
        run = f"../../components/{component}\n" in told
        assert (
            run
            or component == "store-volume"
            or re.search(rf"\b{component}\b", told.partition("apiVersion")[0])
        )
    ours, theirs = serving(rendered), serving(shipped("overlays/production"))
    assert {key for key in ours if ours[key] != theirs.get(key)} == {
        "image",
        "resources",
        "lifecycle",
        "envFrom",
    }
    assert set(ours) == set(theirs)


def test_pods_are_restricted(everything: dict[str, list[Object]]) -> None:
    """The Pod Security Standard 'restricted', and a root file system that cannot be written to."""
    for name, objects in everything.items():
        for owner, template in pod_templates(objects):
            where, spec = f"{name}: {owner}", template["spec"]
            assert spec["automountServiceAccountToken"] is False, where
            assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), where
            context = spec["securityContext"]
            assert context["runAsNonRoot"], where
            assert context["runAsUser"] == 10001, where
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}, where
            allowed = {"name", "configMap", "emptyDir", "persistentVolumeClaim"}
            assert all(set(volume) <= allowed for volume in spec.get("volumes", [])), where
            for container in containers(template):
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }, where
                assert container["resources"]["requests"]["cpu"], where
                assert container["resources"]["limits"]["memory"], where
                # The images' scratch space, since the root cannot be written to.
                mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
                assert {"/tmp", "/cache"} <= mounts, where  # noqa: S108
    for overlay in ("dev", "production", "e2e"):
        labels = find(shipped(f"overlays/{overlay}"), "Namespace")["metadata"]["labels"]
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_secrets_are_referred_to_and_never_written(everything: dict[str, list[Object]]) -> None:
    for name, objects in everything.items():
        assert not [thing for thing in objects if thing["kind"] == "Secret"], name
        for owner, template in pod_templates(objects):
            for container in containers(template):
                sources = container["envFrom"]
                secrets = [source["secretRef"]["name"] for source in sources if "secretRef" in source]
                assert "vits-store-credentials" in secrets, (name, owner)
                literal = [variable["name"] for variable in container.get("env", []) if "value" in variable]
                assert not [word for word in literal if SECRET.search(word)], (name, owner)
        for thing in objects:
            if thing["kind"] == "ConfigMap":
                keys = [*thing.get("data", {}), *thing.get("binaryData", {})]
                assert not [key for key in keys if SECRET.search(key)], (name, thing["metadata"]["name"])
    written = [path for path in KUBERNETES.rglob("*.yaml") if "secretGenerator" in path.read_text()]
    assert written == []


def serving(objects: list[Object]) -> Object:
    """The server's container."""
    (container,) = find(objects, "Deployment", "vits-serve")["spec"]["template"]["spec"]["containers"]
    return dict(container)


def settings(objects: list[Object]) -> dict[str, str]:
    """The environment that the configuration maps give a server."""
    maps = {thing["metadata"]["name"]: thing["data"] for thing in objects if thing["kind"] == "ConfigMap"}
    sources = [
        source["configMapRef"]["name"] for source in serving(objects)["envFrom"] if "configMapRef" in source
    ]
    assert set(sources) <= set(maps)
    return {key: value for name in sources for key, value in maps[name].items()}


@pytest.mark.parametrize("overlay", ["overlays/dev", "overlays/production", "overlays/e2e"])
def test_the_server_understands_what_it_is_told(overlay: str) -> None:
    told = settings(shipped(overlay))
    known = {PREFIX + field.name.upper() for field in dataclasses.fields(Settings)}
    assert {name for name in told if name.startswith(PREFIX)} <= known | {"VITS_CACHE_LIMIT"}
    read = Settings.from_environment(told)
    assert read.store == told["VITS_STORE"]


def gibibytes(quantity: str) -> int:
    """A size as Kubernetes writes it, in bytes."""
    return int(quantity.removesuffix("Gi")) << 30


@pytest.mark.parametrize("rendered", ["overlays/production", "training/job", "training/trainjob"])
def test_a_cache_is_cut_down_before_its_volume_is_full(
    rendered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the pod would be evicted, again and again."""
    objects = shipped(rendered)
    names = ("Deployment/vits-serve", "Job/vits-train", "TrainingRuntime/vits-train")
    (template,) = [template for owner, template in pod_templates(objects) if owner in names]
    (container,) = containers(template)
    written = {variable["name"]: variable.get("value") for variable in container.get("env", [])}
    limit = written.get("VITS_CACHE_LIMIT") or settings(objects)["VITS_CACHE_LIMIT"]
    monkeypatch.setenv("VITS_CACHE_LIMIT", limit)
    (volume,) = [volume for volume in template["spec"]["volumes"] if volume["name"] == "cache"]
    # Half of a trainer's is for its recordings.
    share = 1 if rendered == "overlays/production" else 2
    assert default_limit() * share <= gibibytes(volume["emptyDir"]["sizeLimit"])


@pytest.mark.parametrize("overlay", ["overlays/dev", "overlays/production", "overlays/e2e"])
def test_a_pod_has_the_time_to_finish_what_it_speaks(overlay: str) -> None:
    pod = find(shipped(overlay), "Deployment")["spec"]["template"]["spec"]
    stop = serving(shipped(overlay))["lifecycle"]["preStop"]
    pause = stop["sleep"]["seconds"] if "sleep" in stop else int(re.findall(r"sleep\((\d+)\)", str(stop))[0])
    # Connections are up to a tenth older than they should be, and load balancers hear of the end some seconds later.
    assert pause >= 1.1 * CONNECTION_MILLISECONDS / 1000 + 3
    grace = Settings.from_environment(settings(shipped(overlay))).grace_seconds
    assert pod["terminationGracePeriodSeconds"] >= pause + grace + 10


def test_the_probes_mean_different_things() -> None:
    container = serving(shipped("overlays/production"))
    startup, ready, live = (container[f"{name}Probe"] for name in ("startup", "readiness", "liveness"))
    assert [probe["httpGet"]["path"] for probe in (startup, ready, live)] == ["/readyz", "/readyz", "/livez"]

    def patience(probe: dict[str, int]) -> int:
        return probe["periodSeconds"] * probe["failureThreshold"]

    # Out of the service after a quarter of a minute, restarted after a minute, minutes to begin with.
    assert 15 <= patience(ready) < patience(live) < patience(startup)
    # A server that is starved of CPU answers late, and is neither sick nor gone.
    assert all(probe["timeoutSeconds"] >= 5 for probe in (startup, ready, live))
    assert patience(startup) >= 300


def test_a_rolling_update_never_has_fewer_pods() -> None:
    strategy = find(shipped("overlays/production"), "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": 1, "maxUnavailable": 0}


def test_the_nodes_of_a_run_reach_each_other_and_name_each_other_under_any_name(tmp_path: Path) -> None:
    policy = find(shipped("overlays/production"), "NetworkPolicy", "vits-train")["spec"]
    trainers = policy["podSelector"]
    assert policy["ingress"] == [{"from": [{"podSelector": trainers}]}]
    assert policy["egress"] == [{"to": [{"podSelector": trainers}]}]
    objects = compose(tmp_path, resources=("training/trainjob",), components=(), suffix="-ana")
    ((_, template),) = pod_templates(objects)
    assert trainers["matchLabels"].items() <= template["metadata"]["labels"].items()
    runtime = find(objects, "TrainingRuntime")["metadata"]["name"]
    assert runtime == find(objects, "TrainJob")["spec"]["runtimeRef"]["name"] == "vits-train-ana"
    mounted = [v["configMap"]["name"] for v in template["spec"]["volumes"] if "configMap" in v]
    assert mounted == [find(objects, "ConfigMap")["metadata"]["name"]]


def test_everything_that_selects_finds_the_servers() -> None:
    objects = shipped("overlays/production")
    labels = find(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    services = [thing for thing in objects if thing["kind"] == "Service"]
    selectors = [
        find(objects, "Deployment")["spec"]["selector"]["matchLabels"],
        find(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        *(thing["spec"]["selector"] for thing in services),
        *(
            thing["spec"]["podSelector"]["matchLabels"]
            for thing in objects
            if thing["kind"] == "NetworkPolicy" and thing["metadata"]["name"] != "vits-train"
        ),
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)
    monitored = find(objects, "ServiceMonitor")["spec"]["selector"]["matchLabels"]
    # One of the services, or every pod is scraped twice.
    assert len([s for s in services if monitored.items() <= s["metadata"]["labels"].items()]) == 1
    headless = find(objects, "Service", "vits-serve-grpc")
    assert headless["spec"]["clusterIP"] == "None"
    names = {port["name"] for port in serving(objects)["ports"]}
    assert {port["targetPort"] for thing in services for port in thing["spec"]["ports"]} <= names


@pytest.mark.parametrize("overlay", ["overlays/dev", "overlays/production"])
def test_pods_are_spread_over_zones_and_nodes_and_evicted_one_at_a_time(overlay: str) -> None:
    objects = shipped(overlay)
    deployment = find(objects, "Deployment")["spec"]
    constraints = deployment["template"]["spec"]["topologySpreadConstraints"]
    assert [constraint["topologyKey"] for constraint in constraints] == [
        "topology.kubernetes.io/zone",
        "kubernetes.io/hostname",
    ]
    for constraint in constraints:
        assert constraint["labelSelector"] == deployment["selector"]
        # The old pods of a rolling update would be counted otherwise, and the new ones stand skewed once they are gone.
        assert constraint["matchLabelKeys"] == ["pod-template-hash"]
        # A cluster of one zone or one node takes them all.
        assert (constraint["maxSkew"], constraint["whenUnsatisfiable"]) == (1, "ScheduleAnyway")
    budget = find(objects, "PodDisruptionBudget")["spec"]
    assert budget == {
        # Not minAvailable: with a single pod its node could never be drained.
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": deployment["selector"],
    }


def test_callers_are_those_that_are_named() -> None:
    """Who may come in, by policy; what else there is goes out, or is of trainers among themselves."""

    def rules(overlay: str) -> dict[str, list[Object]]:
        policies = [thing for thing in shipped(overlay) if thing["kind"] == "NetworkPolicy"]
        return {
            policy["metadata"]["name"]: policy["spec"]["ingress"]
            for policy in policies
            if "ingress" in policy["spec"]
        }

    def namespace(name: str) -> Object:
        return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}

    trainer = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "vits-train"}}}
    clients = {"namespaceSelector": {"matchLabels": {"vits-clients": "true"}}}
    http, grpc, metrics = ({"port": name} for name in ("http", "grpc", "metrics"))
    base = {
        "vits-serve": [{"from": [{"podSelector": {}}, clients], "ports": [http, grpc]}],
        "vits-train": [{"from": [trainer]}],
    }
    assert rules("overlays/dev") == base
    assert rules("overlays/production") == base | {
        "vits-serve-ingress": [{"from": [namespace("ingress-nginx")], "ports": [http]}],
        "vits-serve-gateway": [{"from": [namespace("gateway")], "ports": [grpc]}],
        "vits-monitoring": [{"from": [namespace("monitoring")], "ports": [http, metrics]}],
    }


def test_what_goes_out_is_names_the_store_and_what_an_overlay_adds() -> None:
    """The rules themselves are held below; here, that there are no others."""

    def outward(overlay: str) -> set[str]:
        policies = [thing for thing in shipped(overlay) if thing["kind"] == "NetworkPolicy"]
        return {policy["metadata"]["name"] for policy in policies if "egress" in policy["spec"]}

    assert outward("overlays/dev") == {"vits-store", "vits-train"}
    assert outward("overlays/production") == {"vits-store", "vits-train", "vits-cloud-identity"}


def test_what_nobody_named_is_denied() -> None:
    denied = find(shipped("overlays/production"), "NetworkPolicy", "vits-deny")["spec"]
    assert denied["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & set(denied)


def test_names_are_asked_wherever_the_cluster_answers() -> None:
    """A cache on the node (NodeLocal DNSCache) has a link-local address, which no selector finds."""
    policy = find(shipped("overlays/production"), "NetworkPolicy", "vits-store")["spec"]
    assert policy["policyTypes"] == ["Egress"]
    assert all(set(rule) == {"ports"} for rule in policy["egress"]), "to any address"
    ports = {(port["protocol"], port["port"]) for rule in policy["egress"] for port in rule["ports"]}
    assert ports == {("UDP", 53), ("TCP", 53), ("TCP", 443)}


def test_pods_may_ask_for_the_clouds_credentials_where_an_overlay_says_so() -> None:
    """Metadata servers speak plain HTTP, and HTTPS is all that the base lets out."""
    objects = shipped("overlays/production")
    policy = find(objects, "NetworkPolicy", "vits-cloud-identity")["spec"]
    # Of Google, Amazon and Azure; of GKE, behind the first; of EKS Pod Identity.
    assert {
        (to["ipBlock"]["cidr"], port["protocol"], port["port"])
        for rule in policy["egress"]
        for to in rule["to"]
        for port in rule["ports"]
    } == {
        ("169.254.169.254/32", "TCP", 80),
        ("169.254.169.252/32", "TCP", 988),
        ("169.254.170.23/32", "TCP", 80),
        ("fd00:ec2::23/128", "TCP", 80),
    }
    selected = policy["podSelector"]["matchLabels"]
    for name in ("overlays/production", "training/job", "training/trainjob", "training/export"):
        for owner, template in pod_templates(shipped(name)):
            assert selected.items() <= template["metadata"]["labels"].items(), owner
    # Nobody is given a way to the node's own identity unasked.
    assert "169.254." not in str(shipped("overlays/dev"))


# One autoscaler, never two


@pytest.mark.parametrize(
    "others", [("hpa", "keda"), ("keda", "hpa"), ("hpa", "scale-to-zero"), ("keda", "scale-to-zero")]
)
def test_two_autoscalers_cannot_be_rendered_together(tmp_path: Path, others: tuple[str, str]) -> None:
    with pytest.raises(RenderError, match=r"vits-serve-autoscaler|vits-serve"):
        compose(tmp_path, resources=("base",), components=others)


@pytest.mark.parametrize("name", AUTOSCALERS)
def test_an_autoscaler_scales_the_servers_and_nobody_else_counts_them(tmp_path: Path, name: str) -> None:
    objects = compose(tmp_path, resources=("base",), components=(name,))
    (scaler,) = [o for o in objects if o["kind"] in {"HorizontalPodAutoscaler", "ScaledObject"}]
    deployment = find(objects, "Deployment")
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]
    least = scaler["spec"].get("minReplicas", scaler["spec"].get("minReplicaCount"))
    assert least == (0 if name == "scale-to-zero" else 1)


def test_a_first_pod_comes_by_what_is_counted_without_pods(everything: dict[str, list[Object]]) -> None:
    triggers = find(everything["scale-to-zero"], "ScaledObject")["spec"]["triggers"]
    active = [t["metadata"]["query"] for t in triggers if "activationThreshold" in t["metadata"]]
    assert len(active) == 1
    assert "vits_" not in active[0]


def test_both_autoscalers_aim_at_the_same(everything: dict[str, list[Object]]) -> None:
    hpa = find(shipped("overlays/production"), "HorizontalPodAutoscaler")["spec"]
    keda = find(everything["keda"], "ScaledObject")["spec"]
    assert hpa["behavior"] == keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert hpa["maxReplicas"] == keda["maxReplicaCount"]
    aim = hpa["metrics"][0]["pods"]["target"]["averageValue"]
    assert keda["triggers"][0]["metadata"]["threshold"] == aim
    # Texts are refused later than pods are asked for.
    assert (
        float(aim) < Settings.from_environment(settings(shipped("overlays/production"))).max_backlog_seconds
    )


@pytest.mark.parametrize("name", ["keda", "scale-to-zero"])
@pytest.mark.parametrize("namespace", ["vits", "speech"])
def test_kedas_queries_are_of_the_namespace_it_scales(tmp_path: Path, name: str, namespace: str) -> None:
    objects = compose(tmp_path, resources=("base",), components=(name,), namespace=namespace)
    scaled = find(objects, "ScaledObject")
    assert scaled["metadata"]["namespace"] == namespace
    queries = [trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]]
    assert len(queries) == (3 if name == "scale-to-zero" else 2)
    for query in queries:
        assert re.findall(r'namespace="([^"]*)"', query) == [namespace]
        assert query.count("{") == query.count("}") == 1


def test_keda_is_refused_where_the_namespace_is_not_known(tmp_path: Path) -> None:
    compose(tmp_path, resources=("base",), components=("keda",))
    kustomization = yaml.safe_load((tmp_path / "kustomization.yaml").read_text())
    kustomization["resources"].remove("namespace.yaml")
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    with pytest.raises(RenderError, match="Namespace"):
        render(tmp_path)


# Training


def test_a_job_saves_first_and_is_not_blamed_for_being_stopped() -> None:
    job = find(shipped("training/job"), "Job")["spec"]
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] >= 60
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # a failure policy asks for it
    rules = job["podFailurePolicy"]["rules"]
    ignored = [rule for rule in rules if rule["action"] == "Ignore"]
    assert {"type": "DisruptionTarget", "status": "True"} in [
        c for r in ignored for c in r.get("onPodConditions", [])
    ]
    assert [143] in [rule["onExitCodes"]["values"] for rule in ignored if "onExitCodes" in rule]
    (fatal,) = [rule for rule in rules if rule["action"] == "FailJob"]
    assert fatal["onExitCodes"]["values"] == [2]  # UserError: trying again mends nothing


@pytest.mark.parametrize("kind", ["job", "trainjob"])
def test_the_shipped_run_is_a_configuration(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = KUBERNETES / "training" / kind / "run.json"
    monkeypatch.setenv("VITS_CONFIGS", str(ROOT / "configs"))
    (template,) = [template for _, template in pod_templates(shipped(f"training/{kind}"))]
    (container,) = containers(template)
    arguments = [str(run) if word == "/run/vits/run.json" else word for word in container["args"]]
    config, _ = load(*read_overrides(arguments))
    assert config.output_dir == Path("/output")
    # One speaker's folder on the volume: what has the same name goes together when consent is withdrawn.
    assert config.dataset_name == f"/data/{config.published_name}"
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {"/data", "/output", "/dev/shm"} <= mounts  # noqa: S108
    assert [port["containerPort"] for port in container["ports"]] == [config.metrics_port]
    assert config.metrics_host == "0.0.0.0"  # noqa: S104 - Prometheus comes from outside the pod


def test_a_node_of_several_is_made_like_the_one(everything: dict[str, list[Object]]) -> None:
    ((_, one),) = pod_templates(shipped("training/job"))
    ((_, node),) = pod_templates(shipped("training/trainjob"))
    one, node = copy.deepcopy(one), copy.deepcopy(node)
    for template in (one, node):
        for volume in template["spec"]["volumes"]:
            volume.pop("configMap", None)  # named after its content in one of them
        (container,) = template["spec"]["containers"]
        for differs in ("name", "command"):
            container.pop(differs, None)
    assert node["spec"] == one["spec"]


def test_a_node_of_several_has_its_pods_time_to_save_and_tells_its_set_of_a_mistake() -> None:
    """By themselves, torchrun kills the trainer after 30 s and hides its exit code, and a set starts it again."""
    runtime = find(shipped("training/trainjob"), "TrainingRuntime")["spec"]["template"]["spec"]
    ((_, template),) = pod_templates(shipped("training/trainjob"))
    (container,) = containers(template)
    python, module, launcher, timeout, *trainer = container["command"]
    assert (python, module, trainer) == ("python", "-m", ["/opt/vits/bin/vits", "train"])
    assert find_spec(launcher)
    grace = template["spec"]["terminationGracePeriodSeconds"]
    assert 60 <= int(timeout.removeprefix("--shutdown-timeout=")) <= grace - 10
    (fatal,) = runtime["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    (plain, *_) = find(shipped("training/job"), "Job")["spec"]["podFailurePolicy"]["rules"]
    assert fatal["onExitCodes"]["values"] == plain["onExitCodes"]["values"]
    assert fatal["onExitCodes"]["containerName"] == container["name"]
    (rule,) = runtime["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


def test_of_several_nodes_the_one_is_scraped_that_answers() -> None:
    (endpoint,) = find(shipped("overlays/production"), "PodMonitor")["spec"]["podMetricsEndpoints"]
    (relabeling,) = endpoint["relabelings"]
    assert relabeling["action"] == "drop"
    # A plain Job's pod has no index.
    assert [i for i in ("", "0", "1", "9", "10") if re.fullmatch(relabeling["regex"], i)] == ["1", "9", "10"]


def test_queued_training_waits_and_names_its_queue(everything: dict[str, list[Object]]) -> None:
    for name, kind in (("kueue-job", "Job"), ("kueue-trainjob", "TrainJob")):
        thing = find(everything[name], kind)
        assert thing["spec"]["suspend"] is True
        assert thing["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "vits"


def test_gpus_go_to_servers_and_jobs(everything: dict[str, list[Object]]) -> None:
    found = {
        owner: container["resources"]["limits"].get("nvidia.com/gpu")
        for name in ("gpu", "gpus of several nodes")
        for owner, template in pod_templates(everything[name])
        for container in containers(template)
    }
    assert found == {
        "Deployment/vits-serve": "1",
        "Job/vits-train": "1",
        "TrainingRuntime/vits-train": "1",
        "CronJob/vits-collect": None,
    }


def test_an_overlay_names_the_images_that_gpus_take(tmp_path: Path) -> None:
    compose(tmp_path, resources=("base", "training/job"), components=("gpu",))
    kustomization = yaml.safe_load((tmp_path / "kustomization.yaml").read_text())
    kustomization["images"] = [
        {"name": name, "newName": f"registry.example.com/{name}", "newTag": "0.1.0"}
        for name in ("vits-serve-gpu", "vits-train-gpu", "vits-serve", "vits-train")
    ]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    images = {
        container["image"]
        for _, template in pod_templates(render(tmp_path))
        for container in containers(template)
    }
    assert images == {f"registry.example.com/vits-{kind}-gpu:0.1.0" for kind in ("serve", "train")}


@pytest.mark.parametrize("overlay", ["overlays/production", "overlays/e2e"])
def test_gpus_are_not_given_to_images_that_were_named_before(tmp_path: Path, overlay: str) -> None:
    """They would stay the CPU's."""
    with pytest.raises(RenderError, match="test failed"):
        compose(tmp_path, resources=(overlay,), components=("gpu",), namespace="speech")


def test_one_machine_keeps_its_store_and_recordings_on_volumes(everything: dict[str, list[Object]]) -> None:
    objects, training = everything["overlays/dev"], everything["one machine's training"]
    assert settings(objects)["VITS_STORE"] == "file:///store"
    # The service's, and nobody else's to delete.
    claims = [thing["metadata"]["name"] for thing in objects if thing["kind"] == "PersistentVolumeClaim"]
    assert sorted(claims) == ["vits-data", "vits-store"]
    assert [thing for thing in training if thing["kind"] == "PersistentVolumeClaim"] == []
    templates = dict([*pod_templates(objects), *pod_templates(training)])
    for owner, template in templates.items():
        for container in containers(template):
            assert "/store" in {mount["mountPath"] for mount in container["volumeMounts"]}, owner
        mounted = {
            volume["persistentVolumeClaim"]["claimName"]
            for volume in template["spec"]["volumes"]
            if "persistentVolumeClaim" in volume
        }
        assert mounted <= set(claims), owner
    # The way to both, while no server lives yet.
    (shell,) = containers(templates["Pod/vits-shell"])
    assert {"/store", "/data"} <= {mount["mountPath"] for mount in shell["volumeMounts"]}
    assert "exec -i vits-shell" in PAGE


def test_images_on_a_node_are_used_as_they_are(everything: dict[str, list[Object]]) -> None:
    """`latest`, or no tag, would be pulled, and one machine's images are nowhere else."""
    for name, objects in everything.items():
        for owner, template in pod_templates(objects):
            for container in containers(template):
                assert container["imagePullPolicy"] == "IfNotPresent", (name, owner)


def test_the_overlays_that_the_page_shows_are_rendered(tmp_path: Path) -> None:
    shown = re.findall(r"```yaml\n(apiVersion: kustomize\.config.*?)```", PAGE, re.DOTALL)
    assert len(shown) == 4
    for number, text in enumerate(shown):
        # With the namespace that is beside it, and a run.
        (folder := tmp_path / str(number)).mkdir()
        compose(folder, resources=(), components=())
        (folder / "run.json").write_text("{}")
        path = os.path.relpath(KUBERNETES, folder)
        (folder / "kustomization.yaml").write_text(text.replace("../vits/deploy/kubernetes", path))
        for thing in render(folder):
            assert problems(thing, VERSIONS[-1]) == [], (number, thing["kind"])


def test_an_ingress_takes_what_the_api_takes() -> None:
    notes = find(shipped("overlays/production"), "Ingress")["metadata"]["annotations"]
    size = notes["nginx.ingress.kubernetes.io/proxy-body-size"]
    assert int(size.removesuffix("m")) * 2**20 == MAX_BATCH_BYTES


def test_commands_in_the_manifests_are_commands() -> None:
    collect, export = (
        dict(pod_templates(shipped(name))) for name in ("overlays/production", "training/export")
    )
    commands = [
        container["command"] + container.get("args", [])
        for template in (collect["CronJob/vits-collect"], export["Job/vits-export"])
        for container in containers(template)
    ]
    assert [command[:3] for command in commands] == [
        ["vits", "voices", "gc"],  # what a voice was made from stays as long as it
        ["vits", "models", "gc"],
        ["vits", "export", "my-voice@latest"],
    ]
    assert {command[1] for command in commands} <= set(SUBCOMMANDS)

"""The manifests for Kubernetes hold against the schemas of Kubernetes and KubeRay, and keep the house's own rules."""

from __future__ import annotations

import ast
import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

CHECKOUT = Path(__file__).resolve().parents[3]
KUBERAY = CHECKOUT / "cluster" / "deploy" / "kuberay"
SCHEMAS = Path(__file__).parent / "schemas"

KINDS = {
    "CronJob": "api.batch.v1.CronJob",
    "ServiceAccount": "api.core.v1.ServiceAccount",
    "Role": "api.rbac.v1.Role",
    "RoleBinding": "api.rbac.v1.RoleBinding",
}


def schema(name: str) -> dict[str, Any]:
    return json.loads((SCHEMAS / name).read_text())


REGISTRY = Registry().with_resources(
    (name, Resource.from_contents(schema(name), default_specification=DRAFT202012))
    for name in ("kubernetes.json", "rayjob.json", "rayservice.json")
)


def faults(manifest: dict[str, Any]) -> list[str]:
    """What the schema of its kind has against a manifest."""
    kind = manifest["kind"]
    own = {"RayJob": "rayjob.json", "RayService": "rayservice.json"}
    reference = own.get(kind) or f"kubernetes.json#/definitions/{KINDS[kind]}"
    validator = Draft202012Validator({"$ref": reference}, registry=REGISTRY)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERAY / name).read_text()))


def rayjob() -> dict[str, Any]:
    return manifests("rayjob.yaml")[0]


def cronjob() -> dict[str, Any]:
    return manifests("cronjob.yaml")[0]


def rayservice() -> dict[str, Any]:
    return manifests("rayservice.yaml")[0]


def pods(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The specification of every pod that a manifest makes."""
    spec = manifest["spec"]
    if manifest["kind"] == "CronJob":
        yield spec["jobTemplate"]["spec"]["template"]["spec"]
        return
    cluster = spec["rayClusterSpec"] if manifest["kind"] == "RayJob" else spec["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    own = [spec["submitterPodTemplate"]] if manifest["kind"] == "RayJob" else []
    yield from (template["spec"] for template in [*own, *(group["template"] for group in groups)])


@pytest.mark.parametrize("name", ["rayjob.yaml", "rayservice.yaml", "cronjob.yaml", "access.yaml"])
def test_the_manifests_hold_against_their_schemas(name: str) -> None:
    for manifest in manifests(name):
        assert faults(manifest) == []


def _worker(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "unknown field": lambda job: job["spec"].update(entryPoint="x"),
    "no size": lambda job: _worker(job).pop("maxReplicas"),
    "text for a number": lambda job: _worker(job).update(minReplicas="one"),
    "number for a text": lambda job: _worker(job)["rayStartParams"].update({"num-cpus": 0}),
    "unknown mode": lambda job: job["spec"]["rayClusterSpec"]["authOptions"].update(mode="tokens"),
    "misspelt in a pod": lambda job: _worker(job)["template"]["spec"]["securityContext"].update(runAsNonroot=True),
    "list for a map": lambda job: _worker(job)["template"]["spec"]["containers"][0].update(resources=[]),
    "value without name": lambda job: _worker(job)["template"]["spec"]["containers"][0].update(env=[{"value": "x"}]),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_the_schema_notices_what_is_wrong(wrong: Callable[[dict[str, Any]], object]) -> None:
    manifest = copy.deepcopy(rayjob())  # YAML's anchors are one object in many places
    wrong(manifest)
    assert faults(manifest) != []


def test_the_schema_of_kubernetes_notices_what_is_wrong() -> None:
    for path, value in (
        (("concurrencyPolicy",), 1),
        (("jobTemplate", "spec", "backofLimit"), 3),
        (("schedule",), None),
    ):
        manifest = copy.deepcopy(cronjob())
        place = manifest["spec"]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        assert faults(manifest) != [], path


@pytest.mark.parametrize("manifest", [rayjob(), rayservice(), cronjob()], ids=["rayjob", "rayservice", "cronjob"])
def test_no_pod_is_root_or_may_become_it(manifest: dict[str, Any]) -> None:
    found = list(pods(manifest))
    assert found
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted <= {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            rights = container["securityContext"]
            assert rights["allowPrivilegeEscalation"] is False and rights["readOnlyRootFilesystem"] is True
            assert rights["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"] and container["resources"]["requests"]
            assert not container["image"].endswith(":latest") and ":" in container["image"]


def test_secrets_are_named_and_never_written_down() -> None:
    text = (KUBERAY / "rayjob.yaml").read_text() + (KUBERAY / "cronjob.yaml").read_text()
    assert "kind: Secret" not in text and "stringData" not in text
    cluster = rayjob()["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "nightread-ray-token"}
    head, *workers = [pod["containers"][0] for pod in list(pods(rayjob()))[1:]]
    for container in (head, *workers):
        assert {"secretRef": {"name": "nightread-s3"}} in container["envFrom"]


def serve_config() -> dict[str, Any]:
    return yaml.safe_load(rayservice()["spec"]["serveConfigV2"])


def test_the_endpoint_is_deployed_where_its_service_and_its_probe_look() -> None:
    config = serve_config()
    assert config["http_options"] == {"host": "0.0.0.0", "port": 8000} and config["proxy_location"] == "EveryNode"
    for pod in pods(rayservice()):
        ports = {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
        assert ports["serve"] == 8000
    worker = rayservice()["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    container = worker["template"]["spec"]["containers"][0]
    assert container["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": 8000}
    assert container["livenessProbe"]["tcpSocket"]["port"] == int(worker["rayStartParams"]["node-manager-port"])


def test_what_the_endpoint_imports_is_there() -> None:
    [application] = serve_config()["applications"]
    module, _, name = application["import_path"].partition(":")
    source = ast.parse((CHECKOUT / f"{module.replace('.', '/')}.py").read_text())
    assert name in {node.name for node in source.body if isinstance(node, ast.FunctionDef)}
    assert all(isinstance(value, str) for value in application["args"].values())


def test_pictures_of_the_endpoint_are_in_memory_only_and_its_token_is_a_secrets() -> None:
    assert serve_config()["logging_config"]["enable_access_log"] is False
    for pod in pods(rayservice()):
        assert [volume["emptyDir"]["medium"] for volume in pod["volumes"]] == ["Memory"]
        token = next(entry for entry in pod["containers"][0]["env"] if entry["name"] == "NIGHTREAD_SERVE_TOKEN")
        assert token["valueFrom"] == {"secretKeyRef": {"name": "nightread-serve", "key": "token"}}


def test_the_pools_are_one_that_grows_and_one_with_gpus() -> None:
    cluster = rayjob()["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert cluster["enableInTreeAutoscaling"] is True
    assert groups["cpu"]["minReplicas"] < groups["cpu"]["maxReplicas"]
    limits = {name: group["template"]["spec"]["containers"][0]["resources"]["limits"] for name, group in groups.items()}
    assert limits["gpu"]["nvidia.com/gpu"] == 1 and "nvidia.com/gpu" not in limits["cpu"]
    for group in (*groups.values(), cluster["headGroupSpec"]):
        stop = group["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert stop == ["/bin/sh", "-c", "ray stop"]


def test_the_probes_ask_the_ports_that_ray_listens_at() -> None:
    cluster = rayjob()["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        container = group["template"]["spec"]["containers"][0]
        port = int(group["rayStartParams"].get("node-manager-port", 6379))
        for probe in ("readinessProbe", "livenessProbe"):
            assert container[probe]["tcpSocket"] == {"port": port}


def test_only_75_is_repeated_and_nights_do_not_overlap() -> None:
    assert rayjob()["spec"]["backoffLimit"] == 0
    spec = cronjob()["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    job = spec["jobTemplate"]["spec"]
    assert {"action": "FailJob", "onExitCodes": {"operator": "NotIn", "values": [75]}} in job["podFailurePolicy"][
        "rules"
    ]
    assert job["backoffLimit"] > 0 and job["activeDeadlineSeconds"] > rayjob()["spec"]["activeDeadlineSeconds"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # what podFailurePolicy asks for


def test_versions_are_those_of_this_project() -> None:
    locked = dict(line.split("==") for line in (CHECKOUT / "requirements.lock").read_text().split())
    assert rayjob()["spec"]["rayClusterSpec"]["rayVersion"] == locked["ray"]
    assert rayservice()["spec"]["rayClusterConfig"]["rayVersion"] == locked["ray"]
    version = next(
        line.split('"')[1]
        for line in (CHECKOUT / "pyproject.toml").read_text().splitlines()
        if line.startswith("version")
    )
    images = {pod["containers"][0]["image"].rpartition(":")[2] for pod in [*pods(rayjob()), *pods(rayservice())]}
    assert images == {version}


@pytest.mark.parametrize(
    "wrong",
    [{"rayClusterSpec": {}}, {"upgradeStrategy": {"type": "Rolling"}}, {"serveConfigV2": {}}, {"rayClusterConfig": {}}],
    ids=str,
)
def test_the_schema_of_the_endpoint_notices_what_is_wrong(wrong: dict[str, Any]) -> None:
    assert faults({**rayservice(), "spec": {**rayservice()["spec"], **wrong}}) != []


def test_what_the_starter_asks_for_is_what_it_may() -> None:
    roles = {role["metadata"]["name"]: role["rules"] for role in manifests("access.yaml") if role["kind"] == "Role"}
    rules = roles["nightread-starter"]
    assert rules == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get", "list", "delete"]}]
    assert all("secrets" not in rule["resources"] for granted in roles.values() for rule in granted)

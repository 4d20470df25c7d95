"""What a cluster is built from is valid: KubeRay's manifests, the cluster launcher's file, the Dockerfiles."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray.autoscaler
import yaml

from handdata.app import app
from handdata.pipeline.weights import WEIGHTS

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "jobs" / "manifests"

# Fields of KubeRay 1.6 (ray.io/v1) that we may use, from its API reference; anything else is a mistake in spelling.
POD_TEMPLATE = {"type": "object", "required": ["spec"], "additionalProperties": False, "properties": {"spec": {}}}
START_PARAMS = {"type": "object", "additionalProperties": {"type": "string"}}
RAY_CLUSTER = {
    "type": "object",
    "required": ["rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"],
    "additionalProperties": False,
    "properties": {
        "rayVersion": {"type": "string"},
        "authOptions": {
            "type": "object",
            "required": ["mode", "secretName"],
            "additionalProperties": False,
            "properties": {"mode": {"const": "token"}, "secretName": {"type": "string"}},
        },
        "enableInTreeAutoscaling": {"type": "boolean"},
        "autoscalerOptions": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"idleTimeoutSeconds": {"type": "integer"}},
        },
        "headGroupSpec": {
            "type": "object",
            "required": ["rayStartParams", "template"],
            "additionalProperties": False,
            "properties": {"rayStartParams": START_PARAMS, "template": POD_TEMPLATE},
        },
        "workerGroupSpecs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["groupName", "maxReplicas", "minReplicas", "rayStartParams", "template"],
                "additionalProperties": False,
                "properties": {
                    "groupName": {"type": "string"},
                    "replicas": {"type": "integer"},
                    "minReplicas": {"type": "integer"},
                    "maxReplicas": {"type": "integer"},
                    "rayStartParams": START_PARAMS,
                    "template": POD_TEMPLATE,
                },
            },
        },
    },
}
RAY_JOB = {
    "type": "object",
    "required": ["entrypoint", "rayClusterSpec"],
    "additionalProperties": False,
    "properties": {
        "entrypoint": {"type": "string"},
        "backoffLimit": {"type": "integer"},
        "shutdownAfterJobFinishes": {"type": "boolean"},
        "ttlSecondsAfterFinished": {"type": "integer"},
        "rayClusterSpec": RAY_CLUSTER,
    },
}


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((MANIFESTS / f"{name}.yaml").read_text())


def cluster_spec(document: dict[str, Any]) -> dict[str, Any]:
    return document["spec"].get("rayClusterSpec", document["spec"])


def pods(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    spec = cluster_spec(document)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        yield group["template"]["spec"]


@pytest.mark.parametrize(
    ("name", "kind", "schema"), [("raycluster", "RayCluster", RAY_CLUSTER), ("rayjob", "RayJob", RAY_JOB)]
)
def test_kuberay_manifests_have_the_fields_of_its_api(name: str, kind: str, schema: dict[str, Any]) -> None:
    document = manifest(name)
    assert (document["apiVersion"], document["kind"]) == ("ray.io/v1", kind)
    jsonschema.validate(document["spec"], schema)


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_pods_are_valid_kubernetes(name: str) -> None:
    document = manifest(name)
    for spec in pods(document):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": document["metadata"], "spec": spec}
        kubernetes_validate.validate(pod, "1.33", strict=True)


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_pods_run_without_privileges_and_find_the_weights(name: str) -> None:
    for spec in pods(manifest(name)):
        assert spec["securityContext"]["runAsNonRoot"]
        for container in (*spec["initContainers"], *spec["containers"]):
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert {mount["name"] for mount in container["volumeMounts"]} == {"cache"}
        *_, command, verb, weights = spec["initContainers"][0]["command"]
        assert (command, verb) == ("weights", "fetch")
        assert weights in WEIGHTS


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_manifests_and_constraints_agree_on_rays_version(name: str) -> None:
    assert f"ray=={cluster_spec(manifest(name))['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()


def test_the_jobs_command_has_valid_options() -> None:
    import typer

    python, module, package, command, *options = manifest("rayjob")["spec"]["entrypoint"].split()
    assert (python, module, package) == ("python", "-m", "handdata")
    with typer.main.get_command(app).commands[command].make_context(command, options) as context:
        assert context.params["gpus"] == 8


def test_the_launchers_file_has_the_schema_of_ray() -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(manifest("ray-up-aws"), schema)


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_dockerfiles_pass_hadolint(name: str) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, ROOT / f"docker/{name}.Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_images_run_unprivileged_with_the_tested_versions(name: str) -> None:
    text = (ROOT / f"docker/{name}.Dockerfile").read_text()
    assert "\nUSER 1000:1000\n" in text
    pinned = (ROOT / "constraints.txt").read_text()
    assert "--constraint constraints.txt '.[all]'" in text and "hand_model.sh" in text
    for package in ("torch", "torchvision"):
        version = text.split(f"{package}==")[1].split()[0]
        assert f"{package}=={version}\n" in pinned

"""Files that start clusters: cluster.yaml follows Ray's rules and ours, the KubeRay manifest and
the image follow ours."""

from __future__ import annotations

import copy
import ipaddress
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.plumbing.arguments import parse
from pipelines.stages import VERBS

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "docs" / "cluster" / "rayjob.yaml"
DOCKERFILE = ROOT / "docs" / "cluster" / "Dockerfile"
Tree = dict[str, Any]


def _load(path: Path) -> Tree:
    tree: Tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tree


# ------------------------------------------------------------------------------------- cluster.yaml


def _ray_refuses(config: Tree) -> str:
    """The refusal of `ray up` for a configuration before it contacts the cloud; empty if it accepts
    it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except Exception as error:  # exceptions of jsonschema and of Ray
        return f"{type(error).__name__}: {error}"
    return ""


def _start_problems(config: Tree) -> list[str]:
    found = []
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        lines = [line for line in config.get(key, []) if "ray start" in line]
        if not lines:
            found.append(f"{key} starts no Ray")
        for line in lines:
            if "RAY_AUTH_MODE=token" not in line:
                found.append(f"{key} asks for no token")
            host = re.search(r"--dashboard-host[= ](\S+)", line)
            if "--head" in line and (
                host is None or not ipaddress.ip_address(host[1].strip("'\"")).is_loopback
            ):
                found.append("the dashboard listens beyond the loopback")
    if "0.0.0.0" in str(config):
        found.append("an address open to the world")
    mounts = {
        remote.rsplit("/.ray/", 1)[-1]: local
        for remote, local in config.get("file_mounts", {}).items()
    }
    if mounts.get("auth_token") != "~/.ray/auth_token":
        found.append("the nodes do not get the token's file")
    return found


def _size_problems(config: Tree) -> list[str]:
    types = dict(config["available_node_types"])
    head = types.pop(config["head_node_type"])
    found = [] if head.get("resources") == {"CPU": 0, "GPU": 0} else ["the head takes tasks"]
    gpus = {name: node["resources"].get("GPU", 0) for name, node in types.items()}
    if not (any(gpus.values()) and not all(gpus.values())):
        found.append("not a pool of CPU machines and one of GPU machines")
    for name, node in types.items():
        low, high = node.get("min_workers", 0), node.get("max_workers", config["max_workers"])
        if not 0 <= low <= high <= 64:
            found.append(f"{name}: {low} to {high} machines")
        if gpus[name] and low:
            found.append(f"{name}: GPU machines that run without work")
    if sum(node.get("max_workers", 0) for node in types.values()) != config["max_workers"]:
        found.append("max_workers is not the sum of the pools")
    if not 1 <= config.get("idle_timeout_minutes", 5) <= 60:
        found.append("idle machines are kept too long")
    return found


def _place_problems(config: Tree) -> list[str]:
    found = []
    for name, node in config["available_node_types"].items():
        settings = node["node_config"]
        if not settings.get("SecurityGroupIds"):
            found.append(f"{name}: Ray's own security group lets the internet try SSH")
        if settings.get("MetadataOptions", {}).get("HttpTokens") != "required":
            found.append(f"{name}: any process may ask for the machine's credentials")
        if not settings.get("IamInstanceProfile"):
            found.append(f"{name}: no profile, so no s3://")
    drivers = [
        node for node in config["available_node_types"].values() if "driver" in node["resources"]
    ]
    if not drivers or any("InstanceMarketOptions" in node["node_config"] for node in drivers):
        found.append("the driver of a job may be on a machine that is taken away")
    if config["provider"].get("security_group", {}).get("IpPermissions"):
        found.append("ports are opened")
    installs = [line for line in config["setup_commands"] if "pip install" in line]
    if not any(
        "multigrain-*.whl" in line and "-c ~/multigrain/constraints.txt" in line
        for line in installs
    ):
        found.append("this project is not installed with its constraints")
    if not any("[text,s3]" in line for line in installs):
        found.append("nodes cannot write to s3://")
    return found


def _problems(config: Tree) -> list[str]:
    return _start_problems(config) + _size_problems(config) + _place_problems(config)


def test_cluster_yaml_is_valid_for_ray_and_follows_our_rules() -> None:
    config = _load(ROOT / "cluster.yaml")
    assert _ray_refuses(config) == ""
    assert _problems(config) == []


def _set(path: str, value: Any) -> Callable[[Tree], None]:
    def change(config: Tree) -> None:
        *sections, last = path.split("/")
        for section in sections:
            config = config[section]
        config[last] = value

    return change


def _replace(key: str, old: str, new: str) -> Callable[[Tree], None]:
    def change(config: Tree) -> None:
        assert any(old in line for line in config[key]), "the test no longer changes anything"
        config[key] = [line.replace(old, new) for line in config[key]]

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("max_workers", "many"),
        _set("head_node_type", "boss"),
        _set("max_wrokers", 3),
        _set("provider", {"region": "us-west-2"}),
    ],
)
def test_ray_refuses_bad_cluster_yaml(change: Callable[[Tree], None]) -> None:
    config = _load(ROOT / "cluster.yaml")
    change(config)
    assert _ray_refuses(config)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            _replace("head_start_ray_commands", "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"),
            "no token",
        ),
        (_replace("worker_start_ray_commands", "RAY_AUTH_MODE=token ", ""), "no token"),
        (_replace("head_start_ray_commands", "127.0.0.1", "10.0.0.1"), "beyond the loopback"),
        (_replace("head_start_ray_commands", "127.0.0.1", "0.0.0.0"), "open to the world"),
        (
            _replace("head_start_ray_commands", "--dashboard-host=127.0.0.1", ""),
            "beyond the loopback",
        ),
        (_replace("setup_commands", "-c ~/multigrain/constraints.txt", ""), "constraints"),
        (_set("file_mounts", {}), "token's file"),
        (_set("available_node_types/head/resources", {"CPU": 4}), "takes tasks"),
        (_set("available_node_types/train/resources", {"CPU": 8}), "pool"),
        (_set("available_node_types/train/min_workers", 1), "without work"),
        (_set("available_node_types/data/max_workers", 500), "500 machines"),
        (_set("available_node_types/data/min_workers", 9), "9 to 8 machines"),
        (_set("max_workers", 100), "sum of the pools"),
        (_set("idle_timeout_minutes", 6000), "idle"),
        (_set("available_node_types/train/node_config/SecurityGroupIds", []), "SSH"),
        (_set("available_node_types/data/node_config/MetadataOptions", {}), "credentials"),
        (_set("available_node_types/data/node_config/IamInstanceProfile", {}), "no profile"),
        (
            _set(
                "available_node_types/driver/node_config/InstanceMarketOptions",
                {"MarketType": "spot"},
            ),
            "taken away",
        ),
        (_replace("setup_commands", "[text,s3]", "[text]"), "cannot write to s3"),
        (
            _set("provider/security_group", {"IpPermissions": [{"FromPort": 8265}]}),
            "ports are opened",
        ),
    ],
)
def test_rules_of_the_project_refuse_bad_cluster_yaml(
    change: Callable[[Tree], None], problem: str
) -> None:
    config = _load(ROOT / "cluster.yaml")
    change(config)
    assert any(problem in found for found in _problems(config)), _problems(config)


# --------------------------------------------------------------------------------------- Kubernetes


def _pods(job: Tree) -> dict[str, Tree]:
    cluster = job["spec"]["rayClusterSpec"]
    pods = {"head": cluster["headGroupSpec"]["template"]["spec"]}
    return pods | {
        group["groupName"]: group["template"]["spec"] for group in cluster["workerGroupSpecs"]
    }


def _job_problems(job: Tree) -> list[str]:
    """Check the fields that KubeRay's documentation requires, and our rules; not the operator's
    schema."""
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    found = [] if (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob") else ["no RayJob"]
    command, verb, *rest = shlex.split(spec["entrypoint"])
    if (
        command != "recsys"
        or verb not in VERBS
        or dict(parse(rest).overrides).get("ray.address") != "auto"
    ):
        found.append("the entrypoint is no verb on the cluster")
    pinned = re.search(
        r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    if pinned is None or cluster["rayVersion"] != pinned[1]:
        found.append("rayVersion is not the image's")
    if cluster.get("authOptions", {}).get("mode") != "token":
        found.append("no token")
    if cluster["headGroupSpec"].get("serviceType") != "ClusterIP":
        found.append("the head is reachable from outside")
    if cluster["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        found.append("the head takes tasks")
    if not spec.get("shutdownAfterJobFinishes"):
        found.append("the cluster stays")
    for group in cluster["workerGroupSpecs"]:
        if not 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            found.append(f"{group['groupName']}: replicas out of order")
    for name, pod in _pods(job).items():
        image = pod["containers"][0]["image"]
        if not re.fullmatch(r"REGISTRY/multigrain:\d+\.\d+\.\d+", image):
            found.append(f"{name}: image {image}")
        if not pod["securityContext"].get("runAsNonRoot"):
            found.append(f"{name}: root")
        volumes = {volume["name"] for volume in pod["volumes"]}
        found += [
            f"{name}: no volume {mount['name']}"
            for mount in pod["containers"][0]["volumeMounts"]
            if mount["name"] not in volumes
        ]
    return found


def test_kubernetes_job_follows_our_rules() -> None:
    job = _load(KUBERNETES)
    assert _job_problems(job) == []
    gpus = {
        name: "nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]
        for name, pod in _pods(job).items()
    }
    assert gpus == {"head": False, "data": False, "train": True}


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("spec/entrypoint", "bash -c true", "no verb"),
        ("spec/entrypoint", "recsys run --config c.yaml", "no verb"),
        ("spec/rayClusterSpec/authOptions", {}, "no token"),
        ("spec/rayClusterSpec/rayVersion", "2.9.0", "rayVersion"),
        ("spec/rayClusterSpec/headGroupSpec/serviceType", "LoadBalancer", "outside"),
        ("spec/rayClusterSpec/headGroupSpec/rayStartParams", {}, "takes tasks"),
        ("spec/rayClusterSpec/headGroupSpec/template/spec/securityContext", {}, "root"),
        ("spec/rayClusterSpec/headGroupSpec/template/spec/volumes", [], "no volume"),
        ("spec/shutdownAfterJobFinishes", False, "stays"),
    ],
)
def test_bad_kubernetes_job_is_found(path: str, value: Any, problem: str) -> None:
    job = copy.deepcopy(_load(KUBERNETES))  # anchors share their content
    _set(path, value)(job)
    assert any(problem in found for found in _job_problems(job)), _job_problems(job)


# -------------------------------------------------------------------------------------------- image


def _image_problems(text: str) -> list[str]:
    steps = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    steps = [step.strip() for step in steps if step.strip()]
    found = []
    bases = [step.split()[1] for step in steps if step.startswith("FROM")]
    if not bases or not all(re.fullmatch(r"\S+:(\d+\.){2}\d+\S*", base) for base in bases):
        found.append("a base that is not pinned to a patch release")
    users = [step.split()[1] for step in steps if step.startswith("USER")]
    if not users or users[-1] in ("root", "0"):
        found.append("runs as root")
    if any(
        re.search(r"(?i)(token|password|secret|key)\s*=\s*\S", step.replace("=token", ""))
        for step in steps
    ):
        found.append("a secret in the image")
    if any(step.startswith("ADD") or re.match(r"COPY (--\S+ )*\. ", step) for step in steps):
        found.append("copies unrelated files")
    if not any(
        "pip install" in step and "-c constraints.txt '.[text,serve,s3]'" in step for step in steps
    ):
        found.append("not installed as the README says, with the constraints")
    return found


def test_image_follows_our_rules() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    assert _image_problems(text) == []
    copied = re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE)
    assert all((ROOT / name).exists() for names in copied for name in names.split())
    assert "has not been built" in (DOCKERFILE.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("3.11.13-slim-bookworm", "latest", "pinned"),
        ("USER ray", "USER root", "root"),
        ("DO_NOT_TRACK=true", "AWS_SECRET_ACCESS_KEY=abc", "secret"),
        ("COPY recsys ./recsys", "COPY . .", "unrelated files"),
        ("-c constraints.txt", "", "constraints"),
    ],
)
def test_bad_image_is_found(old: str, new: str, problem: str) -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    assert old in text
    assert any(problem in found for found in _image_problems(text.replace(old, new)))

"""The Kubernetes service: its RayService has the fields of KubeRay and follows our rules, and its
Serve config is deployed here.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_serving_ways import (
    REQUESTS,
    SIMILAR,
    Served,
    _below,
    answers_get,
    free_port,
    get,
    post,
    refused,
    started,
)

from pipelines.serve_app import build
from recsys.errors import ConfigError

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "docs" / "cluster" / "rayservice.yaml"
TOKENS = {
    "MULTIGRAIN_TOKEN": "a token of the shop's page",
    "MULTIGRAIN_STOCK_TOKEN": "a token of the warehouse",
}
Tree = dict[str, Any]

# Fields of KubeRay's ray.io/v1 as its documentation names them (apis/ray/v1/rayservice_types.go,
# raycluster_types.go)
SERVICE = {
    "serveConfigV2",
    "rayClusterConfig",
    "serveService",
    "upgradeStrategy",
    "excludeHeadPodFromServeSvc",
    "rayClusterDeletionDelaySeconds",
}
CLUSTER = {
    "headGroupSpec",
    "workerGroupSpecs",
    "rayVersion",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "authOptions",
    "gcsFaultToleranceOptions",
    "headServiceAnnotations",
}
HEAD = {"serviceType", "headService", "enableIngress", "rayStartParams", "template"}
WORKERS = {
    "groupName",
    "replicas",
    "minReplicas",
    "maxReplicas",
    "numOfHosts",
    "idleTimeoutSeconds",
    "rayStartParams",
    "template",
    "scaleStrategy",
}


def manifests() -> dict[str, Tree]:
    found = yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8"))
    # YAML anchors give shared objects
    return {tree["kind"]: copy.deepcopy(tree) for tree in found}


def serve_config(trees: dict[str, Tree]) -> Tree:
    tree: Tree = yaml.safe_load(trees["RayService"]["spec"]["serveConfigV2"])
    return tree


def _unknown(trees: dict[str, Tree]) -> list[str]:
    spec = trees["RayService"]["spec"]
    cluster = spec["rayClusterConfig"]
    known = [
        ("spec", spec, SERVICE),
        ("rayClusterConfig", cluster, CLUSTER),
        ("head", cluster["headGroupSpec"], HEAD),
    ]
    known += [(group["groupName"], group, WORKERS) for group in cluster["workerGroupSpecs"]]
    return [
        f"{where}: unknown field {name}"
        for where, tree, names in known
        for name in set(tree) - names
    ]


def _problems(trees: dict[str, Tree]) -> list[str]:
    found, cluster = _unknown(trees), trees["RayService"]["spec"]["rayClusterConfig"]
    head, [workers] = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    args = serve_config(trees)["applications"][0]["args"]["serve"]
    pod = workers["template"]["spec"]
    [container] = pod["containers"]
    if cluster.get("authOptions", {}).get("mode") != "token":
        found.append("no token between nodes")
    if (
        not trees["RayService"]["spec"].get("excludeHeadPodFromServeSvc")
        or head["rayStartParams"]["num-cpus"] != "0"
    ):
        found.append("the head answers")
    if f"ray=={cluster['rayVersion']}\n" not in (ROOT / "constraints.txt").read_text(
        encoding="utf-8"
    ):
        found.append("rayVersion is not the image's")
    if not 0 <= workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]:
        found.append("replicas out of order")
    secrets = {
        one["name"]
        for one in container.get("env", [])
        if "secretKeyRef" in one.get("valueFrom", {})
    }
    if not {args["token_env"], args["stock_token_env"]} <= secrets:
        found.append("a token that is not of a Secret")
    for place, group in (("head", head), ("worker", workers)):
        spec = group["template"]["spec"]
        [one] = spec["containers"]
        if (
            not spec["securityContext"].get("runAsNonRoot")
            or one["securityContext"]["allowPrivilegeEscalation"]
        ):
            found.append(f"{place}: root")
        if set(one.get("resources", {})) != {"limits", "requests"}:
            found.append(f"{place}: no bound on memory")
        if {mount["name"] for mount in one["volumeMounts"]} != {
            volume["name"] for volume in spec["volumes"]
        }:
            found.append(f"{place}: volumes and mounts differ")
    if container.get("readinessProbe", {}).get("httpGet", {}).get("path") != "/health":
        found.append("ready before a replica answers")
    if pod.get("serviceAccountName") != trees["ServiceAccount"]["metadata"]["name"]:
        found.append("no right to read the models")
    return found + _network_problems(trees, workers)


def _network_problems(trees: dict[str, Tree], workers: Tree) -> list[str]:
    found, labels = [], workers["template"]["metadata"]["labels"].items()
    budget, policy = trees["PodDisruptionBudget"]["spec"], trees["NetworkPolicy"]["spec"]
    if not isinstance(budget.get("minAvailable"), int) or "maxUnavailable" in budget:
        found.append("a budget that pods without a scaled controller cannot have")
    for name, selector in (("budget", budget["selector"]), ("policy", policy["podSelector"])):
        if not selector["matchLabels"].items() <= labels:
            found.append(f"the {name} selects no worker")
    if any(not rule.get("from") for rule in policy["ingress"]) or policy["policyTypes"] != [
        "Ingress"
    ]:
        found.append("open to every pod")
    cluster = trees["RayService"]["spec"]["rayClusterConfig"]
    cpus = (
        int(workers["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
        * workers["minReplicas"]
    )
    front, answering = serve_config(trees)["applications"][0]["deployments"]
    least = front["num_replicas"] * front["ray_actor_options"]["num_cpus"]
    least += (
        answering["autoscaling_config"]["min_replicas"] * answering["ray_actor_options"]["num_cpus"]
    )
    if (
        2 * least + 1 > cpus or not cluster["enableInTreeAutoscaling"]
    ):  # twice: the old and the new cluster run at the same time
        found.append("too few CPUs to change over")
    return found


def test_rayservice_has_kuberays_fields_and_follows_our_rules() -> None:
    trees = manifests()
    assert set(trees) == {"RayService", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy"}
    assert trees["RayService"]["apiVersion"] == "ray.io/v1" and _problems(trees) == []


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("RayService/spec/serveConfig", {}, "unknown field serveConfig"),
        ("RayService/spec/rayClusterConfig/authOptions", {}, "no token between nodes"),
        ("RayService/spec/rayClusterConfig/rayVersion", "2.9.0", "rayVersion"),
        ("RayService/spec/excludeHeadPodFromServeSvc", False, "the head answers"),
        ("RayService/spec/rayClusterConfig/workerGroupSpecs/0/minReplicas", 9, "out of order"),
        ("RayService/spec/rayClusterConfig/workerGroupSpecs/0/minReplicas", 1, "too few CPUs"),
        (
            "RayService/spec/rayClusterConfig/workerGroupSpecs/0/template/spec/containers/0/env",
            [],
            "of a Secret",
        ),
        (
            "RayService/spec/rayClusterConfig/workerGroupSpecs/0/template/spec/securityContext",
            {},
            "root",
        ),
        (
            "RayService/spec/rayClusterConfig/workerGroupSpecs/0/template/spec/containers/0/resources",
            {},
            "memory",
        ),
        (
            "RayService/spec/rayClusterConfig/workerGroupSpecs/0/template/spec/containers/0/readinessProbe",
            {},
            "ready",
        ),
        ("ServiceAccount/metadata/name", "default", "no right"),
        ("PodDisruptionBudget/spec/minAvailable", "50%", "budget"),
        (
            "NetworkPolicy/spec/podSelector",
            {"matchLabels": {"app": "other"}},
            "policy selects no worker",
        ),
        ("NetworkPolicy/spec/ingress", [{}], "open to every pod"),
    ],
)
def test_faulty_rayservice_is_found(path: str, value: Any, problem: str) -> None:
    trees: Any = manifests()
    place = trees
    *names, last = path.split("/")
    for name in names:
        place = place[int(name) if isinstance(place, list) else name]
    place[last] = value
    if last == "resources":
        place["resources"] = {"requests": {}, "limits": {"cpu": "9"}, "more": {}}
    assert any(problem in found for found in _problems(trees)), _problems(trees)


def test_serve_accepts_the_config_and_its_args_build_both_deployments() -> None:
    from ray.serve.schema import ServeDeploySchema

    tree = serve_config(manifests())
    [application] = ServeDeploySchema.model_validate(tree).applications
    assert (
        application.import_path == "pipelines.serve_app:build"
        and tree["http_options"]["host"] == "0.0.0.0"
    )
    built = build(application.args)
    names = {one.name for one in application.deployments}
    assert {
        built._bound_deployment.name,
        built._bound_deployment.init_args[1]._bound_deployment.name,
    } == names
    for token in TOKENS.values():
        assert token not in MANIFEST.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"serve": {"modelx": "x"}}, "serve.modelx"),
        (
            {"serve": {"replicas": 2}},
            "serve.replicas is decided by Serve's configuration; remove it and set num_rep",
        ),
        ({"serve": {"host": "0.0.0.0"}}, "set http_options"),
        (
            {"serve": {"model": "models:/m@champion"}},
            "tracking.uri is empty, but models:/m@champion",
        ),
        (
            {"tracking": {"uri": "http://m:1"}, "serve": {"log": "$LOGS"}},
            r"serve.log: \$LOGS contains a variable",
        ),
    ],
)
def test_invalid_args_are_refused(args: Tree, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(args)


def _wait(condition: Any, seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.3)


@pytest.mark.slow
def test_serve_config_of_the_manifest_answers_as_recsys_serve_and_follows_the_alias(
    tmp_path: Path,
) -> None:
    """`serve run` of this config at other addresses; then another version appears, and the model
    holder is killed.
    """
    served, port = Served(tmp_path), free_port()
    tree = serve_config(manifests())
    tree["http_options"] |= {"host": "127.0.0.1", "port": port}
    args = tree["applications"][0]["args"]
    args["tracking"]["uri"] = served.uri
    args["serve"] |= {"model": "models:/pocket@champion", "poll_seconds": 0.5}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(tree))
    url, log = f"http://127.0.0.1:{port}", tmp_path / "serve.log"
    caller, warehouse = ({"Authorization": f"Bearer {token}"} for token in TOKENS.values())
    words = [str(Path(sys.executable).parent / "serve"), "run", "serve.yaml"]
    environment = {
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "disabled",
        "RAY_OVERRIDE_RESOURCES": '{"CPU": 8}',
    }
    with started(words, log, answers_get(f"{url}/health"), **environment, **TOKENS) as process:
        assert post(f"{url}/recommend", REQUESTS, **caller) == served.expected()
        assert post(f"{url}/similar", SIMILAR, **caller)["item_ids"]
        assert "requires a token" in refused(f"{url}/recommend", REQUESTS, 401)["error"]
        with urllib.request.urlopen(f"{url}/docs", timeout=120) as page:
            assert b"callerToken" in page.read()
        asked = urllib.request.Request(f"{url}/openapi.json", headers=caller)
        with urllib.request.urlopen(asked, timeout=120) as reply:
            assert "weather" in json.load(reply)["components"]["schemas"]["Context"]["properties"]
        with pytest.raises(urllib.error.HTTPError) as found:
            post(f"{url}/recommend", [{"user_id": 7}], **caller)
        assert found.value.code == 400 and b"user_id: got 7" in found.value.read()
        assert post(f"{url}/stock", {"out": ["i3"]}, **warehouse)["out"] == 1
        _wait(
            lambda: (
                "i3"
                not in post(f"{url}/recommend", {"user_id": "nobody", "k": 100}, **caller)[
                    "item_ids"
                ]
            )
        )
        served.add(1)
        _wait(lambda: get(f"{url}/health")["version"] == "2")
        [holder] = [pid for pid in _below(process.pid) if b"ray::FollowingHolder" in _title(pid)]
        os.kill(holder, signal.SIGKILL)
        assert post(f"{url}/recommend", REQUESTS[0], **caller)["item_ids"], (
            "replicas continue without the model holder"
        )
        served.add(2)
        _wait(lambda: get(f"{url}/health")["version"] == "3")
        assert (
            "i3"
            not in post(f"{url}/recommend", {"user_id": "nobody", "k": 100}, **caller)["item_ids"]
        )
        _wait(lambda: post(f"{url}/stock", {"out": []}, **warehouse)["everywhere"])
        found_answers = post(f"{url}/recommend", REQUESTS, **caller)
        assert found_answers == served.expected(), "answered by the third version"
        process.send_signal(signal.SIGINT)
        assert process.wait(200) == 0


def _title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""

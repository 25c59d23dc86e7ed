"""`recsys submit` against local Ray clusters with one node and with two."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"
WORLD = {
    "num_users": 60,
    "num_items": 40,
    "events_per_user": 8,
    "bad_rows": 0,
    "num_partitions": 2,
}
LOOPBACK = "127.0.0.2"  # Ray treats 127.0.0.1 as the external address


def ports(number: int) -> list[int]:
    """Find ports that are free now, below the range that the system assigns to clients."""
    found: list[int] = []
    while len(found) < number:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found += [] if port in found else [port]
    return found


class Cluster:
    """Nodes of one Ray cluster on the loopback, each in its own process group."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder, self.nodes = folder, list[subprocess.Popen[str]]()
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        # Ray's sockets need a short path
        self.temporary = tempfile.mkdtemp(prefix="mg-", dir="/tmp")
        self.gcs, self.dashboard = ports(2)
        self.environment = {
            **{
                key: value
                for key, value in os.environ.items()
                if not key.startswith(("RAY_", "RECSYS_"))
            },
            "PATH": f"{RAY.parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            **environment,
        }

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    def start(self, cpus: int) -> None:
        """Start the head, or one more node if there is a head."""
        object_manager, node_manager, client, agent, agent_grpc, metrics = ports(6)
        low = 10_000 + 100 * secrets.randbelow(90)  # apart from the ports above
        where = (
            ["--head", f"--port={self.gcs}", f"--ray-client-server-port={client}"]
            + [
                "--include-dashboard=true",
                "--dashboard-host=127.0.0.1",
                f"--dashboard-port={self.dashboard}",
            ]
            if not self.nodes
            else [f"--address={LOOPBACK}:{self.gcs}"]
        )
        words = [
            str(RAY),
            "start",
            "--block",
            f"--node-ip-address={LOOPBACK}",
            *where,
            f"--num-cpus={cpus}",
        ]
        # a folder each, as on separate machines: nodes unpack job packages
        words += [f"--temp-dir={self.temporary}/{len(self.nodes)}"]
        words += [f"--object-manager-port={object_manager}", f"--node-manager-port={node_manager}"]
        words += [
            f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={agent_grpc}",
        ]
        words += [
            f"--metrics-export-port={metrics}",
            "--object-store-memory=200000000",
            "--disable-usage-stats",
        ]
        words += [f"--min-worker-port={low}", f"--max-worker-port={low + 99}"]
        log = (self.folder / f"node{len(self.nodes)}.log").open("w")
        node = subprocess.Popen(
            words,
            env=self.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )
        self.nodes.append(node)
        self._await(sum(node.poll() is None for node in self.nodes))

    def _await(self, number: int) -> None:
        """Wait until the job server reports this number of live nodes."""
        import requests

        header = {"authorization": "Bearer " + (self.folder / "token").read_text()}
        for _ in range(600):
            assert self.nodes[-1].poll() is None, (self.folder / "node0.log").read_text()
            with suppress(requests.RequestException, KeyError, ValueError):
                found = requests.get(
                    f"{self.address}/nodes?view=summary", headers=header, timeout=30
                ).json()
                if (
                    len(
                        [n for n in found["data"]["summary"] if n["raylet"].get("state") == "ALIVE"]
                    )
                    >= number
                ):
                    return
            time.sleep(0.5)
        raise AssertionError(
            f"{number} nodes did not come: " + (self.folder / "node0.log").read_text()
        )

    def submit(self, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        environment = {
            **self.environment,
            "PYTHONPATH": str(ROOT),
            "RAY_API_SERVER_ADDRESS": self.address,
        }
        command = [sys.executable, "-m", "pipelines.cli", "submit", *words]
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=800
        )

    def end(self) -> None:
        for node in reversed(self.nodes):
            with suppress(ProcessLookupError):
                os.kill(node.pid, signal.SIGTERM)
        for node in reversed(self.nodes):
            with suppress(subprocess.TimeoutExpired):
                node.wait(timeout=100)
            with suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)  # only the processes of this cluster
        shutil.rmtree(self.temporary, ignore_errors=True)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    try:
        yield made
    finally:
        made.end()


def _config(folder: Path) -> Path:
    """Write a configuration of a tiny world whose run folder is relative to the configuration's
    folder."""
    path = folder / "elsewhere" / "tiny.yaml"
    path.parent.mkdir()
    lines = [f"    {key}: {value}" for key, value in WORLD.items()]
    text = "run: {dir: runs/tiny}\ndata:\n  source:\n    kind: synthetic\n" + "\n".join(lines)
    text += "\n  text: {enabled: false}\n  num_shards: 2\n  quarantine: {max_share: 0.5}\n"
    text += (
        "model:\n  width: 16\n  item: {text: false}\n  granularities:\n    evolution: {enabled:"
        " true}\n"
    )
    text += "train: {epochs: 2, batch_size: 16, threads: 1, refit: false}\n"
    text += "evaluate: {ks: [5, 10], baselines: [popularity], bootstrap: 100}\n"
    path.write_text(
        text.replace("refit: false}", "refit: false, metric: ndcg@10}"), encoding="utf-8"
    )
    return path


def _arrived(folder: Path) -> Path:
    run = folder / "elsewhere" / "runs" / "tiny"
    assert "ndcg@10" in json.loads((run / "metrics.json").read_text())["model"]
    assert json.loads((run / "registered.json").read_text())["version"]
    assert (run / "report.html").exists() and (run.parent / "mlflow.db").exists()
    return run


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_job_from_another_folder_runs_on_one_node(cluster: Cluster, tmp_path: Path) -> None:
    """Log, metrics and registered model arrive; a user's mistake sets the job's exit code; jobs can
    be listed and stopped."""
    config = _config(tmp_path)
    cluster.start(cpus=2)
    done = cluster.submit("run", "--config", config.name, cwd=config.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "epoch   2/2" in done.stdout
        and "chose epoch" in done.stdout
        and "multigrain, version 1" in done.stdout
    )
    _arrived(tmp_path)

    listed = cluster.submit("list", cwd=tmp_path)
    job = listed.stdout.splitlines()[1].split()[0]
    assert "SUCCEEDED" in cluster.submit("status", job, cwd=tmp_path).stdout
    again = cluster.submit("logs", job, cwd=tmp_path)
    assert again.returncode == 0 and again.stdout in done.stdout
    taken = cluster.submit("train", "--config", config.name, "--submit.id", job, cwd=config.parent)
    assert taken.returncode == 2 and "has a job" in taken.stderr
    unknown = cluster.submit("stop", "no-such-job", cwd=tmp_path)
    assert unknown.returncode == 2 and "has no job" in unknown.stderr

    many = cluster.submit(
        "train", "--config", config.name, "--train.num_workers", "9", cwd=config.parent
    )
    assert many.returncode == 2 and "the cluster has 2 CPUs, but 9 are needed" in many.stderr, (
        many.stderr
    )
    items = ("--data.source.num_items", "2000000000", "--run.dir", "runs/large")
    large = cluster.submit("run", "--config", config.name, *items, cwd=config.parent)
    assert large.returncode == 2 and "embedding tables" in large.stderr, large.stderr
    assert len(cluster.submit("list", cwd=tmp_path).stdout.splitlines()) == 2, (
        "what is refused is not queued"
    )

    words = ("--config", config.name, "--data.dir", "missing")
    wrong = cluster.submit("train", *words, cwd=config.parent)
    assert wrong.returncode == 2, wrong.stdout + wrong.stderr
    assert str(config.parent / "missing") in wrong.stdout

    slow = ("--config", config.name, "--train.epochs", "100000", "--train.patience", "100000")
    begun = cluster.submit(
        "train", *slow, "--submit.follow", "false", "--submit.id", "long", cwd=config.parent
    )
    assert begun.returncode == 0
    stopped = cluster.submit("stop", "long", cwd=tmp_path)
    assert "STOPPED" in stopped.stdout, stopped.stdout + stopped.stderr
    assert cluster.submit("logs", "long", cwd=tmp_path).returncode == 1

    environment = {
        **cluster.environment,
        "RAY_AUTH_TOKEN_PATH": os.devnull,
        "RAY_AUTH_TOKEN": "0" * 64,
    }
    cluster.environment = environment
    other = cluster.submit("list", cwd=tmp_path)
    assert other.returncode == 2 and "requires its token" in other.stderr


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_job_runs_on_two_nodes(cluster: Cluster, tmp_path: Path) -> None:
    """One worker per node: neither node has CPUs for both."""
    config = _config(tmp_path)
    cluster.start(cpus=1)
    cluster.start(cpus=1)
    done = cluster.submit(
        "run", "--config", str(config), "--train.num_workers", "2", cwd=config.parent
    )
    assert done.returncode == 0, done.stdout + done.stderr
    _arrived(tmp_path)
    assert "epoch   2/2" in done.stdout

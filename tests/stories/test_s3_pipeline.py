"""The whole pipeline on an S3-compatible server gives the same results as on a local disk.

Every command is a separate process that shares only the server with the one before, as on another
machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
import yaml

from recsys.config import build_config
from recsys.data.histories import Array, Queries
from recsys.evaluation.ranking import Scorer
from recsys.evaluation.validation import Validator
from recsys.privacy.proof import is_signed
from recsys.storage.filesystems import filesystem_of, read_bytes
from recsys.storage.mirror import upload

ROOT = Path(__file__).parents[2]


def write_tables(folder: Path) -> None:
    """Users walk around a ring of items; the three tables have three formats."""
    draw = np.random.default_rng(3)
    walks = [
        (user, (start + step) % 30)
        for user, start in enumerate(draw.integers(0, 30, 60))
        for step in range(9)
    ]
    events = {
        "user_id": [f"u{user}" for user, _ in walks],
        "item_id": [f"i{item}" for _, item in walks],
        "timestamp": pa.array(
            [1_600_000_000 + 60 * place for place in range(len(walks))], pa.int64()
        ),
    }
    folder.mkdir()
    (folder / "events").mkdir()
    table = pa.table(events)
    for part in range(2):
        pq.write_table(table.slice(part * 270, 270), folder / f"events/part-{part}.parquet")
    (folder / "items.jsonl").write_text(
        "".join(f'{{"item_id": "i{i}", "title": "song {i}"}}\n' for i in range(30))
    )
    friends = "".join(f"u{user},u{(user + 1) % 60}\n" for user in range(60))
    (folder / "social.csv").write_text("src_user_id,dst_user_id\n" + friends)
    feedback = [f"u{n % 60},i{n % 30},{'click' if n % 3 else 'skip'}\n" for n in range(120)]
    (folder / "feedback.csv").write_text("user_id,item_id,event_type\n" + "".join(feedback))
    (folder / "asked.jsonl").write_text(
        '{"user_id": "new", "history": ["i1", "i2"]}\n{"user_id": "u1"}\n'
    )


def tree_of(raw: str, run: str, database: Path) -> dict[str, Any]:
    tables = {
        "events": [f"{raw}/events"],
        "items": [f"{raw}/items.jsonl"],
        "social": [f"{raw}/*.csv"],
    }
    return {
        "run": {"dir": run, "name": "tiny"},
        "data": {
            "source": {"kind": "canonical", **tables, "social": [f"{raw}/social.csv"]},
            "text": {"enabled": False},
            "num_shards": 2,
        },
        "model": {
            "width": 8,
            "item": {"text": False},
            "granularities": {"evolution": {"enabled": True}, "social": {"enabled": True}},
        },
        "train": {"epochs": 2, "batch_size": 32, "metric": "ndcg@5", "threads": 1, "warmup": 0.0},
        "evaluate": {"ks": [5], "baselines": ["popularity"], "bootstrap": 100, "num_examples": 1},
        "recommend": {"k": 4},
        "registry": {"name": "tiny"},
        "tracking": {"uri": f"sqlite:///{database}"},
        "update": {"only": "fusion"},
    }


def recsys(verb: str, tree: dict[str, Any], folder: Path, *words: str) -> str:
    """Run a command that must succeed in an empty folder with an empty temporary folder, and return
    its output."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tmp").mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "pipelines.cli", verb, "--config", "config.yaml", *words]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "disabled",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def objects(place: str) -> list[str]:
    filesystem, inner = filesystem_of(place)
    found = filesystem.get_file_info(pyarrow.fs.FileSelector(inner, recursive=True))
    return sorted(info.path[len(inner) + 1 :] for info in found if info.is_file)


def recommendations(place: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(read_bytes(place)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_pipeline_on_s3_equals_pipeline_on_local_disk(tmp_path: Path, bucket: str) -> None:
    write_tables(tmp_path / "raw")
    upload(tmp_path / "raw", f"{bucket}/raw")
    local = tree_of(
        str(tmp_path / "raw"), str(tmp_path / "local/run"), tmp_path / "local/mlflow.db"
    )
    remote = tree_of(f"{bucket}/raw", f"{bucket}/runs/one", tmp_path / "remote/mlflow.db")
    remote["data"]["dir"] = f"{bucket}/sets/tiny"
    remote["tracking"]["artifacts"] = f"{bucket}/mlflow"
    recsys("run", local, tmp_path / "a")
    printed = recsys("run", remote, tmp_path / "b")
    assert f"report      {bucket}/runs/one/report.html" in printed

    found = objects(f"{bucket}/runs/one")
    for name in (
        "config.yaml",
        "metrics.json",
        "report.html",
        "run.log",
        "model/trained.json",
        "bundle/bundle.json",
    ):
        assert name in found
    assert any(name.startswith("checkpoints/") and name.endswith("trained.json") for name in found)
    assert "manifest.json" in objects(f"{bucket}/sets/tiny") and not any(
        name.endswith("lock") for name in found
    )
    metrics = [
        json.loads(read_bytes(f"{run}/metrics.json"))
        for run in (f"{tmp_path}/local/run", f"{bucket}/runs/one")
    ]
    assert (
        metrics[1]["model"] == metrics[0]["model"]
        and metrics[1]["baselines"] == metrics[0]["baselines"]
    )

    recsys("recommend", local, tmp_path / "c")
    recsys("recommend", remote, tmp_path / "d")
    here = recommendations(f"{tmp_path}/local/run/recommendations.parquet")
    there = recommendations(f"{bucket}/runs/one/recommendations.parquet")
    assert there.num_rows == 60 * 4 and there.equals(here)

    assert "is up to date" in recsys("prepare", remote, tmp_path / "e")
    recsys("evaluate", remote, tmp_path / "f")
    assert json.loads(read_bytes(f"{bucket}/runs/one/metrics.json"))["model"] == metrics[0]["model"]

    pulled = [*("--run.dir", f"{bucket}/runs/two"), *("--recommend.model", "models:/tiny/1")]
    recsys(
        "recommend",
        remote,
        tmp_path / "g",
        *pulled,
        "--recommend.requests",
        f"{bucket}/raw/asked.jsonl",
    )
    answers = recommendations(f"{bucket}/runs/two/answers/asked.parquet")
    assert set(answers.column("user_id").to_pylist()) == {"new", "u1"}
    words = [
        "--requests",
        f"{bucket}/raw/asked.jsonl",
        "--out",
        f"{bucket}/elsewhere/asked.parquet",
    ]
    assert f"in {bucket}/elsewhere/asked.parquet" in recsys(
        "recommend", remote, tmp_path / "g2", *pulled, *words
    )
    assert recommendations(f"{bucket}/elsewhere/asked.parquet").equals(answers)
    words = [
        *("--update.model", f"{bucket}/runs/one"),
        *("--update.feedback", f"[{bucket}/raw/feedback.csv]"),
    ]
    assert "120 rows of feedback" in recsys(
        "update", remote, tmp_path / "h", *words, "--run.dir", f"{bucket}/runs/two"
    )

    secret = b"word-that-nobody-may-read"
    assert not any(secret in read_bytes(f"{bucket}/{name}") for name in objects(bucket))
    assert (
        secret not in (tmp_path / "remote/mlflow.db").read_bytes()
        and secret.decode() not in printed
    )


def write_day(path: Path, day: int) -> None:
    """Write a later walk of every user around the ring."""
    start = 1_600_100_000 + 86_400 * day
    rows = [
        f"u{user},i{(user + 9 + day + step) % 30},{start + 60 * user + step}"
        for user in range(60)
        for step in range(3)
    ]
    path.write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")


def holding(place: str, word: bytes) -> list[str]:
    """Objects that contain a word; Parquet and Arrow files are decoded."""
    found = []
    for name in objects(place):
        content = read_bytes(f"{place}/{name}")
        if name.endswith(".parquet"):
            content += str(pq.read_table(pa.BufferReader(content)).to_pydict()).encode()
        elif name.endswith(".arrow"):
            with pa.ipc.open_file(pa.BufferReader(content)) as reader:
                content += str(reader.read_all().to_pydict()).encode()
        if word in content:
            found.append(name)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_update_appends_a_day_and_forget_removes_a_user_on_s3(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update with one newer file continues a dataset on S3; after forgetting, no object there
    contains the user."""
    write_tables(tmp_path / "raw")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))  # folder of the signing key
    write_day(tmp_path / "raw/day.csv", 1)
    upload(tmp_path / "raw", f"{bucket}/raw")
    tree = tree_of(f"{bucket}/raw", f"{bucket}/runs/one", tmp_path / "mlflow.db")
    tree["tracking"]["artifacts"] = f"{bucket}/mlflow"
    tree["update"] = {"epochs": 1}
    recsys("run", tree, tmp_path / "a")
    words = ["--update.model", "models:/tiny/1", "--events", f"{bucket}/raw/day.csv"]
    recsys("update", tree, tmp_path / "b", *words, "--run.dir", f"{bucket}/runs/two")
    manifests = [
        json.loads(read_bytes(f"{bucket}/runs/{run}/dataset/manifest.json"))
        for run in ("one", "two")
    ]
    assert manifests[1]["counts"]["events"] == manifests[0]["counts"]["events"] + 180 == 720
    recsys("recommend", tree, tmp_path / "c", "--run.dir", f"{bucket}/runs/two")

    assert {"runs/one/bundle/users.parquet", "runs/two/bundle/users.parquet"} <= set(
        holding(bucket, b"u17")
    )
    recsys("forget", tree, tmp_path / "d", "--user", "u17", "--run.dir", f"{bucket}/runs/one")
    assert "recommendations.parquet" in holding(f"{bucket}/runs/two", b"u17"), (
        "another run folder is not touched"
    )
    printed = recsys(
        "forget", tree, tmp_path / "e", "--user", "u17", "--run.dir", f"{bucket}/runs/two"
    )
    assert "nothing found" in printed and "forgotten/proof-" in printed
    for run in ("one", "two"):
        assert holding(f"{bucket}/runs/{run}", b"u17") == []
        (proof,) = [
            name for name in objects(f"{bucket}/runs/{run}") if name.startswith("forgotten/proof-")
        ]
        found = json.loads(read_bytes(f"{bucket}/runs/{run}/{proof}"))
        assert is_signed(found) and found["run"] == f"{bucket}/runs/{run}"
        searched = {one["path"] for one in found["searched"]}
        assert {
            "dataset/manifest.json",
            "bundle/users.parquet",
            "model/weights.safetensors",
        } <= searched
        bundle = pq.read_table(
            pa.BufferReader(read_bytes(f"{bucket}/runs/{run}/bundle/users.parquet"))
        )
        assert bundle.num_rows == 59 and "forgetting.json" not in objects(f"{bucket}/runs/{run}")
    assert not any(
        name.endswith("users.parquet") for name in holding(f"{bucket}/mlflow", b"u17")
    ), "no version has them"
    recsys("evaluate", tree, tmp_path / "f", "--run.dir", f"{bucket}/runs/two")


class DiesOnce:
    """A validator that kills its worker once, in the second epoch."""

    def __init__(self, inner: Validator, marker: Path) -> None:
        self.inner, self.marker, self.calls = inner, marker, 0

    def __call__(self, model: Scorer, queries: Queries) -> Array:
        self.calls += 1
        if self.calls == 2 and not self.marker.exists():
            self.marker.write_text("")
            os._exit(9)
        return self.inner(model, queries)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_worker_resumes_from_checkpoints_on_s3(tmp_path: Path, bucket: str) -> None:
    """Train in a separate process, whose Ray can reach the server."""
    write_tables(tmp_path / "raw")
    tree = tree_of(str(tmp_path / "raw"), f"{bucket}/run", tmp_path / "mlflow.db")
    tree["train"]["epochs"] = 3
    (tmp_path / "tree.json").write_text(json.dumps(tree))
    code = "import sys; from tests.stories import test_s3_pipeline as s; s.train_twice(sys.argv[1])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lost, whole = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("lost", "whole")
    )
    assert (tmp_path / "marker").exists()
    assert lost["history"] == whole["history"] and lost["reports"] == whole["reports"] == [1, 2, 3]


def train_twice(folder: str) -> None:
    """Train with a worker that is killed and with one that is not."""
    from pipelines.plumbing.session import ray_session

    place = Path(folder)
    config = build_config(json.loads((place / "tree.json").read_text()))
    config.train.refit = False
    with ray_session(config.train, config.ray):
        from recsys.preparation.prepare import prepare
        from recsys.training.ray_train import train_on_ray

        dataset = prepare(config, lambda line: None)
        whole = Validator.of(config.train, config.evaluate)
        for name, validate in (("lost", DiesOnce(whole, place / "marker")), ("whole", whole)):
            epochs: list[int] = []
            result = train_on_ray(
                config, dataset, validate, lambda values, seen=epochs: seen.append(values["epoch"])
            )
            history = [
                {key: value for key, value in row.items() if key != "seconds"}
                for row in result.history
            ]
            (place / f"{name}.json").write_text(json.dumps({"history": history, "reports": epochs}))

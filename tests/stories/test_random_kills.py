"""SIGKILL at random moments between prepare and promote: the same commands with `--resume` end with
the result of an uninterrupted run.

`RECSYS_KILLS` is the number of seeds and `RECSYS_KILL_SEED` the first one, so that a long series
can be divided. A seed determines everything that is drawn, and a failure prints it. Half of the
moments are drawn over the time of the commands. The others are drawn over the writes of the driver
to its run folder and its store: two writes that are a millisecond apart leave different files.
"""

from __future__ import annotations

import importlib
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from pipelines.cli import main
from tests.faults import ROOT, SITE, Command, events_of, outcome, own_processes, world
from tests.project.test_submit_cluster import LOOPBACK, Cluster

pytestmark = pytest.mark.timeout(3000)
FIRST: Final = int(os.environ.get("RECSYS_KILL_SEED", "0"))
SEEDS: Final = range(FIRST, FIRST + int(os.environ.get("RECSYS_KILLS", "20")))
FORCED: Final = ("--promote.force", "random kills")  # the tiny model is not better than a baseline
ONE_COMMAND: Final = (("run",), ("promote", *FORCED))
STAGES: Final = (("prepare",), ("train",), ("evaluate",), ("register",), ("promote", *FORCED))
# so that a fork need not
IMPORTED: Final = (
    "pipelines.evaluate",
    "pipelines.register",
    "pipelines.promote",
    "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "matplotlib.pyplot",
    "torch_geometric.nn",
)
ATTEMPTS: Final = 15
AGAIN: Final = 0.7  # the share of kills after which the resumed command is killed too
ALONE: Final = ("register", "promote")  # use no Ray
SHORT: Final = {"epochs": 3, "patience": 3}


@dataclass(frozen=True)
class Whole:
    """An uninterrupted run: its results, and how long each of its commands took and wrote."""

    left: dict[str, Any]
    seconds: list[float]
    writes: list[int]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Ray cluster that outlives the drivers."""
    started = Cluster(
        tmp_path_factory.mktemp("cluster"),
        PYTHONPATH=str(ROOT),
        RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",
    )
    try:
        started.start(2)
        yield started
    finally:
        started.end()


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, cluster: Cluster
) -> dict[tuple[Any, ...], Whole]:
    """The uninterrupted runs, by their commands."""
    found, (address, where) = {}, joining(cluster)
    for commands in (ONE_COMMAND, STAGES):
        folder = tmp_path_factory.mktemp("whole")
        config, seconds, writes = world(folder, train=SHORT), [], []
        for verb, *words in commands:
            place = () if verb in ALONE else address
            with Command(verb, config, *words, *place, **where, MULTIGRAIN_KILL="0") as command:
                command.ends()
                seconds.append(time.monotonic() - command.started)
                writes.append(command.writes)
        found[commands] = Whole(left(folder), seconds, writes)
        print(f"KILLS reference {[verb for verb, *_ in commands]}: {seconds} s, {writes} writes")
    assert found[ONE_COMMAND].left["run"] == found[STAGES].left["run"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_run_equals_reference_after_kill_at_random_moment(
    seed: int, tmp_path: Path, whole: dict[tuple[Any, ...], Whole], cluster: Cluster
) -> None:
    """The driver, or one of its Ray processes, is killed; then the same command with `--resume`,
    which is often killed too."""
    draw = random.Random(seed)
    commands = STAGES if draw.random() < 0.25 else ONE_COMMAND
    words, where, nodes = (), {}, []
    if draw.random() < 0.75:
        words, where = joining(cluster)
        nodes = [node.pid for node in cluster.nodes]
    config, reference = world(tmp_path, train=SHORT), whole[commands]
    story = [f"seed {seed}, {'cluster' if words else 'local Ray'}"]
    first = draw.choices(range(len(commands)), reference.seconds)[0]
    try:
        with ExitStack() as running:
            for number, (verb, *rest) in enumerate(commands):
                kills, resume = number == first, []
                for _ in range(ATTEMPTS):
                    by_write = draw.random() < 0.5
                    at = draw.randint(1, reference.writes[number]) if kills and by_write else 0
                    place = () if verb in ALONE else words
                    command = Command(
                        verb, config, *rest, *place, *resume, **where, MULTIGRAIN_KILL=str(at)
                    )
                    running.enter_context(command)
                    if kills and not by_write:
                        second = draw.uniform(0, reference.seconds[number])
                        story.append(kill_at(command, second, draw, nodes))
                    code = command.process.wait(timeout=600)
                    if at and code == -signal.SIGKILL:
                        story.append(f"driver killed before write {at}")
                    story.append(f"recsys {verb} {' '.join(resume)}: exit code {code}")
                    if code == -signal.SIGKILL and draw.random() < 0.5:
                        command.kill()  # waits until its Ray processes have ended too
                    if code == 0:
                        break
                    assert_one_message(command, code)
                    kills, resume = kills and draw.random() < AGAIN, ["--resume"]
                else:
                    raise AssertionError(f"recsys {verb} does not succeed")
        found = left(tmp_path)
        for part, value in reference.left.items():
            assert found[part] == value, part
    except BaseException as error:
        error.add_note("\n".join(story))
        print(f"KILLS FAILED {'; '.join(story)}: {error}")
        raise
    print(f"KILLS {'; '.join(story)}")


def joining(cluster: Cluster) -> tuple[tuple[str, str], dict[str, str]]:
    """The option and the environment of a driver that uses the cluster."""
    own = {name: value for name, value in cluster.environment.items() if name != "PYTHONPATH"}
    return ("--ray.address", f"{LOOPBACK}:{cluster.gcs}"), own


def kill_at(command: Command, second: float, draw: random.Random, nodes: list[int]) -> str:
    """SIGKILL for the driver after this many seconds, or for one process of its Ray; what was
    killed."""
    with suppress(subprocess.TimeoutExpired):
        command.process.wait(timeout=max(second - (time.monotonic() - command.started), 0.01))
        return f"ended before {second:.2f} s"
    victim, title = command.process.pid, "driver"
    if draw.random() < 0.25:
        # of a local Ray every process, of a cluster the workers: without its agents a node ends
        found = own_processes(victim)
        for node in nodes:
            titles = own_processes(node).items()
            found |= {pid: name for pid, name in titles if re.match(r"ray::(?!\w+Agent)", name)}
        others = sorted(found.keys() - {victim})
        if others:
            victim = draw.choice(others)
            title = found[victim].split(" ")[0].rpartition("/")[2]
    with suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    return f"{title} killed after {second:.2f} s"


def assert_one_message(command: Command, code: int) -> None:
    """Assert that a command that was not killed itself ends with one message."""
    printed = command.output
    assert "Traceback" not in printed, printed
    if code != -signal.SIGKILL:
        assert code in (1, 2) and re.search(r"^recsys: ", printed, re.MULTILINE), printed


def left(folder: Path) -> dict[str, Any]:
    """What a finished run leaves: its results, the names of its files, and the content of MLflow's
    store."""
    run, names = folder / "run", r"train-\w+-\w+|checkpoint_[-_.\d]+|[0-9a-f]{32}"
    files = sorted(
        re.sub(names, "…", str(path.relative_to(folder)))
        for place in (run, folder / "mlartifacts")
        for path in place.rglob("*")
        if path.is_file() and "/code/" not in str(path) and ".artifact.uploading." not in str(path)
    )
    with closing(sqlite3.connect(f"file:{folder}/mlflow.db?mode=ro", uri=True)) as store:
        tables = {
            name: sorted(store.execute(query).fetchall())
            for name, query in {
                "aliases": "select name, alias, version from registered_model_aliases",
                "versions": "select name, version, current_stage from model_versions",
                "runs": "select distinct e.name, r.status from runs r join experiments e using"
                " (experiment_id) where r.status = 'FINISHED' or e.name = 'multigrain' and"
                # a command that is killed directly after it created a run leaves it empty
                " exists (select * from params where params.run_uuid = r.run_uuid)",
                "metrics": "select distinct key from latest_metrics",
                "logged models": "select count(*) from logged_models where lifecycle_stage ="
                " 'active'",
                "decision": "select version, value from model_version_tags"
                " where key = 'promotion.decision'",
            }.items()
        }
    return {"run": outcome(run), "dataset": events_of(run / "dataset"), **tables, "files": files}


@pytest.mark.slow
def test_stage_equals_reference_after_kill_before_each_write(tmp_path: Path) -> None:
    """Evaluate, register and promote are killed before every one of their writes, and then
    continued. They need no Ray, so a fork of this process that has imported everything does it."""
    for module in IMPORTED:
        importlib.import_module(module)
    folder, before = tmp_path / "here", tmp_path / "before"
    config = world(folder, train=SHORT)
    for verb in ("prepare", "train"):
        with Command(verb, config) as command:
            command.ends()
    for verb, *words in STAGES[2:]:
        shutil.copytree(folder, before)
        asked = [verb, "--config", str(config), *words]
        number, problems = forked(asked, folder, 0), []
        reference = left(folder)
        for at in range(1, number + 1):
            shutil.rmtree(folder)
            shutil.copytree(before, folder)
            try:
                assert forked(asked, folder, at) == -signal.SIGKILL
                forked([*asked, "--resume"], folder, 0)
                found = left(folder)
                for part, value in reference.items():
                    assert found[part] == value, part
            except (AssertionError, OSError) as error:
                problems.append(f"{verb}, before write {at}: {error}")
        print(f"KILLS {verb}: before each of {number} writes; {len(problems)} problems")
        assert not problems, "\n".join(problems)
        shutil.rmtree(before)


def forked(words: list[str], folder: Path, at: int) -> int:
    """Run a command in a fork of this process, which kills itself before this write; 0 for never.

    Returns the number of its writes if it succeeds, and -9 if it was killed.
    """
    ranks = folder / "ranks"
    ranks.mkdir(exist_ok=True)
    child = os.fork()
    if child == 0:
        code = 99
        try:
            with (ranks / "output").open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            os.environ |= {"MULTIGRAIN_RANKS": str(ranks), "MULTIGRAIN_KILL": str(at)}
            exec(SITE, {})
            code = main(words)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 98
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return -os.WTERMSIG(status)
    printed = (ranks / "output").read_text()
    assert os.WEXITSTATUS(status) == 0, printed
    return int((ranks / "writes").read_text())

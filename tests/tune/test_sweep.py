"""Sweeps as commands: their output files; early stops and failed trials do not end a sweep, and a
kill loses no results.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from pipelines.cli import main
from recsys.config import load_config
from tune.ledger import Trial
from tune.plan import Plan

ROOT = Path(__file__).parents[2]

SPACE: dict[str, Any] = {
    "model.fusion.kind": "weighted",
    "model.granularities.social.weight": {"uniform": [0, 1], "step": 0.25},
    "train.lr": {"loguniform": [1e-4, 0.1]},
}


def _world(folder: Path, space: dict[str, Any], **tune: Any) -> list[str]:
    """Write configuration and search space of a tiny world; return the arguments of the command."""
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / "run"), "name": "tiny"},
        "data": {
            "source": {"kind": "synthetic", "num_users": 60, "num_items": 40, "num_partitions": 1},
            "text": {"enabled": False},
            "quarantine": {"max_share": 0.5},
            "num_shards": 1,
        },
        "model": {
            "width": 8,
            "item": {"text": False},
            "granularities": {
                "evolution": {"enabled": True, "cell": "gru"},
                "social": {"enabled": True},
            },
        },
        "train": {
            "epochs": 6,
            "batch_size": 32,
            "metric": "ndcg@5",
            "threads": 1,
            "warmup": 0.0,
            "patience": 9,
        },
        "evaluate": {"ks": [5], "baselines": ["popularity"], "bootstrap": 100, "num_examples": 1},
        "registry": {"name": "tiny"},
        "tune": {"space": [str(folder / "space.yaml")], **tune},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    (folder / "space.yaml").write_text(yaml.safe_dump(space), encoding="utf-8")
    return ["tune", "--config", str(folder / "tiny.yaml")]


def _lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "run" / "trials" / "ledger.jsonl"
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if path.exists()
        else []
    )


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Path:
    """A finished sweep with a trial that cannot be trained, an early stop, and other seeds for the
    best.
    """
    folder = tmp_path_factory.mktemp("swept")
    # width 8 is not divisible by 3
    space = {**SPACE, "model.granularities.evolution.heads": [2, 3]}
    words = _world(folder, space, trials=6, min_epochs=1, reduction=2, best=1, seeds=2, final=False)
    assert main([*words, "--model.granularities.evolution.cell", "attention"]) == 0
    return folder


def test_every_trial_ends_with_a_state(swept: Path) -> None:
    lines = _lines(swept)
    ends = [line for line in lines if line["event"] == "end"]
    assert Counter(line["trial"] for line in ends if not line["repeat"]) == dict.fromkeys(
        range(6), 1
    )
    states = Counter(line["state"] for line in ends)
    assert states["failed"] >= 1 and states["stopped"] >= 1 and states["finished"] >= 3
    failed = next(line for line in ends if line["state"] == "failed")
    assert "heads" in failed["reason"]
    stopped = [line["trial"] for line in ends if line["state"] == "stopped"]
    epochs = Counter(
        line["trial"] for line in lines if line["event"] == "epoch" and not line["repeat"]
    )
    assert all(epochs[trial] < 6 for trial in stopped) and epochs[0] == 6


def test_best_trial_and_given_configuration_are_repeated_with_other_seeds(swept: Path) -> None:
    repeats = {
        line["trial"]: line["seed"]
        for line in _lines(swept)
        if line["event"] == "start" and line["repeat"]
    }
    assert 0 in repeats and len(repeats) <= 2 and set(repeats.values()) == {43}


def test_best_yaml_is_a_complete_configuration(swept: Path) -> None:
    text = (swept / "run" / "best.yaml").read_text(encoding="utf-8")
    best = load_config(swept / "run" / "best.yaml")
    assert text.startswith("# trial ") and f"recsys run --config {swept}/run/best.yaml" in text
    assert best.data.dir == str(swept / "run" / "dataset") and best.run.dir == str(
        swept / "run" / "best"
    )
    assert (
        best.tracking.uri == f"sqlite:///{swept}/mlflow.db"
        and best.tune.space == []
        and best.train.refit
    )


def test_trials_are_children_of_one_tracked_run(swept: Path) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{swept}/mlflow.db")
    parent = json.loads((swept / "run" / "tracking.json").read_text())["run_id"]
    experiment = client.get_experiment_by_name("multigrain").experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    ends = {
        line["trial"]: line["state"]
        for line in _lines(swept)
        if line["event"] == "end" and not line["repeat"]
    }
    found = {run.data.tags["sweep.trial"]: run for run in children}
    assert {name for name in found if "-" not in name} == {f"{number:03d}" for number in ends}
    for number, state in ends.items():
        run = found[f"{number:03d}"]
        assert run.data.tags["sweep.state"] == state
        assert run.info.status == ("FAILED" if state == "failed" else "FINISHED")
    first = found["000"]
    assert first.data.params["train.lr"] == "0.001"
    assert len(client.get_metric_history(first.info.run_id, "valid.ndcg_at_5")) == 6
    assert client.get_run(parent).data.metrics["sweep.trials"] == 6


def test_page_loads_nothing_from_outside(swept: Path) -> None:
    html = (swept / "run" / "sweep.html").read_text(encoding="utf-8")
    assert "<script" not in html and 'src="http' not in html
    assert "Learning curves" in html and "stopped early" in html and "Failed trials" in html


def test_repeated_command_trains_nothing(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _lines(swept)
    words = [
        "tune",
        "--config",
        str(swept / "tiny.yaml"),
        "--model.granularities.evolution.cell",
        "attention",
    ]
    assert main(words) == 0
    assert _lines(swept) == before and "are done, 0 were interrupted" in capsys.readouterr().out


def test_another_sweep_is_refused_in_the_same_folder(
    swept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", "--config", str(swept / "tiny.yaml"), "--train.batch_size", "16"]) == 2
    assert "holds a sweep with another" in capsys.readouterr().err


@pytest.mark.parametrize(("blame", "code"), [("user", 2), ("program", 1)])
def test_sweep_with_only_failed_trials_gives_reasons_and_exit_code(
    tmp_path: Path,
    swept: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    blame: str,
    code: int,
) -> None:
    def fail(plan: Plan, *_: Any) -> None:
        while isinstance(trial := plan.next(()), Trial):
            plan.ledger.start(trial)
            plan.ledger.end(
                plan.ledger.trials[(trial.number, 0)], "failed", reason="no luck", blame=blame
            )

    monkeypatch.setattr("tune.sweep.run_trials", fail)
    words = _world(tmp_path, {"train.lr": {"uniform": [0.1, 0.2]}}, trials=2, seeds=1)
    words += ["--data.dir", str(swept / "run" / "dataset"), "--tracking.enabled", "false"]
    assert main(words) == code
    printed = capsys.readouterr().err
    assert (
        "every trial failed:\n  trial 000, 001: no luck" in printed and "Traceback" not in printed
    )


@pytest.mark.slow
def test_stopped_trial_of_several_workers_frees_all_resources(
    tmp_path: Path, ray_local: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two workers on two CPUs: if a stopped trial kept one resource, the next trial would wait
    forever.
    """
    import ray
    from ray.util import placement_group_table

    space = {"train.lr": [1.0e-9, 2.0e-9]}  # learns nothing, so it is stopped
    words = _world(tmp_path, space, trials=3, min_epochs=3, reduction=2, seeds=1, final=False)
    words += [
        "--train.num_workers",
        "2",
        "--train.epochs",
        "12",
        "--train.lr",
        "0.05",
        "--train.patience",
        "12",
    ]
    assert main(words) == 0
    assert (
        "one trial after another: the cluster has 2 CPUs, a trial uses 2" in capsys.readouterr().out
    )
    states = {line["trial"]: line["state"] for line in _lines(tmp_path) if line["event"] == "end"}
    assert states == {0: "finished", 1: "stopped", 2: "stopped"}
    deadline = time.monotonic() + 300
    while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < deadline:
        time.sleep(0.5)  # Ray frees the CPUs of ended processes a moment later
    assert ray.available_resources()["CPU"] == 2
    left = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
    assert not left


@pytest.mark.slow
def test_killed_sweep_resumes_where_it_stopped(tmp_path: Path) -> None:
    """SIGKILL in the middle of a trial: the same command finishes the sweep and repeats no finished
    trial.
    """
    words = _world(tmp_path, SPACE, trials=5, min_epochs=20, best=1, seeds=2)
    command = [
        sys.executable,
        "-m",
        "pipelines.cli",
        *words,
        "--train.epochs",
        "150",
        "--train.patience",
        "150",
    ]
    settings = {**os.environ, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(
        command, cwd=ROOT, env=settings, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 600
        while (
            not _in_the_middle(_lines(tmp_path))
            and time.monotonic() < deadline
            and first.poll() is None
        ):
            time.sleep(0.05)
        assert first.poll() is None, "the sweep ended before it could be killed"
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    before = _lines(tmp_path)
    done = {(line["trial"], line["repeat"]) for line in before if line["event"] == "end"}
    assert done and _in_the_middle(before)
    again = subprocess.run(
        command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=1200
    )
    assert again.returncode == 0, again.stdout + again.stderr
    lines = _lines(tmp_path)
    assert lines[: len(before)] == before
    ends = Counter((line["trial"], line["repeat"]) for line in lines if line["event"] == "end")
    assert set(ends.values()) == {1} and {number for number, repeat in ends if not repeat} == set(
        range(5)
    )
    starts = Counter((line["trial"], line["repeat"]) for line in lines if line["event"] == "start")
    assert all(starts[key] == 1 for key in done)
    interrupted = [key for key, number in starts.items() if number == 2]
    assert len(interrupted) == 1 and sum(starts.values()) == len(ends) + 1
    epochs = [
        x["epoch"]
        for x in lines
        if x["event"] == "epoch" and (x["trial"], x["repeat"]) == interrupted[0]
    ]
    assert epochs.count(1) == 1, "it continued from its checkpoint"
    _check_results(tmp_path, lines)


def _in_the_middle(lines: list[dict[str, Any]]) -> bool:
    """The third trial runs and has reported some epochs."""
    return sum(line["event"] == "epoch" and line["trial"] == 2 for line in lines) >= 3


def _check_results(folder: Path, lines: list[dict[str, Any]]) -> None:
    """The best model is registered, every child is tracked once, and best.yaml runs as it is."""
    final = next(line for line in lines if line["event"] == "final")
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    registered = json.loads((folder / "run" / "best" / "registered.json").read_text())
    assert [int(version.version) for version in client.search_model_versions("name = 'tiny'")] == [
        1
    ]
    assert final["model"] == registered["uri"]
    has_alias = "challenger" in client.get_registered_model("tiny").aliases
    assert (
        (client.get_model_version("tiny", "1").tags["minimum"] == "passed")
        is has_alias
        is bool(registered["alias"])
    )
    experiment = client.get_experiment_by_name("multigrain").experiment_id
    names = [run.data.tags.get("sweep.trial", "parent") for run in client.search_runs([experiment])]
    assert set(Counter(names).values()) == {1} and {"parent", "best", "000", "004"} <= set(names)
    assert main(["run", "--config", str(folder / "run" / "best.yaml")]) == 0
    metrics = json.loads((folder / "run" / "best" / "metrics.json").read_text())
    assert metrics["model"]["ndcg@5"] == pytest.approx(final["test"])

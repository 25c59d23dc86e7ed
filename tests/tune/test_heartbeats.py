"""Hanging trials: which signs of life count, and that a sweep ends the trial, names it and
continues.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from recsys.config import Config, build_config
from recsys.data.histories import Split
from recsys.errors import TrainingError, Unavailable
from tests.handmade import DAY, Event, write_dataset
from tune import heartbeats
from tune.heartbeats import Pulse, beating
from tune.ledger import Ledger, Trial
from tune.plan import Plan
from tune.ray_tune import run_trials
from tune.searcher import PlannedSearch, TrialPaths
from tune.slots import Slots
from tune.space import load_space
from tune.sweep import _all_failed, _reasons
from tune.trial import read_task, train_in_process

ONE_PROCESS = Slots(1, 1, 1, 1, False, "one trial after another")


class Clock:
    """A clock that a test sets, and the heartbeats published on it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.beats: dict[str, float] = {}

    def pulse(self, silent_s: float, beats: bool = True) -> Pulse:
        return Pulse(silent_s, beats, self.beats.get, lambda: self.now)


class Seen:
    """The lines that a sweep prints, in one list."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def started(self, trial: Trial, config: Config) -> None:
        self.words.append(f"start {trial.name}")

    def epoch(self, trial: Trial, history: list[dict[str, Any]]) -> None: ...

    def ended(self, trial: Trial) -> None:
        self.words.append(f"end {trial.name}")

    def note(self, words: str) -> None:
        self.words.append(words)


def _plan(folder: Path, silent_s: float = 600.0) -> Plan:
    config = build_config(
        {
            "data": {"text": {"enabled": False}},
            "model": {
                "width": 8,
                "item": {"text": False},
                "granularities": {"evolution": {"enabled": True}},
            },
            "train": {"epochs": 4, "batch_size": 4, "metric": "ndcg@5", "threads": 1},
            "tune": {
                "trials": 4,
                "best": 1,
                "seeds": 1,
                "min_epochs": 1,
                "reduction": 2,
                "silent_s": silent_s,
            },
        }
    )
    # trial 0 learns, the others do not: they are stopped early
    (folder / "space.yaml").write_text(
        yaml.safe_dump({"train.lr": [1e-9, 2e-9, 3e-9]}), encoding="utf-8"
    )
    return Plan(
        config,
        load_space([str(folder / "space.yaml")], config),
        Ledger(folder / "trials" / "ledger.jsonl"),
    )


# ------------------------------------------------------------------------------------ signs of life


def test_trial_without_reports_and_computing_is_silent() -> None:
    clock = Clock()
    pulse = clock.pulse(100)
    pulse.begin("a", "key")
    assert pulse.silent("a", running=True) is None
    # half of the computing time that counts as a sign of life in 100 s
    clock.now, clock.beats["key"] = 90, 0.1
    assert pulse.silent("a", running=True) is None
    clock.now = 101
    assert pulse.silent("a", running=True) == 101


def test_computing_and_reports_are_signs_of_life() -> None:
    clock = Clock()
    pulse = clock.pulse(100)
    pulse.begin("a", "key")
    for _ in range(10):
        clock.now += 90
        clock.beats["key"] = clock.beats.get("key", 0.0) + 0.3
        assert pulse.silent("a", running=True) is None
    for _ in range(10):
        clock.now += 90
        pulse.sign("a")
        assert pulse.silent("a", running=True) is None


def test_time_before_a_process_has_the_trial_does_not_count() -> None:
    clock = Clock()
    pulse = clock.pulse(100)
    pulse.begin("a", "key")
    clock.now = 1000
    assert pulse.silent("a", running=True) is None


def test_slow_trials_may_be_silent_for_longer() -> None:
    clock = Clock()
    pulse = clock.pulse(100)
    pulse.begin("a", "key")
    pulse.silent("a", running=True)
    clock.now = 80
    pulse.sign("a")  # the longest pause so far: 80 s
    clock.now = 80 + 399
    assert pulse.silent("a", running=True) is None
    clock.now = 80 + 401
    assert pulse.silent("a", running=True) == 401


def test_trial_without_heartbeats_is_not_silent_before_the_first_report_of_the_sweep() -> None:
    clock = Clock()
    pulse = clock.pulse(100, beats=False)
    pulse.begin("a", "key")
    pulse.silent("a", running=True)
    clock.now = 9000
    assert pulse.silent("a", running=True) is None
    pulse.sign("a")
    clock.now = 9000 + 5 * 9000 + 1
    assert pulse.silent("a", running=True) == 5 * 9000 + 1


def test_trial_that_waits_for_a_process_is_mentioned_at_intervals() -> None:
    clock = Clock()
    pulse = clock.pulse(100)
    pulse.begin("a", "key")
    times = []
    for clock.now in range(0, 350, 10):  # noqa: B020
        times += [clock.now] if pulse.waits("a") is not None else []
    assert times == [110, 220, 330]


def test_computing_thread_publishes_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[float] = []
    monkeypatch.setattr(heartbeats, "BEAT_S", 0.01)
    monkeypatch.setattr(
        heartbeats, "_internal_kv_put", lambda key, value, **_: published.append(float(value))
    )
    with beating("key"):
        deadline = time.monotonic() + 120
        while (not published or published[-1] < 0.05) and time.monotonic() < deadline:
            sum(range(10_000))
        computed = published[-1]
        count = len(published)
        while len(published) < count + 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert computed >= 0.05 and published[-1] < computed + 0.05, (
        "a sleeping thread uses no computing time"
    )


def test_unavailable_heartbeat_store_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no store")

    monkeypatch.setattr(heartbeats, "_internal_kv_put", unavailable)
    monkeypatch.setattr(heartbeats, "_internal_kv_get", unavailable)
    with beating("key"):
        pass
    assert heartbeats.read_beat("key") is None


# ------------------------------------------------------------------------------------------- search


def _controller(*trials: tuple[str, str, Any]) -> Any:
    """Tune's controller with trials of these ids, states and processes."""
    ray_trials = [
        SimpleNamespace(
            trial_id=name, status=state, temporary_state=SimpleNamespace(ray_actor=process)
        )
        for name, state, process in trials
    ]
    return SimpleNamespace(get_trials=lambda: ray_trials, get_live_trials=lambda: ray_trials)


def _search(folder: Path) -> tuple[PlannedSearch, Seen]:
    seen = Seen()
    return PlannedSearch(_plan(folder), TrialPaths("", folder / "trials"), ONE_PROCESS, seen), seen


def test_trial_dropped_by_tune_is_started_again(tmp_path: Path) -> None:
    search, seen = _search(tmp_path)
    assert search.suggest("a") is not None and search.suggest("b") is None, "one trial at a time"
    search.look(_controller(("a", "ERROR", None)))
    again = search.suggest("b")
    assert read_task(again).number == 0 and list(search.running) == ["b"]
    assert [words for words in seen.words if words.startswith("start")] == ["start 000"]
    assert any("gets another" in words for words in seen.words)
    assert search.ledger.trials[(0, 0)].state == "running"


def test_trial_fails_after_five_failed_starts(tmp_path: Path) -> None:
    search, seen = _search(tmp_path)
    search.suggest("0")
    for number in range(5):
        assert search.ledger.trials[(0, 0)].state == "running"
        search.look(_controller((str(number), "ERROR", None)))
        search.suggest(str(number + 1))
    failed = search.ledger.trials[(0, 0)]
    assert failed.state == "failed" and "no process took it" in failed.reason
    assert [trial.number for trial in search.running.values()] == [1], "the sweep continues"


def test_trial_without_resources_names_the_resources_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.available_resources", lambda: {"memory": 1.0})
    search, seen = _search(tmp_path)
    search.pulse.clock = lambda: 0.0
    search.suggest("a")
    search.pulse.clock = lambda: 700.0
    search.look(_controller(("a", "PENDING", None)))
    assert (
        seen.words[-1] == "trial 000 has waited for a process for 700 s; it needs CPU 1 (free: 0)"
    )


def test_pause_of_the_driver_does_not_make_its_trials_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, _ = _search(tmp_path)
    clock = Clock()
    clock.now = 1.0
    search.pulse = clock.pulse(100, beats=True)
    monkeypatch.setattr("tune.searcher.time", SimpleNamespace(monotonic=lambda: clock.now))
    killed: list[str] = []
    monkeypatch.setattr("ray.kill", killed.append)
    search.suggest("a")
    for clock.now in (2.0, 5000.0, 5050.0, 5099.0):  # noqa: B020
        search.look(_controller(("a", "RUNNING", "its process")))
    assert killed == []
    for clock.now in (5150.0, 5151.0):  # noqa: B020
        search.look(_controller(("a", "RUNNING", "its process")))
    assert killed == ["its process"], "killed once"


def test_failed_trials_are_named_with_their_reasons(tmp_path: Path) -> None:
    failed = [
        Trial(3, 0, 1, {}, "failed", reason="no heartbeat"),
        Trial(5, 0, 1, {}, "failed", reason="heads"),
    ]
    failed += [Trial(7, 0, 1, {}, "failed", reason="no heartbeat")]
    assert _reasons(failed) == "  trial 003, 007: no heartbeat\n  trial 005: heads"
    folder: Any = SimpleNamespace(root=tmp_path)
    for trial in failed:
        trial.blame = "user"
    assert isinstance(_all_failed(failed, folder), TrainingError)  # exit code 2
    failed[0].blame = "program"
    error = _all_failed(failed, folder)
    assert isinstance(error, Unavailable) and "error.txt" in str(error)  # exit code 1


# -------------------------------------------------------------------------------------- whole sweep


def _dataset(folder: Path) -> str:
    generator = np.random.default_rng(0)
    parts = [Split.TRAIN] * 4 + [Split.VALID, Split.TEST]
    histories: list[list[Event]] = []
    for _ in range(12):
        items = generator.permutation(8)[:6].tolist()
        histories.append(
            [
                (item, 0, (n + 1) * DAY, part)
                for n, (item, part) in enumerate(zip(items, parts, strict=True))
            ]
        )
    return write_dataset(folder, histories, 8).root


def _failing_trainable() -> Callable[[Mapping[str, Any]], None]:
    """A trainable in which trial 1 ends too slowly for Tune after its stop and trial 2 hangs; Tune
    then drops trial 2.
    """

    def train(
        settings: Mapping[str, Any],
    ) -> None:  # inside a function: Ray sends its code, not its module's name
        number = read_task(settings).number
        if number == 1:
            os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "0"
        if number == 2:
            import tune.trial

            tune.trial.fit = lambda *_: time.sleep(3600)  # type: ignore[assignment]
        try:
            train_in_process(settings)
        finally:
            if number == 1:
                time.sleep(600)  # its process is killed before this ends

    return train


@pytest.mark.slow
def test_sweep_continues_after_dropped_and_hanging_trials(
    tmp_path: Path, ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either trial once stopped the sweep forever."""
    monkeypatch.setattr("tune.ray_tune.train_in_process", _failing_trainable())
    plan, seen = _plan(tmp_path, silent_s=10), Seen()
    run_trials(
        plan, TrialPaths(_dataset(tmp_path / "data"), tmp_path / "trials"), ONE_PROCESS, seen
    )
    trials = plan.ledger.searched()
    assert [trial.state for trial in trials] == ["finished", "stopped", "failed", "stopped"]
    assert "no heartbeat" in trials[2].reason and "tune.silent_s" in trials[2].reason
    assert trials[2].blame == "program" and any(
        "trial 002 has had no heartbeat" in words for words in seen.words
    )
    assert any("trial 002: the process of the trial before" in words for words in seen.words)
    assert Ledger(plan.ledger.path).trials == plan.ledger.trials

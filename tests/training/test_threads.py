"""The number of threads: the choice from given timings, and where it is used. Nothing is timed
here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from recsys.config import Config, build_config
from recsys.training import threads
from recsys.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from recsys.training.threads import (
    choose,
    fastest_threads,
    numbers,
    requested_threads,
    settle_threads,
    step_like,
    timed,
)
from tune.slots import share_out


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    threads._measured.cache_clear()
    yield
    threads._measured.cache_clear()
    torch.set_num_threads(before)


def settings(**train: Any) -> Config:
    return build_config(
        {"model": {"granularities": {"evolution": {"enabled": True}}}, "train": train}
    )


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({1: 1.0}, 1),
        ({1: 1.0, 2: 0.95}, 1),  # not worth a second core
        ({1: 1.0, 2: 0.5, 4: 0.48}, 2),
        ({1: 1.0, 2: 0.6, 3: 0.4, 4: 0.3}, 4),
        ({1: 1.0, 2: 20.0}, 1),  # a shared machine
    ],
)
def test_fewest_threads_near_the_fastest_are_chosen(
    seconds: dict[int, float], expected: int
) -> None:
    assert choose(seconds) == expected


def test_tried_numbers_grow_to_all_cores() -> None:
    assert numbers(1) == [1] and numbers(3) == [1, 2, 3]
    assert numbers(64)[-1] == 64 and len(numbers(64)) < 14


def test_steps_are_timed_in_turns_without_the_first_round() -> None:
    now, asked = [0.0], list[int]()

    def step() -> None:
        asked.append(torch.get_num_threads())
        first = len(asked) <= 2
        now[0] += 100.0 if first else {1: 0.1, 2: 0.3}[asked[-1]]

    before = torch.get_num_threads()
    found = timed([1, 2], step, lambda: now[0])
    assert found == {1: pytest.approx(0.1), 2: pytest.approx(0.3)}
    assert asked == [1, 2, 1, 2], "the warm-up alone took longer than a measurement may"
    assert torch.get_num_threads() == before


def test_step_of_the_measurement_runs() -> None:
    step_like(4, 3, 8, 10)()


def test_threads_are_measured_and_reported_once_per_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def given(tried: Any, step: Any, clock: Any) -> dict[int, float]:
        calls.append(list(tried))
        return {1: 1.0, 2: 0.5, 3: 0.49, 4: 0.49}

    monkeypatch.setattr(threads, "timed", given)
    monkeypatch.setattr(threads, "usable_threads", lambda share=1: 4)
    monkeypatch.setattr(threads, "waiting_programs", lambda: 12.0)
    lines: list[str] = []
    for _ in range(2):
        settle_threads(settings().model, settings().train, 1000, lines.append)
    assert calls == [[1, 2, 3, 4]] and torch.get_num_threads() == 2
    assert lines == [
        "2 of 4 threads, as measured on a step of this shape (1: 1000.0 ms, 2: 500.0 ms, 3: 490.0"
        " ms, 4: 490.0 ms); train.threads sets it"
    ]


def test_busy_machine_gets_one_thread_without_a_measurement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "timed", lambda *_: pytest.fail("timed"))
    monkeypatch.setattr(threads, "waiting_programs", lambda: 12.5)
    found, why = fastest_threads(settings().model, settings().train, 1001, 4)
    assert found == 1 and "busy with other programs" in why


def test_requested_threads_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "timed", lambda *_: pytest.fail("timed"))
    assert (
        requested_threads(settings(threads=3).train) == 3
        and requested_threads(settings().train) == 0
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert (
        requested_threads(settings(threads=3).train) == 3
        and requested_threads(settings().train) == 2
    )
    settle_threads(settings().model, settings().train, 1000, lambda line: pytest.fail(line))
    assert torch.get_num_threads() == 2
    assert fastest_threads(settings().model, settings().train, 1000, 1) == (1, "")


def test_checkpoint_holds_its_number_of_threads(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    save_checkpoint(tmp_path, {"a": torch.ones(1)}, {"a": torch.ones(1)}, optimizer, Progress())
    assert load_checkpoint(tmp_path, None)[2].threads == 2
    content = json.loads((tmp_path / "progress.json").read_text())
    content.pop("threads")  # of an earlier release
    (tmp_path / "progress.json").write_text(json.dumps(content))
    assert load_checkpoint(tmp_path, None)[2].threads == 0


def test_trials_use_only_cores_that_help() -> None:
    """If two threads are as fast as sixteen, seven trials run at once instead of one."""
    config = build_config(settings().model_dump(mode="json") | {"tune": {"space": ["s.yaml"]}})
    slots = share_out(config.train, config.tune, {"CPU": 16}, 16, fastest=2)
    assert (slots.concurrent, slots.cpus, slots.threads) == (7, 2, 2)
    config.tune.cpus = 4  # reserved, whatever is computed with
    slots = share_out(config.train, config.tune, {"CPU": 16}, 16, fastest=2)
    assert (slots.cpus, slots.threads) == (4, 2)
    config.train.threads = 3
    assert share_out(config.train, config.tune, {"CPU": 16}, 16, fastest=2).threads == 3

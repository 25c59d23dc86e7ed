"""Long work reports its progress from time to time, and short work reports nothing."""

from __future__ import annotations

import io
import itertools
import math
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.plumbing.budget import Budget
from pipelines.plumbing.progress import Progress
from recsys import pace
from recsys.config import TextConfig
from recsys.data.histories import Split
from recsys.evaluation.ranking import rank
from recsys.pace import Count, Deadline, Pace, reporting_to, tell, with_progress
from recsys.preparation import vector_cache as text_cache
from tests.handmade import small_model, small_world


def clock(step: float) -> Callable[[], float]:
    """A clock that advances by a fixed number of seconds at each reading."""
    ticks = itertools.count()
    return lambda: step * next(ticks)


def test_at_most_one_line_with_the_remaining_time_is_printed_every_ten_seconds() -> None:
    lines: list[str] = []
    with reporting_to(lines.append):
        work = Pace("ranking users", 20, clock=clock(4.0))
        for _ in range(20):
            work.add()
    assert lines[0] == "ranking users: 3 of 20 (15 %), about 1 min left"
    assert lines[1] == "ranking users: 6 of 20 (30 %), about 55 s left"
    assert len(lines) == 6 and all("20 of 20" not in line for line in lines), (
        "the stage reports its own end"
    )


def test_short_work_and_work_without_a_listener_report_nothing() -> None:
    lines: list[str] = []
    with reporting_to(lines.append):
        work = Pace("ranking users", 20, clock=clock(0.4))
        for _ in range(20):
            work.add()
    assert lines == []
    alone = Pace("ranking users", 20, clock=clock(40.0))
    alone.add()
    tell("building an index")
    assert lines == []


def test_remaining_time_follows_cost_and_not_number_of_steps() -> None:
    """Ten texts, the first as long as the nine others together: after it, half of the work is
    done.
    """
    lines: list[str] = []
    with reporting_to(lines.append):
        Pace("encoding texts", 10, 18.0, clock(60.0)).add(1, 9.0)
    assert lines == ["encoding texts: 1 of 10 (50 %), about 1 min left"]


def test_work_of_unknown_length_reports_finished_steps() -> None:
    lines: list[str] = []
    with reporting_to(lines.append):
        Pace("blocks of events read", 0, clock=clock(20.0)).add(3)
    assert lines == ["blocks of events read: 3 so far"]


def test_bar_receives_start_counts_and_end_and_the_lines_of_a_log() -> None:
    said: list[str] = []
    shown: list[Count] = []
    with reporting_to(said.append, shown.append):
        work = Pace("ranking users", 4, clock=clock(6.0))
        for _ in range(4):
            work.add()
    assert said == []
    assert [(count.done, count.ended) for count in shown] == [
        (0, False), (1, False), (2, False), (3, False), (4, True)
    ]  # fmt: skip
    assert shown[2].share == 0.5 and shown[2].left_s == pytest.approx(12.0)
    assert [count.line for count in shown if count.line] == [
        "ranking users: 2 of 4 (50 %), about 10 s left"
    ]


def test_bar_ends_when_work_fails_or_is_abandoned() -> None:
    shown: list[Count] = []
    with reporting_to(print, shown.append):
        with pytest.raises(ValueError), Pace("reading", 0):
            raise ValueError
        for _ in with_progress("fitting members", ["ease", "als"]):
            break
    assert [count.what for count in shown if count.ended] == ["reading", "fitting members"]


def test_listener_is_set_only_during_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "EVERY_S", 0.0)
    stream = io.StringIO()
    progress = Progress(stream)
    with progress.stage("evaluate"):
        assert list(with_progress("fitting baselines", ["ease", "als"])) == ["ease", "als"]
        tell("building an index of 5 items")
    list(with_progress("fitting baselines", ["ease", "als"]))
    lines = [line.split("  ", 1)[1] for line in stream.getvalue().splitlines()]
    assert lines[0].startswith("evaluate   fitting baselines: 1 of 2 (50 %), about ")
    assert lines[1] == "evaluate   building an index of 5 items" and len(lines) == 3  # and the end


def test_rankings_and_fits_report_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.setattr(pace, "EVERY_S", 0.0)
    dataset = small_world(tmp_path / "data")
    lines: list[str] = []
    with reporting_to(lines.append):
        rank(_Scores(dataset.num_items), dataset.histories().queries(Split.TEST), 3, chunk=1)
        small_model(dataset)
    assert any(line.startswith("ranking users: 1 of 3 (33 %)") for line in lines), lines


class _Scores:
    def __init__(self, num_items: int) -> None:
        self.num_items = num_items

    def scores(self, queries: Any) -> torch.Tensor:
        return torch.arange(self.num_items).float().repeat(len(queries), 1)


def test_encoding_reports_progress_by_text_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pieces(
        missing: list[tuple[str, str]], config: Any, adapter: Any
    ) -> Iterator[tuple[list[str], Any]]:
        for key, _ in sorted(missing, key=lambda pair: -len(pair[1])):
            yield [key], np.ones((1, 4), dtype=np.float16)

    monkeypatch.setattr(pace, "EVERY_S", 0.0)
    monkeypatch.setattr(text_cache, "_encode_missing", pieces)
    monkeypatch.setattr(text_cache, "cluster_dtype", lambda wanted: "float32")
    monkeypatch.setattr(text_cache, "text_model_identity", lambda config: "model")
    lines: list[str] = []
    with reporting_to(lines.append):
        vectors_NT, numbers = text_cache.encode_texts(
            ["a", "b" * 17, None], TextConfig(cache_dir=str(tmp_path)), None
        )
    assert numbers == {"encoded": 2, "cached": 0} and vectors_NT.shape == (3, 4)
    assert [line.rsplit(",", 1)[0] for line in lines] == ["encoding texts: 1 of 2 (90 %)"]


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_deadline_stays_when_the_wall_clock_jumps(
    monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    """Also where it was sent to another process before; this is the clock of the budget."""
    now = time.time
    deadline = Budget("1h", 3600.0, time.monotonic()).deadline(60.0)
    received = pickle.loads(pickle.dumps(deadline))
    monkeypatch.setattr(time, "time", lambda: now() + jump)
    assert 0 < deadline.left <= 60 and 0 < received.left <= 60


def test_deadline_that_was_sent_counts_the_time_on_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And no deadline stays none."""
    now, sent = time.time, pickle.dumps(Deadline(time.monotonic() + 60))
    monkeypatch.setattr(time, "time", lambda: now() + 20)
    assert pickle.loads(sent).left == pytest.approx(40, abs=2)
    assert pickle.loads(pickle.dumps(Deadline())).left == math.inf

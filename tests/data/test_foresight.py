"""A note reports that leave-last over a long period leaks future popularity; other splits and short
periods get no note.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from recsys.config import build_config
from recsys.data.dataset import PreparedDataset
from recsys.data.foresight import foresight, spread_of
from recsys.data.histories import Split
from recsys.evaluation.evaluate import evaluate
from tests.handmade import DAY, small_model, write_dataset


def dataset(folder, last_days: list[int], first_day: int = 1) -> PreparedDataset:
    """One user per day in ``last_days``, the day of the last event; all begin at ``first_day``."""
    walks = [
        [
            (4 * (day % 3 > 0), 0, first_day * DAY, Split.TRAIN),
            (1, 0, (day - 1) * DAY, Split.VALID),
            (2 + day % 2, 0, day * DAY, Split.TEST),
        ]
        for day in last_days
    ]
    return write_dataset(folder, walks, 5)


def test_targets_years_apart_are_reported_with_dates(tmp_path) -> None:
    found = foresight(dataset(tmp_path, list(range(10, 411, 4))))
    assert found is not None
    assert found.share == pytest.approx(0.9 * 400 / 409, abs=0.001)  # day 1 to day 410
    # 5 % of 400 days off both ends
    assert (found.since, found.until) == ("1970-01-31", "1971-01-26")
    assert "data.split.kind temporal" in found.note and "88%" in found.note
    assert "from 1970-01-31 to 1971-01-26" in found.note


def test_times_before_1970_are_measured(tmp_path) -> None:
    found = foresight(dataset(tmp_path, list(range(-990, -589, 4)), first_day=-999))
    assert found is not None and found.share == pytest.approx(0.9 * 400 / 409, abs=0.001)
    assert (found.since, found.until) == ("1967-05-07", "1968-05-01")


def test_note_on_numbered_steps_has_no_dates(tmp_path) -> None:
    found = foresight(dataset(tmp_path, list(range(10, 111))))
    assert found is not None and not found.has_dates
    assert "1970" not in found.note and "83%" in found.note


def test_close_targets_other_splits_and_unknown_times_give_no_note(tmp_path) -> None:
    assert foresight(dataset(tmp_path / "a", [400 + day % 20 for day in range(60)])) is None
    wide = dataset(tmp_path / "b", list(range(10, 411, 4)))
    split, manifest = {"kind": "temporal"}, wide.manifest
    wide.manifest = replace(manifest, split=split)
    assert foresight(wide) is None
    wide.manifest = replace(manifest, timed=False)
    assert foresight(wide) is None


def test_one_target_has_no_spread() -> None:
    import numpy as np

    assert spread_of(np.array([5 * DAY]), DAY, 5 * DAY) is None


def test_evaluation_reports_the_note(tmp_path) -> None:
    wide = dataset(tmp_path, list(range(10, 411, 40)))
    config = build_config(
        {
            "model": {"granularities": {"behaviour": {"enabled": True}}},
            "evaluate": {"baselines": [], "ablate": False, "bootstrap": 100},
        }
    )
    result = evaluate(small_model(wide), wide, config, refit=True)
    assert result.data["foresight"]["note"].startswith("leave-last over a long period")

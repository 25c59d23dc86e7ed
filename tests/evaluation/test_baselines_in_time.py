"""Most frequent items of a user, recently popular items, and new and repeated targets, by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from recsys.config import EvaluateConfig, build_config
from recsys.data.histories import Histories, Queries, Split
from recsys.evaluation import baselines_in_time
from recsys.evaluation.baselines import build_baseline, fit_baselines, left_out
from recsys.evaluation.ranking import rank
from recsys.evaluation.targets import NEW, REPEATED, had_before, target_report
from recsys.evaluation.top_items import top_items

DAY = 86_400
REPEATS = EvaluateConfig(exclude_seen=False)


def histories_of(*rows: list[tuple[int, int]]) -> Histories:
    """Rows of (item, day)."""
    made = Histories.of_items([[item for item, _ in row] for row in rows], list(range(len(rows))))
    return replace(
        made, times_E=np.array([day * DAY for row in rows for _, day in row], dtype=np.int64)
    )


def asking(histories: Histories, *days: int) -> Queries:
    asked = np.array(days or [0] * len(histories), dtype=np.int64) * DAY
    nothing = np.zeros(len(histories) + 1, dtype=np.int64), np.zeros(0, dtype=np.int32)
    return Queries(histories, *nothing, asked_at_B=asked)


TRAIN = histories_of(
    [(0, 1), (0, 2), (1, 40), (3, 41)], [(3, 30), (4, 31)], [(3, 32), (4, 41), (1, 41)]
)


@pytest.mark.parametrize(
    ("half_life", "expected"),
    [
        # item 0 twice, 1 once; then the others by popularity 3, 2 and 0 users
        (None, [0, 1, 3, 4, 2]),
        (7.0, [1, 0, 3, 4, 2]),  # twice long ago is less than once 39 days later
    ],
)
def test_own_frequency_decays_and_popularity_orders_the_rest(
    half_life: float | None, expected: list[int]
) -> None:
    baseline = build_baseline("frequency", REPEATS)
    baseline.constants = {"half_life": half_life}
    baseline.fit(TRAIN, 5)
    found, _ = top_items(baseline.scores(asking(histories_of([(0, 1), (0, 2), (1, 40)], []))), 5)
    assert found[0].tolist() == expected and found[1].tolist()[0] == 3, (
        "unknown user: the most popular items"
    )


def test_decayed_frequencies_keep_their_order() -> None:
    baseline = build_baseline("frequency", REPEATS)
    baseline.constants = {"half_life": 7.0}
    baseline.fit(TRAIN, 5)
    long_ago = histories_of([(4, 1), (2, 30), (0, 20_000)])
    assert top_items(baseline.scores(asking(long_ago)), 5)[0][0].tolist() == [0, 2, 4, 3, 1]


@pytest.mark.parametrize("moments", [1, 2, 256])
def test_recent_popularity_is_exact_at_any_time(
    monkeypatch: pytest.MonkeyPatch, moments: int
) -> None:
    """The sum of 2^(−age / half-life) over events before the query, for any number of snapshots."""
    monkeypatch.setattr(baselines_in_time, "_MOMENTS", moments)
    baseline = build_baseline("recent_popularity", REPEATS)
    baseline.constants = {"half_life_days": 5.0}
    baseline.fit(TRAIN, 5)
    days = (1, 2, 31, 32, 41, 50)
    scores = baseline.scores(asking(histories_of(*[[]] * len(days)), *days))
    expected = np.zeros((len(days), 5))
    for row, day in enumerate(days):
        for item, time in zip(TRAIN.items_E, TRAIN.times_E / DAY, strict=True):
            if time < day:
                expected[row, item] += 2.0 ** (-(day - time) / 5.0)
    # one factor a row changes no order
    scale = (expected.sum(1) / np.maximum(scores.numpy().sum(1), 1e-9))[:, None]
    np.testing.assert_allclose(scores.numpy()[1:] * scale[1:], expected[1:], rtol=1e-4, atol=3e-6)
    assert scores[0].argmax() == 3, "no event before: all-time popularity"
    latest = baseline.scores(asking(histories_of([])))
    assert latest[0].argmax() == 1, (
        "a query without a time is placed on day 41: item 1 has 1.87, item 3 has 1.48"
    )


@pytest.mark.parametrize("moments", [1, 2, 256])
def test_recent_popularity_does_not_depend_on_the_delay_of_the_query(
    monkeypatch: pytest.MonkeyPatch, moments: int
) -> None:
    """Many users have item 0 long before the others; item 1 is the last before a pause of years."""
    monkeypatch.setattr(baselines_in_time, "_MOMENTS", moments)
    baseline = build_baseline("recent_popularity", REPEATS)
    baseline.constants = {"half_life_days": 1.0}
    baseline.fit(histories_of(*[[(0, 100)]] * 200, [(1, 160)], [(1, 160)], [(2, 3000)]), 3)
    days = (161, 190, 400, 2999, 3001, 20_000)
    scores = baseline.scores(asking(histories_of(*[[]] * len(days)), *days))
    assert scores.argmax(dim=1).tolist() == [1, 1, 1, 1, 2, 2]
    assert (scores[:4] == scores[0]).all() and (scores[4] == scores[5]).all()


def test_baselines_in_time_are_left_out_if_data_rule_them_out() -> None:
    names = ["popularity", "frequency", "recent_popularity"]
    assert left_out(names, TRAIN, REPEATS) == {}
    assert set(left_out(names, TRAIN, EvaluateConfig())) == {"frequency"}
    once = histories_of([(0, 1), (1, 2)])
    assert left_out(names, once, REPEATS) == {"frequency": "no user has an item twice"}
    untimed = Histories.of_items([[0, 0, 1]])
    assert left_out(names, untimed, REPEATS) == {"recent_popularity": "some events have no time"}
    assert list(fit_baselines(names, untimed, 3, REPEATS, "ndcg@5", refit=False)) == [
        "popularity",
        "frequency",
    ]


@pytest.mark.parametrize("lately", [True, False])
def test_constants_are_chosen_on_validation(lately: bool) -> None:
    """Item 1 is bought on a few of the last days, item 0 much more often before; one of them
    continues.
    """
    rows = [
        [(0, 10 + user), (0, 40 + user), (1, 96), (1 if lately else 0, 100)] for user in range(30)
    ]
    rows += [
        [(0, 10 + user), (0, 40 + user), (0, 60), (1 if lately else 0, 100)] for user in range(40)
    ]
    histories = histories_of(*rows)
    splits_E = np.zeros(len(histories.items_E), dtype=np.uint8)
    splits_E[histories.offsets_U1[1:] - 1] = Split.VALID
    histories = replace(histories, splits_E=splits_E)
    found = fit_baselines(["recent_popularity"], histories, 4, REPEATS, "ndcg@1", refit=False)[
        "recent_popularity"
    ]
    assert found.validation == 1.0 and found.constants["half_life_days"] in (
        (1.0, 7.0) if lately else (30.0, 90.0)
    )


def test_new_and_repeated_targets_by_hand() -> None:
    """User 0 had 0 and 1, their targets are 1 and 4; user 1 had 2, the target is 3."""
    histories = Histories.of_items([[0, 1], [2]], [0, 1])
    queries = Queries(histories, np.array([0, 2, 3]), np.array([1, 4, 3], dtype=np.int32))
    assert had_before(queries).tolist() == [True, False, False]
    scores = torch.tensor([[5.0, 4, 1, 2, 3], [1.0, 2, 5, 4, 3]])
    table: Any = SimpleNamespace(
        scores=lambda asked: scores[torch.from_numpy(asked.histories.users_U.astype(int))]
    )
    tree: dict[str, Any] = {"model": {"granularities": {"behaviour": {"enabled": True}}}}
    tree |= {"evaluate": {"exclude_seen": False}, "train": {"metric": "hit@1"}}
    config = build_config(tree)
    rankings = {"model": rank(table, queries, 5, False)}
    found = target_report(
        {"model": table}, rankings, queries, config.train, config.evaluate, "model"
    )
    assert found[REPEATED]["model"] == {"hit@1": 0.0} and found[REPEATED]["queries"] == 1
    assert found[NEW]["model"] == {"hit@1": 1.0} and found[NEW]["targets"] == 2, (
        "4 and 3 are first among new items"
    )
    assert found[REPEATED]["share"] == pytest.approx(1 / 3) and found[NEW][
        "share"
    ] == pytest.approx(2 / 3)
    config = build_config({**tree, "evaluate": {"exclude_seen": True}})
    assert (
        target_report({"model": table}, rankings, queries, config.train, config.evaluate, "model")
        == {}
    )

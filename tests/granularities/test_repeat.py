"""``repeat`` predicts which items a user will choose again: by hand, on planted rhythms, and
without later events.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from recsys.config import build_config
from recsys.config.contradictions import check_settings
from recsys.data.batches import last_position
from recsys.data.histories import Histories, Queries, Split
from recsys.errors import ConfigError
from recsys.granularities.base import Graphs, ItemView, State
from recsys.granularities.repeat.habits import ItemHabits, baskets, pairs_of
from recsys.granularities.repeat.model import Repeat
from recsys.granularities.repeat.moments import sample_times
from recsys.granularities.repeat.pair_features import NAMES, raw_numbers
from recsys.granularities.repeat.section import RepeatConfig
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_requests
from recsys.training.fresh_model import build_graphs, build_model
from tests.handmade import DAY, Event, train_events, write_dataset

ALL = np.zeros(0, dtype=bool)
NUM_ITEMS = 40


def histories_of(*rows: list[tuple[int, int]]) -> Histories:
    """Rows of (item, day)."""
    made = Histories.of_items([[item for item, _ in row] for row in rows])
    return replace(
        made, times_E=np.array([day * DAY for row in rows for _, day in row], dtype=np.int64)
    )


def test_habits_equal_those_by_hand() -> None:
    """Item 7 on days 1, 3 and 9 (twice), item 5 on days 1 and 9, item 6 on day 4 only."""
    one = [(7, 1), (5, 1), (7, 3), (6, 4), (7, 9), (7, 9), (5, 9)]
    histories = histories_of(one, [], [(5, 2)])
    assert [part.tolist() for part in baskets(histories)] == [[0, 0, 1, 2, 3, 3, 3, 0], [4, 0, 1]]
    pairs = pairs_of(histories, ALL)
    assert pairs.rows_P.tolist() == [0, 0, 0, 2] and pairs.items_P.tolist() == [5, 6, 7, 5]
    assert pairs.times_had_P.tolist() == [2, 1, 3, 1] and pairs.again_P.tolist() == [1, 0, 2, 0]
    assert pairs.first_P.tolist() == [0, 2, 0, 0] and pairs.last_P.tolist() == [3, 2, 3, 0]
    assert (pairs.last_time_P / DAY).tolist() == [9, 4, 9, 2]
    np.testing.assert_allclose(
        pairs.log_gap_P, [np.log(8 * DAY), 0, np.log(2 * DAY) + np.log(6 * DAY), 0]
    )
    np.testing.assert_allclose(pairs.log_steps_P, [np.log(3), 0, np.log(1) + np.log(2), 0])
    habits = ItemHabits.of(pairs, 8)
    assert habits.repeats_N.tolist() == [
        0,
        0,
        0,
        0,
        0,
        1,
        0,
        2,
    ] and habits.occasions_N.tolist() == [0] * 5 + [3, 1, 3]
    assert habits.share == pytest.approx(3.5 / 9)


def test_features_equal_those_by_hand() -> None:
    histories = histories_of([(7, 1), (7, 3), (5, 4)])
    habits = ItemHabits.of(pairs_of(histories_of([(7, 1), (7, 11)]), ALL), 8)
    pairs = pairs_of(histories, ALL)
    raw = dict(zip(NAMES, raw_numbers(pairs, np.array([8 * DAY]), habits, 20.0).T, strict=True))
    np.testing.assert_allclose(raw["count"], np.log1p([1, 2]))
    np.testing.assert_allclose(raw["steps"], np.log([1, 2]))
    np.testing.assert_allclose(raw["seconds"], np.log([4 * DAY + 60, 5 * DAY + 60]))
    # the user's interval, and the item's with weight two
    expected = (np.log(2 * DAY) + 2 * np.log(10 * DAY)) / 3
    assert raw["due"][1] == pytest.approx(np.log(5 * DAY + 60) - expected)
    now = dict(zip(NAMES, raw_numbers(pairs, np.array([4 * DAY]), habits, 20.0).T, strict=True))
    assert now["now"].tolist() == [1.0, 0.0] and raw["now"].tolist() == [0.0, 0.0]
    unknown = dict(zip(NAMES, raw_numbers(pairs, np.array([0]), habits, 20.0).T, strict=True))
    assert np.isnan(unknown["seconds"]).all() and unknown["steps"].tolist() == raw["steps"].tolist()


def test_fit_subtracts_a_pair_from_the_habits_of_its_item() -> None:
    whole = pairs_of(histories_of([(7, 1), (7, 2), (7, 3)], [(7, 1), (6, 2)]), ALL)
    habits = ItemHabits.of(whole, 8)
    before = pairs_of(histories_of([(7, 1)]), ALL)
    odds = raw_numbers(before, np.array([2 * DAY]), habits, 1.0, (whole, np.array([0])))[
        0, NAMES.index("odds")
    ]
    # from the other user only: one occasion without a repeat
    share = (0 + habits.share) / (1 + 1.0)
    assert odds == pytest.approx(np.log(share / (1 - share)))


def test_sampled_times_see_earlier_events_only() -> None:
    histories = histories_of([(1, 1), (2, 1), (3, 2), (1, 2), (2, 5)], [(4, 1)])
    moments = sample_times(histories, ALL, 1000)
    assert set(moments.rows_B) == {0}
    for row, seen in enumerate(
        np.split(moments.histories.items_E, moments.histories.offsets_U1[1:-1])
    ):
        assert seen.tolist() == [1, 2, 3, 1, 2][: len(seen)]
        came = {int(key % 2**32) for key in moments.next_keys if key // 2**32 == row}
        assert came == {1: {2}, 2: {3, 1}, 3: {1}, 4: {2}}[len(seen)]
        assert moments.asked_at_B[row] == {1: 1, 2: 2, 3: 2, 4: 5}[len(seen)] * DAY
    assert sample_times(histories, ALL, 3).histories.offsets_U1[-1] <= 4


def rhythms(num_users: int = 120) -> list[list[tuple[int, int]]]:
    """Users who choose four items repeatedly, each at its own interval in days, and one item
    once.
    """
    random, rows = np.random.default_rng(0), []
    for _ in range(num_users):
        items, periods = random.choice(NUM_ITEMS, 5, replace=False), [7, 11, 17, 23]
        events = [(int(items[4]), int(random.integers(1, 100)))]
        for item, period in zip(items, periods, strict=False):
            events += [
                (int(item), int(day))
                for day in range(int(random.integers(1, period + 1)), 100, period)
            ]
        rows.append(sorted(events, key=lambda event: event[1]))
    return rows


@pytest.fixture(scope="module")
def fitted() -> tuple[Repeat, ItemView, State, Queries, list[int]]:
    """Fitted on the first half of the users; the others are evaluated on the day of their last
    event.
    """
    rows, none = rhythms(), torch.zeros(0, dtype=torch.int64)
    module = Repeat(RepeatConfig(enabled=True), SimpleNamespace())  # type: ignore[arg-type]
    graphs = Graphs(60, NUM_ITEMS, none, none, histories=histories_of(*rows[:60]))
    items = ItemView(torch.zeros(NUM_ITEMS, 4), torch.zeros(NUM_ITEMS, 0))
    asked = [row for row in rows[60:] if row[-1][1] > row[-2][1]]
    queries = Queries.without_targets(
        histories_of(*(row[:-1] for row in asked)),
        asked_at_B=np.array([row[-1][1] * DAY for row in asked]),
    )
    return module, items, module.state(items, graphs), queries, [row[-1][0] for row in asked]


def first_places(scores_BN: torch.Tensor, targets: list[int]) -> float:
    return float((scores_BN.argmax(1) == torch.tensor(targets)).float().mean())


def test_rhythms_are_found_if_count_and_recency_fail(fitted: Any) -> None:
    module, items, state, queries, targets = fitted
    found = module.boost(last_position(queries, 3), items, state).add_to(
        torch.zeros(len(queries), NUM_ITEMS)
    )
    histories = queries.histories
    rows_E = np.repeat(np.arange(len(histories)), histories.lengths_U)
    counts, latest = torch.zeros(len(queries), NUM_ITEMS), torch.zeros(len(queries), NUM_ITEMS)
    np.add.at(counts.numpy(), (rows_E, histories.items_E), 1)
    np.maximum.at(latest.numpy(), (rows_E, histories.items_E), histories.times_E)
    assert first_places(found, targets) > 0.8
    assert first_places(counts, targets) < 0.6 and first_places(latest, targets) < 0.3


def test_only_items_of_the_history_get_additions(fitted: Any) -> None:
    module, items, state, queries, _ = fitted
    scores = module.boost(last_position(queries, 3), items, state)
    pairs = set(zip(scores.rows_P.tolist(), scores.items_P.tolist(), strict=True))
    rows_E = np.repeat(np.arange(len(queries)), queries.histories.lengths_U)
    assert pairs == set(zip(rows_E.tolist(), queries.histories.items_E.tolist(), strict=True))
    assert (scores.values_P > 0).all()
    empty = Queries.without_targets(Histories.of_items([[], []]))
    assert not len(module.boost(last_position(empty, 3), items, state))
    assert module.own_items(state).shape == (NUM_ITEMS, 0)


def test_long_after_the_data_and_without_times_the_scores_stay_in_range(fitted: Any) -> None:
    module, items, state, queries, _ = fitted
    usual = module.boost(last_position(queries, 3), items, state).values_P
    late = replace(queries, asked_at_B=np.full(len(queries), 2_000_000_000))
    untimed = Queries.without_targets(
        replace(queries.histories, times_E=np.zeros_like(queries.histories.times_E))
    )
    for asked in (late, untimed):
        found = module.boost(last_position(asked, 3), items, state).values_P
        assert torch.isfinite(found).all() and found.max() < 5 * usual.max()


def test_scores_are_finite_if_no_event_follows_another_one() -> None:
    """As with three events a user and leave-last: one of them is for training."""
    none = torch.zeros(0, dtype=torch.int64)
    module = Repeat(RepeatConfig(enabled=True), SimpleNamespace())  # type: ignore[arg-type]
    graphs = Graphs(2, NUM_ITEMS, none, none, histories=histories_of([(0, 1)], [(1, 2)]))
    items = ItemView(torch.zeros(NUM_ITEMS, 4), torch.zeros(NUM_ITEMS, 0))
    queries = Queries.without_targets(
        histories_of([(0, 1), (1, 2)]), asked_at_B=np.array([3 * DAY])
    )
    added = module.boost(last_position(queries, 10), items, module.state(items, graphs))
    assert added.add_to(torch.zeros(1, NUM_ITEMS)).isfinite().all()


def test_repeat_contradicts_exclude_seen() -> None:
    tree: dict[str, Any] = {
        "model": {"granularities": {"behaviour": {"enabled": True}, "repeat": {"enabled": True}}}
    }
    with pytest.raises(
        ConfigError, match="granularities.repeat raises items .* set evaluate.exclude_seen false"
    ):
        check_settings(build_config(tree), ("train",))
    check_settings(build_config({**tree, "evaluate": {"exclude_seen": False}}), ("train",))


def test_served_model_uses_the_time_of_the_request(tmp_path: Path) -> None:
    """Item 1 every 7 days, item 2 every 20: the first item depends on the day."""
    event = lambda item, day: (item, 0, day * DAY, Split.TRAIN)  # noqa: E731
    weekly = [event(1, day) for day in range(1, 90, 7)] + [
        event(2, day) for day in range(1, 90, 20)
    ]
    rows: list[list[Event]] = [sorted(weekly, key=lambda one: one[2]) for _ in range(30)]
    dataset = write_dataset(tmp_path / "dataset", [*rows, train_events(0, 3, 4)], 5)
    tree: dict[str, Any] = {
        "data": {"dir": str(tmp_path / "dataset")},
        "evaluate": {"exclude_seen": False},
    }
    tree["model"] = {
        "granularities": {"repeat": {"enabled": True, "smoothing": 1.0, "weight": 1.0}}
    }
    config = build_config(tree)
    model = build_model(config.model, config.train, dataset, Split.TRAIN)
    graphs = build_graphs(
        dataset, Split.TRAIN, model=model, evaluate=config.evaluate, seed=config.seed
    )
    assert graphs.histories is not None and not len(graphs.users_E)
    write_bundle(tmp_path / "bundle", model.freeze(graphs), dataset, {})
    recommender = Recommender(read_bundle(tmp_path / "bundle"))
    days = {day: recommender.recommend(parse_requests([_ask(day)]))[0] for day in (92, 101)}
    assert days[92].item_ids[0] == "i1" and days[101].scores != days[92].scores
    assert {
        item
        for item, share in zip(days[92].item_ids, days[92].shares["repeat"], strict=True)
        if share
    } == {
        "i1",
        "i2",
    }
    ratio = {
        day: dict(zip(answer.item_ids, answer.scores, strict=True)) for day, answer in days.items()
    }
    assert ratio[101]["i2"] / ratio[101]["i1"] > ratio[92]["i2"] / ratio[92]["i1"], (
        "item 2 is expected on day 101"
    )


def _ask(day: int) -> dict[str, Any]:
    return {"user_id": "u0", "exclude_seen": False, "at": day * DAY, "k": 5}

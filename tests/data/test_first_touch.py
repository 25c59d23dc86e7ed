"""Training queries are before the user's first touch of the target item, if evaluation queries
are.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recsys.config import build_config
from recsys.data.batches import Batch, every_position
from recsys.data.dataset import PreparedDataset
from recsys.data.first_touch import asks_before_first_touch, with_first_touches
from recsys.data.histories import Array, Histories, Split
from recsys.data.loader import LoaderConfig, TrainingLoader, can_train
from recsys.errors import DataError
from recsys.evaluation.validation import Validator
from recsys.training.context import TrainContext
from recsys.training.phases import fit
from tests.handmade import DAY, Event, write_dataset

VIEW, CART, BUY = 0, 1, 2
BUYS = np.array([False, False, True])
LETTERS = {"v": VIEW, "c": CART, "b": BUY}
TYPES = ("view", "cart", "purchase")


def shop(*rows: str, times: list[list[int]] | None = None) -> Histories:
    """Histories from rows such as ``"v3 c3 b3"``; by default the events are ten seconds apart."""
    words = [row.split() for row in rows]
    items = [[int(word[1:]) for word in row] for row in words]
    times = times or [[DAY + 10 * place for place in range(len(row))] for row in words]
    types_E = np.array([LETTERS[word[0]] for row in words for word in row], dtype=np.uint8)
    times_E = np.array([time for row in times for time in row], dtype=np.int64)
    made = Histories.of_items(items, list(range(len(rows))))
    return replace(made, types_E=types_E, times_E=times_E, targets_T=BUYS)


def queries_of(histories: Histories, max_history: int = 50) -> list[tuple[int, int, int]]:
    """(row, events seen, target) of every query."""
    batch = every_position(with_first_touches(histories), max_history, np.arange(len(histories)))
    return _triples(batch)


def _triples(batch: Batch) -> list[tuple[int, int, int]]:
    columns = (batch.rows_B.tolist(), batch.seen_B.tolist(), batch.targets_P.tolist())
    assert batch.pairs_P.tolist() == list(range(len(batch.rows_B)))
    return list(zip(*columns, strict=True))


def test_query_is_before_view_and_cart_of_the_target() -> None:
    histories = shop("v1 v2 c2 v3 b2 b3")
    assert queries_of(histories) == [(0, 1, 2), (0, 3, 3)]
    assert _triples(every_position(histories, 50, np.arange(1))) == [
        (0, 4, 2),
        (0, 5, 3),
    ], "as without the rule"


def test_time_and_visible_items_are_those_of_the_first_touch() -> None:
    histories = shop("v1 v2 c2 b2")
    batch = every_position(with_first_touches(histories), 50, np.arange(1))
    assert batch.asked_at_B.tolist() == [DAY + 10] and batch.seen_B.tolist() == [1]


def test_two_targets_of_one_item_have_the_same_query_position() -> None:
    assert queries_of(shop("v1 v2 b2 b2 v3")) == [(0, 1, 2), (0, 1, 2)]


def test_query_is_right_before_a_target_without_earlier_touch() -> None:
    assert queries_of(shop("v1 v3 b2", "v2 v4", "v5 b5")) == [(0, 2, 2)], (
        "no event is before the view of 5"
    )


def test_visit_ends_after_a_day_without_events() -> None:
    times = [[1, 2, 3 + DAY, 3 + 2 * DAY, 4 + 2 * DAY]]
    assert queries_of(shop("v1 v2 v2 c2 b2", times=times)) == [(0, 2, 2)], (
        "a day and a second after the first view"
    )
    times = [[1, 2, 2 + DAY, 2 + 2 * DAY, 4 + 2 * DAY]]
    assert queries_of(shop("v1 v2 v2 c2 b2", times=times)) == [(0, 1, 2)], (
        "each a day after the one before"
    )


def test_unknown_times_limit_a_visit_by_events() -> None:
    between = " ".join(f"v{item}" for item in range(10, 29))  # 19 events
    row = f"v1 v2 {between} b2"
    assert queries_of(shop(row, times=[[0] * 22])) == [(0, 1, 2)], "20 events before the target"
    row = f"v1 v2 v9 {between} b2"
    assert queries_of(shop(row, times=[[0] * 23])) == [(0, 22, 2)], "21 events before it"
    row = f"v1 v2 {between} v2 b2 v1 b1"
    assert queries_of(shop(row, times=[[0] * 25])) == [(0, 21, 2), (0, 23, 1)]


def test_events_of_other_users_and_items_are_ignored() -> None:
    assert queries_of(shop("v1 v2", "v3 b2", "v2 b3")) == [(1, 1, 2), (2, 1, 3)]


@pytest.mark.parametrize("seed", range(5))
def test_queries_equal_a_naive_search(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows, times = [], []
    for row in range(30):
        length = int(random.integers(1, 40))
        rows.append(
            " ".join(f"{'vcb'[random.integers(3)]}{random.integers(6)}" for _ in range(length))
        )
        gaps = random.choice([10, DAY // 3, 2 * DAY], length, p=[0.5, 0.3, 0.2])
        times.append([0] * length if row % 3 == 0 else (1 + np.cumsum(gaps)).tolist())
    histories = shop(*rows, times=times)
    found = [
        query
        for row, (text, at) in enumerate(zip(rows, times, strict=True))
        for query in _naive(row, text, at)
    ]
    assert queries_of(histories) == found and len(found) > 20


def _naive(row: int, text: str, times: list[int]) -> list[tuple[int, int, int]]:
    words, found = text.split(), []
    for place, word in enumerate(words):
        first = place
        for before in range(place - 1, -1, -1):
            if word[0] == "b" and words[before][1:] == word[1:]:
                if (
                    times[place]
                    and times[first] - times[before] > DAY
                    or not times[place]
                    and place - before > 20
                ):
                    break
                first = before
        if word[0] == "b" and first > 0:
            found.append((row, first, int(word[1:])))
    return found


def test_target_is_dropped_if_its_first_touch_is_outside_the_window(tmp_path: Path) -> None:
    """With max_history 4 the newest window begins with the view of item 2 and lacks the view of
    item 1.
    """
    histories = shop("v0 v1 v2 v3 b3 b2 b1")
    assert queries_of(histories, 3) == [], "of the last four events, 3 was viewed at the first"
    assert queries_of(histories, 4) == [(0, 1, 3)]
    assert queries_of(histories, 6) == [(0, 3, 3), (0, 2, 2), (0, 1, 1)]
    events = [
        (item, kind, DAY + 10 * place, Split.TRAIN)
        for place, (item, kind) in enumerate(
            zip(histories.items_E.tolist(), histories.types_E.tolist(), strict=True)
        )
    ]
    dataset = written(tmp_path, [events], "temporal", 5)
    (step,) = TrainingLoader(dataset, Split.TRAIN, LoaderConfig(4, 4, 0.0, 1.0, 10_000, 0)).epoch(0)
    assert _triples(step.batch) == [(0, 1, 3)] and step.weight == 1


def written(folder: Path, rows: list[list[Event]], kind: str, num_items: int) -> PreparedDataset:
    dataset = write_dataset(
        folder, rows, num_items, event_types=TYPES, targets=["purchase"], num_shards=1
    )
    dataset.manifest.split = {"kind": kind}
    return dataset


def test_nothing_can_be_trained_if_every_history_begins_with_the_visit_of_its_target(
    tmp_path: Path,
) -> None:
    visits: list[list[Event]] = [
        [(user, VIEW, DAY, Split.TRAIN), (user, BUY, DAY + 60, Split.TRAIN)] for user in range(4)
    ]
    dataset = written(tmp_path / "one", visits, "temporal", 7)
    assert not can_train(dataset, Split.TRAIN, 1)
    with pytest.raises(DataError, match="before their first touch"):
        TrainingLoader(dataset, Split.TRAIN, LoaderConfig(4, 4, 0.0, 1.0, 10_000, 0))
    visits[0].insert(0, (5, VIEW, DAY - 60, Split.TRAIN))
    assert can_train(written(tmp_path / "two", visits, "temporal", 7), Split.TRAIN, 1)


def test_split_decides_whether_queries_are_before_the_first_touch(tmp_path: Path) -> None:
    """Visits of view, cart and purchase, one per day; the last two are validation and test. A cut
    between visits puts queries before the views, a cut before the purchase puts them after the
    views.
    """
    types = [VIEW, CART, BUY]

    def row(user: int, views_too: bool) -> list[Event]:
        return [
            (
                (user + day) % 7,
                kind,
                (day + 1) * DAY * 2 + place,
                _part(day, views_too or kind == BUY),
            )
            for day in range(5)
            for place, kind in enumerate(types)
        ]

    by_visit, by_target = (
        [row(user, views_too) for user in range(9)] for views_too in (True, False)
    )
    expected = {
        "temporal": (True, True),
        "leave-last": (False, False),
        "ratio": (True, False),
        "given": (True, False),
    }
    for kind, asks in expected.items():
        for rows, is_early in zip((by_visit, by_target), asks, strict=True):
            dataset = written(tmp_path / f"{kind}{is_early}{rows is by_visit}", rows, kind, 7)
            assert asks_before_first_touch(dataset) == is_early, (kind, is_early)
    dataset.manifest.targets = []
    assert not asks_before_first_touch(dataset), "all types are predicted"


def _part(day: int, is_at_day: bool) -> Split:
    return Split(max(day - 2 - (not is_at_day), 0))


def test_leave_last_training_is_unchanged(tmp_path: Path) -> None:
    rows: list[list[Event]] = [
        [
            (user, VIEW, DAY, Split.TRAIN),
            (9, VIEW, DAY + 1, Split.TRAIN),
            (9, BUY, DAY + 2, Split.TRAIN),
        ]
        for user in range(4)
    ]
    settings = LoaderConfig(4, 10, 0.0, 1.0, 10_000, 0)
    for kind, seen in (("leave-last", 2), ("temporal", 1)):
        dataset = written(tmp_path / kind, rows, kind, 10)
        (step,) = TrainingLoader(dataset, Split.TRAIN, settings).epoch(0)
        assert step.batch.seen_B.tolist() == [seen] * 4 and step.batch.targets_P.tolist() == [9] * 4
    begun = [row[1:] for row in rows]
    with pytest.raises(DataError, match="0 users have at least an event before their first touch"):
        TrainingLoader(written(tmp_path / "begun", begun, "temporal", 10), Split.TRAIN, settings)


def visits(folder: Path, kind: str) -> PreparedDataset:
    """Each visit buys the next item of a circle, seconds after its view and cart; the last two
    visits are after the cuts. Copying the last event predicts every purchase in training and none
    after a cut.
    """
    random = np.random.default_rng(0)
    rows: list[list[Event]] = []
    for _ in range(80):
        start, events = int(random.integers(20)), list[Event]()
        for visit in range(7):
            at, part = (visit + 1) * 3 * DAY, Split(max(visit - 4, 0))
            events += [
                ((start + visit) % 20, kind, at + 30 * place, part)
                for place, kind in enumerate((0, 1, 2))
            ]
        rows.append(events)
    return written(folder, rows, kind, 20)


def validation(dataset: PreparedDataset) -> Array:
    config = build_config(
        {
            "model": {
                "width": 16,
                "max_history": 20,
                "granularities": {
                    "evolution": {"enabled": True, "dropout": 0.0, "input_dropout": 0.0}
                },
            },
            "train": {
                "epochs": 8,
                "batch_size": 16,
                "lr": 0.02,
                "metric": "ndcg@5",
                "refit": False,
                "threads": 1,
            },
            "evaluate": {"ks": [5]},
        }
    )
    result = fit(config, dataset, Validator.of(config.train, config.evaluate), TrainContext())
    return np.array([report["ndcg@5"] for report in result.history])


def test_copying_the_last_event_fails_after_a_cut(tmp_path: Path) -> None:
    early, late = (validation(visits(tmp_path / kind, kind)) for kind in ("temporal", "leave-last"))
    assert early.max() > 0.8 and late.max() < 0.4, (
        "queries before the first touch, and right before the purchase"
    )

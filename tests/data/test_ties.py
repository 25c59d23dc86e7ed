"""Events of a user with the same time have a new order in every epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recsys.data.batches import every_position
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Histories, Split
from recsys.data.loader import LoaderConfig, TrainingLoader
from recsys.data.ties import tied_share, with_shuffled_ties
from tests.handmade import write_dataset

HOUR = 3600


def histories(items: list[list[int]], times: list[list[int]]) -> Histories:
    times_E = np.array([time for row in times for time in row], dtype=np.int64)
    return replace(Histories.of_items(items, list(range(len(items)))), times_E=times_E)


def rows_of(found: Histories, values_E: Array | None = None) -> list[list[int]]:
    values_E = found.items_E if values_E is None else values_E
    return [part.tolist() for part in np.split(values_E, found.offsets_U1[1:-1])]


def test_only_events_of_one_user_and_one_known_time_change_places() -> None:
    items = [[1, 2, 3, 4, 5, 6], [7, 8, 9], [10, 11, 12]]
    times = [[HOUR, HOUR, HOUR, HOUR, 2 * HOUR, 2 * HOUR], [2 * HOUR, 2 * HOUR, 3 * HOUR], [0] * 3]
    found = [rows_of(with_shuffled_ties(histories(items, times), seed)) for seed in range(30)]
    assert {tuple(sorted(row[0][:4])) for row in found} == {(1, 2, 3, 4)}
    assert {tuple(row[0][4:]) for row in found} == {(5, 6), (6, 5)}
    assert {tuple(row[1]) for row in found} == {(7, 8, 9), (8, 7, 9)}
    assert {tuple(row[2]) for row in found} == {(10, 11, 12)}, "times are unknown"
    assert len({tuple(row[0]) for row in found}) > 10


def test_an_event_keeps_its_columns() -> None:
    whole = histories([[1, 2, 3, 4]], [[HOUR] * 4])
    whole = replace(whole, values_E=whole.items_E * 10.0, types_E=whole.items_E.astype(np.uint8))
    found = with_shuffled_ties(whole, 3)
    assert found.items_E.tolist() != [1, 2, 3, 4]
    assert found.values_E.tolist() == (found.items_E * 10).tolist()
    assert found.types_E.tolist() == found.items_E.tolist()


def test_query_before_a_first_touch_is_before_all_events_of_that_time() -> None:
    whole = histories([[1, 2, 3, 4, 5]], [[HOUR, 2 * HOUR, 2 * HOUR, 2 * HOUR, 3 * HOUR]])
    # 5 was touched first by the event of 3; 4 by that of 2
    whole = replace(whole, ahead_E=np.array([0, 0, 0, 2, 2], dtype=np.int32))
    for seed in range(10):
        found = with_shuffled_ties(whole, seed)
        asked_E = np.arange(5) - found.ahead_E
        assert asked_E[found.items_E == 4].tolist() == [1]
        assert asked_E[found.items_E == 5].tolist() == [1]
        assert asked_E[found.items_E == 2].tolist() == np.flatnonzero(found.items_E == 2).tolist()


def test_query_before_a_first_touch_before_the_row_stays_before_the_row() -> None:
    """A row may be a window of a long history; the first touch of a target may be in an earlier
    one."""
    row = [HOUR, 2 * HOUR, 2 * HOUR, 3 * HOUR, 3 * HOUR]
    whole = histories([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], [row, row])
    # 3, 5, 8 and 10 were touched first seven events before, the others never
    whole = replace(whole, ahead_E=np.array([0, 0, 7, 0, 7] * 2, dtype=np.int32))
    for seed in range(10):
        found = with_shuffled_ties(whole, seed)
        places_E = np.arange(10) % 5
        assert (found.ahead_E[np.isin(found.items_E, [3, 5, 8, 10])] > 0).all()
        asked_E = (places_E - found.ahead_E)[found.ahead_E > 0]
        assert len(asked_E) == 4 and (asked_E < 0).all(), "no query sees an event of the row"
        assert len(every_position(found, 5).targets_P) == 4, "2 and 4, 7 and 9, without 3, 5, 8, 10"


def test_histories_without_ties_are_returned_as_they_are() -> None:
    whole = histories([[1, 2], [3]], [[HOUR, 2 * HOUR], [2 * HOUR]])
    assert with_shuffled_ties(whole, 1) is whole


def test_share_counts_queries_with_the_time_of_the_last_event() -> None:
    whole = histories([[1, 2, 3], [4, 5, 6], [7, 8, 9], [1]], [[1, 2, 2], [1, 1, 2], [0] * 3, [5]])
    whole = replace(whole, splits_E=np.array([0, 0, 1] * 3 + [1], dtype=whole.splits_E.dtype))
    assert tied_share(whole) == pytest.approx(1 / 3)
    assert tied_share(whole.where(whole.splits_E == Split.TRAIN)) == 0.0


def targets_of(dataset: PreparedDataset, epoch: int, world_size: int = 1) -> dict[int, list[int]]:
    """The targets of every user in an epoch, in the order of their places."""
    settings = LoaderConfig(4, 10, 0.0, 1.0, 10_000, 0, shuffle_ties=True)
    found = {}
    for rank in range(world_size):
        for step in TrainingLoader(dataset, Split.TRAIN, settings, rank, world_size).epoch(epoch):
            batch = step.batch
            users = batch.users_U[batch.rows_B].tolist()
            for user, target in zip(users, batch.targets_P.tolist(), strict=True):
                found.setdefault(user, []).append(target)
    return found


def test_every_epoch_has_a_new_order_which_all_workers_share(tmp_path: Path) -> None:
    rows = [[(item, 0, HOUR * (item // 4 + 1), Split.TRAIN) for item in range(8)]] * 4
    dataset = write_dataset(tmp_path, rows, 8)
    found = [targets_of(dataset, epoch) for epoch in (0, 1, 0)]
    assert found[0] == found[2] != found[1]
    assert all(set(targets) >= {4, 5, 6, 7} for targets in found[0].values())
    assert targets_of(dataset, 1, world_size=2) == found[1]


def test_data_ordered_by_file_keeps_its_order(tmp_path: Path) -> None:
    rows = [[(item, 0, HOUR, Split.TRAIN) for item in range(8)]] * 4
    dataset = write_dataset(tmp_path, rows, 8)
    dataset.manifest.settings = {"data": {"order": "file"}}
    assert targets_of(dataset, 0) == {user: [1, 2, 3, 4, 5, 6, 7] for user in range(4)}

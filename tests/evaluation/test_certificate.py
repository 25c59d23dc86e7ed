"""The signal certificate: every query is in one combination of signals, and figures are as by
hand.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from recsys.config import build_config
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Queries, Split
from recsys.evaluation.signal_certificate import (
    MIN_QUERIES,
    OTHERS,
    Combination,
    Signal,
    certificate,
    combinations,
    described,
    query_signals,
)
from recsys.gate.promotion import segments_of
from tests.handmade import DAY, leave_last, write_dataset


def by_user(dataset: PreparedDataset) -> Queries:
    """The test queries in the order of the users, which are distributed over shards in turns."""
    queries = dataset.histories().queries(Split.TEST)
    return queries.take(np.argsort(queries.histories.users_U))


def test_every_query_is_in_one_combination_and_rare_ones_are_pooled() -> None:
    history = Signal(
        "history", ("short history", "long history"), np.repeat([0, 1, 2], [30, 40, 10])
    )
    friends = Signal.of("friends", np.repeat([False, True, False], [25, 45, 10]))
    found = combinations([history, friends], 80)
    assert [(each.present, each.missing, int(each.mask_B.sum())) for each in found] == [
        (("short history", "friends"), (), 40),
        ((), ("history", "friends"), 25),
        ((), (), 15),  # 5 with only friends and 10 with only a long history: both below the minimum
    ]
    assert found[-1].label == OTHERS
    assert sum(each.mask_B.astype(int) for each in found).tolist() == [1] * 80


def test_combination_has_figures_of_its_queries_and_its_best_baseline() -> None:
    first_B = np.arange(60) < 30
    ours = np.where(first_B, 0.5, 0.1)
    values = {
        "model": ours,
        "ease": np.where(first_B, 0.25, 0.1),
        "popularity": np.where(first_B, 0.0, 0.3),
    }
    rows = certificate(
        [Combination(("friends",), (), first_B), Combination((), ("friends",), ~first_B)],
        values,
        "model",
        200,
        0,
    )
    assert [row["queries"] for row in rows] == [30, 30]
    assert [row["best_baseline"] for row in rows] == ["ease", "popularity"]
    assert [row["value"] for row in rows] == pytest.approx([0.5, 0.1])
    assert [row["difference"] for row in rows] == pytest.approx([0.25, -0.2])
    assert rows[0]["low"] > 0 > rows[1]["high"]
    assert rows[1]["present"] == [] and rows[1]["missing"] == ["friends"]
    assert rows[0]["label"] == "friends" and rows[1]["label"] == "nothing; without friends"


def test_signals_are_those_in_the_data_of_a_query(tmp_path) -> None:
    walks = [
        leave_last(0, 1, 2, 3),
        leave_last(0, 1, 2, 3, 4, 5, 6),
        leave_last(1, 2, 0),
        leave_last(2, 3, 7),
    ]
    dataset = write_dataset(tmp_path, walks, 9, friends=((0, 1), (2, 0)))
    queries = by_user(dataset)
    signals = {signal.name: signal for signal in query_signals(queries, dataset, Split.VALID)}
    assert signals["history"].codes_B.tolist() == [1, 2, 1, 1]  # 3, 6, 2 and 2 events are visible
    assert signals["friends"].codes_B.tolist() == [1, 1, 1, 0]  # 0 with 1, 2 with 0
    # 3 and 0 are known, 6 and 7 are not
    assert signals["items seen in training"].codes_B.tolist() == [1, 0, 1, 0]
    assert "user attributes" not in signals and "item triples" not in signals, (
        "the data has no such signal"
    )


def test_target_signal_is_present_if_every_target_has_it(tmp_path) -> None:
    events = [(0, 0, DAY, Split.TRAIN), (1, 0, 2 * DAY, Split.VALID), (2, 0, 3 * DAY, Split.TEST)]
    events.append((5, 0, 4 * DAY, Split.TEST))
    dataset = write_dataset(tmp_path, [events, leave_last(2, 0, 1)], 6)
    queries = by_user(dataset)
    warm = next(
        s
        for s in query_signals(queries, dataset, Split.VALID)
        if s.name == "items seen in training"
    )
    assert warm.codes_B.tolist() == [0, 1]


def test_ids_text_and_empty_values_are_not_attributes() -> None:
    table = pa.table(
        {
            "item_id": ["a", "b", "c", "d"],
            "title": ["x", "x", "x", "x"],
            "brand": [None, "", "acme", None],
            "tags": [["t"], [], None, None],
            "price": pa.array([None, None, None, 2.5]),
        }
    )
    assert described(table, 4, ["title"]).tolist() == [True, False, True, True]
    assert described(table, 4).all()
    assert described(table.select(["item_id"]), 4).tolist() == [False] * 4


def test_gate_checks_combinations_of_signals_as_segments(tmp_path) -> None:
    walks = [leave_last(0, 1, 2, 3), *(leave_last(3, 0, 1, 2) for _ in range(2 * MIN_QUERIES - 1))]
    friends = tuple((user, user + 1) for user in range(MIN_QUERIES - 1))  # of the first twenty
    dataset = write_dataset(tmp_path, walks, 5, friends=friends)
    config = build_config({"model": {"granularities": {"behaviour": {"enabled": True}}}})
    groups = segments_of(
        dataset.histories().queries(Split.TEST), dataset, config.evaluate, Split.VALID
    )["signals"]
    counts = {label: int(mask_B.sum()) for label, mask_B in groups.items()}
    assert counts == {
        "short history (1–4), friends, items seen in training": MIN_QUERIES,
        "short history (1–4), items seen in training; without friends": MIN_QUERIES,
    }

"""Segments: their users, their metrics, and metrics on targets new to training, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from recsys.data.histories import Histories, Queries, Split
from recsys.evaluation.bootstrap import compare
from recsys.evaluation.ranking import Ranking
from recsys.evaluation.segments import new_item_report, segment_report, user_segments


def make_queries(
    lengths: list[int], targets: list[list[int]], splits: list[int] | None = None
) -> Queries:
    history = Histories.of_items([[0] * n for n in lengths], list(range(len(lengths))))
    if splits is not None:
        history = replace(history, splits_E=np.array(splits, dtype=np.uint8))
    offsets = np.concatenate([[0], np.cumsum([len(t) for t in targets])]).astype(np.int64)
    return Queries(history, offsets, np.array([i for t in targets for i in t], dtype=np.int32))


def make_ranking(queries: Queries, items: list[list[int]], hits: list[list[bool]]) -> Ranking:
    lists = np.array(items, dtype=np.int32)
    return Ranking(
        queries, np.arange(len(lists)), lists, np.zeros(lists.shape), np.array(hits), 0, 0
    )


def rows(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(mask).tolist()


def test_history_segments_have_no_gap_or_overlap() -> None:
    lengths = [0, 1, 4, 5, 9, 10, 19, 20, 49, 50, 300]
    groups = user_segments(make_queries(lengths, [[1]] * 11), None, Split.TRAIN)
    assert {label: rows(mask) for label, mask in groups["history"].items()} == {
        "0": [0],
        "1–4": [1, 2],
        "5–9": [3, 4],
        "10–19": [5, 6],
        "20–49": [7, 8],
        "50+": [9, 10],
    }
    assert "friends" not in groups
    assert rows(groups["users"]["new users"]) == [0]


def test_empty_segments_are_left_out() -> None:
    groups = user_segments(make_queries([2, 3], [[1], [1]]), np.array([0, 1, 7]), Split.TRAIN)
    assert list(groups["history"]) == ["1–4"] and list(groups["friends"]) == ["with friends"]
    assert list(groups["users"]) == ["known users"]
    assert "friends" not in user_segments(
        make_queries([2], [[1]]), np.array([], dtype=np.int32), Split.TRAIN
    )


def test_users_known_only_from_validation_are_new_without_a_refit() -> None:
    queries = make_queries([1, 2], [[1], [1]], splits=[1, 0, 1])
    assert rows(user_segments(queries, None, Split.TRAIN)["users"]["new users"]) == [0]
    assert "new users" not in user_segments(queries, None, Split.VALID)["users"]


def test_segment_means_by_hand() -> None:
    groups = {"g": {"odd": np.array([False, True, False, True]), "all": np.ones(4, dtype=bool)}}
    ours = {"ndcg@2": np.array([0.0, 1.0, 0.5, 0.5]), "hit@2": np.array([0.0, 1, 1, 1])}
    theirs = {"ndcg@2": np.full(4, 0.25)}
    report = segment_report(groups, {"model": ours, "ease": theirs}, "model", "ndcg@2", 100, 0)
    odd = report["g"]["odd"]
    assert odd["queries"] == 2 and odd["model"] == {"ndcg@2": 0.75, "hit@2": 1.0}
    assert odd["baselines"] == {"ease": {"ndcg@2": 0.25}}
    assert odd["interval"][0] <= 0.75 <= odd["interval"][1]
    assert report["g"]["all"]["model"]["ndcg@2"] == 0.5
    paired = odd["against"]["ease"]
    assert paired["difference"] == 0.5 and paired["low"] == 0.25 and paired["high"] == 0.75
    assert paired == compare(ours["ndcg@2"][[1, 3]], theirs["ndcg@2"][[1, 3]], 100, 0).to_json()


def test_targets_new_to_training_by_hand() -> None:
    counts = np.array([5, 0, 2, 0])  # items 1 and 3 are new
    queries = make_queries([1, 1, 1], [[1, 2], [2], [3]])
    ours = make_ranking(
        queries, [[2, 1], [2, 0], [0, -1]], [[True, True], [True, False], [False, False]]
    )
    theirs = make_ranking(
        queries, [[2, 0], [2, 0], [3, 0]], [[True, False], [True, False], [True, False]]
    )
    report = new_item_report({"model": ours, "ease": theirs}, counts, "model", "recall@2")[
        "targets new to training"
    ]
    assert (report["queries"], report["targets"], report["share"]) == (2, 2, 2 / 4)
    assert report["model"]["recall@2"] == pytest.approx((1 / 1 + 0 / 1) / 2)
    assert report["baselines"]["ease"]["recall@2"] == pytest.approx((0 / 1 + 1 / 1) / 2)
    mrr = new_item_report({"model": ours}, counts, "model", "mrr@2")["targets new to training"][
        "model"
    ]["mrr@2"]
    assert mrr == pytest.approx((1 / 2 + 0) / 2)  # the hit keeps its rank 2


def test_no_report_without_new_targets() -> None:
    ranking = make_ranking(make_queries([1], [[0]]), [[0]], [[True]])
    assert new_item_report({"model": ranking}, np.array([1, 0]), "model", "ndcg@1") == {}

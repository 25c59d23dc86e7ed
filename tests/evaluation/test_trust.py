"""Trust figures by hand: exposure, popularity bias and groups of users."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recsys.config import build_config
from recsys.data.histories import Histories, Queries
from recsys.errors import ConfigError
from recsys.evaluation import trust
from recsys.evaluation.evaluate import evaluate
from recsys.report.panels import trust_panel
from tests.handmade import small_model, small_world

SECOND, THIRD = 1 / math.log2(3), 1 / 2


def test_exposure_shares_and_disparity_by_hand() -> None:
    counts = np.array([6, 2, 2, 0])
    groups = np.array([0, 0, 1, 1])
    lists = {"model": np.array([[2, 0, 3], [0, 1, -1]]), "even": np.array([[0, 2, -1], [2, 0, -1]])}
    found = trust.exposure_report(trust.one_hot(groups, 2), ["a", "b"], counts, lists)
    assert found["items"] == [0.5, 0.5] and found["interactions"] == [0.8, 0.2]
    a, b = SECOND + 1 + SECOND, 1 + THIRD
    assert found["exposure"]["model"] == pytest.approx([a / (a + b), b / (a + b)])
    assert found["exposure"]["even"] == pytest.approx([0.5, 0.5])
    assert found["disparity"]["even"] == pytest.approx((0.3 + 0.3) / 2)
    assert found["disparity"]["model"] == pytest.approx(abs(a / (a + b) - 0.8))


def test_items_of_several_categories_count_in_shares() -> None:
    column = pa.chunked_array([[["x", "y"], ["y"], None, []]])
    share, labels = trust.item_groups(column, np.array([4, 3, 1, 0]))
    assert labels == ["y", "x", "unknown"]  # 2 + 3, 2, 1 interactions
    assert share.tolist() == [[0.5, 0.5, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]]
    many, named = trust.item_groups(
        pa.chunked_array([[f"c{i:02}" for i in range(15)]]), np.arange(15, 0, -1)
    )
    assert (
        len(named) == 12 and named[-1] == "4 others" and many[:, -1].sum() == 4 and many.sum() == 15
    )


def test_popularity_lift_by_hand() -> None:
    counts = np.array([10, 4, 2, 1, 1])  # one head item, three in the middle, one in the tail
    levels = trust.popularity_levels(counts)
    assert levels.tolist() == [0, 1, 1, 1, 2]
    profiles = [[0, 1], [1, 2], [0], [3, 4], [0, 0, 2], []]
    history = Histories.of_items(profiles, list(range(6)))
    queries = Queries(history, np.arange(7), np.zeros(6, dtype=np.int32))
    lists = {"model": np.array([[0, 1], [0, 0], [1, 2], [2, -1], [0, 4], [-1, -1]])}
    found = trust.popularity_bias(queries, counts, levels, lists)
    assert found["arp"]["model"] == pytest.approx((7 + 10 + 3 + 2 + 5.5) / 5)
    profile = [7, 3, 10, 1, 22 / 3]  # mean popularity of each history
    everyone = found["groups"]["all"]
    assert everyone["queries"] == 5 and everyone["profile"] == pytest.approx(np.mean(profile))
    assert everyone["lift"]["model"] == pytest.approx(5.5 / np.mean(profile) - 1)
    niche, blockbuster = found["groups"]["niche"], found["groups"]["blockbuster"]
    assert (niche["queries"], blockbuster["queries"]) == (1, 1)
    # user 1: no head item, as user 3, who comes later
    assert niche["lift"]["model"] == pytest.approx(10 / 3 - 1)
    assert blockbuster["lift"]["model"] == pytest.approx(3 / 10 - 1)  # user 2: head items only
    assert found["groups"]["diverse"]["queries"] == 3


def test_each_word_is_a_user_group_and_many_numbers_give_quarters() -> None:
    words = trust.user_groups(pa.chunked_array([["f", "m", None, "f"]]))
    assert {label: mask.tolist() for label, mask in words.items()} == {
        "f": [True, False, False, True],
        "m": [False, True, False, False],
        "unknown": [False, False, True, False],
    }
    numbers = trust.user_groups(pa.chunked_array([[*range(16), None]], pa.int64()))
    assert list(numbers) == ["0 to 3.75", "3.75 to 7.5", "7.5 to 11.25", "11.25 to 15", "unknown"]
    assert [int(mask.sum()) for mask in numbers.values()] == [4, 4, 4, 4, 1]
    assert numbers["11.25 to 15"][15] and not numbers["unknown"][:16].any()
    seconds = trust.user_groups(pa.chunked_array([[1_700_000_000 + 60 * i for i in range(101)]]))
    assert list(seconds)[0] == "1700000000 to 1700001500"
    assert [int(mask.sum()) for mask in seconds.values()] == [25, 25, 25, 26]
    ids = trust.user_groups(pa.chunked_array([[2**60 + i for i in range(30)]]))
    assert sum(int(mask.sum()) for mask in ids.values()) == 30, "equal numbers in float64"
    few = trust.user_groups(pa.chunked_array([[1, 2, 2]]))
    assert list(few) == ["2", "1"]


def test_quality_and_gap_by_user_group_by_hand() -> None:
    users = np.array([0, 2, 3, 4])  # user 1 has no query
    groups = {
        "a": np.array([True, True, True, False, False]),
        "b": np.array([False, False, False, True, True]),
    }
    groups["nobody"] = np.zeros(5, dtype=bool)
    main = {"model": np.array([1.0, 0.8, 0.2, 0.4]), "flat": np.full(4, 0.5)}
    beyond = {"model": np.array([0.5, 0.5, 0.1, np.nan]), "flat": np.zeros(4)}
    built = build_config(
        {
            "model": {"granularities": {"behaviour": {"enabled": True}}},
            "evaluate": {"bootstrap": 200},
        }
    )
    found = trust.user_group_report(
        groups, users, main, beyond, built.evaluate.bootstrap, built.seed
    )
    assert list(found["groups"]) == ["a", "b"]
    assert found["groups"]["a"]["value"]["model"] == pytest.approx(0.9)
    gap = found["gap"]["model"]
    assert (gap["best"], gap["worst"]) == ("a", "b") and gap["difference"] == pytest.approx(0.6)
    assert 0 < gap["low"] <= 0.6 <= gap["high"]
    assert found["gap"]["flat"]["difference"] == found["gap"]["flat"]["low"] == 0.0
    assert found["exposure_gap"] == {"model": pytest.approx(0.4), "flat": 0.0}


def settings(**section: Any) -> Any:
    granularities = {
        name: {"enabled": True} for name in ("behaviour", "collaborative", "social", "evolution")
    }
    evaluate_section = {"ks": [3], "bootstrap": 100, "baselines": ["popularity"], **section}
    model = {"granularities": granularities}
    return build_config(
        {"model": model, "train": {"metric": "ndcg@3"}, "evaluate": evaluate_section}
    )


@pytest.mark.usefixtures("one_thread")
def test_panel_has_the_figures(tmp_path: Path) -> None:
    dataset = small_world(tmp_path)
    users = pa.table({"user_id": dataset.user_ids, "kind": ["x", "y", "x", "y", "x", "y"]})
    dataset.__dict__["user_features"] = users
    result = evaluate(
        small_model(dataset), dataset, settings(item_group="title", user_groups=["kind"]), True
    ).to_json()
    found = result["trust"]
    assert set(found["items"]) == {"popularity", "title"} and set(found["users"]) == {"kind"}
    for entry in found["items"].values():
        for shares in (entry["interactions"], *entry["exposure"].values()):
            assert sum(shares) == pytest.approx(1.0)
    assert (
        sum(group["queries"] for group in found["users"]["kind"]["groups"].values())
        == result["data"]["queries"]
    )
    panel = trust_panel(result)
    assert panel is not None and panel["best"] == "popularity" and len(panel["items"]) == 2
    with pytest.raises(
        ConfigError, match=r"evaluate\.user_groups: 'shoe' is not a column of users; columns: kind"
    ):
        evaluate(small_model(dataset), dataset, settings(user_groups=["shoe"]), True)

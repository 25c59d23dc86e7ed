"""The panel on interest drift: groups of items, shares by hand, closed areas, and a page without
scripts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys.data.histories import Split
from recsys.evaluation.interest_drift import OTHER, Groups, _shares, find_groups, interest_drift_of
from recsys.report.interest_drift import interest_drift_panel
from tests.handmade import small_model, small_world


def test_groups_are_values_that_distinguish_items() -> None:
    """Every item has the first value, so the second one counts; ids and numbers are not groups."""
    features = pa.table(
        {
            "item_id": list("abcdef"),
            "price": [1.0, 2.0, 3.0, 1.0, 2.0, 3.0],
            "categories": ["Shop, Tea", "Shop, Tea", "Shop, Milk", "Shop, Milk", "Shop", None],
        }
    )
    groups = find_groups(features, np.eye(6), list("abcdef"))
    assert groups.by == "categories" and groups.labels == ["Tea", "Milk"]
    assert groups.group_N.tolist() == [0, 0, 1, 1, -1, -1]


def test_neighbourhoods_are_groups_without_an_attribute() -> None:
    features = pa.table({"item_id": [str(i) for i in range(40)]})
    random = np.random.default_rng(0)
    vectors = np.repeat(np.eye(4), 10, axis=0) + 0.05 * random.normal(size=(40, 4))
    groups = find_groups(features, vectors, [f"t{i}" for i in range(40)])
    blocks = [set(groups.group_N[start : start + 10]) for start in range(0, 40, 10)]
    assert all(one.isdisjoint(other) for i, one in enumerate(blocks) for other in blocks[:i])
    assert all(label.startswith("near t") for label in groups.labels)


def test_shares_weight_nearest_items_by_rank() -> None:
    """Two nearest items: weights 1 and 1 / log2(3); an item without a group does not count."""
    scores = torch.zeros(2, 20)
    scores[0, 3], scores[0, 5], scores[1, 5], scores[1, 19] = 2.0, 1.0, 2.0, 1.0
    group = np.full(20, -1)
    group[3], group[5] = 0, 1
    second = 1 / np.log2(3)
    expected = np.array([[1, second], [0, 1]]) / (1 + second)
    np.testing.assert_allclose(_shares(scores, Groups("x", ["a", "b"], group)), expected)


def test_model_gives_interest_drift(tmp_path: Path) -> None:
    dataset = small_world(tmp_path)
    queries = dataset.histories().queries(Split.TEST)
    found = interest_drift_of(small_model(dataset), dataset, queries)
    assert [len(drift["events"]) for drift in found] == [
        min(n, 4) for n in queries.histories.lengths_U
    ]
    for drift in found:
        assert np.all(np.sum(drift["long"], axis=1) <= 1 + 1e-9) and drift["immediate"] is None
        assert len(drift["chosen"]) == len(drift["times"]) == len(drift["long"])


def test_panel_lays_out_areas_and_colours() -> None:
    drift = {
        "by": "category",
        "labels": ["tea", "milk"],
        "events": ["a", "b"],
        "chosen": ["milk", OTHER],
        "times": [86_400, 3 * 86_400],
        "long": [[0.25, 0.5], [0.0, 1.0]],
        "immediate": [[0.0, 1.0], [0.0, 1.0]],
        "share": 0.25,
    }
    panel = interest_drift_panel(
        [
            {"user": "u", "interest_drift": drift},
            {"user": "v"},
            {"user": "w", "interest_drift": None},
        ]
    )
    assert panel is not None and panel["keys"] == [("milk", 0), ("tea", 1)] and panel["two"]
    (user,) = panel["users"]
    assert user["long"] == [(0, "M0 50 L100 0 L100 100 L0 100Z"), (1, "M0 25 L100 0 L100 0 L0 50Z")]
    assert (user["first"], user["last"], user["moved"]) == (
        "2 Jan 1970",
        "4 Jan 1970",
        pytest.approx(0.375),
    )
    assert [event["colour"] for event in user["chosen"]] == [0, None]
    assert interest_drift_panel([{"user": "u"}]) is None

"""Every baseline has a member with the same ranking, so that a model of members can match every
baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from recsys.config import EvaluateConfig, GranularitiesConfig
from recsys.data.histories import Histories, Queries
from recsys.evaluation.baselines import TargetEventsOnly, build_baseline
from recsys.granularities import granularity_class
from recsys.granularities.base import Graphs, ItemView, ModelSizes
from recsys.training.constants import Alone

USERS, ITEMS, DAY = 60, 25, 86_400


@pytest.fixture(scope="module")
def events() -> Histories:
    """Users of two tastes with repeats, over a hundred days in which popularity changes."""
    random = np.random.default_rng(0)
    rows, times = [], []
    for user in range(USERS):
        days = np.sort(random.choice(100, 12))
        own = random.permutation(ITEMS // 2) * 2 + user % 2
        rows.append(
            [
                int(own[min(int(random.exponential(3)), len(own) - 1)] + day // 50) % ITEMS
                for day in days
            ]
        )
        times += [int(day + 1) * DAY + user for day in days]
    made = replace(Histories.of_items(rows, list(range(USERS))), times_E=np.array(times))
    types_E = random.integers(0, 2, len(times)).astype(made.types_E.dtype)
    return replace(made, types_E=types_E, targets_T=np.array([False, True]))


def queries_at(events: Histories, day: int) -> Queries:
    """Queries with the newest six events of all users, and earlier items as targets."""
    lengths_U = events.lengths_U
    position_E = np.arange(len(events.items_E)) - np.repeat(events.offsets_U1[:-1], lengths_U)
    seen, targets = events.where(position_E < 6), events.where(position_E >= 6)
    at_B = np.full(USERS, day * DAY)
    return Queries(seen, targets.offsets_U1, targets.items_E, asked_at_B=at_B)


def member(name: str, events: Histories, **options: Any) -> Alone:
    torch.manual_seed(0)
    section = type(getattr(GranularitiesConfig(), name))(enabled=True, **options)
    sizes = ModelSizes(4, 50, USERS, ITEMS, 2, 0, ordered=True, timed=True)
    module = granularity_class(name, section)(section, sizes).eval()
    pairs = sorted({(u, int(i)) for u in range(USERS) for i in events.take(np.array([u])).items_E})
    users_E, items_E = (torch.tensor(column) for column in zip(*pairs, strict=True))
    graphs = Graphs(USERS, ITEMS, users_E, items_E, histories=events)
    items = ItemView(torch.zeros(ITEMS, 4), torch.zeros(ITEMS, 0))
    return Alone(module, module.state(items, graphs), items, graphs.degree_N, 50)


PLAIN = {"recency": 0.0, "half_life": "none"}


@pytest.mark.parametrize(
    ("baseline", "constants", "name", "options"),
    [
        ("popularity", {}, "popularity", {"half_life": "none", "counts": "users", "as_of": "last"}),
        (
            "recent_popularity",
            {"half_life_days": 7.0},
            "popularity",
            {"half_life": 7.0, "counts": "all", "rest": 1e-6},
        ),
        (
            "item_knn",
            {"neighbours": 100},
            "item_knn",
            {"neighbours": 100, "shrinkage": 0.0, "itself": True, **PLAIN},
        ),
        (
            "als",
            {"regularization": 10.0, "alpha": 10.0},
            "als",
            {"regularisation": 10.0, "alpha": 10.0},
        ),
        (
            "ease",
            {"l2": 30.0},
            "item_cf",
            {"regularisation": 30.0, "recency": 0.0, "itself": False},
        ),
        ("frequency", {"half_life": 30.0}, "frequency", {"half_life": 30.0}),
        ("frequency", {"half_life": None}, "frequency", {"half_life": "none"}),
    ],
)
@pytest.mark.parametrize("types", ["all", "targets"])
def test_member_ranks_as_the_baseline_of_its_kind(
    events: Histories,
    baseline: str,
    constants: Mapping[str, Any],
    name: str,
    options: dict[str, Any],
    types: str,
) -> None:
    fitted = build_baseline(baseline, EvaluateConfig(exclude_seen=False))
    fitted.constants = dict(constants)
    fitted = TargetEventsOnly(fitted) if types == "targets" else fitted
    fitted.fit(events, ITEMS)
    queries = queries_at(events, 200)
    found = member(name, events, types=types, **options).scores(queries)
    expected = fitted.scores(queries)
    for row in range(len(queries)):
        own = set(queries.histories.take(np.array([row])).of_targets().items_E.tolist())
        if not own and "popularity" not in baseline:
            continue  # the baseline falls back to popularity
        shown = [i for i in range(ITEMS) if baseline != "frequency" or i in own]
        assert same_order(found[row, shown].numpy(), expected[row, shown].numpy()), f"user {row}"


def test_recent_popularity_is_exact_between_stored_times(events: Histories) -> None:
    fitted = build_baseline("recent_popularity", EvaluateConfig(exclude_seen=False))
    fitted.constants = {"half_life_days": 3.0}
    fitted.fit(events, ITEMS)
    options = {
        "half_life": 3.0,
        "counts": "all",
        "rest": 1e-6,
        "types": "all",
        "as_of": "question",
        "moments": 5,
    }
    for day in (55, 80, 97):
        queries = queries_at(events, day)
        found = member("popularity", events, **options).scores(queries)
        expected = fitted.scores(queries)
        assert same_order(found[0].numpy(), np.log(expected[0].numpy() + 1e-6)), f"day {day}"


def same_order(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two score vectors order all items equally, apart from rounding."""
    one, other = ((values - values.min()) / max(np.ptp(values), 1e-9) for values in (one, other))
    apart = np.sign(np.where(abs(one[:, None] - one) < 1e-4, 0, one[:, None] - one))
    wanted = np.sign(np.where(abs(other[:, None] - other) < 1e-4, 0, other[:, None] - other))
    return bool((apart * wanted >= 0).all() and (abs(wanted - apart) < 1.5).all())

"""Drift: how far newer events differ from those of the earlier model, and recommended lists from
what users choose.

Why: nobody watches an update that runs every day. An export with other ids, a replaced catalogue or
a log full of bots is visible here before it is visible in sales. ``promote`` refuses a model beyond
the bounds of ``promote.max_…``.

``unknown_items`` and ``unknown_users`` are the shares of newer events with ids that the earlier
model does not know. ``popularity_shift`` is the population stability index Σ (q − p) ln(q / p) over
ten groups of items with a tenth of the earlier events each, from the most popular to the least: p
is their share of the earlier events, q of the newer ones. A shift of at least .1 is called
moderate, of at least .25 large. ``miscalibration`` is the share of exposure that would have to move
between head, middle and tail so that lists reflect what was chosen (the disparity of ``trust``).

Legend: U users, E events, N items, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from recsys.config import PromoteConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Histories, numbered_keys

_GROUPS: Final = 10
_HALF: Final = 0.5  # events added to every group, so that none is empty
NAMES: Final = {
    "unknown_items": "newer events on items that the earlier model does not know",
    "unknown_users": "newer events of users that it does not know",
    "popularity_shift": "shift of popularity (PSI)",
    "miscalibration": "exposure that differs from what users choose, by popularity",
}


@dataclass(frozen=True)
class Drift:
    """The figures of this module; None if they cannot be computed."""

    events: int  # number of newer events
    unknown_items: float | None
    unknown_users: float | None
    popularity_shift: float | None

    def to_json(self) -> dict[str, Any]:
        """The content as plain values for JSON."""
        return asdict(self)


def drift_of(dataset: PreparedDataset, earlier: Histories, num_items: int) -> Drift:
    """Drift of the events of a dataset that the earlier model was not trained on.

    Parameters
    ----------
    dataset : PreparedDataset
        The dataset; it continues that of the earlier model and keeps its dense ids.
    earlier : Histories
        All events of the earlier model, one row per user.
    num_items : int
        Number of items that the earlier model knows.
    """
    known = np.unique(numbered_keys(earlier))
    items: list[Array] = []
    num_strangers = 0
    for shard in dataset.shards():
        is_newer_E = ~np.isin(numbered_keys(shard), known)
        items.append(shard.items_E[is_newer_E])
        num_strangers += int(
            # an update keeps dense ids, so new users have the numbers after the old ones
            (np.repeat(shard.users_U, shard.lengths_U)[is_newer_E] >= len(earlier)).sum()
        )
    newer_E = np.concatenate(items) if items else np.zeros(0, dtype=np.int32)
    if not len(newer_E):
        return Drift(0, None, None, None)
    known_E = newer_E[newer_E < num_items]
    counts = [
        np.bincount(items_E, minlength=num_items)[:num_items]
        for items_E in (earlier.items_E, known_E)
    ]
    shift = popularity_shift(*counts) if len(known_E) and len(earlier.items_E) else None
    return Drift(len(newer_E), 1 - len(known_E) / len(newer_E), num_strangers / len(newer_E), shift)


def popularity_shift(before_N: Array, now_N: Array) -> float:
    """The population stability index of two counts of items.

    >>> round(popularity_shift(np.array([50, 30, 20]), np.array([500, 300, 200])), 3)
    0.0
    >>> popularity_shift(np.array([50, 30, 20]), np.array([20, 30, 50])) > 0.25
    True
    """
    order_N = np.argsort(-before_N, kind="stable")
    # the events before an item decide its group, so that a group has whole items
    reached_N = np.cumsum(before_N[order_N]) - before_N[order_N]
    group_N = np.minimum(reached_N * _GROUPS // max(int(before_N.sum()), 1), _GROUPS - 1)
    sums = [
        np.bincount(group_N, counts[order_N], minlength=_GROUPS) for counts in (before_N, now_N)
    ]
    filled = sums[0] > 0  # a very popular item may span several groups
    p_G, q_G = ((of[filled] + _HALF) / (of[filled] + _HALF).sum() for of in sums)
    return float(((q_G - p_G) * np.log(q_G / p_G)).sum())


def with_calibration(drift: Mapping[str, Any], evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The figures with ``miscalibration`` added, from the content of ``metrics.json``."""
    by_popularity = evaluation.get("trust", {}).get("items", {}).get("popularity", {})
    return {**drift, "miscalibration": by_popularity.get("disparity", {}).get("model")}


def drift_panel(drift: Mapping[str, Any], settings: PromoteConfig) -> dict[str, Any]:
    """The figures with their bounds, as a panel of the report."""
    rows = [
        [name, _shown(drift.get(key)), _shown(bound_of(settings, key))]
        for key, name in NAMES.items()
    ]
    return {
        "title": "Drift",
        "text": (
            f"{drift['events']:,} events are newer than the parent model. `recsys promote` refuses"
            " a model with a figure above its bound (promote.max_…)."
        ),
        "columns": ["", "now", "bound"],
        "rows": rows,
    }


def beyond(drift: Mapping[str, Any], settings: PromoteConfig) -> list[str]:
    """The figures above their bounds, each as a sentence."""
    found = []
    for key, name in NAMES.items():
        value, bound = drift.get(key), bound_of(settings, key)
        if value is not None and bound is not None and value > bound:
            found.append(f"{name}: {value:.3f}, at most {bound:g} (promote.max_{key})")
    return found


def bound_of(settings: PromoteConfig, key: str) -> float | None:
    """The bound of a figure; None if it has none."""
    found: float | None = getattr(settings, f"max_{key}")
    return found


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"

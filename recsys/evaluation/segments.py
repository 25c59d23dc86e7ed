"""Metrics by segment: length of history, friends, new and cold-start users, and items new to
training.

Legend: B queries, N items, F friend edges.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from recsys.data.histories import Array, Queries, Split
from recsys.evaluation.bootstrap import compare, compare_all, intervals
from recsys.evaluation.metrics import QUERY_METRICS, parse_metric
from recsys.evaluation.ranking import Ranking

LENGTHS: Final = {
    "0": (0, 0),
    "1–4": (1, 4),
    "5–9": (5, 9),
    "10–19": (10, 19),
    "20–49": (20, 49),
    "50+": (50, None),
}
Groups = dict[str, dict[str, Array]]


COLD: Final = "cold users"  # label in the group "cold"


def user_segments(
    queries: Queries, friends_U: Array | None, through: Split, cold_U: Array | None = None
) -> Groups:
    """Groups of masks over the queries: group → label → [B] bool. Labels without queries are left
    out.

    ``history``: number of visible events. ``friends``: with or without friends, only if the data
    has a social graph. ``users``: a user is new if no visible event is in a split through
    ``through``. ``cold``: the users whose training events the split cut to a few, if it did.

    Parameters
    ----------
    queries : Queries
        The queries.
    friends_U : Array | None
        Dense ids of the users with an edge in the social graph.
    through : Split
        The last split on which the model was fitted.
    cold_U : Array | None
        Mask over all users: those that the split cut to a few training events.
    """
    lengths_B = queries.histories.lengths_U
    groups: Groups = {
        "history": {
            label: (
                (lengths_B >= low)
                & (lengths_B <= (high if high is not None else lengths_B.max(initial=0)))
            )
            for label, (low, high) in LENGTHS.items()
        }
    }
    if friends_U is not None and len(friends_U):
        has_friends_B = np.isin(queries.histories.users_U, friends_U)
        groups["friends"] = {"with friends": has_friends_B, "without friends": ~has_friends_B}
    rows_E = np.repeat(np.arange(len(queries)), lengths_B)
    known_B = np.bincount(rows_E[queries.histories.splits_E <= through], minlength=len(queries)) > 0
    groups["users"] = {"known users": known_B, "new users": ~known_B}
    if cold_U is not None:
        is_cold_B = (queries.histories.users_U >= 0) & cold_U[queries.histories.users_U]
        groups["cold"] = {COLD: is_cold_B, "other users": ~is_cold_B}
    return {
        group: {label: mask for label, mask in masks.items() if mask.any()}
        for group, masks in groups.items()
    }


def segment_report(
    groups: Groups,
    values: Mapping[str, Mapping[str, Array]],
    model: str,
    main: str,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Metrics by segment: group → label → entry.

    An entry has ``queries``, ``model`` (all metrics), ``interval`` of the main metric,
    ``baselines`` (the main metric) and ``against``: the paired difference of the main metric
    between the model and each baseline.

    Parameters
    ----------
    groups : Groups
        Masks over the queries, as of :func:`user_segments`.
    values : Mapping[str, Mapping[str, Array]]
        Recommender → metric → one value per query [B], all on the same queries.
    model : str
        The recommender that is reported in full.
    main : str
        The main metric.
    resamples : int
        Number of bootstrap resamples.
    seed : int
        Seed of the bootstrap.
    """
    others = {name: of[main] for name, of in values.items() if name != model}

    def entry(mask_B: Array) -> dict[str, Any]:
        ours_B = values[model][main][mask_B]
        theirs = {name: value_B[mask_B] for name, value_B in others.items()}
        found = compare_all(ours_B, theirs, resamples, seed)
        return {
            "queries": int(mask_B.sum()),
            "model": {
                name: float(value_B[mask_B].mean()) for name, value_B in values[model].items()
            },
            "interval": intervals({main: ours_B}, resamples, seed)[main],
            "baselines": {name: {main: float(value_B.mean())} for name, value_B in theirs.items()},
            "against": {name: comparison.to_json() for name, comparison in found.items()},
        }

    return {
        group: {label: entry(mask_B) for label, mask_B in masks.items()}
        for group, masks in groups.items()
    }


def paired_report(
    mask_B: Array,
    values: Mapping[str, Array],
    without: Mapping[str, Array],
    model: str,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """The model against every baseline, and against itself without each granularity, on the queries
    of one segment.

    The best baseline is the one with the highest mean *on these queries*, the strictest choice.
    ``relative`` is the difference divided by the mean of the other; None if that is zero.

    Parameters
    ----------
    mask_B : Array
        The segment, with at least one query.
    values : Mapping[str, Array]
        Recommender → the metric, [B].
    without : Mapping[str, Array]
        Granularity → the metric without it, [B].
    model : str
        The name of the model in ``values``.
    """
    ours = values[model][mask_B]

    def against(other_B: Array) -> dict[str, Any]:
        theirs = other_B[mask_B]
        found = compare(ours, theirs, resamples, seed).to_json()
        mean = float(theirs.mean())
        return {
            "value": mean,
            "relative": found["difference"] / mean if mean > 0 else None,
            **found,
        }

    others = {name: against(other_B) for name, other_B in values.items() if name != model}
    best = max(others, key=lambda name: float(others[name]["value"]), default=None)
    return {
        "comparison": {
            "best_baseline": best,
            "chosen_by": "test metric on these users",
            "against": others,
        },
        "granularities": {name: against(other_B) for name, other_B in without.items()},
    }


def new_item_report(
    rankings: Mapping[str, Ranking], counts_N: Array, model: str, main: str
) -> dict[str, Any]:
    """The main metric for targets without any training event: only these count as targets and hits;
    ranks do not change.

    Empty if there is none. ``targets`` is their number, ``share`` their share of all targets,
    ``queries`` the number of queries with at least one.

    Parameters
    ----------
    rankings : Mapping of str to Ranking
        Recommender to its ranking of the same queries.
    counts_N : array, [N] int
        Training events of each item.
    model : str
        Name of the model in ``rankings``.
    main : str
        Main metric, such as ``ndcg@20``.

    Returns
    -------
    dict
        One label to ``queries``, ``targets``, ``share``, ``model`` and ``baselines``.
    """
    new_N = counts_N == 0
    any_ranking = rankings[model]
    is_new_P = new_N[any_ranking.queries.target_items]
    if not is_new_P.any():
        return {}
    rows_P = any_ranking.queries.target_rows()
    num_new_B = np.bincount(rows_P[is_new_P], minlength=len(any_ranking))
    has_new_B = num_new_B > 0

    def main_metric(ranking: Ranking) -> float:
        kind, k = parse_metric(main)
        hits_BK = ranking.hits_BK & new_N[ranking.items_BK]
        return float(QUERY_METRICS[kind](hits_BK[has_new_B], num_new_B[has_new_B], k).mean())

    return {
        "targets new to training": {
            "queries": int(has_new_B.sum()),
            "targets": int(is_new_P.sum()),
            "share": float(is_new_P.mean()),
            "model": {main: main_metric(any_ranking)},
            "baselines": {
                name: {main: main_metric(r)} for name, r in rankings.items() if name != model
            },
        }
    }

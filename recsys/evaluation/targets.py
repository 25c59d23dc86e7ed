"""Separate metrics for repeated and new targets, if both count.

Why separate: if repeats are common, a list of what a user always buys scores well and shows nothing
new. For new targets, every recommender makes another list without the items that the user had; for
repeated targets the lists stay as they are, and only targets that the user had before count.

Legend: B queries, K list length, P targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from recsys.config import EvaluateConfig, TrainConfig
from recsys.data.histories import Array, Queries
from recsys.evaluation.metrics import QUERY_METRICS, parse_metric
from recsys.evaluation.ranking import Ranking, Scorer, rank

NEW: Final = "new_targets"
REPEATED: Final = "repeat_targets"


def target_report(
    scorers: Mapping[str, Scorer],
    rankings: Mapping[str, Ranking],
    queries: Queries,
    train: TrainConfig,
    evaluate: EvaluateConfig,
    model: str,
) -> dict[str, Any]:
    """``new_targets`` and ``repeat_targets`` → {queries, targets, share, model: main metric,
    baselines: main metric}.

    Empty if ``evaluate.exclude_seen`` is true, or if no user has a repeated target.

    Parameters
    ----------
    scorers : Mapping[str, Scorer]
        The recommenders by name.
    rankings : Mapping[str, Ranking]
        Their rankings, over all targets.
    queries : Queries
        The queries of the rankings.
    train : TrainConfig
        Main metric.
    evaluate : EvaluateConfig
        Whether seen items are left out, and the chunk size.
    model : str
        The name of the model in ``scorers``.
    """
    if evaluate.exclude_seen:
        return {}
    had_P = had_before(rankings[model].queries)
    if not had_P.any():
        return {}
    repeated = _keys(rankings[model].queries)[had_P]
    values = {name: _values(ranking, repeated, train) for name, ranking in rankings.items()}
    found = {REPEATED: _entry(values, had_P, train, model)}
    kind, k = parse_metric(train.metric)
    at, chunk = QUERY_METRICS[kind], evaluate.chunk_users
    unseen = {name: rank(scorer, queries, k, True, chunk) for name, scorer in scorers.items()}
    if len(unseen[model]):
        values = {
            name: at(ranking.hits_BK, ranking.num_targets_B, k) for name, ranking in unseen.items()
        }
        found[NEW] = _entry(values, ~had_P, train, model)
    return found


def had_before(queries: Queries) -> Array:
    """Whether each target is in the visible history of its query: bool [P]."""
    had = queries.histories.of_targets()
    seen_E = np.repeat(np.arange(len(queries)), had.lengths_U) * 2**32 + had.items_E
    return np.isin(queries.target_rows() * 2**32 + queries.target_items, seen_E)


def type_report(
    rankings: Mapping[str, Ranking],
    queries: Queries,
    event_types: Sequence[str],
    train: TrainConfig,
    model: str,
) -> dict[str, Any]:
    """Event type → the same figures for targets of that type only; the lists do not change. Empty
    for a single type.

    A target with events of several types counts for each of them.

    Parameters
    ----------
    rankings : Mapping of str to Ranking
        Recommender to its ranking, over all targets.
    queries : Queries
        All queries, of which the rankings hold those that count.
    event_types : Sequence of str
        Name of each event type, by code.
    train : TrainConfig
        Main metric.
    model : str
        Name of the model in ``rankings``.

    Returns
    -------
    dict of str to dict
        Event type to figures, plain JSON.
    """
    ranking = rankings[model]
    ranked = queries.take(ranking.rows_B)
    counts_P = np.isin(_keys(ranked), _keys(ranking.queries))  # without targets that were seen
    types = np.unique(ranked.target_types[counts_P])
    if len(types) < 2:
        return {}
    found = {}
    for code in types.tolist():
        of_type_P = counts_P & (ranked.target_types == code)
        keys = np.unique(_keys(ranked)[of_type_P])
        values = {name: _values(each, keys, train) for name, each in rankings.items()}
        found[event_types[code]] = _entry(values, of_type_P[counts_P], train, model)
    return found


def _keys(queries: Queries) -> Array:
    """Query and item of every target as one number."""
    return np.asarray(queries.target_rows() * 2**32 + queries.target_items)


def _values(ranking: Ranking, keys: Array, train: TrainConfig) -> Array:
    """The main metric of the queries with at least one of these targets, if only these count."""
    kind, k = parse_metric(train.metric)
    num_B = np.bincount(keys // 2**32, minlength=len(ranking))
    listed_BK = np.arange(len(ranking))[:, None] * 2**32 + ranking.items_BK
    hits_BK = ranking.hits_BK & np.isin(listed_BK, keys)
    return QUERY_METRICS[kind](hits_BK[num_B > 0], num_B[num_B > 0], k)


def _entry(
    values: Mapping[str, Array], is_counted_P: Array, train: TrainConfig, model: str
) -> dict[str, Any]:
    metric = train.metric
    means = {name: {metric: float(values_B.mean())} for name, values_B in values.items()}
    return {
        "queries": len(values[model]),
        "targets": int(is_counted_P.sum()),
        "share": float(is_counted_P.mean()),
        "model": means.pop(model),
        "baselines": means,
    }

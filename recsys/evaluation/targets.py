"""What users had before and what is new to them, measured apart, where both count.

Why apart: where repeats are common, a list of what a user always buys scores well and shows nothing new. For new
targets every recommender is asked again for a list without what the user had; for repeated targets its lists stay as
they are, and only the targets that the user had before count.

Legend: B queries, K list length, P targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from recsys.config import Config
from recsys.data.histories import Array, Queries
from recsys.evaluation.metrics import QUERY_METRICS, parse_metric
from recsys.evaluation.ranking import Ranking, Scorer, rank

NEW: Final = "new_targets"
REPEATED: Final = "repeat_targets"


def target_report(
    scorers: Mapping[str, Scorer], rankings: Mapping[str, Ranking], queries: Queries, config: Config, model: str
) -> dict[str, Any]:
    """``new_targets`` and ``repeat_targets`` → {queries, targets, share, model: main metric, baselines: main metric}.

    Empty where what was seen is left out of all lists, or nobody has a target that they had before.

    Parameters
    ----------
    scorers : Mapping[str, Scorer]
        the recommenders by name.
    rankings : Mapping[str, Ranking]
        theirs, over all targets.
    queries : Queries
        what the rankings were asked.
    config : Config
        the main metric and the chunks.
    model : str
        the name of the model among them.
    """
    if config.evaluate.exclude_seen:
        return {}
    had_P = had_before(rankings[model].queries)
    if not had_P.any():
        return {}
    repeated = _keys(rankings[model].queries)[had_P]
    values = {name: _values(ranking, repeated, config) for name, ranking in rankings.items()}
    found = {REPEATED: _entry(values, had_P, config, model)}
    kind, k = parse_metric(config.train.metric)
    at, chunk = QUERY_METRICS[kind], config.evaluate.chunk_users
    anew = {name: rank(scorer, queries, k, True, chunk) for name, scorer in scorers.items()}
    if len(anew[model]):
        values = {name: at(ranking.hits_BK, ranking.num_targets_B, k) for name, ranking in anew.items()}
        found[NEW] = _entry(values, ~had_P, config, model)
    return found


def had_before(queries: Queries) -> Array:
    """Which targets are in the visible history of their query: bool [P]."""
    had = queries.histories.of_targets()
    seen_E = np.repeat(np.arange(len(queries)), had.lengths_U) * 2**32 + had.items_E
    return np.isin(queries.target_rows() * 2**32 + queries.target_items, seen_E)


def type_report(
    rankings: Mapping[str, Ranking], queries: Queries, event_types: Sequence[str], config: Config, model: str
) -> dict[str, Any]:
    """Event type → the same figures, of targets of that type alone; lists stay as they are. Empty for a single type.

    A target that comes with several types counts for each of them.
    """
    ranking = rankings[model]
    asked = queries.take(ranking.rows_B)
    counts_P = np.isin(_keys(asked), _keys(ranking.queries))  # not what was seen
    types = np.unique(asked.target_types[counts_P])
    if len(types) < 2:
        return {}
    found = {}
    for code in types.tolist():
        of_type_P = counts_P & (asked.target_types == code)
        keys = np.unique(_keys(asked)[of_type_P])
        values = {name: _values(each, keys, config) for name, each in rankings.items()}
        found[event_types[code]] = _entry(values, of_type_P[counts_P], config, model)
    return found


def _keys(queries: Queries) -> Array:
    """Query and item of every target as one number."""
    return np.asarray(queries.target_rows() * 2**32 + queries.target_items)


def _values(ranking: Ranking, keys: Array, config: Config) -> Array:
    """The main metric of the queries that have one of these targets, when only they count."""
    kind, k = parse_metric(config.train.metric)
    num_B = np.bincount(keys // 2**32, minlength=len(ranking))
    listed_BK = np.arange(len(ranking))[:, None] * 2**32 + ranking.items_BK
    hits_BK = ranking.hits_BK & np.isin(listed_BK, keys)
    return QUERY_METRICS[kind](hits_BK[num_B > 0], num_B[num_B > 0], k)


def _entry(values: Mapping[str, Array], is_counted_P: Array, config: Config, model: str) -> dict[str, Any]:
    metric = config.train.metric
    means = {name: {metric: float(values_B.mean())} for name, values_B in values.items()}
    return {
        "queries": len(values[model]),
        "targets": int(is_counted_P.sum()),
        "share": float(is_counted_P.mean()),
        "model": means.pop(model),
        "baselines": means,
    }

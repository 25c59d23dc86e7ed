"""The cost of diversity: accuracy of the lists of test users at several strengths of ``diversify``.

The code that answers requests orders the lists. Legend: B queries, P pool, k list length.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from recsys.config import EvaluateConfig, TrainConfig
from recsys.data.histories import Array, Queries
from recsys.evaluation.bootstrap import intervals
from recsys.evaluation.metrics import QUERY_METRICS, parse_metric
from recsys.evaluation.ranking import Ranking, mark_hits, rank
from recsys.model import FrozenModel
from recsys.retrieval.rules import DEFAULT_POOL
from recsys.serving.diversity import by_relevance
from recsys.serving.item_similarity import ItemSimilarity

STRENGTHS: Final = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)
_MOST_USERS: Final = 1_000


def trade_off(
    model: FrozenModel, queries: Queries, train: TrainConfig, evaluate: EvaluateConfig, seed: int
) -> dict[str, Any]:
    """The main metric and the diversity of the lists (1 − the mean cosine of their pairs) at every
    strength.

    Of many queries an even sample is measured.

    Parameters
    ----------
    model : FrozenModel
        The model.
    queries : Queries
        Queries of the test split.
    train : TrainConfig
        Main metric.
    evaluate : EvaluateConfig
        Whether seen items are left out, chunk size and bootstrap.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    dict[str, Any]
        ``metric``, ``k``, ``pool``, ``users``, and ``points``: ``strength``, ``value``, ``low``,
        ``high`` (95 % interval over users) and ``diversity``, from the weakest to the strongest.
    """
    kind, k = parse_metric(train.metric, tuple(QUERY_METRICS))
    if len(queries) > _MOST_USERS:
        queries = queries.take(np.linspace(0, len(queries) - 1, _MOST_USERS).astype(np.int64))
    pool, similarity = max(DEFAULT_POOL, k), ItemSimilarity(model)
    ranking = rank(model, queries, pool, evaluate.exclude_seen, evaluate.chunk_users)
    lists, diversity = _diversified(ranking, similarity, k)
    values = {
        str(strength): QUERY_METRICS[kind](
            mark_hits(items_Bk, ranking.queries), ranking.num_targets_B, k
        )
        for strength, items_Bk in lists.items()
    }
    found = intervals(values, evaluate.bootstrap, seed)
    points = [
        {
            "strength": strength,
            "value": float(values[str(strength)].mean()),
            "low": found[str(strength)][0],
            "high": found[str(strength)][1],
            "diversity": float(diversity[strength].mean()),
        }
        for strength in STRENGTHS
    ]
    return {
        "metric": train.metric,
        "k": k,
        "pool": pool,
        "users": len(ranking),
        "points": points,
    }


def _diversified(
    ranking: Ranking, similarity: ItemSimilarity, k: int
) -> tuple[dict[float, Array], dict[float, Array]]:
    """The lists at every strength: int32 [B, k], and the diversity of each list: [B]."""
    lists = {strength: np.full((len(ranking), k), -1, dtype=np.int32) for strength in STRENGTHS}
    diversity = {strength: np.zeros(len(ranking)) for strength in STRENGTHS}
    for row, (items_P, scores_P) in enumerate(
        zip(ranking.items_BK, ranking.scores_BK, strict=True)
    ):
        items_P = items_P[items_P >= 0]
        cosines_PP = similarity.among(items_P)
        for strength in STRENGTHS:
            order = by_relevance(
                scores_P[: len(items_P)].astype(np.float64), cosines_PP, strength, k
            )
            lists[strength][row, : len(order)] = items_P[order]
            diversity[strength][row] = _diversity(cosines_PP[np.ix_(order, order)])
    return lists, diversity


def _diversity(cosines_kk: Array) -> float:
    """1 − the mean cosine of the pairs; 0 for fewer than two items."""
    size = len(cosines_kk)
    if size < 2:
        return 0.0
    return 1.0 - float((cosines_kk.sum() - np.trace(cosines_kk)) / (size * (size - 1)))

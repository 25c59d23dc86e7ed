"""Two recommenders, metric by metric, on the same queries: means, difference, interval and p of
each.

Why paired: users differ far more than recommenders do. So two separate intervals can overlap
although almost every user shows the same difference.

Legend: B queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from recsys.data.histories import Array, Queries
from recsys.evaluation.bootstrap import compare
from recsys.evaluation.metrics import query_metrics
from recsys.evaluation.ranking import Ranking, Scorer, rank


def accuracy_of(
    scorer: Scorer,
    queries: Queries,
    ks: list[int],
    exclude_seen: bool,
    chunk: int,
    more: Sequence[str] = (),
) -> tuple[Ranking, dict[str, Array]]:
    """One full ranking, and its accuracy metrics at every cut-off, one value per query that counts
    [B]. ``more`` names metrics of other packages.

    Parameters
    ----------
    scorer : Scorer
        The recommender to rank with.
    queries : Queries
        Queries to rank; those without a target that counts are left out.
    ks : list of int
        Cut-offs.
    exclude_seen : bool
        Whether items of the history are left out of lists and targets.
    chunk : int
        Queries that are scored at once.
    more : Sequence of str
        Kinds of metrics of other packages.

    Returns
    -------
    ranking : Ranking
        Lists up to the largest cut-off.
    metrics : dict of str to array, [B] float64
        Metric, such as ``ndcg@20``, to one value per query.
    """
    ranking = rank(scorer, queries, max(ks), exclude_seen, chunk)
    return ranking, query_metrics(ranking.hits_BK, ranking.num_targets_B, ks, more)


def paired_metrics(
    first: Mapping[str, Array], second: Mapping[str, Array], resamples: int, seed: int
) -> dict[str, dict[str, float]]:
    """Metric → mean of both, mean of first − second, its 95 % interval and two-sided p, by a paired
    bootstrap.

    Each p-value is for one metric; they are not corrected for the number of metrics.

    Parameters
    ----------
    first : Mapping of str to array, [B] float
        Metric to one value per query, of the first recommender.
    second : Mapping of str to array, [B] float
        The same metrics of the second one, for the same queries.
    resamples : int
        Number of bootstrap draws.
    seed : int
        Seed of the draws.

    Returns
    -------
    dict of str to dict
        Metric to ``first``, ``second``, ``difference``, ``low``, ``high`` and ``p``.

    Examples
    --------
    >>> import numpy as np
    >>> same = {"hr@1": np.array([0.0, 1.0])}
    >>> paired_metrics(same, same, 100, 0)["hr@1"]
    {'first': 0.5, 'second': 0.5, 'difference': 0.0, 'low': 0.0, 'high': 0.0, 'p': 1.0}
    """
    assert first.keys() == second.keys(), "both need the same metrics"
    return {
        name: {
            "first": float(values_B.mean()),
            "second": float(second[name].mean()),
            **compare(values_B, second[name], resamples, seed).to_json(),
        }
        for name, values_B in first.items()
    }

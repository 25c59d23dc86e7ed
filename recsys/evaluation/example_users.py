"""A few test users for the report: their items, what the model recommends, and the share of each
granularity.

Why a random draw by the seed: hand-picked examples always look good. The score is a sum over
granularities, so their shares add up to it.

Legend: E examples, K granularities, R recommendations, D width, N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from recsys.data.dataset import PreparedDataset
from recsys.data.titles import item_titles
from recsys.evaluation.cluster_descriptions import user_clusters_of
from recsys.evaluation.interest_drift import interest_drift_of
from recsys.evaluation.ranking import Ranking
from recsys.model import FrozenModel

_NUM_RECOMMENDATIONS: Final = 6


def example_users(
    model: FrozenModel,
    dataset: PreparedDataset,
    ranking: Ranking,
    num_examples: int,
    seed: int,
    show_ids: bool = False,
) -> list[dict[str, Any]]:
    """Random queries of a ranking, as the report shows them.

    People share reports, so users appear as numbers unless ids are wanted.

    Each example is ``{user, history: [title], recommendations: [{item, title, score, shares:
    {granularity: float}, hit}], interest_drift, strata}``. ``history`` starts with the oldest item.
    ``interest_drift`` is from :func:`interest_drift_of`, None without the granularity evolution.
    ``strata`` are the user clusters from :func:`user_clusters_of`, the largest weight
    first.

    Parameters
    ----------
    model : FrozenModel
        The model that made the ranking.
    dataset : PreparedDataset
        The dataset of the queries.
    ranking : Ranking
        The lists of the test users.
    num_examples : int
        Number of examples E; fewer if the ranking has fewer queries.
    seed : int
        Seed of the draw.
    show_ids : bool
        Show the external user ids. Otherwise, and for users without an id in the dataset, the
        number of the example is shown, from 1.

    Returns
    -------
    list[dict[str, Any]]
        The examples in the order of the ranking, as plain values; empty without queries.
    """
    num_examples = min(num_examples, len(ranking))
    if num_examples == 0:
        return []
    rows_E = np.sort(np.random.default_rng(seed).choice(len(ranking), num_examples, replace=False))
    queries = ranking.queries.take(rows_E)
    parts = model.contributions(queries)
    items_ER = torch.from_numpy(ranking.items_BK[rows_E]).long()
    shares_EKR = parts.shares(
        model.item_vectors_ND, items_ER.to(model.item_vectors_ND.device)
    ).cpu()
    titles_N = item_titles(dataset.features)
    drifts: list[dict[str, Any] | None] = [*interest_drift_of(model, dataset, queries)] or [
        None
    ] * num_examples
    clusters = user_clusters_of(model, queries)
    examples = []
    for number, (shares_KR, history, row, drift, of_user) in enumerate(
        zip(shares_EKR, queries.chunks(1), rows_E, drifts, clusters, strict=True), 1
    ):
        user = int(history.histories.users_U[0])
        examples.append(
            {
                "user": dataset.user_ids[user].as_py() if show_ids and user >= 0 else str(number),
                "interest_drift": drift,
                "strata": of_user,
                "history": [titles_N[item] for item in history.histories.items_E],
                "recommendations": _recommendations(
                    model, dataset, ranking, row, shares_KR, titles_N
                ),
            }
        )
    return examples


def _recommendations(
    model: FrozenModel,
    dataset: PreparedDataset,
    ranking: Ranking,
    row: int,
    shares_KR: Tensor,
    titles_N: Sequence[str],
) -> list[dict[str, Any]]:
    """The first items of one list with their scores, contributions and hits."""
    is_listed_R = ranking.items_BK[row] >= 0
    listed = zip(
        ranking.items_BK[row][is_listed_R][:_NUM_RECOMMENDATIONS].tolist(),
        shares_KR.T[torch.from_numpy(is_listed_R)].tolist(),
        ranking.scores_BK[row][is_listed_R],
        ranking.hits_BK[row][is_listed_R],
        strict=False,
    )
    return [
        {
            "item": dataset.item_ids[item].as_py(),
            "title": titles_N[item],
            "score": float(score),
            "shares": {
                name: share
                for name, share in zip(model.names, shares_K, strict=True)
                if name in model.active_names
            },
            "hit": bool(hit),
        }
        for item, shares_K, score, hit in listed
    ]

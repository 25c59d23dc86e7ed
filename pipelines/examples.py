"""A few test users for the report: their items, what the model recommends, and the share of each
granularity.

Why a random draw by the seed: hand-picked examples always look good. The score is a sum over
granularities, so their shares add up to it.

Legend: E examples, K granularities, R recommendations, D width, N items.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch

from recsys.data.dataset import PreparedDataset
from recsys.data.titles import item_titles
from recsys.evaluation.interest_drift import interest_drift_of
from recsys.evaluation.ranking import Ranking
from recsys.evaluation.user_clusters import strata_of_users
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
    {granularity: float}, hit}], movement, strata}``. ``history`` starts with the oldest item.
    ``movement`` is the interest drift from :func:`interest_drift_of`, None without the granularity
    evolution. ``strata`` are the user clusters from :func:`strata_of_users`, the largest weight
    first.
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
    moves: list[dict[str, Any] | None] = [*interest_drift_of(model, dataset, queries)] or [
        None
    ] * num_examples
    strata = strata_of_users(model, queries)
    examples = []
    for number, (shares_KR, history, row, movement, of_user) in enumerate(
        zip(shares_EKR, queries.chunks(1), rows_E, moves, strata, strict=True), 1
    ):
        kept_R = ranking.items_BK[row] >= 0
        items_R = ranking.items_BK[row][kept_R][:_NUM_RECOMMENDATIONS].tolist()
        shares_RK = shares_KR.T[torch.from_numpy(kept_R)].tolist()
        scored_R = zip(
            items_R,
            shares_RK,
            ranking.scores_BK[row][kept_R],
            ranking.hits_BK[row][kept_R],
            strict=False,
        )
        user = int(history.histories.users_U[0])
        examples.append(
            {
                "user": dataset.user_ids[user].as_py() if show_ids and user >= 0 else str(number),
                "movement": movement,
                "strata": of_user,
                "history": [titles_N[item] for item in history.histories.items_E],
                "recommendations": [
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
                    for item, shares_K, score, hit in scored_R
                ],
            }
        )
    return examples

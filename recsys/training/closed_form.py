"""Choose the weights λ of closed-form granularities on validation: one λ after the other, side
information last.

Why not by gradient: a closed-form granularity has seen every training event, so training would
trust it too much.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import torch

from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Queries, Split
from recsys.model import FrozenModel

MAX_QUERIES: Final = 4096
_PROBE: Final = 256
# tried λ, in units of the ratio of the standard deviations of the scores
_COARSE: Final = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
_FINE: Final = (0.7, 1.4)


def sample_queries(dataset: PreparedDataset, split: Split, most: int = MAX_QUERIES) -> Queries:
    """At most ``most`` queries, sampled evenly from the users of all shards; one shard is in memory
    at a time.

    Parameters
    ----------
    dataset : PreparedDataset
        The dataset.
    split : Split
        Split of the targets; queries see the events of earlier splits.
    most : int
        Most queries.
    """
    total = sum(len(shard.queries(split)) for shard in dataset.shards())
    step, passed, is_drawn_V = max(1, -(-total // most)), 0, np.zeros(dataset.num_users, dtype=bool)
    for shard in dataset.shards():
        users_B = shard.queries(split).histories.users_U
        is_drawn_V[users_B[-passed % step :: step]] = True
        passed += len(users_B)
    return dataset.histories(is_drawn_V).queries(split)


@torch.no_grad()
def choose_weights(frozen: FrozenModel, metric: Callable[[], float], queries: Queries) -> None:
    """Set ``frozen.encoders.fitted_weights`` to the best values found, zero included.

    They stay as they are if the metric cannot be measured.

    Parameters
    ----------
    frozen : FrozenModel
        The model; its weights change during the search.
    metric : Callable[[], float]
        The validation metric of ``frozen`` with its weights at the time of the call; NaN without a
        query that counts.
    queries : Queries
        Queries of validation; the first of them give the scale of the search.
    """
    weights = frozen.encoders.fitted_weights
    found = frozen.encoders.each(closed_form=True)
    # stable: otherwise in their order
    order = sorted(enumerate(found), key=lambda each: each[1][1].is_side_information)
    probe = queries.take(np.arange(min(len(queries), _PROBE)))
    if np.isnan(metric()):
        return
    if not frozen.trained_names:
        first = _best_alone(weights, metric)
        order = [each for each in order if each[0] != first]
    for index, (name, _) in order:
        weights[index] = 0.0
        best, best_value = 0.0, metric()
        weights[index] = 1.0
        # not the scores of the model: they are popularity if no granularity is present
        contributions = frozen.contributions(probe)
        rest = [k for k, other in enumerate(frozen.names) if other != name]
        halves = (contributions.of([frozen.names.index(name)]), contributions.of(rest))
        own, others = (float(half.scores(frozen.item_vectors_ND).std()) for half in halves)
        ratio = others / max(own, 1e-12)
        for factors in (_COARSE, _FINE):
            middle = best if factors is _FINE else ratio
            for weight in (middle * factor for factor in factors if middle):
                weights[index] = weight
                value = metric()
                if value > best_value:
                    best, best_value = weight, value
        weights[index] = best


def _best_alone(weights: torch.Tensor, metric: Callable[[], float]) -> int:
    """Set λ to 1 for the member that ranks best alone, and to 0 for the others; return its index.

    This gives the search its scale when no trained granularity does.
    """
    values = []
    for index in range(len(weights)):
        weights.zero_()
        weights[index] = 1.0
        values.append(metric())
    weights.zero_()
    best = int(np.argmax(values))
    weights[best] = 1.0
    return best

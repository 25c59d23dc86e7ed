"""Errors of predicted ratings on held-out events: RMSE and MAE of the model and of three baselines.

Legend: P held-out events with a value, U their users.
"""

from __future__ import annotations

from itertools import product
from typing import Any, Final, Protocol

import numpy as np
import torch

from recsys.config import EvaluateConfig
from recsys.data.bounded import fitted_histories
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Histories, Queries, Split
from recsys.evaluation.bootstrap import LEVEL, bootstrap_means, compare
from recsys.rating_prediction import Constants, RatingHead, biases, rated_queries, why_no_ratings

_DAMPINGS: Final = (0.1, 1.0, 3.0, 10.0)
ERRORS: Final = ("rmse", "mae")
RIDGE: Final = "user+item bias (ridge)"


class Rater(Protocol):
    """What predicts values."""

    rating_head: RatingHead | None

    def ratings(self, queries: Queries, items_BM: Array) -> torch.Tensor:
        """Predicted values of the items for each query: [B, M]."""
        ...


def rating_report(
    model: Rater, dataset: PreparedDataset, evaluate: EvaluateConfig, seed: int, through: Split
) -> dict[str, Any]:
    """The section ``ratings`` of ``metrics.json``; ``skipped`` says why there are no figures.

    Baselines are fitted on the events through ``through``. The dampings of the ridge regression are
    chosen on validation, with a fit on training events only. Intervals are by bootstrap over users,
    since the events of one user are not independent.

    Parameters
    ----------
    model : Rater
        The model; without a rating head there are no figures.
    dataset : PreparedDataset
        Its dataset; events with a value are ratings.
    evaluate : EvaluateConfig
        Bootstrap, chunk size and the sample of users.
    seed : int
        Seed of the sample and of the bootstrap.
    through : Split
        Last split on which the baselines are fitted.

    Returns
    -------
    dict
        Plain JSON: ``events``, ``level``, ``model``, ``comparison``, ``baselines`` and ``ridge``,
        or only ``skipped``.
    """
    histories = fitted_histories(dataset, evaluate, seed)
    fitted_on = histories.through(through)
    queries, values = rated_queries(histories, Split.TEST)
    values_P = values.double().numpy()
    why = why_no_ratings(histories.through(Split.TRAIN))
    if not why and not len(values_P):
        why = "no held-out event has a value"
    if why or model.rating_head is None:
        return {"skipped": why or "the model was trained without ratings"}
    chunks = queries.chunks(evaluate.chunk_users)
    found = [model.ratings(chunk, chunk.target_items[:, None]).cpu()[:, 0] for chunk in chunks]
    constants = _chosen(histories, dataset.num_items)
    baselines = _baselines(fitted_on, queries, dataset.num_items)
    baselines[RIDGE] = _by_biases(biases(fitted_on, dataset.num_items, constants), queries)
    users_P = queries.histories.users_U
    settings = evaluate.bootstrap, seed
    ours_P = torch.cat(found).numpy() - values_P
    ours_U, theirs_U = (_by_user(d_P**2, users_P) for d_P in (ours_P, baselines[RIDGE] - values_P))
    return {
        "events": len(values_P),
        "level": LEVEL,
        "model": errors(ours_P, users_P, *settings),
        "comparison": {
            "squared error by user against": RIDGE,
            **compare(ours_U, theirs_U, *settings).to_json(),
        },
        "baselines": {
            name: errors(found_P - values_P, users_P, *settings)
            for name, found_P in baselines.items()
        },
        "ridge": {"item_damping": constants.item_damping, "user_damping": constants.user_damping},
    }


def errors(differences_P: Array, users_P: Array, resamples: int, seed: int) -> dict[str, Any]:
    """RMSE = √mean(d²) and MAE = mean(|d|) over events, with intervals from resampled users.

    Parameters
    ----------
    differences_P : array, [P] float
        Predicted minus true value of each event.
    users_P : array, [P] int
        User of each event.
    resamples : int
        Number of bootstrap draws over users.
    seed : int
        Seed of the draws.

    Returns
    -------
    dict
        ``rmse``, ``mae``, and ``interval`` with [low, high] of both.

    Examples
    --------
    >>> found = errors(np.array([1.0, -2.0, 0.0]), np.array([0, 0, 1]), 100, 0)
    >>> found["mae"], round(found["rmse"] ** 2, 6)
    (1.0, 1.666667)
    """
    _, rows_P = np.unique(users_P, return_inverse=True)
    sums_U3 = np.stack(
        [np.bincount(rows_P, of) for of in (differences_P**2, np.abs(differences_P))], axis=1
    )
    sums_U3 = np.concatenate([sums_U3, np.bincount(rows_P)[:, None]], axis=1)
    drawn_R3 = bootstrap_means(sums_U3, resamples, seed)
    drawn = {
        "rmse": np.sqrt(drawn_R3[:, 0] / drawn_R3[:, 2]),
        "mae": drawn_R3[:, 1] / drawn_R3[:, 2],
    }
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    return {
        "rmse": float(np.sqrt(np.mean(differences_P**2))),
        "mae": float(np.mean(np.abs(differences_P))),
        "interval": {
            name: [float(end) for end in np.quantile(of, ends)] for name, of in drawn.items()
        },
    }


def _by_user(values_P: Array, users_P: Array) -> Array:
    _, rows_P = np.unique(users_P, return_inverse=True)
    return np.asarray(np.bincount(rows_P, values_P) / np.bincount(rows_P))


def _chosen(histories: Histories, num_items: int) -> Constants:
    training = histories.through(Split.TRAIN)
    queries, values = rated_queries(histories, Split.VALID)
    if not len(queries):
        return Constants()
    tried = [Constants(item, user) for item, user in product(_DAMPINGS, _DAMPINGS)]
    squares = [
        float(
            np.mean(
                (_by_biases(biases(training, num_items, constants), queries) - values.numpy()) ** 2
            )
        )
        for constants in tried
    ]
    return tried[int(np.argmin(squares))]


def _by_biases(head: RatingHead, queries: Queries) -> Array:
    items_P1 = torch.as_tensor(queries.target_items.astype(np.int64))[:, None]
    found_P1 = head.predict(queries.histories, items_P1, torch.zeros(len(queries), 1))
    return np.asarray(found_P1[:, 0].numpy(), dtype=np.float64)


def _baselines(fitted_on: Histories, queries: Queries, num_items: int) -> dict[str, Array]:
    """Predictions by the mean of all values, and by the mean of each item if it has values."""
    known_E = np.isfinite(fitted_on.values_E)
    items_E, values_E = fitted_on.items_E[known_E], fitted_on.values_E[known_E].astype(np.float64)
    mean, count_N = values_E.mean(), np.bincount(items_E, minlength=num_items)
    sums_N = np.bincount(items_E, values_E, minlength=num_items)
    mean_N = np.where(count_N > 0, sums_N / np.maximum(count_N, 1), mean)
    return {"global mean": np.full(len(queries), mean), "item mean": mean_N[queries.target_items]}

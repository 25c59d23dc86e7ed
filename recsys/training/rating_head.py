"""Fit the rating head of a trained ranking model: biases by ridge, factors by squared error, s by
regression.

The factors are trained to predict the value of every training event from the user's other values:
an event is left out of its own b_u and taste. Dampings, the number of steps, the decay of the
factors and s are chosen on validation, as the ranking model has memorised the training events.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import product
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Histories, Queries, Split
from recsys.model import FrozenModel
from recsys.rating_prediction import (
    Constants,
    RatedEvents,
    RatingHead,
    biases,
    rated_queries,
    standardised,
    why_no_ratings,
)

RATINGS: Final = "ratings"  # key of the head's constants in the training's choices
MAX_EVENTS: Final = 500_000  # for training the factors; of an even sample of users
_DAMPINGS: Final = (1.0, 3.0, 10.0)
_DECAYS: Final = (0.01, 0.1)
_RANK: Final = 16
_LR: Final = 0.01
_STEPS, _EVERY, _PATIENCE = 300, 5, 4
_QUERIES_AT_A_TIME: Final = 256


def choose_constants(frozen: FrozenModel, dataset: PreparedDataset) -> dict[str, Any]:
    """The constants of the rating head of a model trained on training events, or ``skipped`` with
    the reason.

    The search has three parts one after the other: both dampings, then decay and steps, then s.
    """
    histories = dataset.histories()
    training = histories.through(Split.TRAIN)
    why = why_no_ratings(training)
    queries, values_P = rated_queries(histories, Split.VALID)
    if why or not len(queries):
        return {"skipped": why or "no validation event has a value"}
    items_P1 = torch.as_tensor(queries.target_items.astype(np.int64))[:, None]
    standard_P1 = standard_scores(frozen, queries)

    def rmse(head: RatingHead) -> float:
        found_P = head.predict(queries.histories, items_P1, standard_P1)[:, 0]
        return float((found_P - values_P).square().mean().sqrt())

    num_items = frozen.sizes.num_items
    tried = [Constants(item, user) for item, user in product(_DAMPINGS, _DAMPINGS)]
    best = min(tried, key=lambda constants: rmse(biases(training, num_items, constants)))
    head = biases(training, num_items, best)
    best_value = rmse(head)
    for decay in _DECAYS:
        since = 0
        for steps, factored in factor_steps(head, training, item_vectors(frozen), decay):
            value, since = rmse(factored), since + 1
            if value < best_value:
                best, best_value, since = replace(best, decay=decay, steps=steps), value, 0
            if since >= _PATIENCE:
                break
    head = with_factors(biases(training, num_items, best), training, item_vectors(frozen), best)
    left_P = values_P - head.predict(queries.histories, items_P1, standard_P1)[:, 0]
    slope = float((left_P * standard_P1[:, 0]).sum() / standard_P1.square().sum().clamp(min=1e-9))
    return asdict(replace(best, score_weight=slope))


def fit_head(
    frozen: FrozenModel, dataset: PreparedDataset, through: Split, chosen: dict[str, Any]
) -> None:
    """Give the model its rating head, from the events through a split and what
    :func:`choose_constants` found.

    Parameters
    ----------
    frozen : FrozenModel
        The model, changed in place.
    dataset : PreparedDataset
        The dataset with the values.
    through : Split
        The last split whose events are read.
    chosen : dict of str to JSON values
        The constants; with the key ``skipped`` the model gets no rating head.
    """
    if "skipped" in chosen:
        return
    constants, training = Constants(**chosen), dataset.histories().through(through)
    head = biases(training, frozen.sizes.num_items, constants)
    head = with_factors(head, training, item_vectors(frozen), constants)
    head = replace(head, score_weight=torch.tensor(constants.score_weight))
    frozen.rating_head = head.to(frozen.item_vectors_ND.device)


def standard_scores(frozen: FrozenModel, queries: Queries) -> Tensor:
    """The score c of the single target of every query: [P, 1], on the CPU."""
    found = []
    for chunk in queries.chunks(_QUERIES_AT_A_TIME):
        items_P1 = torch.as_tensor(chunk.target_items.astype(np.int64))[:, None]
        found.append(standardised(frozen.scores(chunk).cpu(), items_P1))
    return torch.cat(found)


def item_vectors(frozen: FrozenModel) -> Tensor:
    """The unit vectors of the items: [N, D]."""
    return normalize(frozen.item_vectors_ND.detach().cpu().float(), dim=1)


def with_factors(
    head: RatingHead, training: Histories, vectors_ND: Tensor, constants: Constants
) -> RatingHead:
    """The head with its factors after the chosen number of steps.

    Parameters
    ----------
    head : RatingHead
        A head with biases only.
    training : Histories
        The events to train on.
    vectors_ND : Tensor, [N, D] float32
        Unit vectors of the items.
    constants : Constants
        Has the decay and the number of steps.

    Returns
    -------
    RatingHead
        ``head`` itself if the chosen number of steps is 0.

    Raises
    ------
    ValueError
        :func:`factor_steps` does not yield this number of steps.
    """
    if constants.steps:
        for steps, factored in factor_steps(head, training, vectors_ND, constants.decay):
            if steps == constants.steps:
                return factored
        raise ValueError(f"no factors after {constants.steps} steps; see factor_steps")
    return head


def factor_steps(
    head: RatingHead, training: Histories, vectors_ND: Tensor, decay: float
) -> Iterator[tuple[int, RatingHead]]:
    """Train W_p and W_q on all events at once; yield the head every few steps. Deterministic.

    Parameters
    ----------
    head : RatingHead
        A head with biases only; it is not changed.
    training : Histories
        The events to train on; of more than :data:`MAX_EVENTS` events an even sample of users is
        used.
    vectors_ND : Tensor, [N, D] float32
        Unit vectors of the items.
    decay : float
        Weight of the squared size of q and W_p in the loss.

    Yields
    ------
    int, RatingHead
        Number of steps so far, and the head after them.
    """
    rows = max(1, -(-len(training.items_E) // MAX_EVENTS))
    events = RatedEvents.of(training.take(np.arange(0, len(training), rows)), torch.device("cpu"))
    count_E = events.count_B[events.rows_E]
    _, residual_E = head.user_bias(events)
    above_E = events.values_E - head.mean - head.item_bias_N[events.items_E]
    others_E = events.sums(above_E[:, None])[events.rows_E, 0] - above_E
    target_E = above_E - others_E / (count_E - 1 + head.user_damping).clamp(min=1e-12)
    drawn_DR = torch.randn(vectors_ND.shape[1], _RANK, generator=torch.Generator().manual_seed(0))
    weights = [(0.1 * drawn_DR).requires_grad_(), torch.zeros_like(drawn_DR).requires_grad_()]
    optimizer = torch.optim.Adam(weights, lr=_LR)
    for step in range(1, _STEPS + 1):
        with torch.enable_grad():
            taste_NR, item_NR = vectors_ND @ weights[0], vectors_ND @ weights[1]
            own_ER = residual_E[:, None] * taste_NR[events.items_E]
            others_ER = (events.sums(own_ER)[events.rows_E] - own_ER) / count_E.sqrt()[:, None]
            item_ER = item_NR[events.items_E]
            loss = (target_E - (item_ER * others_ER).sum(1)).square().mean()
            loss = loss + decay * (
                item_ER.square().sum(1).mean() + weights[0].square().sum(0).mean()
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if step % _EVERY == 0:
            with torch.no_grad():
                parts = {"taste_NR": vectors_ND @ weights[0], "item_NR": vectors_ND @ weights[1]}
            yield step, replace(head, **parts)

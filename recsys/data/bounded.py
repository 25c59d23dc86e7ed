"""Bounded samples of the evaluated users and of the events that baselines are fitted on, so that no
process holds all events.

Why a sample of users and not of events: a query needs its whole history. The confidence intervals
show the uncertainty of a sample. The sample depends on the seed only, not on shards or workers.

Legend: V users.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from recsys.config import EvaluateConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Histories, Queries, Split

_EVALUATED, _FITTED = 0, 1  # random streams of one seed
_EVENTS: Final = ("train", "valid", "test")


def evaluated_users_V(dataset: PreparedDataset, evaluate: EvaluateConfig, seed: int) -> Array:
    """Which users are evaluated: [V] bool; all, or a sample with about ``evaluate.max_users`` of
    those who have validation or test events.

    Parameters
    ----------
    dataset : PreparedDataset
        The dataset.
    evaluate : EvaluateConfig
        The section ``evaluate``; ``max_users`` bounds the sample.
    seed : int
        Seed of the sample.
    """
    share = 1.0
    if dataset.num_users > evaluate.max_users:
        # others, such as most users of a table of users, have no query
        share = evaluate.max_users / max(int(dataset.held_out_V.sum()), 1)
    return _sample(dataset.num_users, share, seed, _EVALUATED)


def evaluated_by_shard(
    dataset: PreparedDataset, split: Split, evaluate: EvaluateConfig, seed: int
) -> Iterator[Queries]:
    """The queries at ``split`` of the evaluated users, shard by shard.

    Parameters
    ----------
    dataset : PreparedDataset
        The dataset.
    split : Split
        The split of the targets.
    evaluate : EvaluateConfig
        The section ``evaluate``; ``max_users`` bounds the sample.
    seed : int
        Seed of the sample.

    Yields
    ------
    Queries
        Those of one shard; possibly none.
    """
    is_evaluated_V = evaluated_users_V(dataset, evaluate, seed)
    for shard in dataset.shards():
        yield shard.take(np.flatnonzero(is_evaluated_V[shard.users_U])).queries(split)


def evaluated_queries(
    dataset: PreparedDataset, split: Split, evaluate: EvaluateConfig, seed: int
) -> Queries:
    """The queries at ``split`` of the evaluated users.

    Parameters
    ----------
    dataset : PreparedDataset
        The dataset.
    split : Split
        The split of the targets.
    evaluate : EvaluateConfig
        The section ``evaluate``; ``max_users`` bounds the sample.
    seed : int
        Seed of the sample.
    """
    return dataset.histories(evaluated_users_V(dataset, evaluate, seed)).queries(split)


def fitted_histories(
    dataset: PreparedDataset, evaluate: EvaluateConfig, seed: int, through: Split | None = None
) -> Histories:
    """The histories that baselines are fitted on: all, or those of a uniform sample of users with
    ``evaluate.max_fit_events`` events on average.

    Parameters
    ----------
    dataset : PreparedDataset
        The dataset.
    evaluate : EvaluateConfig
        The section ``evaluate``; ``max_fit_events`` bounds the sample.
    seed : int
        Seed of the sample.
    through : Split or None
        The last split whose events are in the histories; None: all.
    """
    share = evaluate.max_fit_events / max(_num_events(dataset), 1)
    return dataset.histories(_sample(dataset.num_users, share, seed, _FITTED), through)


def bounds(dataset: PreparedDataset, evaluate: EvaluateConfig, seed: int) -> dict[str, Any]:
    """A description of the samples for ``metrics.json``; empty where nothing was sampled.

    Parameters
    ----------
    dataset : PreparedDataset
        The dataset.
    evaluate : EvaluateConfig
        The section ``evaluate``, with ``max_users`` and ``max_fit_events``.
    seed : int
        Seed of the samples.

    Returns
    -------
    dict of str to str
        ``ranked_users`` and ``baselines_fitted_on``, each only where there is a sample.
    """
    found = {}
    sampled_V = evaluated_users_V(dataset, evaluate, seed)
    if not sampled_V.all():
        number = int((sampled_V & dataset.held_out_V).sum())
        found["ranked_users"] = f"a random sample of {number:,} of all users"
    if (events := _num_events(dataset)) > evaluate.max_fit_events:
        share = evaluate.max_fit_events / events
        found["baselines_fitted_on"] = f"the events of a random sample of {share:.1%} of the users"
    return found


def _num_events(dataset: PreparedDataset) -> int:
    return sum(dataset.manifest.counts.get(name, 0) for name in _EVENTS)


def _sample(number: int, share: float, seed: int, stream: int) -> Array:
    if share >= 1:
        return np.ones(number, dtype=bool)
    return np.random.default_rng((seed, stream)).random(number) < share

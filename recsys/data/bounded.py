"""The users that are asked and the events that baselines are fitted on, bounded, so that no process holds all events.

Why a sample of users and not of events: a query needs its whole history, and the intervals say how sure the means of a
sample are. Which users are in it depends on the seed alone, not on shards or workers.

Legend: V users.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from recsys.config import Config
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Histories, Queries, Split

_ASKED, _FITTED = 0, 1  # random streams of one seed
_EVENTS: Final = ("train", "valid", "test")


def asked_users_V(dataset: PreparedDataset, config: Config) -> Array:
    """Who is ranked, bool: all, or as many as ``evaluate.max_users`` on average, an even sample."""
    return _even(dataset.num_users, config.evaluate.max_users / max(dataset.num_users, 1), config.seed, _ASKED)


def asked_by_shard(dataset: PreparedDataset, split: Split, config: Config) -> Iterator[Queries]:
    """The queries at ``split`` of the users that are ranked, shard by shard."""
    is_asked_V = asked_users_V(dataset, config)
    for shard in dataset.shards():
        yield shard.take(np.flatnonzero(is_asked_V[shard.users_U])).queries(split)


def asked_queries(dataset: PreparedDataset, split: Split, config: Config) -> Queries:
    """The queries at ``split`` of the users that are ranked."""
    return dataset.histories(asked_users_V(dataset, config)).queries(split)


def fitted_histories(dataset: PreparedDataset, config: Config) -> Histories:
    """The histories that baselines are fitted on: all, or those of an even sample of users with as many events as
    ``evaluate.max_fit_events`` on average.
    """
    share = config.evaluate.max_fit_events / max(_num_events(dataset), 1)
    return dataset.histories(_even(dataset.num_users, share, config.seed, _FITTED))


def bounds(dataset: PreparedDataset, config: Config) -> dict[str, Any]:
    """What was sampled, for ``metrics.json``; empty where nothing was."""
    found = {}
    if dataset.num_users > config.evaluate.max_users:
        found["ranked_users"] = f"an even sample of {int(asked_users_V(dataset, config).sum()):,} of all users"
    if (events := _num_events(dataset)) > config.evaluate.max_fit_events:
        share = config.evaluate.max_fit_events / events
        found["baselines_fitted_on"] = f"the events of an even sample of {share:.1%} of the users"
    return found


def _num_events(dataset: PreparedDataset) -> int:
    return sum(dataset.manifest.counts.get(name, 0) for name in _EVENTS)


def _even(number: int, share: float, seed: int, stream: int) -> Array:
    if share >= 1:
        return np.ones(number, dtype=bool)
    return np.random.default_rng((seed, stream)).random(number) < share

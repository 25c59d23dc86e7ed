"""Training queries that are some events before their targets.

Why: a temporal split asks once for all events of a period. Where a user's events are days apart,
the next one is no more likely than later ones, and a model that learns the next one only is not
trained for that question. So each epoch draws for every target how many events it is ahead of its
query.

Legend: E events of some users.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from recsys.data.dataset import PreparedDataset
from recsys.data.hidden import hash_unit
from recsys.data.histories import Histories, Split

# On validation, 20 and 60 are equal, and 200 is worse: docs/quality.md.
EVENTS: Final = 20
_DAY: Final = 86_400
_MANY_APART: Final = 0.5  # share of neighbouring events
# apart from other numbers that are drawn with the seed of an epoch
_SEED: Final = 1 << 40


def default_look_ahead(dataset: PreparedDataset) -> int | None:
    """The default of ``train.look_ahead``: :data:`EVENTS` for a temporal split in which half of the
    events are at least a day after the user's previous one, 0 for other temporal splits, None for
    other data.
    """
    manifest = dataset.manifest
    if manifest.split.get("kind") != "temporal" or not manifest.ordered:
        return None
    sample = dataset.shard(manifest.shards[0]).through(Split.TRAIN)
    rows_E = np.repeat(np.arange(len(sample)), sample.lengths_U)
    gaps = np.diff(sample.times_E)[rows_E[1:] == rows_E[:-1]]
    return EVENTS if len(gaps) and np.mean(gaps >= _DAY) >= _MANY_APART else 0


def with_look_ahead(histories: Histories, most: int, seed: int) -> Histories:
    """The same histories with ``ahead_E``: the query of a target is up to ``most`` events earlier.

    Parameters
    ----------
    histories : Histories
        Histories with an order.
    most : int
        Limit of the events; fewer are more likely. A query that saw an event still sees one.
    seed : int
        Determines the numbers, together with users and items: any number of workers draws the same.

    Returns
    -------
    Histories
        Where queries were ahead already, the numbers are added.
    """
    rows_E = np.repeat(np.arange(len(histories)), histories.lengths_U)
    places_E = np.arange(len(rows_E)) - histories.offsets_U1[rows_E]
    unit_E = hash_unit(histories.users_U[rows_E], histories.items_E, seed + _SEED)
    before_E = histories.ahead_E if len(histories.ahead_E) else 0
    # the square makes few events likely
    drawn_E = np.minimum(unit_E**2 * (most + 1), np.maximum(places_E - before_E - 1, 0))
    return replace(histories, ahead_E=(before_E + drawn_E).astype(np.int32))

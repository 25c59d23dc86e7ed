"""Place training queries before the user's first touch of the target item in the same visit.

Why: a visit to a shop is view → cart → purchase of one item within minutes. A model that is trained
on queries right before the purchase learns to copy the last event. A temporal split places its
queries before the whole visit. There is nothing to copy there, and such a model ranks below
popularity. So training places its queries as the evaluation does, see
:func:`asks_before_first_touch`.

Legend: E events of some users, sorted (S) by user, item and position in the history.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Histories, Split

_VISIT_S: Final = 86_400  # longest time between two events of a visit on one item
_VISIT_EVENTS: Final = 20  # where times are unknown: longest visit before a target


def asks_before_first_touch(dataset: PreparedDataset) -> bool:
    """Whether training places the queries of a dataset before the first touch of their targets.
    True only where some event types are predicted (``data.targets``) and events have an order; then
    the split decides.

    * ``temporal`` and ``leave-last-basket``: yes. The history of a test query ends before the
      visits in which targets are bought.
    * ``leave-last``: no. The history ends with the views seconds before the purchase, and copying
      is right.
    * ``ratio`` and ``given``: validation decides. A query of ``ratio`` has several targets, the
      first after its views and the others before theirs, and a source may cut anywhere. Yes where
      the share of validation targets with a touch in the visible history is less than half the
      share of training targets with one.

    The function scans all shards for ``ratio`` and ``given``. It does not use test events.
    """
    manifest = dataset.manifest
    if not manifest.targets or not manifest.ordered:
        return False
    kind = manifest.split.get("kind")
    if kind in ("temporal", "leave-last", "leave-last-basket"):
        return bool(kind != "leave-last")
    touched, total = np.zeros(2), np.zeros(2)  # of training and validation targets
    for shard in dataset.shards():
        known = shard.through(Split.VALID)
        ahead_E = events_ahead(known)
        first_part_E = known.splits_E[np.arange(len(ahead_E)) - ahead_E]
        for split in (Split.TRAIN, Split.VALID):
            is_target_E = known.are_targets_E & (known.splits_E == split)
            is_visible_E = (ahead_E > 0) & (first_part_E <= Split.TRAIN)
            touched[split] += np.count_nonzero(is_target_E & is_visible_E)
            total[split] += np.count_nonzero(is_target_E)
    in_training, in_validation = touched / np.maximum(total, 1)
    return bool(in_validation < in_training / 2)


def with_first_touches(histories: Histories) -> Histories:
    """The same histories with ``ahead_E``, so that :func:`recsys.data.batches.every_position`
    places queries before first touches.
    """
    return replace(histories, ahead_E=events_ahead(histories))


def events_ahead(histories: Histories) -> Array:
    """Number of events from the query of each target to the target: [E] int32, 0 for others.

    The visit of a target consists of the user's earlier events about the item, of any type, each at
    most a day before the next one. Where times are unknown, it consists of those among the 20
    events before the target.
    """
    num_events = len(histories.items_E)
    rows_E = np.repeat(np.arange(len(histories)), histories.lengths_U)
    order_S = np.lexsort((histories.items_E, rows_E))  # stable: then by position
    rows_S = rows_E[order_S]
    items_S = histories.items_E[order_S]
    times_S = histories.times_E[order_S]
    is_known_S = times_S != 0
    is_near = np.where(is_known_S[1:], np.abs(np.diff(times_S)) <= _VISIT_S, True)
    is_near &= (
        (is_known_S[1:] == is_known_S[:-1])
        & (rows_S[1:] == rows_S[:-1])
        & (items_S[1:] == items_S[:-1])
    )
    begins_S = np.concatenate([[True], ~is_near])[:num_events]
    places_S = np.arange(num_events)
    firsts_S = np.maximum.accumulate(np.where(begins_S, places_S, 0))
    if not is_known_S.all():
        visit_S = np.cumsum(begins_S) * (num_events + _VISIT_EVENTS)
        recent_S = np.searchsorted(visit_S + order_S, visit_S + order_S - _VISIT_EVENTS)
        firsts_S = np.where(is_known_S, firsts_S, recent_S)
    ahead_E = np.zeros(num_events, dtype=np.int32)
    ahead_E[order_S] = order_S - order_S[firsts_S]
    return ahead_E * histories.are_targets_E

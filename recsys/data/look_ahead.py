"""Training queries that are some events before their targets.

Why: a temporal split asks once for all events of a period. A model that learns the very next event
only is not trained for that question. So each epoch draws for every target how many events it is
ahead of its query.

Legend: E events of some users.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from recsys.data.hidden import hash_unit
from recsys.data.histories import Histories

# On validation, 20 and 60 are equal, and 200 is worse: docs/quality.md. The splits ``ratio`` and
# ``leave-last`` ask right after the history.
_EVENTS: Final = {"temporal": 20}
# apart from other numbers that are drawn with the seed of an epoch
_SEED: Final = 1 << 40


def events_to_look_ahead(split_kind: str) -> int:
    """The default of ``train.look_ahead`` for a kind of split."""
    return _EVENTS.get(split_kind, 0)


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

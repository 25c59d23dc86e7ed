"""A new order for a user's events that have the same time.

Why: the lines of an invoice have one time, and so have the ratings of one page. Their order in a
file has no meaning. A model that sees the same order in every epoch memorises it. With a new order
in each epoch it learns which events occur together; docs/quality.md has what that gains.

Legend: E events of some users, G groups of events with one user and one known time.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from recsys.data.hidden import hash_unit
from recsys.data.histories import Histories, Split


def with_shuffled_ties(histories: Histories, seed: int) -> Histories:
    """The same histories with each user's events of one known time in a random order.

    A query that is earlier than its target (``ahead_E``) is then before all events that have the
    time of the first touch. If the first touch is before the row, which may be a window of a long
    history, the query stays before the row.

    Parameters
    ----------
    histories : Histories
        Histories in the order of time.
    seed : int
        Determines the order, together with the users and items: any number of workers draws the
        same.

    Returns
    -------
    Histories
        The given histories themselves if no two events of a user have the same time.
    """
    num_events = len(histories.items_E)
    rows_E = np.repeat(np.arange(len(histories)), histories.lengths_U)
    times_E = histories.times_E
    is_tied_E = np.zeros(num_events, dtype=bool)  # to the event before it
    is_tied_E[1:] = (times_E[1:] == times_E[:-1]) & (times_E[1:] != 0) & (rows_E[1:] == rows_E[:-1])
    if not is_tied_E.any():
        return histories
    groups_E = np.cumsum(~is_tied_E) - 1
    keys_E = hash_unit(histories.users_U[rows_E], histories.items_E, seed)
    order_E = np.lexsort((keys_E, groups_E))
    shuffled = histories.reordered(order_E)
    if not len(histories.ahead_E):
        return shuffled
    places_E = np.arange(num_events)
    starts_G = np.flatnonzero(~is_tied_E)
    touches_E = (places_E - histories.ahead_E)[order_E]
    begins_E = histories.offsets_U1[rows_E]
    asked_E = np.where(
        touches_E >= begins_E, starts_G[groups_E[np.maximum(touches_E, 0)]], begins_E - 1
    )
    ahead_E = np.where(shuffled.ahead_E > 0, places_E - asked_E, 0)
    return replace(shuffled, ahead_E=ahead_E.astype(np.int32))


def tied_share(histories: Histories) -> float:
    """Share of the validation queries that have the time of the last event before them: there the
    order of a file within one time may matter.
    """
    queries = histories.queries(Split.VALID)
    known_B = np.flatnonzero(queries.histories.lengths_U)
    if not len(known_B):
        return 0.0
    last_B = queries.histories.times_E[queries.histories.offsets_U1[known_B + 1] - 1]
    return float(np.mean((queries.asked_at_B[known_B] == last_B) & (last_B != 0)))

"""Item shares of events at given times, with events that fade with age: popularity, wherever it is
used.

Legend: E events, N items, T times at which shares are stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from recsys.data.histories import Array, Histories
from recsys.granularities.history import DAY

_NEAR_THE_END: Final = 8  # stored times in the last of the even parts
_MOMENTS: Final = 64  # stored times of a member's prior
_MOST_NUMBERS: Final = 2**23  # size limit of the table: 32 MB
_REST: Final = 0.1  # weight of the all-time shares next to the recent ones, as in ``popularity``


@dataclass(frozen=True)
class LogShares:
    """log q at the stored times, which ascend."""

    table_NT: Array  # float32
    moments_T: Array  # int64 seconds; one 0 where nothing fades

    @classmethod
    def of(cls, histories: Histories, num_items: int, half_life: float | str) -> LogShares:
        """Count events, whose weight halves every ``half_life`` days.

        If that is ``none``, or no event has a time, there is one column: log((c + 1) / (Σ c + N)).

        Parameters
        ----------
        histories : Histories
            The events.
        num_items : int
            Number of items N.
        half_life : float or str
            Days, or ``none``.

        Returns
        -------
        LogShares
            At most 64 stored times, fewer for a large catalogue.
        """
        if isinstance(half_life, str) or not (histories.times_E != 0).any():
            counts_N = np.bincount(histories.items_E, minlength=num_items)
            share_N = np.log((counts_N + 1) / (counts_N.sum() + num_items))
            return cls(share_N[:, None].astype(np.float32), np.zeros(1, dtype=np.int64))
        found = counted(histories, num_items, "all")
        moments_T = moments(found[1], max(1, min(_MOMENTS, _MOST_NUMBERS // max(num_items, 1))))
        return cls(at_moments(*found, moments_T, num_items, half_life, _REST), moments_T)

    @property
    def last_N(self) -> Array:
        """Logarithms of the shares after the last event: [N]."""
        return np.asarray(self.table_NT[:, -1])

    def before(self, times_E: Array) -> Array:
        """Column of the newest stored time before each given time; 0 if there is none, or the time
        is unknown.
        """
        return (np.searchsorted(self.moments_T, times_E) - 1).clip(0)


def counted(histories: Histories, num_items: int, how: str) -> tuple[Array, Array]:
    """Item and time of every event that counts, sorted by time.

    ``users``: a user's first event with an item; ``events``: the first of each day; ``all``: every
    event. Events without a time count as the oldest.

    Parameters
    ----------
    histories : Histories
        The events; at least one has a time.
    num_items : int
        Number of items N.
    how : str
        ``users``, ``events`` or ``all``.

    Returns
    -------
    items_E : array, [E] int64
        Item of each event.
    times_E : array, [E] int64
        Its time in seconds since the epoch, ascending.
    """
    users_E = np.repeat(np.arange(len(histories)), histories.lengths_U)
    items_E, times_E = histories.items_E.astype(np.int64), histories.times_E
    known_E = times_E != 0
    times_E = np.where(known_E, times_E, times_E[known_E].min())
    key_E = users_E * num_items + items_E
    if how == "all":
        order_E = np.argsort(times_E, kind="stable")
        return items_E[order_E], times_E[order_E]
    # a zero day for all events makes the key of user and item alone decide, which is ``users``
    days_E = (times_E // int(DAY)) if how == "events" else np.zeros_like(times_E)
    order_E = np.lexsort((times_E, days_E, key_E))
    key_E, days_E = key_E[order_E], days_E[order_E]
    is_first_E = np.ones(len(order_E), dtype=bool)
    # sorted by pair, day and time, so a row that differs from the one above is the first of its
    # group
    is_first_E[1:] = (key_E[1:] != key_E[:-1]) | (days_E[1:] != days_E[:-1])
    first_E = order_E[is_first_E]
    first_E = first_E[np.argsort(times_E[first_E], kind="stable")]
    return items_E[first_E], times_E[first_E]


def moments(times_E: Array, most: int) -> Array:
    """At most ``most`` times at which counts are stored, ascending: quantiles of the event times;
    the last is the maximum.

    >>> moments(np.arange(1, 9), 4).tolist()
    [2, 4, 6, 8]
    """
    near = _NEAR_THE_END if most >= 2 * _NEAR_THE_END else 0
    even = np.arange(1, most - near + 1) / (most - near)
    # requests come at the end of the data, so the last part is halved again and again
    late = 1 - 0.5 ** np.arange(1, near + 1) / (most - near)
    positions = np.ceil(np.sort(np.concatenate([even, late])) * len(times_E)).astype(np.int64) - 1
    return np.unique(times_E[positions.clip(0)])


def at_moments(
    items_E: Array,
    times_E: Array,
    moments_T: Array,
    num_items: int,
    half_life: float | str,
    rest: float,
) -> Array:
    """The table a_i(t) of the module ``popularity`` at the stored times, from events in order of
    time.

    Parameters
    ----------
    items_E : array, [E] int64
        Item of each event.
    times_E : array, [E] int64
        Its time in seconds since the epoch, ascending.
    moments_T : array, [T] int64
        The stored times in seconds since the epoch, ascending.
    num_items : int
        Number of items N.
    half_life : float or str
        Days, or ``none``.
    rest : float
        ρ, share of the counts of all times, above 0 and at most 1.

    Returns
    -------
    array, [N, T] float32
        Natural logarithms; events at a stored time count in its column.
    """
    table_NT = np.zeros((num_items, len(moments_T)), dtype=np.float32)
    recent_N, all_N, before, start = np.zeros(num_items), np.zeros(num_items), moments_T[0], 0
    for t, moment in enumerate(moments_T):
        end = int(np.searchsorted(times_E, moment, side="right"))
        part, all_new_N = slice(start, end), np.bincount(items_E[start:end], minlength=num_items)
        all_N = all_N + all_new_N
        if isinstance(half_life, str):
            recent_N = all_N
        else:
            # decay the sums of the previous column instead of all events: O(E + N T), not O(E T)
            weights_E = 0.5 ** ((moment - times_E[part]) / (half_life * DAY))
            recent_N = recent_N * 0.5 ** ((moment - before) / (half_life * DAY))
            recent_N = recent_N + np.bincount(items_E[part], weights=weights_E, minlength=num_items)
        table_NT[:, t] = log_share(recent_N, all_N, rest)
        before, start = moment, end
    return table_NT


def sums_at(times_E: Array, moments_T: Array, half_life: float | str) -> Array:
    """Decayed number of all events at each stored time: float64 [T].

    >>> sums_at(np.array([0, 86_400, 86_400]), np.array([0, 86_400]), 1.0).tolist()
    [1.0, 2.5]

    Parameters
    ----------
    times_E : array, [E] int64
        Times of the events in seconds since the epoch, ascending.
    moments_T : array, [T] int64
        The stored times in seconds since the epoch, ascending.
    half_life : float or str
        Days, or ``none``.
    """
    found, total, before, start = np.zeros(len(moments_T)), 0.0, moments_T[0], 0
    for t, moment in enumerate(moments_T):
        end = int(np.searchsorted(times_E, moment, side="right"))
        rate = 0.0 if isinstance(half_life, str) else 1 / (half_life * DAY)
        total = (
            total * 0.5 ** ((moment - before) * rate)
            + (0.5 ** ((moment - times_E[start:end]) * rate)).sum()
        )
        found[t], before, start = total, moment, end
    return found


def log_share(recent_N: Array, all_N: Array, rest: float) -> Array:
    """Log of recent shares, mixed with a share ``rest`` of those of all times.

    Parameters
    ----------
    recent_N : array, [N] float
        Decayed number of events of each item.
    all_N : array, [N] float
        Number of events of each item without decay.
    rest : float
        ρ, above 0 and at most 1.

    Returns
    -------
    array, [N] float32
        Natural logarithms.
    """
    # one more event per item, so that no share is zero and its logarithm is finite
    rest_N = (all_N + 1) / (all_N.sum() + len(all_N))
    # the sum underflows to 0 when all events are many half-lives old
    share_N: Array = (1 - rest) * recent_N / max(recent_N.sum(), 1e-30) + rest * rest_N
    return np.asarray(np.log(share_N), dtype=np.float32)

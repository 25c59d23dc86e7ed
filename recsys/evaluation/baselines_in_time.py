"""Two baselines that every shop asks for: the user's most frequent items, and the items that sold
in the last days.

Both rank the whole catalogue, and both read only events before the time of the query.

Legend: N items, E events, M snapshots, b queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch

from recsys.config import EvaluateConfig
from recsys.data.histories import Array, Histories, Queries
from recsys.evaluation.baseline import Baseline, Constants, matrix, users_of_items

_DAY: Final = 86_400.0
_MOMENTS: Final = 256  # snapshots of the counts, …
_MAX_COUNTS: Final = 2**25  # … with at most so many counts in all: 256 MB
# weight of all-time popularity next to that of the last days: it only breaks ties
_BEHIND: Final = 1e-6


class Frequency(Baseline):
    """The user's most frequent items; popularity orders the rest.

    An event counts half as much for each half-life between it and the user's last event. Half-lives
    are days, or events if times are unknown. The baseline needs ``evaluate.exclude_seen`` false.
    """

    name = "frequency"
    grid = (
        {"half_life": None},
        {"half_life": 7.0},
        {"half_life": 30.0},
        {"half_life": 90.0},
        {"half_life": 365.0},
    )

    @classmethod
    def lacks(cls, histories: Histories, config: EvaluateConfig) -> str:
        """What the data or the settings lack for this baseline; empty if it can be evaluated."""
        if config.exclude_seen:
            return (
                "lists leave out what a user had before (evaluate.exclude_seen, or the mask of a"
                " protocol)"
            )
        rows_E = np.repeat(np.arange(len(histories)), histories.lengths_U)
        if len(np.unique(rows_E * 2**32 + histories.items_E)) == len(rows_E):
            return "no user has an item twice"
        return ""

    def fit(self, train: Histories, num_items: int) -> None:
        """Fit on all given events, with the current constants."""
        counts_N = users_of_items(matrix(train, num_items))
        self._behind_N = torch.from_numpy(counts_N / max(float(counts_N.max(initial=0)), 1.0))
        self._is_timed = bool(len(train.times_E)) and bool((train.times_E != 0).all())

    def fits(self, train: Histories, num_items: int) -> Iterator[Constants]:
        """Fit with each entry of the grid in turn, and yield it."""
        self.fit(train, num_items)
        for constants in self.grid:
            self.constants = dict(constants)
            yield self.constants

    def scores(self, queries: Queries) -> torch.Tensor:
        """Scores [b, N] float32 for every query; −inf for items that cannot be recommended."""
        histories, num_items = queries.histories, len(self._behind_N)
        lengths_b = histories.lengths_U
        rows_E = np.repeat(np.arange(len(histories)), lengths_b)
        ends_E = np.repeat(histories.offsets_U1[1:] - 1, lengths_b)
        halvings_E = np.zeros(len(rows_E))
        if self.constants["half_life"] is not None and len(rows_E):
            times_E = (
                histories.times_E / _DAY
                if self._is_timed
                else np.arange(len(rows_E), dtype=np.float64)
            )
            halvings_E = np.maximum(times_E[ends_E] - times_E, 0.0) / self.constants["half_life"]
        keys_P, pair_E = np.unique(rows_E * num_items + histories.items_E, return_inverse=True)
        least_P = np.full(len(keys_P), np.inf)
        # subtracted from the exponent, so that the sum does not underflow
        np.minimum.at(least_P, pair_E, halvings_E)
        sums_P = np.bincount(pair_E, 2.0 ** (least_P[pair_E] - halvings_E), minlength=len(keys_P))
        log_P = np.log2(sums_P) - least_P
        # ranks, as small decayed scores would round to equal values
        ranks_P = _ranks(keys_P // num_items, log_P)
        scores_bN = self._behind_N.repeat(len(queries), 1)
        scores_bN.view(-1)[torch.from_numpy(keys_P)] = 1.0 + torch.from_numpy(ranks_P).float()
        return scores_bN


class RecentPopularity(Baseline):
    """Number of events of an item before the time of the query; an event counts half for each
    half-life between it and the newest of these events.

    All-time popularity breaks ties. A query without a time is placed after the last event. Counts
    are stored at snapshots between the events; the events since are added, so scores are exact.
    Ages end at the newest event, not at the query: the order is the same, and counts do not
    underflow if the query is much later.
    """

    name = "recent_popularity"
    grid = (
        {"half_life_days": 7.0},
        {"half_life_days": 1.0},
        {"half_life_days": 30.0},
        {"half_life_days": 90.0},
    )

    @classmethod
    def lacks(cls, histories: Histories, config: EvaluateConfig) -> str:
        """What the data or the settings lack for this baseline; empty if it can be evaluated."""
        return (
            ""
            if len(histories.times_E) and (histories.times_E != 0).all()
            else "some events have no time"
        )

    def fit(self, train: Histories, num_items: int) -> None:
        """Fit on all given events, with the current constants."""
        self._read(train, num_items)
        self._take_snapshots()

    def fits(self, train: Histories, num_items: int) -> Iterator[Constants]:
        """Fit with each entry of the grid in turn, and yield it."""
        self._read(train, num_items)
        for constants in self.grid:
            self.constants = dict(constants)
            self._take_snapshots()
            yield self.constants

    def _read(self, train: Histories, num_items: int) -> None:
        order_E = np.argsort(train.times_E, kind="stable")
        self._days_E = train.times_E[order_E] / _DAY
        self._items_E = train.items_E[order_E].astype(np.int64)
        counts_N = users_of_items(matrix(train, num_items))
        self._behind_N = _BEHIND * counts_N / max(float(counts_N.max(initial=0)), 1.0)
        moments = int(np.clip(_MAX_COUNTS // max(num_items, 1), 1, _MOMENTS))
        self._snapshots_M = np.linspace(0, len(self._days_E), moments, endpoint=False).astype(
            np.int64
        )

    def _take_snapshots(self) -> None:
        """The decayed counts of the events before each snapshot: [M, N], as of the newest of
        them.
        """
        counts_N, counts, done = np.zeros(len(self._behind_N)), [], 0
        for position in self._snapshots_M:
            counts_N = self._since(counts_N, done, position)
            counts.append(counts_N)
            done = position
        self._counts_MN = np.stack(counts)

    def _newest(self, end: int) -> float:
        """Day of the newest event before position ``end``; of the first event for position 0."""
        return float(self._days_E[max(end - 1, 0)]) if len(self._days_E) else 0.0

    def _since(self, counts_N: Array, start: int, end: int) -> Array:
        """Counts of the events before ``end``, from those of the events before ``start``; both as
        of the newest event that they count.
        """
        rate, day = 1.0 / self.constants["half_life_days"], self._newest(end)
        faded_N = counts_N * 2.0 ** (-rate * (day - self._newest(start)))
        weights_E = 2.0 ** (-rate * (day - self._days_E[start:end]))
        added_N: Array = np.bincount(self._items_E[start:end], weights_E, minlength=len(counts_N))
        found_N: Array = faded_N + added_N
        return found_N

    def scores(self, queries: Queries) -> torch.Tensor:
        """Scores [b, N] float32 for every query; −inf for items that cannot be recommended."""
        time_b = np.where(queries.asked_at_B == 0, np.inf, queries.asked_at_B / _DAY)
        days, day_b = np.unique(time_b, return_inverse=True)
        rows = (
            np.stack([self._at(day) for day in days])
            if len(days)
            else np.zeros((0, len(self._behind_N)))
        )
        return torch.from_numpy((rows + self._behind_N).astype(np.float32))[torch.from_numpy(day_b)]

    def _at(self, day: float) -> Array:
        end = int(np.searchsorted(self._days_E, day, side="left"))  # strictly before the query
        moment = int(np.searchsorted(self._snapshots_M, end, side="right")) - 1
        return self._since(self._counts_MN[moment], int(self._snapshots_M[moment]), end)


def _ranks(rows_P: Array, values_P: Array) -> Array:
    """The rank of every value in its row, 1 for the smallest; equal values share a rank. ``rows_P``
    must ascend.

    >>> _ranks(np.array([0, 0, 0, 2, 2]), np.array([5.0, -1.0, 5.0, 3.0, 4.0])).tolist()
    [2, 1, 2, 1, 2]
    """
    order_P = np.lexsort((values_P, rows_P))
    rows, values = rows_P[order_P], values_P[order_P]
    starts, grows = np.ones(len(rows), dtype=bool), np.ones(len(rows), dtype=np.int64)
    starts[1:] = rows[1:] != rows[:-1]
    grows[1:] = starts[1:] | (values[1:] != values[:-1])
    total = np.cumsum(grows)
    first = np.maximum.accumulate(np.where(starts, total, 0))
    found_P = np.empty(len(rows), dtype=np.int64)
    found_P[order_P] = total - first + 1
    return found_P

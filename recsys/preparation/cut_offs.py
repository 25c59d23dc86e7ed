"""The cut-offs of a temporal split over all buckets: exact quantiles without moving the events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys.config import SplitConfig
from recsys.data.histories import Array
from recsys.data.split import cut_off, parse_time
from recsys.errors import DataError
from recsys.preparation.blocks import fetch, task
from recsys.preparation.buckets import BucketSummary
from recsys.preparation.shards import time_bins


class OutOfReach(Exception):
    """A cut-off is among the events that are only counted."""


@dataclass(frozen=True)
class Counted:
    """The number of events (of predicted types) before a given time."""

    number: int = 0
    before: int = 0  # microseconds


def cut_offs(
    split: SplitConfig,
    encoded: list[list[Any]],
    summaries: list[BucketSummary],
    target_types: tuple[int, ...] = (),
    counted: Counted | None = None,
) -> tuple[int, int]:
    """Microseconds from which events are validation and test: the configured times, or exact
    quantiles of the times of events of predicted types.

    Parameters
    ----------
    split : SplitConfig
        Shares or cut-offs.
    encoded : list[list[Any]]
        References to tables with times, one list per bucket.
    summaries : list[BucketSummary]
        Summaries of all events.
    target_types : tuple[int, ...]
        Ids of the predicted types; empty: all types.
    counted : Counted | None
        Events that are not in ``encoded``.

    Returns
    -------
    tuple[int, int]
        First microsecond of validation and first microsecond of test.

    Raises
    ------
    DataError
        The cut-offs leave no validation events.
    OutOfReach
        A cut-off is before ``counted.before``.
    """
    times = _Times(encoded, summaries, target_types, counted or Counted())
    everything = times.number_before(times.last + 1)
    if split.test_from:
        test_from = parse_time(split.test_from, "data.split.test_from")
    else:
        rank = max(round(everything * split.test), 1)
        test_from = times.largest(rank, times.last + 1)
    before_test = times.number_before(test_from)
    if split.valid_from:
        valid_from = parse_time(split.valid_from, "data.split.valid_from")
    elif before_test == 0:
        valid_from = test_from
    else:
        rank = min(max(round(everything * split.valid), 1), before_test)
        valid_from = times.largest(rank, test_from)
    if valid_from >= test_from:
        raise DataError(
            f"data.split: validation would start at {valid_from} and test at {test_from}"
            " (microseconds), which leaves no validation; choose an earlier data.split.valid_from,"
            " or another data.split.test"
        )
    return valid_from, test_from


class _Times:
    """Counts of the times of all buckets, in tasks; the arguments are those of :func:`cut_offs`."""

    def __init__(
        self,
        encoded: list[list[Any]],
        summaries: list[BucketSummary],
        target_types: tuple[int, ...],
        left_out: Counted,
    ) -> None:
        self._encoded, self._target_types, self._left_out = encoded, target_types, left_out
        self._counter = task(time_bins)
        self.first = min(summary.first for summary in summaries if summary.interactions)
        self.last = max(summary.last for summary in summaries if summary.interactions)

    def number_before(self, below: int) -> int:
        """Number of events before a time, with those that are only counted."""
        return self._number(self.first, below) + self._left_out.number

    def largest(self, rank: int, below: int) -> int:
        """The time with this rank (from the latest) among the times before ``below``."""
        left_out = self._left_out
        if left_out.number and rank > self._number(left_out.before, below):
            raise OutOfReach
        return cut_off(
            lambda start, width: self._bins(start, width, below), self.first, self.last, rank
        )

    def _number(self, start: int, below: int) -> int:
        return int(self._bins(start, self.last - start + 1, below)[0])

    def _bins(self, start: int, width: int, below: int) -> Array:
        refs = [
            self._counter.remote(refs[0], start, width, below, self._target_types)
            for refs in self._encoded
        ]
        total: Array = np.sum(fetch(refs), axis=0)
        return total

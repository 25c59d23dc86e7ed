"""Whether a leave-last split leaks future popularity into training, and over how long a time.

Why: leave-last holds out the last event of every user, at any time. Where these events are years
apart, models and baselines are fitted on events of other users *after* the query: they know that an
item becomes popular next year. All recommenders gain from this, those based on popularity most, and
a live service has no such knowledge. A temporal split places all test events after all training
events, if enough test events remain.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import polars as pl

from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Split
from recsys.data.time_cut import temporal_cuts

MOST: Final = 0.1  # share of the data's time over which targets may spread without a note
_TAILS: Final = (0.05, 0.95)  # quantiles between which the spread is measured
_FIRST_DATE: Final = "1971"  # earlier times are numbers of orders or steps
_ENOUGH: Final = 200_000  # targets; the other shards are not read, since users are in random shards


@dataclass(frozen=True)
class Foresight:
    """How far the targets of a leave-last split spread in time."""

    share: float  # of the time from the first to the last event
    since: str  # date, 5 % quantile of the test targets' times
    until: str  # date, 95 % quantile
    lacking: str = ""  # why a temporal split is no alternative; empty where it is one

    def to_json(self) -> dict[str, Any]:
        """The values and the note for ``metrics.json``."""
        return {**asdict(self), "has_dates": self.has_dates, "note": self.note}

    @property
    def has_dates(self) -> bool:
        """Whether the times are dates, and not numbers of orders or steps."""
        return self.until >= _FIRST_DATE

    @property
    def note(self) -> str:
        """The note for the user, one sentence."""
        cure = "set data.split.kind temporal to measure what a live service would get"
        if self.lacking:
            cure = (
                "data.split.kind temporal is no alternative here: a cut in time leaves"
                f" {self.lacking}"
            )
        dates = f", from {self.since} to {self.until}" if self.has_dates else ""
        return (
            f"leave-last over a long period: 90% of the test targets spread over {self.share:.0%}"
            f" of the data's time{dates}, so the model and the baselines know what became popular"
            f" after the time of the query; {cure}"
        )


def foresight(dataset: PreparedDataset) -> Foresight | None:
    """How far the test targets of a leave-last split spread in time.

    Parameters
    ----------
    dataset : PreparedDataset
        The dataset; its shards are read until there are enough targets.

    Returns
    -------
    Foresight | None
        None for other splits, for data without times, and where the targets are close together.
    """
    kind = str(dataset.manifest.split.get("kind"))
    if not kind.startswith("leave-last") or not dataset.manifest.timed:
        return None
    targets: list[Array] = []
    events: list[pl.DataFrame] = []
    first, last, found = np.iinfo(np.int64).max, np.iinfo(np.int64).min, 0
    for shard in dataset.shards():
        known_E = shard.times_E[shard.times_E != 0]
        if len(known_E):
            first, last = min(first, int(known_E.min())), max(last, int(known_E.max()))
        targets_E = shard.times_E[(shard.splits_E == Split.TEST) & (shard.times_E != 0)]
        targets.append(targets_E)
        users_E = np.repeat(shard.users_U, shard.lengths_U)
        times = pl.Series(shard.times_E * 1_000_000).replace(0, None)
        columns = {
            "user": users_E,
            "item": shard.items_E,
            "time": times,
            "is_target": shard.are_targets_E,
        }
        events.append(pl.DataFrame(columns))
        found += len(targets_E)
        if found >= _ENOUGH:
            break
    seen = spread_of(np.concatenate(targets), first, last) if found else None
    return (
        None if seen is None else replace(seen, lacking=temporal_cuts(pl.concat(events)).why_none)
    )


def spread_of(targets_T: Array, first: int, last: int, lacking: str = "") -> Foresight | None:
    """The spread of target times (seconds since the epoch); None where it is at most :data:`MOST`
    of the time from ``first`` to ``last``.

    >>> day = 86_400
    >>> spread_of(np.arange(101) * day, 0, 100 * day)
    Foresight(share=0.9, since='1970-01-06', until='1970-04-06', lacking='')
    >>> spread_of(np.arange(95, 101) * day, 0, 100 * day) is None
    True

    Parameters
    ----------
    targets_T : array, [T] int
        Times of the targets, in seconds since the epoch.
    first, last : int
        Times of the first and the last event, in seconds since the epoch.
    lacking : str
        Why no temporal split is possible; "": it is possible.
    """
    low, high = np.quantile(targets_T, _TAILS)
    share = (high - low) / max(last - first, 1)
    if share <= MOST:
        return None
    return Foresight(round(float(share), 4), _date(low), _date(high), lacking)


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(float(seconds), UTC).strftime("%Y-%m-%d")

"""Whether a leave-last split lets models see the future's popularity, and how far.

Why: leave-last asks every user for the last event, whenever that was. Where these events lie years apart, a model and a
baseline are fitted on what others chose *after* the question: an item that becomes popular next year is known to be.
All recommenders gain by it, those that lean on popularity the most, and none of it is there in a live service. A
temporal split asks everybody about the same time behind all training events, where it leaves enough to be asked.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import polars as pl

from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Split
from recsys.data.time_cut import cuts_of

MOST: Final = 0.1  # of the data's time over which targets may spread without a word
_TAILS: Final = (0.05, 0.95)  # quantiles between which the spread is measured
_ENOUGH: Final = 200_000  # targets; further shards are not read, as users are dealt to them by a hash


@dataclass(frozen=True)
class Foresight:
    """How far the targets of a leave-last split spread in time."""

    share: float  # of the time from the first to the last event
    since: str  # date behind the first twentieth of the test targets
    until: str  # date before the last twentieth
    lacking: str = ""  # what one cut in time would leave too little of; empty where one can be used

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "note": self.note}

    @property
    def note(self) -> str:
        """What a person should know, as one sentence."""
        cure = "set data.split.kind temporal to measure as a live service would be asked"
        if self.lacking:
            cure = f"data.split.kind temporal is no way out here, as one cut in time leaves {self.lacking}"
        return (
            f"leave-last over a long period: nine tenths of the test targets lie between {self.since} and "
            f"{self.until}, {self.share:.0%} of the data's time, so the model and the baselines have seen what became "
            f"popular after the question; {cure}"
        )


def foresight(dataset: PreparedDataset) -> Foresight | None:
    """What leave-last gives away; None for other splits, without times, and where the targets lie close together."""
    if dataset.manifest.split.get("kind") != "leave-last" or not dataset.manifest.timed:
        return None
    targets: list[Array] = []
    events: list[pl.DataFrame] = []
    first, last, found = np.iinfo(np.int64).max, 0, 0
    for shard in dataset.shards():
        known_E = shard.times_E[shard.times_E > 0]
        if len(known_E):
            first, last = min(first, int(known_E.min())), max(last, int(known_E.max()))
        asked_E = shard.times_E[(shard.splits_E == Split.TEST) & (shard.times_E > 0)]
        targets.append(asked_E)
        users_E = np.repeat(shard.users_U, shard.lengths_U)
        times = pl.Series(shard.times_E * 1_000_000).replace(0, None)
        columns = {"user": users_E, "item": shard.items_E, "time": times, "asked": shard.are_targets_E}
        events.append(pl.DataFrame(columns))
        found += len(asked_E)
        if found >= _ENOUGH:
            break
    seen = spread_of(np.concatenate(targets), first, last) if found else None
    return None if seen is None else replace(seen, lacking=cuts_of(pl.concat(events)).why_none)


def spread_of(targets_T: Array, first: int, last: int, lacking: str = "") -> Foresight | None:
    """The spread of target times in seconds since the epoch; None where it is at most :data:`MOST` of the time.

    >>> day = 86_400
    >>> spread_of(np.arange(101) * day, 0, 100 * day)
    Foresight(share=0.9, since='1970-01-06', until='1970-04-06', lacking='')
    >>> spread_of(np.arange(95, 101) * day, 0, 100 * day) is None
    True
    """
    low, high = np.quantile(targets_T, _TAILS)
    share = (high - low) / max(last - first, 1)
    if share <= MOST:
        return None
    return Foresight(round(float(share), 4), _date(low), _date(high), lacking)


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(float(seconds), UTC).strftime("%Y-%m-%d")

"""Whether a temporal split leaves enough to test: for `recsys init` and the note on leave-last.

Why: a temporal split tests a model as a live service uses it. It needs users with events on both
sides of the cut, and items with earlier events.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import polars as pl

SHARES: Final = (0.1, 0.15, 0.2)
"""Shares of the events for test and again for validation; the first that leaves enough is used."""
_KNOWN_EVENTS: Final = 0.5  # least share of test events by users with earlier events
_KNOWN_USERS: Final = 0.15  # least share of users with earlier and test events …
_KNOWN_ITEMS: Final = 0.4  # least share of test events on items with earlier events
_MANY_USERS: Final = 1000  # … or this number of them
_FEWEST: Final = 5


@dataclass(frozen=True)
class Temporal:
    """What a temporal split would leave."""

    share: float  # share of the events in test, and again in validation
    test_from: datetime
    num_test_users: int  # test users with events before the cut
    num_users: int  # users with at least two events
    known: float = 1.0  # share of test events by users with earlier events
    known_items: float = 1.0  # share of test events on items with earlier events

    @property
    def has_items(self) -> bool:
        """Whether enough test events are on items that are known at the cut."""
        return self.known_items >= _KNOWN_ITEMS

    @property
    def is_enough(self) -> bool:
        """Whether the split leaves enough to measure."""
        enough = max(min(_KNOWN_USERS * self.num_users, _MANY_USERS), _FEWEST)
        return self.num_test_users >= enough and self.known >= _KNOWN_EVENTS and self.has_items

    @property
    def why_not(self) -> str:
        """What is lacking, to follow the words "a cut in time leaves"."""
        if not self.has_items:
            return (
                f"few known items: {self.known_items:.0%} of the events from"
                f" {self.test_from:%Y-%m-%d} on are on items with earlier events"
            )
        return (
            f"few users: {self.num_test_users:,} of {self.num_users:,} have events on both sides of"
            f" {self.test_from:%Y-%m-%d}, and {self.known:.0%} of the later events are theirs"
        )


@dataclass(frozen=True)
class Cuts:
    """The first cut that leaves enough (None: no cut does), and the cut that leaves the most
    users.
    """

    fitting: Temporal | None = None
    best: Temporal | None = None

    @property
    def why_none(self) -> str:
        """Why no cut leaves enough; empty where one does."""
        if self.fitting is not None:
            return ""
        return "no events between its cut-offs" if self.best is None else self.best.why_not


def temporal_cuts(events: pl.DataFrame) -> Cuts:
    """Evaluate the possible cuts of events. Columns: ``user``, ``item``, ``time`` (microseconds,
    null where unknown) and ``is_target`` (whether the event has a predicted type).
    """
    found = [cut for share in SHARES if (cut := _cut(events, share)) is not None]
    fitting = next((cut for cut in found if cut.is_enough), None)
    return Cuts(fitting, max(found, key=lambda cut: cut.num_test_users, default=None))


def _cut(events: pl.DataFrame, share: float) -> Temporal | None:
    """What a split leaves if the latest share of the events is test and the same share before it is
    validation.
    """
    timed = events.filter(pl.col("time").is_not_null())
    times = timed.filter("is_target")["time"]
    test_from, valid_from = (times.quantile(1 - count * share, "higher") for count in (1, 2))
    if test_from is None or valid_from is None or not valid_from < test_from:
        return None
    before = timed.filter(pl.col("time") < test_from)["user"].unique()
    earlier = timed.filter(pl.col("time") < valid_from)["user"].unique()
    later = timed.filter((pl.col("time") >= test_from) & pl.col("is_target"))
    had = timed.filter(pl.col("time") < test_from)["item"].unique()
    users, known_items = later["user"], _mean(later["item"].is_in(had.implode()))
    test, known_share = users.unique(), _mean(users.is_in(before.implode()))
    between = (pl.col("time") >= valid_from) & (pl.col("time") < test_from) & pl.col("is_target")
    valid = timed.filter(between)["user"].unique()
    known = int(test.is_in(before.implode()).sum())
    known_valid = int(valid.is_in(earlier.implode()).sum())
    counts = timed.group_by("user").len()
    num_users = int((counts["len"] > 1).sum())
    moment = datetime.fromtimestamp(int(test_from) // 1_000_000, UTC)
    return Temporal(share, moment, min(known, 2 * known_valid), num_users, known_share, known_items)


def _mean(values: pl.Series) -> float:
    found: Any = values.mean()
    return float(found) if found is not None else 0.0

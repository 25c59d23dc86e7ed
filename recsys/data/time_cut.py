"""Whether one cut in time can test a model: one rule for a look at files and for what a run says of leave-last.

Why: a cut in time asks as a live service is asked. It needs users with events on both sides, and items that anybody had
before.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import polars as pl

SHARES: Final = (0.1, 0.15, 0.2)
"""Shares of the events that a temporal split may hold out for test, and again for validation; the first that fits."""
_KNOWN_EVENTS: Final = 0.5  # share of the test events that must be of users with a past
_KNOWN_USERS: Final = 0.15  # share of the users that must have a past and test events …
_KNOWN_ITEMS: Final = 0.4  # share of the test events that must be of items that somebody had before
_MANY_USERS: Final = 1000  # … or so many of them
_FEWEST: Final = 5


@dataclass(frozen=True)
class Temporal:
    """What a global cut in time would leave."""

    share: float  # of the events in test, and in validation
    test_from: datetime
    num_test_users: int  # with events before the cut
    num_users: int  # with two events and more
    known: float = 1.0  # share of the test events that are of users with events before
    known_items: float = 1.0  # share of them that are of items with events before

    @property
    def has_items(self) -> bool:
        """Whether enough of what is asked for can be known at the cut."""
        return self.known_items >= _KNOWN_ITEMS

    @property
    def is_enough(self) -> bool:
        """Whether it leaves enough to measure."""
        enough = max(min(_KNOWN_USERS * self.num_users, _MANY_USERS), _FEWEST)
        return self.num_test_users >= enough and self.known >= _KNOWN_EVENTS and self.has_items

    @property
    def why_not(self) -> str:
        """What is lacking, to be read behind "one cut in time leaves"."""
        if not self.has_items:
            return (
                f"little that can be known: {self.known_items:.0%} of the events from {self.test_from:%Y-%m-%d} on are "
                "of items that anybody had before"
            )
        return (
            f"few users: {self.num_test_users:,} of {self.num_users:,} have events on both sides of "
            f"{self.test_from:%Y-%m-%d}, and {self.known:.0%} of the later events are theirs"
        )


@dataclass(frozen=True)
class Cuts:
    """The first cut that leaves enough, None: none does; and the one that leaves most."""

    fitting: Temporal | None = None
    best: Temporal | None = None

    @property
    def why_none(self) -> str:
        """Why no cut can be used; empty where one can."""
        if self.fitting is not None:
            return ""
        return "nothing between its parts" if self.best is None else self.best.why_not


def cuts_of(events: pl.DataFrame) -> Cuts:
    """The cuts of events with ``user``, ``item``, ``time`` (microseconds, null where unknown) and ``asked``, whether an
    event is of a type that is predicted.
    """
    found = [cut for share in SHARES if (cut := _cut(events, share)) is not None]
    fitting = next((cut for cut in found if cut.is_enough), None)
    return Cuts(fitting, max(found, key=lambda cut: cut.num_test_users, default=None))


def _cut(events: pl.DataFrame, share: float) -> Temporal | None:
    """What is left where the latest share of the events is test and as many before it are validation."""
    timed = events.filter(pl.col("time").is_not_null())
    times = timed.filter("asked")["time"]
    test_from, valid_from = (times.quantile(1 - count * share, "higher") for count in (1, 2))
    if test_from is None or valid_from is None or not valid_from < test_from:
        return None
    before = timed.filter(pl.col("time") < test_from)["user"].unique()
    earlier = timed.filter(pl.col("time") < valid_from)["user"].unique()
    later = timed.filter((pl.col("time") >= test_from) & pl.col("asked"))
    had = timed.filter(pl.col("time") < test_from)["item"].unique()
    asked, known_items = later["user"], _mean(later["item"].is_in(had.implode()))
    test, known_share = asked.unique(), _mean(asked.is_in(before.implode()))
    between = (pl.col("time") >= valid_from) & (pl.col("time") < test_from) & pl.col("asked")
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

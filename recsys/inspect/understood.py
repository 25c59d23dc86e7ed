"""What was found in the files, before it becomes a configuration and terminal output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from recsys.inspect.column_uses import Attributes
from recsys.inspect.columns import Column
from recsys.inspect.event_statistics import EventStatistics, Types


def percent(share: float) -> str:
    """A share of rows in words.

    >>> percent(0.0), percent(1 / 12_704), percent(0.05)
    ('0.0%', 'less than 0.1%', '5.0%')
    """
    return "less than 0.1%" if 0 < share < 0.001 else f"{share:.1%}"


@dataclass(frozen=True)
class Setting:
    """A key of ``data.source`` with its value and reason."""

    key: str
    value: Any
    why: str


@dataclass
class TableSummary:
    """One table in the terminal output."""

    role: str
    files: str
    form: str
    # canonical or original name → description
    columns: dict[str, str] = field(default_factory=dict)


@dataclass
class Understood:
    """Everything that a configuration is made from."""

    name: str
    source: list[Setting]
    statistics: EventStatistics
    meaning: Types = field(default_factory=Types)
    order: str = "auto"  # auto, time, file, none
    order_why: str = ""
    items: Attributes | None = None
    users: Attributes | None = None
    items_by_events: bool = False  # the table of items comes from columns of the events
    has_items: bool = False
    friends: str = ""  # description; empty: none
    triples: str = ""
    context: list[Column] = field(default_factory=list)
    idle: dict[str, str] = field(default_factory=dict)  # unused event columns → reason
    value_name: str = ""  # name of the column with values
    is_rating: bool = False
    # column whose words may be ratings of an unknown order, and its words
    unordered: tuple[str, list[str]] | None = None
    min_value: float | None = None
    min_value_why: str = ""
    day_only: bool = False
    has_dates: bool = True  # False: the times are numbers whose dates are unknown
    has_clock: bool = True  # False: the times count the events of each user
    sampled: tuple[str, ...] = ()  # the files that were not read whole
    is_sampled: bool = False  # True: those of the events are among them
    other_time_format: str = ""
    # share of events whose item is not in the table of items; None: the table was not read whole
    unknown_items: float | None = 0.0
    bad: dict[str, float] = field(default_factory=dict)  # table → share of invalid rows
    bad_why: dict[str, str] = field(default_factory=dict)
    split: tuple[dict[str, Any], str] | None = None  # split defined by the files
    # column and type of the events that are text about items
    event_text: tuple[str, str] | None = None
    tables: list[TableSummary] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)  # empty files
    notes: list[str] = field(default_factory=list)
    has_email_ids: bool = False  # some user ids look like e-mail addresses

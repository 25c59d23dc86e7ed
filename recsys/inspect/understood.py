"""What a look has understood, before it is written as a configuration and told to a person."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from recsys.inspect.attributes import Attributes
from recsys.inspect.columns import Column
from recsys.inspect.habits import Habits, Types


@dataclass(frozen=True)
class Setting:
    """A key of ``data.source`` with its value and reason."""

    key: str
    value: Any
    why: str


@dataclass
class Told:
    """One table as a person is told of it."""

    role: str
    files: str
    form: str
    columns: dict[str, str] = field(default_factory=dict)  # canonical or own name → what it is


@dataclass
class Understood:
    """Everything that a configuration is made of."""

    name: str
    source: list[Setting]
    habits: Habits
    meaning: Types = field(default_factory=Types)
    order: str = "auto"  # auto, time, file, none
    order_why: str = ""
    items: Attributes | None = None
    users: Attributes | None = None
    items_by_events: bool = False  # the table of items is made of columns of the events
    has_items: bool = False
    friends: str = ""  # what is known of them; empty: none
    facts: str = ""
    context: list[Column] = field(default_factory=list)
    idle: dict[str, str] = field(default_factory=dict)  # columns of the events of which nothing is made, and why
    value_name: str = ""  # of the column with values
    is_rating: bool = False
    min_value: float | None = None
    min_value_why: str = ""
    day_only: bool = False
    is_sampled: bool = False  # whether the files have more events than were looked at
    other_time_format: str = ""
    unknown_items: float = 0.0  # share of events of items that the table of items lacks
    bad: dict[str, float] = field(default_factory=dict)  # table → share of rows that cannot be used
    bad_why: dict[str, str] = field(default_factory=dict)
    split: tuple[dict[str, Any], str] | None = None  # given by the files
    event_text: tuple[str, str] | None = None  # column and type of events that are text about items
    tables: list[Told] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)  # files that hold nothing
    notes: list[str] = field(default_factory=list)

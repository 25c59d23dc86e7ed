"""The roles of the tables besides the events: items, users, friends or triples, by common ids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from recsys.errors import DataError
from recsys.inspect.columns import Column
from recsys.inspect.common_names import (
    FRIEND,
    ITEM,
    USER,
    VALUE,
    has_id,
    is_code,
    words_of,
)
from recsys.inspect.common_values import IdSet
from recsys.inspect.event_pairs import Pair
from recsys.inspect.relations import (
    add_friends,
    as_categories,
    as_friends,
    as_triples,
    core_words,
    is_triples,
)
from recsys.inspect.sampled_tables import FEW, Table
from recsys.inspect.siblings import part_word
from recsys.values.overlap import SideIds, compare

_SOME: Final = 0.3  # similarity of ids from which two columns have the same meaning
_LITTLE: Final = 0.03  # the same, if the names agree
_NAMED: Final = 0.7
_VALUES: Final = 0.8  # the same, for values
_REFERS: Final = 0.9  # share of the codes of a column that a table of their names has
_MANY_COLUMNS: Final = 10
_OTHER_IDS: Final = "it has only other ids of the same users or items"
_OF_COUNT: Final = 0.3  # what a column of counts is worth, if one of categories is worth 1
_COUNTS: Final = {"cnt", "count", "counts", "num"}
_OF_COUNTS: Final = 2.0  # what all of them are worth at most


def assign_roles(tables: list[Table], events: Pair) -> None:
    """Assign every other table its role, or the reason why it is left out; friends that are lists
    in another table are added as a table.
    """
    users, items = IdSet(events.user), IdSet(events.item)
    triples: list[Table] = []
    for table in tables:
        if table is events.table or table.role:
            continue
        if why := _described(table, tables, events) or _of_other_ids(table, tables, events):
            table.why = why
            continue
        if not _is_part_of_events(table, events) and is_triples(table, items):
            triples.append(table)
            continue
        _assign_role(table, events, users, items)
    if not any(table.role == "social" for table in tables):
        add_friends(tables, users)
    for role in ("items", "users"):
        _keep_one(tables, role)
    for table in triples:  # last: other tables may give the items their entities
        as_triples(table, items, tables)
    _add_cures(tables)


def as_stated_friends(table: Table, events: Pair) -> None:
    """Make a table that the user gave as social edges such a table: the columns named like people,
    or else its first two columns of ids.
    """
    ids = sorted({c.name: c for c in (*table.id_columns, *table.keys)}.values(), key=_position_of)
    named = [c for c in ids if max(table.like(c, USER), table.like(c, FRIEND)) >= _NAMED]
    people = named if len(named) >= 2 else ids
    if len(people) >= 2:
        as_friends(table, people, IdSet(events.user))


def _described(table: Table, tables: Sequence[Table], events: Pair) -> str:
    """Why a table of names for the codes of another table is left out, such as the names of the
    tags, the aisles or the publishers; empty if it is no such table.

    Why: codes that count from 1 have values in common with users and items that count from 1.
    """
    if not table.sample.has_names:
        return ""
    ours = {core_words(events.user.name), core_words(events.item.name)}
    for key in table.keys:
        core = core_words(key.name) or core_words(table.sample.name.split(".")[0])
        if not core or core in ours or max(table.like(key, USER), table.like(key, ITEM)) >= _NAMED:
            continue
        for other in (events.table, *tables):
            if other is table or not other.sample.has_names:
                continue
            for column in other.columns:
                if (
                    core_words(column.name) == core
                    and column.may_be_id
                    and not column.is_key
                    and IdSet(column).share_in(IdSet(key)) >= _REFERS
                ):
                    return (
                        f"describes {column.name} of {other.sample.name}, neither users nor items;"
                        " join it into that file to use it"
                    )
    return ""


def _of_other_ids(table: Table, tables: Sequence[Table], events: Pair) -> str:
    """Why a table with other ids of the items, which a table of items gives besides its own, is
    left out; empty if it has none.

    Why: ids that count from 1 have values in common with other ids that count from 1.
    """
    ours = events.item.name
    if not table.sample.has_names or ours in table.sample.rows.column_names:
        return ""
    for other in tables:
        keys = {key.name: key for key in other.keys} if other.sample.has_names else {}
        for column in table.columns if ours in keys else ():
            key = keys.get(column.name)
            if key is None or not (column.may_be_id and has_id(column.name)):
                continue
            if key.values != keys[ours].values and IdSet(column).share_in(IdSet(key)) >= _REFERS:
                return _cure(column, other, ours)
    return ""


def _cure(column: Column, ids: Table, ours: str) -> str:
    """How to use a table with ids that are a column of a table with the ids of the events."""
    return (
        f"its ids are {column.name} of {ids.sample.name}; add a column with {ours} of that file to"
        " use it"
    )


def _position_of(column: Column) -> int:
    return column.position


@dataclass(frozen=True)
class _IdColumns:
    """How well the columns of ids of a table match the users and the items of the events."""

    table: Table
    candidates: list[Column]
    sets: dict[str, IdSet]
    user_like: dict[str, float]  # similarity of the ids to those of users, by column
    item_like: dict[str, float]

    @classmethod
    def of(cls, table: Table, users: IdSet, items: IdSet) -> _IdColumns:
        # a count is no id, though it has values in common with ids that count from 1
        named = {
            column.name: column
            for column in (*table.id_columns, *table.keys)
            if table.like(column, VALUE) < _VALUES or has_id(column.name)
        }
        sets = {name: IdSet(column) for name, column in named.items()}
        user_like = {name: ids.similarity(users) for name, ids in sets.items()}
        item_like = {name: ids.similarity(items) for name, ids in sets.items()}
        return cls(table, list(named.values()), sets, user_like, item_like)

    def of_user(self, column: Column) -> float:
        """How much a column looks like ids of users: by its name and its ids."""
        return 0.6 * self._by_user_name(column) + self.user_like[column.name]

    def of_item(self, column: Column) -> float:
        """How much a column looks like ids of items."""
        return 0.6 * self.table.like(column, ITEM) + self.item_like[column.name]

    @property
    def people(self) -> list[Column]:
        """The columns of users, the likeliest first."""
        found = [
            column
            for column in self.candidates
            if self.user_like[column.name] >= _least(self._by_user_name(column))
            and self.of_user(column) >= self.of_item(column)
        ]
        return sorted(found, key=self.of_user, reverse=True)

    @property
    def things(self) -> list[Column]:
        """The columns of items, the likeliest first."""
        found = [
            column
            for column in self.candidates
            if self.item_like[column.name] >= _least(self.table.like(column, ITEM))
            and self.of_item(column) >= self.of_user(column)
        ]
        return sorted(found, key=self.of_item, reverse=True)

    def _by_user_name(self, column: Column) -> float:
        return max(self.table.like(column, USER), self.table.like(column, FRIEND))


def _least(by_name: float) -> float:
    """The least similarity of ids, which is lower where the name agrees."""
    return _LITTLE if by_name >= _NAMED else _SOME


def _assign_role(table: Table, events: Pair, users: IdSet, items: IdSet) -> None:
    if _is_part_of_events(table, events):
        table.names = {events.user.name: "user_id", events.item.name: "item_id"}
        table.role = "more events"
        return
    if _lists_items(table, items):
        table.why = "each row lists many items, such as sampled negatives, which are not used"
        return
    ids = _IdColumns.of(table, users, items)
    people, things = ids.people, ids.things
    # by their names, even if no user occurs twice
    are_friends = len(people) >= 2 and all(
        table.like(column, FRIEND) >= _NAMED for column in people[:2]
    )
    if len(people) >= 2 and not things and (are_friends or not people[0].is_key):
        as_friends(table, people, users)
        return
    if (
        people
        and things
        and people[0] is not things[0]  # a column that is as like users as items
        and (
            not (people[0].is_key or things[0].is_key)
            and _may_be_events(table, people[0], events)
            or _has_one_event_each(table, things[0], items)
        )
    ):
        table.names = {people[0].name: "user_id", things[0].name: "item_id"}
        table.role = "more events"
        return
    # a few repeated rows do not make a table of attributes something else
    keys = [
        c for c in (*people, *things) if c.num_distinct >= 0.9 * c.num_values and c.filled > 0.5
    ]
    if keys:
        key = max(keys, key=lambda c: max(ids.of_user(c), ids.of_item(c)))
        _as_attributes(table, key, ids.sets[key.name], users if key in people else None, items)
        return
    if things and len(table.columns) >= 2:
        as_categories(table, things[0], items)
        return
    table.why = _why_no_role(ids, users, items)


def _has_one_event_each(table: Table, item: Column, items: IdSet) -> bool:
    """Whether rows of different users have an item and a time, such as the purchases of sessions.

    Why: as attributes of the users, these items would tell what to predict.
    """
    is_item = not table.sample.has_names or table.like(item, ITEM) >= _NAMED
    has_time = any(column.kind == "time" for column in table.columns)
    return has_time and is_item and not item.is_key and IdSet(item).share_in(items) >= _REFERS


def _is_part_of_events(table: Table, events: Pair) -> bool:
    """Whether a table has the columns of the events, such as a test file with one event per user.

    Why: its ids are unique, and as a table of users its items would tell what to predict.
    """
    one, other = table.sample, events.table.sample
    is_alike = one.signature == other.signature
    return is_alike and (one.has_names or bool(part_word(one) and part_word(other)))


def _lists_items(table: Table, items: IdSet) -> bool:
    """Whether nearly all columns of a table without names have ids of items."""
    if table.sample.has_names or len(table.columns) < _MANY_COLUMNS:
        return False
    ids = [c for c in table.columns if c.may_be_id and c.num_distinct > FEW]
    shares = [IdSet(column).share_in(items) for column in ids[:: len(table.columns) // 5]]
    return len(ids) >= _REFERS * len(table.columns) and float(np.median(shares)) >= _SOME


def _as_attributes(
    table: Table, key: Column, ids: IdSet, users: IdSet | None, items: IdSet
) -> None:
    """Make a table that of users or, if ``users`` is None, of items; without attributes it is left
    out.
    """
    role, known = ("items", items) if users is None else ("users", users)
    table.role, table.names = role, {key.name: "item_id" if users is None else "user_id"}
    table.shares = f"{ids.share_in(known):.0%} of its ids are {role} in the events"
    if len([c for c in table.columns if c.kind not in ("empty", "constant", "object")]) < 2:
        alike = [c.name for c in table.columns if c.kind in ("empty", "constant")]
        why = f"besides ids it has only {', '.join(alike)}, which is empty or constant"
        table.role, table.why = "", why if alike else "it has only ids"
    elif _gives_other_ids(table, key):
        table.role, table.why = "", _OTHER_IDS


def _gives_other_ids(table: Table, key: Column) -> bool:
    """Whether the other columns are further ids of the same users or items."""
    others = [c for c in table.columns if c is not key and c.kind not in ("empty", "constant")]
    return all(c.is_key and c.may_be_id and not c.is_wordy and is_code(c.name) for c in others)


def _add_cures(tables: Sequence[Table]) -> None:
    """Say how to use tables whose ids are those that a table of other ids gives."""
    left = [table for table in tables if not table.role]
    for ids in [table for table in left if table.why == _OTHER_IDS]:
        ours = next(iter(ids.names))
        for column in (c for c in ids.columns if c.name != ours):
            for table in left:
                shares = [IdSet(key).share_in(IdSet(column)) for key in table.keys]
                if table is not ids and max(shares, default=0.0) >= _SOME:
                    table.why = _cure(column, ids, ours)


def _why_no_role(ids: _IdColumns, users: IdSet, items: IdSet) -> str:
    """Why a table is left out; names ids that equal those of the events in another form."""
    best = max([*ids.user_like.values(), *ids.item_like.values()], default=0.0)
    if best >= _SOME or best >= _LITTLE and (ids.people or ids.things):
        return "its ids are neither unique nor links"
    why = "no ids in common with the events"
    for column in ids.table.id_columns:
        for words, known, wanted in (
            (USER, users, "user_id"),
            (FRIEND, users, "user_id"),
            (ITEM, items, "item_id"),
        ):
            if ids.table.like(column, words) >= _NAMED and (
                cause := _other_form(column, ids.sets[column.name], known, wanted)
            ):
                why = cause
    return why


def _other_form(column: Column, ours: IdSet, known: IdSet, key: str) -> str:
    """Describe ids that equal those of the events in another form, such as ``7`` and ``7.0``; else
    empty.
    """
    try:
        compare(SideIds("the file", column.name, ours.ids), SideIds("events", key, known.ids), 0.0)
    except DataError as error:
        return str(error) if "likely cause" in str(error) else ""
    return ""


def _may_be_events(table: Table, user: Column, events: Pair) -> bool:
    """Whether a table with users and items has events too: by its names, or by times if the events
    have times.
    """
    if table.like(user, USER) >= _NAMED:
        return True
    has_time = any(column.kind == "time" for column in events.table.columns)
    if not has_time and table.sample.has_names and has_id(user.name):
        # the ids of tags have values in common with users that count from 1
        return core_words(user.name) == core_words(events.user.name)
    return not has_time or any(column.kind == "time" for column in table.columns)


def _keep_one(tables: Sequence[Table], role: str) -> None:
    """Keep one table of items and one of users: the most informative one."""
    found = [table for table in tables if table.role == role]
    if len(found) < 2:
        return
    worth = {
        "text": 3,
        "html": 3,
        "path": 2,
        "lists": 2,
        "list": 2,
        "price": 1,
        "vector": 2,
        "token": 1,
        "number": 1,
    }

    def value(table: Table) -> tuple[bool, float]:
        # counts, such as those of views, tell less of an item than codes of its kind
        counts = [
            column
            for column in table.columns
            if column.kind in ("number", "token")
            and {*words_of(column.name)} & _COUNTS
            or column.kind == "number"
            and not (column.is_whole and is_code(column.name))
        ]
        total = min(_OF_COUNT * len(counts), _OF_COUNTS) + sum(
            worth.get(column.kind, 0) for column in table.columns if column not in counts
        )
        # a file of a split has labels to predict; the size only decides between equal columns
        return not part_word(table.sample), total + 0.001 * math.log1p(table.sample.num_rows)

    best = max(found, key=value)
    for table in found:
        if table is not best:
            table.role = ""
            table.why = (
                f"a second table of {role} next to {best.sample.name}; join them into one file to"
                " use both"
            )

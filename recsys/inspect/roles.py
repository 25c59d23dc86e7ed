"""The roles of the tables besides the events: items, users, friends or facts, by common ids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from recsys.errors import DataError
from recsys.inspect.columns import Column
from recsys.inspect.overlap import IdSet
from recsys.inspect.tables import Pair, Table
from recsys.inspect.vocabulary import FRIEND, HEAD, ITEM, RELATION, TAIL, USER
from recsys.values.overlap import SideIds, compare

_SOME: Final = 0.3  # similarity of ids from which two columns have the same meaning
_LITTLE: Final = 0.03  # the same, if the names agree
_NAMED: Final = 0.7


def assign_roles(tables: Sequence[Table], events: Pair) -> None:
    """Assign every other table its role, or the reason why it is left out."""
    users, items = IdSet(events.user), IdSet(events.item)
    for table in tables:
        if table is events.table or table.role:
            continue
        _place(table, events, users, items)
    for role in ("items", "users"):
        _keep_one(tables, role)


def as_stated_friends(table: Table, events: Pair) -> None:
    """Make a table that the user gave as social edges such a table: the columns named like people,
    or else its first two columns of ids.
    """
    ids = sorted({c.name: c for c in (*table.id_columns, *table.keys)}.values(), key=_place_of)
    named = [c for c in ids if max(table.like(c, USER), table.like(c, FRIEND)) >= _NAMED]
    people = named if len(named) >= 2 else ids
    if len(people) >= 2:
        _as_friends(table, people, IdSet(events.user))


def _place_of(column: Column) -> int:
    return column.place


def _place(table: Table, events: Pair, users: IdSet, items: IdSet) -> None:
    named = {column.name: column for column in (*table.id_columns, *table.keys)}
    candidates = list(named.values())
    sets = {column.name: IdSet(column) for column in candidates}
    user_like = {name: ids.likeness(users) for name, ids in sets.items()}
    item_like = {name: ids.likeness(items) for name, ids in sets.items()}

    def of_user(column: Column) -> float:
        said = max(table.like(column, USER), table.like(column, FRIEND))
        return 0.6 * said + user_like[column.name]

    def of_item(column: Column) -> float:
        return 0.6 * table.like(column, ITEM) + item_like[column.name]

    def is_user(column: Column) -> bool:
        said = max(table.like(column, USER), table.like(column, FRIEND)) >= _NAMED
        return user_like[column.name] >= (_LITTLE if said else _SOME) and of_user(
            column
        ) >= of_item(column)

    def is_item(column: Column) -> bool:
        said = table.like(column, ITEM) >= _NAMED
        return item_like[column.name] >= (_LITTLE if said else _SOME) and of_item(
            column
        ) >= of_user(column)

    people = sorted((c for c in candidates if is_user(c)), key=of_user, reverse=True)
    things = sorted((c for c in candidates if is_item(c)), key=of_item, reverse=True)
    if _is_facts(table):
        _as_facts(table, items)
        return
    # by their names, even if no user occurs twice
    are_friends = len(people) >= 2 and all(
        table.like(column, FRIEND) >= _NAMED for column in people[:2]
    )
    if len(people) >= 2 and not things and (are_friends or not people[0].is_key):
        _as_friends(table, people, users)
        return
    if (
        people
        and things
        and not (people[0].is_key or things[0].is_key)
        and _may_be_events(table, people[0], events)
    ):
        table.names = {people[0].name: "user_id", things[0].name: "item_id"}
        table.role = "more events"
        return
    keys = [
        c for c in (*people, *things) if c.num_distinct >= 0.9 * c.num_values and c.filled > 0.5
    ]
    if keys:
        key = max(keys, key=lambda c: max(of_user(c), of_item(c)))
        role = "users" if key in people else "items"
        known, noun = (users, "users") if role == "users" else (items, "items")
        table.role, table.names = role, {key.name: "user_id" if role == "users" else "item_id"}
        table.shares = f"{sets[key.name].share_in(known):.0%} of its ids are {noun} in the events"
        if len([c for c in table.columns if c.kind not in ("empty", "constant", "object")]) < 2:
            alike = [c.name for c in table.columns if c.kind in ("empty", "constant")]
            why = f"besides ids it has only {', '.join(alike)}, which is empty or constant"
            table.role, table.why = "", why if alike else "it has only ids"
        return
    if things and len(table.columns) >= 2:
        _as_categories(table, things[0], items)
        return
    best = max([*user_like.values(), *item_like.values()], default=0.0)
    table.why = (
        "no ids in common with the events"
        if best < _LITTLE
        else "its ids are neither unique nor links"
    )
    for column in table.id_columns if best < _LITTLE else ():
        for words, known, wanted in (
            (USER, users, "user_id"),
            (FRIEND, users, "user_id"),
            (ITEM, items, "item_id"),
        ):
            if table.like(column, words) >= _NAMED and (
                cause := _other_form(column, sets[column.name], known, wanted)
            ):
                table.why = cause


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
    return not has_time or any(column.kind == "time" for column in table.columns)


def _as_friends(table: Table, people: Sequence[Column], users: IdSet) -> None:
    one, two = sorted(people[:2], key=lambda column: column.place)
    table.role = "social"
    table.names = {one.name: "src_user_id", two.name: "dst_user_id"}
    share = IdSet(one, two).share_in(users)
    table.shares = f"{share:.0%} of its users are in the events"
    for column in table.columns:
        if (
            column.kind == "number"
            and column.name not in table.names
            and table.like(column, ("weight", "strength", "trust")) >= 0.8
        ):
            table.names[column.name] = "weight"
            break


def _is_facts(table: Table) -> bool:
    """Whether the columns are head, relation and tail."""
    said = [
        any(table.like(c, words) >= 0.8 for c in table.columns) for words in (HEAD, RELATION, TAIL)
    ]
    if all(said):
        return True
    if len(table.columns) != 3 or table.sample.has_names and not said[1]:
        return False
    middle = table.columns[1]
    ends = (table.columns[0], table.columns[2])
    return (
        middle.kind == "token"
        and middle.num_distinct <= min(500, 0.1 * middle.num_values)
        and all(end.may_be_id and end.num_distinct > middle.num_distinct for end in ends)
    )


def _as_facts(table: Table, items: IdSet) -> None:
    columns = table.columns
    if all(any(table.like(c, words) >= 0.8 for c in columns) for words in (HEAD, RELATION, TAIL)):
        found = [
            max(columns, key=lambda column: table.like(column, words))
            for words in (HEAD, RELATION, TAIL)
        ]
    else:
        found = list(columns[:3])
    shared = max(IdSet(found[0]).common(items), IdSet(found[2]).common(items))
    if len({column.name for column in found}) < 3 or not shared:
        table.why = "facts whose ids match no item of the events"
        return
    table.role = "knowledge"
    table.names = dict(zip((c.name for c in found), ("head", "relation", "tail"), strict=True))
    table.shares = f"about {shared:,} items in the events"


def _as_categories(table: Table, key: Column, items: IdSet) -> None:
    """Read several rows per item as facts: the categories of the item."""
    others = [
        c
        for c in table.columns
        if c is not key and c.kind in ("token", "number", "flag", "text") and c.num_distinct > 1
    ]
    others = [c for c in others if c.kind != "number" or c.is_whole]
    if not others:
        table.why = "several rows per item, but no category"
        return
    relation = next(
        (
            c
            for c in others
            if table.like(c, RELATION) >= 0.8 and c.num_distinct <= 0.5 * c.num_values
        ),
        None,
    )
    others = [c for c in others if c is not relation] or others
    tail = max(others, key=lambda c: (c.is_wordy, -c.place))
    table.role = "knowledge"
    table.names = {key.name: "head", tail.name: "tail"}
    if relation is not None and relation is not tail:
        table.names[relation.name] = "relation"
    table.shares = f"{IdSet(key).share_in(items):.0%} of its ids are items in the events"


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

    def value(table: Table) -> float:
        total = sum(worth.get(column.kind, 0) for column in table.columns)
        return total + 0.001 * math.log1p(table.sample.num_rows)

    best = max(found, key=value)
    for table in found:
        if table is not best:
            table.role = ""
            table.why = (
                f"a second table of {role} next to {best.sample.name}; join them into one file to"
                " use both"
            )

"""Tables of pairs: friends, lists of friends, triples, and several rows of an item as triples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import pyarrow.compute as pc

from recsys import schema
from recsys.inspect.columns import Column
from recsys.inspect.common_names import (
    FRIEND,
    HEAD,
    IDS,
    RELATION,
    TAIL,
    TIME,
    singular,
    words_of,
)
from recsys.inspect.common_values import IdSet
from recsys.inspect.sampled_tables import Table, pairs
from recsys.sources.list_cells import ListForm, as_lists, members_as_rows
from recsys.values.arrow_types import is_list, is_list_of_cells, is_string

_HALF: Final = 0.5  # least share of the ids of a link that are items
_NEARLY_ALL: Final = 0.9
_NO_ITEMS: Final = "triples whose ids match no item of the events"
_NUMBERED: Final = 500  # most numbered relations
_SOME: Final = 0.3  # similarity of ids from which two columns have the same meaning
_MARKS: Final = (",", "|", ";", " ")  # separators of lists of friends
_PERIODS: Final = (*TIME, "week", "week_no", "month", "quarter", "period")
_REPEATED: Final = 1.2  # times that a pair has on average, from which it says what held when
_ALL_PAIRS: Final = 0.5  # share of all pairs of items and categories from which they say nothing


def as_friends(table: Table, people: Sequence[Column], users: IdSet) -> None:
    """Give a table of two users a row the role of friends.

    Parameters
    ----------
    table : Table
        The table; its role, names and shares are set.
    people : Sequence[Column]
        Its columns of users, at least two.
    users : IdSet
        The users of the events.
    """
    one, two = sorted(people[:2], key=lambda column: column.position)
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


def add_friends(tables: list[Table], users: IdSet) -> None:
    """Add a table of friends if a table of users has lists of them, such as ``friends`` of Yelp."""
    for place, table in enumerate(tables):
        key = next((name for name, to in table.names.items() if to == "user_id"), "")
        if table.role != "users" or not table.sample.has_names:
            continue
        for column in table.columns:
            mark = _mark_of_friends(table, column, users) if column.name != key else None
            if mark is None:
                continue
            rows = members_as_rows(table.sample.rows, {column.name: ListForm(mark)})[0]
            friends = Table.of(replace(table.sample, rows=rows, num_rows=len(rows)))
            friends.role = "social"
            friends.names = {key: "src_user_id", column.name: "dst_user_id"}
            friends.lists = {column.name: mark}
            ids = IdSet(friends.column(key), friends.column(column.name))
            friends.shares = f"{ids.share_in(users):.0%} of its users are in the events"
            table.columns.remove(column)
            if len(table.columns) == 1:  # the users and their friends
                tables[place] = friends
            else:
                tables.append(friends)
            return


def _mark_of_friends(table: Table, column: Column, users: IdSet) -> str | None:
    """The separator of a column's lists if they are lists of users, "" for lists of JSON; else
    None.
    """
    cells = table.sample.rows.column(column.name).combine_chunks()
    if not is_list_of_cells(cells.type) and not is_string(cells.type):
        return None
    is_named = any(word in FRIEND for word in core_words(column.name))
    best, least = None, 0.0 if is_named else _SOME
    for mark in ("",) if is_list(cells.type) else _MARKS:
        lists = as_lists(cells, ListForm(mark))
        members = pc.unique(pc.list_flatten(lists))
        if len(members) < 2 or pc.max(pc.list_value_length(lists)).as_py() < 2:
            continue
        known = int(pc.sum(pc.is_in(members, value_set=users.ids)).as_py() or 0)
        share = known / len(members)
        # numbers from 1 are users by chance, so there the name must say that they are friends
        if share > least and (is_named or not users.is_count):
            best, least = mark, share
    return best


def is_triples(table: Table, items: IdSet) -> bool:
    """Whether the columns are head, relation and tail."""
    by_name = [
        any(table.like(c, words) >= 0.8 for c in table.columns) for words in (HEAD, RELATION, TAIL)
    ]
    if all(by_name):
        return True
    # without names only the structure can tell, so it must be exactly three columns
    if len(table.columns) != 3 or table.sample.has_names and not by_name[1]:
        return False
    middle = table.columns[1]
    ends = (table.columns[0], table.columns[2])
    if middle.kind != "token":  # relations may be numbered, but then the heads must be items
        heads = IdSet(ends[0])
        is_numbered = middle.is_whole and middle.num_distinct <= _NUMBERED and not ends[0].is_key
        if not is_numbered or heads.common(items) < _SOME * len(items):
            return False
    return (
        # relations are few, and entities are many
        middle.num_distinct <= min(500, 0.1 * middle.num_values)
        and all(end.may_be_id and end.num_distinct > middle.num_distinct for end in ends)
    )


def as_triples(table: Table, items: IdSet, tables: Sequence[Table]) -> None:
    """Give a table the role of triples, if its heads or tails are items of the events, or entities
    that another table gives the items.

    Parameters
    ----------
    table : Table
        The table; its role and names are set, or the reason why it has none.
    items : IdSet
        The items of the events.
    tables : Sequence[Table]
        All tables. One that gives the items their entities gets the column ``entity_id``, and the
        role of items or of links.
    """
    columns = table.columns
    if all(any(table.like(c, words) >= 0.8 for c in columns) for words in (HEAD, RELATION, TAIL)):
        found = [
            max(columns, key=lambda column: table.like(column, words))
            for words in (HEAD, RELATION, TAIL)
        ]
    else:
        found = list(columns[:3])
    if len({column.name for column in found}) < 3:
        table.why = _NO_ITEMS
        return
    ends = IdSet(found[0]), IdSet(found[2])  # items may be heads or tails
    shared = max(end.common(items) for end in ends)
    link = _link(tables, ends, items) if shared < _NEARLY_ALL * len(items) else None
    if link is None and not shared:
        table.why = _NO_ITEMS
        return
    table.role = "knowledge"
    table.names = dict(zip((c.name for c in found), ("head", "relation", "tail"), strict=True))
    table.shares = f"about {shared:,} items in the events"
    if link is not None:
        other, key, entity = link
        # items only with attributes, so that they can also come from columns of the events
        other.role, other.why = ("links" if len(other.columns) == 2 else "items"), ""
        other.names = {key.name: schema.ITEM_ID, entity.name: schema.ENTITY_ID}
        other.shares = f"{IdSet(key).share_in(items):.0%} of its ids are items in the events"
        table.shares = f"{entity.name} of {other.sample.name} gives the items their entities"


def _link(
    tables: Sequence[Table], ends: Sequence[IdSet], items: IdSet
) -> tuple[Table, Column, Column] | None:
    """The table that gives the items their entities in the triples, with its columns of items and
    of entities; None if there is none. Besides the table of items, a table of two columns can.
    """
    for table in sorted(tables, key=lambda table: table.role != "items"):
        is_pair = len(table.columns) == 2 and table.role in ("", "users", "items")
        keys = [c for c in table.columns if table.names.get(c.name) == schema.ITEM_ID]
        if not (is_pair or table.role == "items" and keys):
            continue
        for key in table.columns if is_pair else keys:
            for entity in table.columns:
                if (
                    entity is not key
                    and key.is_key
                    and entity.may_be_id
                    and IdSet(key).share_in(items) >= _HALF
                    and max(IdSet(entity).share_in(end) for end in ends) >= _NEARLY_ALL
                ):
                    return table, key, entity
    return None


def as_categories(table: Table, key: Column, items: IdSet) -> None:
    """Read several rows per item as triples: the categories of the item.

    Parameters
    ----------
    table : Table
        The table; its role and names are set, or the reason why it has none.
    key : Column
        Its column of items.
    items : IdSet
        The items of the events.
    """
    others = [
        c
        for c in table.columns
        if c is not key and c.kind in ("token", "number", "flag", "text") and c.num_distinct > 1
    ]
    # a fraction is a quantity, not a category
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
    tail = max(others, key=lambda c: (c.is_wordy, -c.position))
    most = _ALL_PAIRS * key.num_distinct * tail.num_distinct
    if relation is None and tail.num_distinct > 1 and table.num_pairs(key, tail) > most:
        table.why = (
            f"nearly every item has every {tail.name}, which tells nothing; write only the rows"
            " that hold, such as those with a large weight, into a file"
        )
        return
    if period := _repeats_over(table, key, tail):
        table.why = (
            f"its pairs of {key.name} and {tail.name} repeat over {period.name}, so they say what"
            " held at a time, such as an offer, and not what an item is; write the pairs that"
            " always hold into a file"
        )
        return
    table.role = "knowledge"
    table.names = {key.name: "head", tail.name: "tail"}
    if relation is not None and relation is not tail:
        table.names[relation.name] = "relation"
    table.shares = f"{IdSet(key).share_in(items):.0%} of its ids are items in the events"


def _repeats_over(table: Table, key: Column, tail: Column) -> Column | None:
    """The column of times, such as weeks, over which pairs of items and values repeat; None if
    there is none.
    """
    for column in table.columns:
        is_period = column.kind == "time" or table.like(column, _PERIODS) >= 0.8
        if column in (key, tail) or not is_period or column.num_distinct < 2:
            continue
        if pairs(key, tail, column) >= _REPEATED * pairs(key, tail):
            return column
    return None


def core_words(name: str) -> tuple[str, ...]:
    """The words of a name in the singular, without those that say that it is an id.

    >>> core_words("aisle_id"), core_words("Aisles"), core_words("ID")
    (('aisle',), ('aisle',), ())
    """
    return tuple(singular(word) for word in words_of(name) if word not in IDS)

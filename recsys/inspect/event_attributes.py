"""Columns of the events that describe the item or the user, and why others are not used."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import SourceError
from recsys.inspect.columns import OBJECTS, Column
from recsys.inspect.common_names import (
    ITEM,
    SESSION,
    TEXT,
    TIME,
    USER,
    has_id,
    similarity,
    words_of,
)
from recsys.inspect.common_values import IdSet
from recsys.inspect.event_pairs import Pair
from recsys.inspect.forms import TextForm
from recsys.inspect.sampled_tables import Table, determines
from recsys.inspect.shown_lists import names_shown
from recsys.inspect.time_columns import part_of
from recsys.sources.list_cells import ListForm, as_lists

_CATEGORY: Final = 0.5  # most distinct values per row for a column that groups rows
_ALWAYS: Final = 0.98  # the same, for ids of groups of items
_TELLS: Final = 0.5  # threshold of :func:`determines`, for texts and categories
_TELLS_NUMBER: Final = 0.25
_LOOKED_AT: Final = 2000  # cells that may be lists
_SOME_ITEMS: Final = 0.2  # least share of items among the members of a list of items
_NEXT: Final = {"next", "last", "target", "label"}
_NAMED: Final = 0.7
_NO_PART: Final = 1e6  # larger numbers are no part of a time and no duration
_HALF: Final = 0.5  # least share of last items that the lists have, too
_FEW_USERS: Final = 10  # fewer values of many rows are likely no users …
_MANY: Final = 200  # … from this number of rows on


def attributes_of_events(
    table: Table, user: Column, item: Column, left: Sequence[Column]
) -> tuple[list[Column], list[Column]]:
    """Find event columns that describe the item, and those that describe the user, as in a
    denormalised export.

    Parameters
    ----------
    table : Table
        The table of events.
    user : Column
        Its user column.
    item : Column
        Its item column.
    left : Sequence[Column]
        Columns that have no other use.

    Returns
    -------
    list[Column]
        Columns that are constant, or nearly so, for an item.
    list[Column]
        Columns that are so for a user.
    """
    of_items, of_users = [], []
    for column in left:
        if _has_items(column, item):
            continue
        if (
            column.kind in ("empty", "constant", "object", "time", "vector", "lists")
            or column.num_distinct < 2
        ):
            continue
        if (
            similarity(column.name, SESSION) >= 0.8
            or column.kind == "number"
            and column.is_whole
            and has_id(column.name)
            and not _groups_items(item, column)
        ):
            continue
        by_item, by_user = determines(item, column), determines(user, column)
        # prices of one item change over time, so a number needs less
        least = _TELLS_NUMBER if column.is_numeric else _TELLS
        by_name = max(similarity(column.name, TEXT), similarity(column.name, ITEM))
        # the name decides where both fit about equally
        if by_item >= least and by_item + 0.2 * by_name >= by_user:
            of_items.append(column)
        elif by_user >= least:
            of_users.append(column)
    return of_items, of_users


def refuse_histories(pair: Pair) -> None:
    """Refuse rows of a session each, with its history in a list and its last item in a column.

    Why: read as events they are one event per user, from which nothing can be learned.

    Raises
    ------
    SourceError
        The table of events has such rows; the message says how to write them as sequences.
    """
    sample, user, item = pair.table.sample, pair.user, pair.item
    form = sample.form
    if isinstance(form, TextForm) and user.name in pair.table.owners:
        for last in _last_items(pair):
            raise SourceError(_history(pair, item, last))
    are_repeated = item.num_distinct < _CATEGORY * item.num_values
    if not (user.is_key and are_repeated and isinstance(form, TextForm)):
        return
    history = next((c for c in pair.table.columns if c is not item and _has_items(c, item)), None)
    if history is None or history is user or (history.mark or " ") != " ":
        return
    if history.is_list:
        raise SourceError(_history(pair, history, item))
    positions = user.position + 1, history.position + 1, item.position + 1
    begin = "NR > 1 " if sample.has_names else ""
    raise SourceError(history_message(sample.name, positions, form.separator, begin))


def _last_items(pair: Pair) -> list[Column]:
    """The column with the item after those of the list, if the rows have one."""
    table, known = pair.table, IdSet(pair.item)
    named = [c for c in table.columns if c.may_be_id and _NEXT & {*words_of(c.name)}]
    others = [c for c in named if c.name not in (pair.user.name, *table.lists)]
    return [c for c in others if IdSet(c).share_in(known) >= _HALF][:1]


def _history(pair: Pair, history: Column, last: Column) -> str:
    cure = _lines_of_csv(pair, (history, last), f"r[{pair.user.position}]")
    return _needs_lines(pair.table.sample.name, history.name, last.name, cure)


def _needs_lines(file: str, history: str, last: str, cure: str) -> str:
    return (
        f"{file} has a row for each user or session: the earlier items are in {history}, the last"
        f" item is in {last}; write lines of USER ITEM ITEM …, e.g. with {cure}; of several files,"
        " take the one with the longest histories"
    )


def refuse_lists_without_users(pair: Pair) -> None:
    """Refuse rows with a list of items each, but without a column of users or sessions.

    Raises
    ------
    SourceError
        The likeliest column of users has a few values, such as countries; the message says how to
        number the rows.
    """
    table, user, item = pair.table, pair.user, pair.item
    if not has_few_users(pair):
        return
    if item.name in table.lists:
        columns = [item, *_last_items(pair)]
    else:
        columns = [c for c in table.columns if c not in (user, item) and _has_items(c, item)][:1]
        columns += [item] * len(columns)
    if not columns:
        return
    names = [column.name for column in columns]
    how = "add a column with the number of the row"
    if isinstance(table.sample.form, TextForm):
        how = f"number the rows, e.g. with {_lines_of_csv(pair, columns, 'n')}, and read that file"
    raise SourceError(
        f"{table.sample.name} has a list of items in each row, in {' and '.join(names)}, but no"
        f" column of users or sessions: {user.name} has only {user.num_distinct} values, such as"
        f" {user.example}; {how}"
    )


def has_few_users(pair: Pair) -> bool:
    """Whether a column without the name of users, and with a few values, is that of the users for
    want of a better one, such as the countries of a shop.
    """
    table, user = pair.table, pair.user
    is_named = max(table.like(user, USER), table.like(user, SESSION)) >= _NAMED
    is_few = user.num_distinct < _FEW_USERS and user.num_values >= _MANY
    return is_few and not is_named and table.sample.has_names


def _lines_of_csv(pair: Pair, columns: Sequence[Column], user: str) -> str:
    """A command that writes lines of USER ITEM ITEM … from rows with written lists.

    Parameters
    ----------
    pair : Pair
        The table of events.
    columns : Sequence[Column]
        Its columns of items, in order of time.
    user : str
        The user in Python: of the row r, or its number n.
    """
    sample = pair.table.sample
    assert isinstance(sample.form, TextForm)
    mark = "" if sample.form.separator == "," else f", delimiter={sample.form.separator!r}"
    mark = mark.replace("'", '"')
    cells = ' + " " + '.join(f"r[{column.position}]" for column in columns)
    members = rf'*re.findall(r"[^][\s,\x27\x22]+", {cells})'
    skipped = "next(rows); " if sample.has_names else ""
    rows = f'rows = csv.reader(open("{sample.name}"){mark})'
    lines = f"[print({user}, {members}) for n, r in enumerate(rows)]"
    return f"python -c 'import csv, re; {rows}; {skipped}{lines}' > sequences.txt"


def history_message(
    file: str, positions: tuple[int, int, int], separator: str, begin: str = "NR > 1 "
) -> str:
    """Say how to write rows of a user, its history and its last item as sequences.

    Parameters
    ----------
    file : str
        Name of the file.
    positions : tuple[int, int, int]
        Columns of the user, the history and the last item, from 1.
    separator : str
        What separates the columns.
    begin : str
        Condition of awk, which skips a header.
    """
    own = ", ".join(f"${position}" for position in positions)
    cure = f"awk -F {separator!r} '{begin}{{print {own}}}' {file} > sequences.txt"
    return _needs_lines(file, f"column {positions[1]}", f"column {positions[2]}", cure)


def _has_items(column: Column, item: Column) -> bool:
    """Whether the cells are lists of items, such as what the user had read before."""
    if column.kind in ("number", "time", "flag") or not len(column.values.drop_null()):
        return False
    cells = column.values.drop_null().slice(0, _LOOKED_AT)
    lists = as_lists(cells, ListForm(column.mark or " "))
    # one item a cell is another item, such as that of the page
    if (pc.mean(pc.list_value_length(lists)).as_py() or 0.0) <= 1.5:
        return False
    members = pc.unique(pc.list_flatten(lists))
    known = pc.mean(pc.is_in(members, value_set=IdSet(item).ids).cast(pa.int8())).as_py() or 0.0
    return float(known) > _SOME_ITEMS


def _groups_items(item: Column, column: Column) -> bool:
    """Whether a column is the id of a group of items, such as their category or brand."""
    return (
        1 < column.num_distinct <= _CATEGORY * item.num_distinct
        and determines(item, column) >= _ALWAYS
    )


def is_unread_time(column: Column) -> bool:
    """Whether a column is named as a time, and its cells are no times in a known form."""
    return _is_named_time(column) and not _is_part_of_time(column)


def _is_named_time(column: Column) -> bool:
    is_large = column.kind == "number" and column.low > _NO_PART
    return (column.kind in ("token", "text") or is_large) and similarity(column.name, TIME) >= 0.8


def _is_part_of_time(column: Column) -> bool:
    """Whether the cells are an hour, a weekday or a time of day, without a date."""
    is_few = re.fullmatch(r"\D*\d{0,2}\D*", column.example) is not None
    is_clock = re.match(r"\d{1,2}:\d{2}", column.example) is not None
    return is_clock or is_few and part_of(column.name) is not None


def _why_no_time(column: Column) -> str:
    if _is_part_of_time(column):
        return f"a part of a time such as {column.example}, without the date that belongs to it"
    return (
        f"named as a time, but a cell such as {column.example} is not read as one; write"
        f" 2023-03-01 09:13:38, or add {column.name}: timestamp to data.source.rename.events and"
        " the form of the cells as data.source.time_format: '%d.%m.%Y %H:%M:%S' (strptime)"
    )


def why_unused(column: Column, items: Column, users: Column) -> str:
    """Why a column of the events is not used.

    Parameters
    ----------
    column : Column
        The column that is not used.
    items : Column
        The item column of the same table.
    users : Column
        The user column of the same table.

    Returns
    -------
    str
        The reason, for a person.
    """
    fixed = {
        "empty": "empty",
        "constant": column.constant_words,
        "object": OBJECTS,
        "time": "a second time; only the time of the event is used",
        "vector": "vectors are read from a table of items only",
        "lists": "lists are read from a table of items only",
    }
    if column.kind in ("object", "list", "lists") and names_shown(column.name):
        return "lists of what was shown to the user; only what the user did is an event"
    if _has_items(column, items):
        return "lists of items, such as a history; only the events in rows are read"
    if column.kind in fixed:
        return fixed[column.kind]
    if column.filled < 0.5 and similarity(column.name, USER) >= 0.8:
        return f"has a value in only {column.filled:.0%} of the rows"
    if _is_named_time(column):
        return _why_no_time(column)
    if similarity(column.name, SESSION) >= 0.8:
        return "identifies the visit or order, not the item or the user"
    if column.kind == "number" and column.is_whole and has_id(column.name):
        return "ids of something else"
    if column.is_key or column.num_distinct > _CATEGORY * column.num_values:
        return "nearly all values are different"
    by_item, by_user = determines(items, column), determines(users, column)
    if max(by_item, by_user) >= _TELLS:
        noun = "items" if by_item >= by_user else "users"
        return f"describes {noun}, which have a table of their own: add the column there to use it"
    return (
        f"not constant per item or user (predicted {by_item:.0%} and {by_user:.0%} better than by"
        " chance)"
    )

"""Columns of the events that describe the item or the user, and why others are not used."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import pyarrow.compute as pc

from recsys.errors import SourceError
from recsys.inspect.column_uses import are_ids
from recsys.inspect.columns import OBJECTS, Column
from recsys.inspect.common_names import (
    ITEM,
    SESSION,
    TEXT,
    TIME,
    USER,
    has_id,
    similarity,
)
from recsys.inspect.common_values import IdSet
from recsys.inspect.event_pairs import Pair
from recsys.inspect.forms import TextForm
from recsys.inspect.sampled_tables import Table, determines
from recsys.inspect.shown_lists import names_shown
from recsys.inspect.time_columns import part_of

_CATEGORY: Final = 0.5  # most distinct values per row for a column that groups rows
_ALWAYS: Final = 0.98  # the same, for ids of groups of items
_TELLS: Final = 0.5  # threshold of :func:`determines`, for texts and categories
_TELLS_NUMBER: Final = 0.25


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
    are_repeated = item.num_distinct < _CATEGORY * item.num_values
    if not (user.is_key and are_repeated and isinstance(form, TextForm)):
        return
    history = next((c for c in pair.table.columns if c is not item and _has_items(c, item)), None)
    if history is None or history is user or (history.mark or " ") != " ":
        return
    positions = user.position + 1, history.position + 1, item.position + 1
    begin = "NR > 1 " if sample.has_names else ""
    raise SourceError(history_message(sample.name, positions, form.separator, begin))


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
    return (
        f"{file} has a row for each user or session, with the items before in column {positions[1]}"
        f" and the last one in column {positions[2]}; write lines of USER ITEM ITEM …, e.g. with"
        f" awk -F {separator!r} '{begin}{{print {own}}}' {file} > sequences.txt, of the file with"
        " the longest histories"
    )


def _has_items(column: Column, item: Column) -> bool:
    """Whether the cells are lists of items, such as what the user had read before."""
    if column.kind in ("number", "time", "flag") or not len(column.values.drop_null()):
        return False
    lists = pc.split_pattern(column.values.drop_null().slice(0, 200), column.mark or " ")
    # one item a cell is another item, such as that of the page
    is_list = (pc.mean(pc.list_value_length(lists)).as_py() or 0.0) > 1.5
    return is_list and are_ids(replace(column, mark=column.mark or " "), IdSet(item))


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
    return column.kind in ("token", "text") and similarity(column.name, TIME) >= 0.8


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
        "constant": "the same value in every row",
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

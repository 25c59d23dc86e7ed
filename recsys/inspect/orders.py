"""Events that are lines of orders: the user, and often the time, are columns of the order, or only
in the first of its lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import pyarrow.compute as pc

from recsys.inspect.columns import Column
from recsys.inspect.common_names import (
    SESSION,
    STATUS,
    USER,
    has_id,
    similarity,
)
from recsys.inspect.common_values import IdSet
from recsys.inspect.event_pairs import Pair
from recsys.inspect.sampled_tables import FEW, Table
from recsys.inspect.samples import together

_NAMED: Final = 0.7
_REFERS: Final = 0.9  # share of the orders of the events that the table of orders has
_ALL: Final = 0.98  # least share of the orders that have one first line
_SOME: Final = 0.05  # least share of lines that are not the first one
_FEWER: Final = 0.9  # most people per order
_HALF: Final = 0.5  # least share of rows with an id


def with_orders(pair: Pair, tables: Sequence[Table]) -> Pair:
    """The events with the columns of the orders that they refer to, if the user is a column of
    these; else the pair itself.

    Why: in a shop's database the lines of an order name the order, and only the order names the
    customer.
    """
    table, visit = pair.table, pair.user
    # a column that is named after people is no order, whatever its ids have in common
    if table.like(visit, USER) >= _NAMED or table.like(visit, SESSION) < _NAMED:
        return pair
    for other in tables:
        if other is table or not (table.sample.has_names and other.sample.has_names):
            continue
        for key in other.keys:
            if other.like(key, SESSION) < _NAMED and not has_id(key.name):
                continue
            if IdSet(visit).share_in(IdSet(key)) < _REFERS:
                continue
            people = [
                column
                for column in other.columns
                if column.may_be_id
                and not column.is_key
                and other.like(column, USER) >= _NAMED
                # people order more than once; a column with a value per order is another key
                and column.num_distinct < _FEWER * key.num_distinct
            ]
            if people:
                pair = _with_more_lines(pair, key, tables)
                return _joined(pair, other, key, max(people, key=lambda c: other.like(c, USER)))
            if further := _person_of_record(other, key, tables):
                record, people_table, people_key, person = further
                pair = _joined(_with_more_lines(pair, key, tables), other, key, record)
                return _joined(pair, people_table, people_key, person)
    return pair


def with_first_lines(pair: Pair) -> Pair:
    """The events with the columns that only the first line of their order has, such as customer and
    time, if one of them is the user, a time or a state; else the pair itself.

    Why: the export of a shop (Shopify) leaves them empty in the further lines.
    """
    table = pair.table
    lacking = [
        column
        for column in table.columns
        if 0 < column.filled < _ALL
        and (column.name == pair.user.name or column.kind == "time" or _is_state(column))
    ]
    orders = [
        (key, column)
        for column in lacking
        for key in table.columns
        if key.kind != "time" and key.filled >= _ALL and _is_in_first_line(column, key)
    ]
    if not orders or not table.sample.has_names:
        return pair
    key, column = orders[0]
    is_further = pc.is_null(column.values)
    firsts = pc.index_in(key.values, value_set=key.values)
    rows = table.sample.rows
    for other in table.columns:
        if other.num_values and not pc.any(pc.is_valid(other.values.filter(is_further))).as_py():
            cells = rows.column(other.name).combine_chunks().take(firsts)
            rows = rows.set_column(rows.column_names.index(other.name), other.name, cells)
    return pair.with_rows(rows, lookups={**table.lookups, key.name: table})


def _is_state(column: Column) -> bool:
    return similarity(column.name, STATUS) >= _NAMED


def _is_in_first_line(column: Column, key: Column) -> bool:
    """Whether a key has a cell in its first row alone, and many keys have further rows. Orders of
    guests may have no cell at all.
    """
    is_first = pc.is_valid(column.values)
    firsts = key.values.filter(is_first)
    if pc.count_distinct(firsts).as_py() < _ALL * len(firsts):
        return False
    others = key.values.filter(pc.invert(is_first))
    others = others.filter(pc.is_in(others, value_set=firsts))
    if len(others) < _SOME * len(key.values):
        return False
    filled = column.values.take(pc.index_in(others, value_set=key.values))
    return bool(filled.null_count <= (1 - _REFERS) * len(filled))


def _person_of_record(
    orders: Table, key: Column, tables: Sequence[Table]
) -> tuple[Column, Table, Column, Column] | None:
    """The column of orders that refers to a table of people by a number for each order, that table,
    its key, and its column that tells the same person; None if there is none.
    """
    for column in orders.columns:
        if not column.may_be_id or orders.like(column, USER) < _NAMED:
            continue
        for table in tables:
            if table is orders or not table.sample.has_names:
                continue
            for other in table.keys:
                if table.like(other, USER) < _NAMED:
                    continue
                if IdSet(column).share_in(IdSet(other)) < _REFERS:
                    continue
                people = [
                    c
                    for c in table.id_columns
                    if c is not other
                    and table.like(c, USER) >= _NAMED
                    and has_id(c.name)
                    and _HALF * other.num_distinct < c.num_values
                    and FEW < c.num_distinct < key.num_distinct
                ]
                if people:
                    return column, table, other, max(people, key=lambda c: c.num_distinct)
    return None


def _with_more_lines(pair: Pair, key: Column, tables: Sequence[Table]) -> Pair:
    """The pair with the lines of other orders, which are in files with the same columns."""
    ours, orders = IdSet(pair.user), IdSet(key)
    parts = [pair.table.sample]
    for table in tables:
        if table.sample.signature != parts[0].signature or table.sample.files == parts[0].files:
            continue
        theirs = IdSet(table.column(pair.user.name))
        if theirs.share_in(orders) >= _REFERS and not theirs.common(ours):
            parts.append(table.sample)
    if len(parts) == 1:
        return pair
    sample = together(parts)
    return pair.with_rows(sample.rows, sample=sample)


def _joined(pair: Pair, orders: Table, key: Column, person: Column) -> Pair:
    """The pair with the columns of orders in its table and a person as user."""
    rows = pair.table.sample.rows
    positions = pc.index_in(pair.user.values, value_set=key.values)
    for name in orders.sample.rows.column_names:
        if name not in (*rows.column_names, key.name):
            cells = orders.sample.rows.column(name).combine_chunks()
            rows = rows.append_column(name, cells.take(positions))
    column = pair.user.name
    refers = column if column == key.name else f"{column} = {key.name}"
    lookups = {**pair.table.lookups, refers: orders}
    found = pair.with_rows(rows, lookups=lookups)
    orders.role = "lookup"
    return replace(found, user=found.table.column(person.name))

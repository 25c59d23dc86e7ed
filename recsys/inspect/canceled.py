"""Rows of events that did not take place or show no interest: canceled orders, refunds, test
orders, items that were shown and not clicked, or not recommended, and parts of other rows.

Why: exports keep them, marked by a flag or a status. As events they teach a model what people did
not want. A column that describes the item or the user marks no single event and is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from recsys.inspect.columns import Column, has_known
from recsys.inspect.common_names import CANCELED, CANCELED_STATES, CLICKED, STATUS, words_of
from recsys.inspect.event_columns import columns_of_events
from recsys.inspect.event_pairs import Pair
from recsys.inspect.interest_flags import NO, YES, is_yes_no, tells_interest, tells_likes, texts_of
from recsys.sources.dropped import ANY, has_values

_MOST_STATES: Final = 30
_MOST: Final = 0.5  # largest share of rows that a column may mark; above it, the mark is the norm
_NEARLY: Final = 0.95
_SOME: Final = 0.3  # the same for times of what rarely happens, such as a refund


def without_canceled(pair: Pair) -> Pair:
    """The pair without the rows that a flag or a status marks as no event; ``table.drop`` says
    which.
    """
    table, rows = pair.table, pair.table.sample.rows
    if not table.sample.has_names:
        return pair
    marked = {column.name: marks for column in table.columns if (marks := _marks(column))}
    parts = {column.name: [ANY] for column in table.columns if _names_whole(pair, column)}
    if not marked and not parts:
        return pair
    used = columns_of_events(pair).names
    drop = {
        name: marks
        for name, marks in marked.items()
        if name not in used
        and not pair.is_described_by(table.column(name))
        and (
            _share(rows, {name: marks}) <= _MOST
            or tells_interest(table.column(name))
            or _is_click(table.column(name))
        )
    } | parts
    if not drop:
        return pair
    kept = rows.filter(pc.invert(has_values(rows, drop)))
    return pair.with_rows(kept, drop=drop, dropped=1 - kept.num_rows / rows.num_rows)


def why_marked(column: Column, marks: Sequence[str]) -> str:
    """What happens to the rows that a column marks, and to those without a value, such as the
    further lines of an order whose first line alone has the status.
    """
    if marks == [""]:
        return "rows without a value, which were shown and not chosen, are left out"
    words = f"rows with {'a value' if marks == [ANY] else ' or '.join(marks)} are left out"
    if column.filled == 1 or marks == [ANY]:
        return words
    return (
        f"{words}, and the {1 - column.filled:.0%} of the others without a value are kept: write"
        " the value into every line of an order that has it in its first line only"
    )


def _marks(column: Column) -> list[str]:
    """The values, in lower case, that mark a row as no event."""
    words = words_of(column.name)
    if column.kind == "time":  # set when it happened
        is_mark = any(word in CANCELED for word in words) and column.filled <= _SOME
        return [ANY] if is_mark else [""] if _is_click(column) else []
    if tells_interest(column) or tells_likes(column):
        return [text for text in texts_of(column) if text in NO]
    if is_yes_no(column):
        is_mark = any(word in CANCELED for word in words) or words[-2:] == ["is", "test"]
        return [text for text in texts_of(column) if text in YES] if is_mark else []
    if column.kind != "token" or column.num_distinct > _MOST_STATES:
        return []
    if not any(word.endswith(STATUS) for word in words):
        return []
    return [text for text in texts_of(column) if has_known(text, CANCELED_STATES)]


def _names_whole(pair: Pair, column: Column) -> bool:
    """Whether a column names another row of the same user, of which the row is a part: a shirt, of
    which the row is the size, or a bundle. Both rows together are one purchase.
    """
    if "parent" not in words_of(column.name) or column.filled in (0.0, 1.0):
        return False
    users = pair.user.values
    is_part = pc.is_valid(column.values)
    for key in pair.table.keys:
        wholes = users.take(pc.index_in(column.values, value_set=key.values))
        is_same = pc.fill_null(pc.equal(users, wholes), False).filter(is_part)
        if (pc.mean(is_same.cast(pa.int8())).as_py() or 0.0) >= _NEARLY:
            return True
    return False


def _is_click(column: Column) -> bool:
    """Whether a column has the time of a click, for the rows that were clicked."""
    is_named = any(word in CLICKED for word in words_of(column.name))
    return column.kind == "time" and is_named and column.filled < 1


def _share(rows: pa.Table, marks: dict[str, list[str]]) -> float:
    return float(pc.mean(has_values(rows, marks).cast(pa.int8())).as_py())

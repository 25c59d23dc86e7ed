"""Rows of events that did not take place: canceled orders, refunds, test orders, items that were
shown and not clicked.

Why: exports keep them, marked by a flag or a status. As events they teach a model what people did
not want. A column that describes the item or the user marks no single event and is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from recsys.inspect.columns import Column, bare_tokens, has_known
from recsys.inspect.common_names import CANCELED, CANCELED_STATES, CLICKED, STATUS, words_of
from recsys.inspect.event_columns import columns_of_events
from recsys.inspect.event_pairs import Pair
from recsys.sources.dropped import has_values

_YES: Final = ("1", "true", "t", "yes", "y")
_NO: Final = ("0", "false", "f", "no", "n")
_MOST_STATES: Final = 30
_MOST: Final = 0.5  # largest share of rows that a column may mark; above it, the mark is the norm


def without_canceled(pair: Pair) -> Pair:
    """The pair without the rows that a flag or a status marks as no event; ``table.drop`` says
    which.
    """
    table, rows = pair.table, pair.table.sample.rows
    if not table.sample.has_names:
        return pair
    marked = {column.name: marks for column in table.columns if (marks := _marks(column))}
    if not marked:
        return pair
    used = columns_of_events(pair).names
    drop = {
        name: marks
        for name, marks in marked.items()
        if name not in used
        and not pair.is_described_by(table.column(name))
        and (_share(rows, {name: marks}) <= _MOST or _tells_clicks(table.column(name)))
    }
    if not drop:
        return pair
    kept = rows.filter(pc.invert(has_values(rows, drop)))
    return pair.with_rows(kept, drop=drop, dropped=1 - kept.num_rows / rows.num_rows)


def why_marked(column: Column, marks: Sequence[str]) -> str:
    """What happens to the rows that a column marks, and to those without a value, such as the
    further lines of an order whose first line alone has the status.
    """
    words = f"rows with {' or '.join(marks)} are left out"
    if column.filled == 1:
        return words
    return (
        f"{words}, and the {1 - column.filled:.0%} of the others without a value are kept: write"
        " the value into every line of an order that has it in its first line only"
    )


def _marks(column: Column) -> list[str]:
    """The values, in lower case, that mark a row as no event."""
    words = words_of(column.name)
    if _tells_clicks(column):
        return [text for text in _texts(column) if text in _NO]
    if column.kind == "flag":
        is_mark = any(word in CANCELED for word in words) or words[-2:] == ["is", "test"]
        return [text for text in _texts(column) if text in _YES] if is_mark else []
    if column.kind != "token" or column.num_distinct > _MOST_STATES:
        return []
    if not any(word.endswith(STATUS) for word in words):
        return []
    return [text for text in _texts(column) if has_known(text, CANCELED_STATES)]


def _tells_clicks(column: Column) -> bool:
    """Whether a flag tells the items that the user chose from those that were only shown."""
    words = words_of(column.name)
    is_named = any(word in CLICKED for word in words[-1:]) or words[-2:] == ["not", "skipped"]
    return column.kind == "flag" and is_named


def _texts(column: Column) -> list[str]:
    return sorted({str(value).strip().lower() for value in bare_tokens(column)})


def _share(rows: pa.Table, marks: dict[str, list[str]]) -> float:
    return float(pc.mean(has_values(rows, marks).cast(pa.int8())).as_py())

"""Row rules: from raw columns to typed columns and a reason for each bad row; vectorised, without
exceptions.

Why: one broken row among millions must go to the quarantine with file, row and reason. It must not
stop the run and must not become a null. These rules check each row alone; ``prepare`` applies rules
that need other rows (duplicates, unknown users).

A missing cell (empty, or ``nan``, ``None`` …: see :mod:`recsys.values.cells`) is an error in an id,
and means "unknown time", "default type" or "value 1" elsewhere. A wrong cell (``inf``, text instead
of a number, an invalid time) makes the row bad.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.sources.list_cells import ListForm
from recsys.sources.lookup import Lookup
from recsys.sources.time_columns import BAD_CLOCK, BAD_DATE, BAD_TIMESTAMP, TimeColumns
from recsys.values.absent import DEFAULT_RULES, CellRules
from recsys.values.cells import as_text, extra, graded, ids, numbers
from recsys.values.time_forms import ACCEPTED
from recsys.values.times import timestamps

__all__ = ["CellRules", "Layout", "check_rows", "extra", "ids", "numbers", "timestamps"]

UNREADABLE: Final = "unreadable row"
BAD_VALUE: Final = "value is not a finite number"
BAD_WEIGHT: Final = "bad weight"
NEGATIVE_WEIGHT: Final = "negative weight (distrust)"
BAD_SPLIT: Final = "bad split"
SELF_LOOP: Final = "self-loop"
REPEATED_HEADER: Final = "repeated header"

SPLITS: Final = ("train", "valid", "test")
SPLIT_WORDS: Final = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev", "validate"), "valid"),
    **dict.fromkeys(("test", "testing", "te", "holdout", "eval", "evaluation"), "test"),
}
"""The usual names of the splits in files, in lower case."""
SPLIT_CODES: Final = {"0": "train", "1": "valid", "2": "test"}
"""The usual numbers of the splits in a column."""
HINTS: Final = {
    BAD_TIMESTAMP: (
        f"{ACCEPTED}; for any other format set data.source.time_format (strptime, e.g. '%d/%m/%Y"
        " %H:%M'), and to 'serial' for the serial dates of spreadsheets (44162.91); years alone are"
        " not accepted: write such times as text"
    ),
    BAD_DATE: (
        "data.source.date_columns expects a year of four digits, a month as a number from 1 to 12"
        " or as a name, and a day of that month"
    ),
    BAD_CLOCK: (
        "data.source.clock as a list expects whole numbers: hours from 0 to 23, minutes and seconds"
        " from 0 to 59, and {column: unit} whole numbers of less than a day; name one column with a"
        " text such as 10:30 without a list"
    ),
    BAD_VALUE: (
        "expected a number such as 2.5; set data.source.decimal to ',' if the source writes 2,5,"
        " give ratings in words their numbers in data.source.values ({Good: 4}), and add a text"
        " that means a missing value to data.source.absent"
    ),
    BAD_WEIGHT: (
        "expected a number such as 2.5; set data.source.decimal to ',' if the source writes 2,5"
    ),
    BAD_SPLIT: f"expected {', '.join(SPLITS)} or an empty cell",
}
"""The expected form and the cure for reasons that do not name them, for messages."""
_RAW_LIMIT: Final = 2000  # characters of a bad row that are stored
_PROVENANCE: Final = {
    schema.FILE: pa.string(),
    schema.ROW: pa.int64(),
    schema.ORDER: pa.int64(),
    schema.REASON: pa.string(),
    schema.RAW: pa.string(),
}


@dataclass(frozen=True)
class Layout:
    """The columns of one table of a source: known columns, extra columns, provenance."""

    table: schema.TableSchema
    extras: tuple[tuple[str, pa.DataType], ...] = ()
    rules: CellRules = DEFAULT_RULES
    # canonical columns with a list of values in each row
    lists: tuple[tuple[str, ListForm], ...] = ()
    lookups: tuple[Lookup, ...] = ()
    times: TimeColumns = TimeColumns()  # the columns that have the times together
    drop: tuple[tuple[str, tuple[str, ...]], ...] = ()  # column → values, in lower case, to drop

    @property
    def arrow(self) -> pa.Schema:
        """The schema of each block; all columns are nullable, because bad rows may lack any
        value.
        """
        return pa.schema([*self.table.columns.items(), *self.extras, *_PROVENANCE.items()])


def missing(column: str) -> str:
    """The reason of a row without an id.

    >>> missing("user_id")
    'missing user_id'
    """
    return f"missing {column}"


def check_rows(raw: pa.Table, layout: Layout) -> pa.Table:
    """Cast the columns of ``raw`` to the layout and give each bad row its first reason.

    Parameters
    ----------
    raw : pa.Table
        Columns with canonical names, of any type; missing columns get defaults.
    layout : Layout
        Columns and types of the result.

    Returns
    -------
    pa.Table
        Known and extra columns and ``_reason`` (null: good), with the rows of ``raw``.
    """
    count = raw.num_rows
    columns: dict[str, pa.Array] = {}
    verdicts: list[tuple[str, pa.Array]] = []
    given = {name: _flat(raw.column(name)) for name in raw.column_names}
    for name in layout.table.required:
        columns[name] = (
            ids(given[name], layout.rules) if name in given else pa.nulls(count, pa.string())
        )
        # first, because the first reason of a row is shown, and a row without an id cannot be used
        # at all
        verdicts.append((missing(name), pc.is_null(columns[name])))
    together = layout.times.read(given, layout.rules)
    for name, kind in layout.table.optional.items():
        if name == schema.TIMESTAMP and together is not None:
            columns[name], found = together
            verdicts += found
            continue
        if name not in given:
            columns[name] = _default(name, kind, count)
            continue
        columns[name], verdict = _optional(name, given[name], layout.rules)
        if verdict is not None:
            verdicts.append(verdict)
    if layout.table == schema.SOCIAL:  # not "is": a piece that a task reads is a copy
        distrust = pc.less(columns[schema.WEIGHT], 0.0)
        verdicts.append((NEGATIVE_WEIGHT, pc.fill_null(distrust, False)))
        loops = pc.equal(columns[schema.SRC_USER_ID], columns[schema.DST_USER_ID])
        verdicts.append((SELF_LOOP, pc.fill_null(loops, False)))
    for name, kind in layout.extras:
        columns[name] = (
            extra(given[name], kind, layout.rules) if name in given else pa.nulls(count, kind)
        )
    columns[schema.REASON] = _reasons(verdicts, count)
    return pa.table(columns)


def finish(checked: pa.Table, layout: Layout, provenance: Mapping[str, pa.Array]) -> pa.Table:
    """Add file, row, order and raw text to checked rows, in the order of the layout; missing
    columns are null.

    Parameters
    ----------
    checked : pa.Table
        Checked rows, with a reason for each bad one.
    layout : Layout
        The columns of the table.
    provenance : Mapping[str, pa.Array]
        Provenance column → its values.

    Returns
    -------
    pa.Table
        A block with the schema of the layout.
    """
    count = checked.num_rows
    arrays = {**{name: checked.column(name) for name in checked.column_names}, **provenance}
    columns = [
        arrays[f.name] if f.name in arrays else pa.nulls(count, f.type) for f in layout.arrow
    ]
    return pa.table(columns, schema=layout.arrow)


def bad_rows(
    layout: Layout, reason: str, file: str, rows: list[int], texts: list[str], order: list[int]
) -> pa.Table:
    """A block of bad rows of which only the text is known.

    Parameters
    ----------
    layout : Layout
        The columns of the table.
    reason : str
        Why the rows are bad; the same for all.
    file : str
        Name of the file.
    rows : list[int]
        Number of each row in the file, from 1.
    texts : list[str]
        Text of each row; it is cut to a limit.
    order : list[int]
        Position of each row in the order of the data.

    Returns
    -------
    pa.Table
        A block with the schema of the layout; all other columns are null.
    """
    count = len(rows)
    arrays = {
        schema.FILE: pa.array([file] * count, pa.string()),
        schema.ROW: pa.array(rows, pa.int64()),
        schema.ORDER: pa.array(order, pa.int64()),
        schema.REASON: pa.array([reason] * count, pa.string()),
        schema.RAW: pa.array([text[:_RAW_LIMIT] for text in texts], pa.string()),
    }
    return pa.table(
        [arrays.get(f.name, pa.nulls(count, f.type)) for f in layout.arrow], schema=layout.arrow
    )


def raw_text(raw: pa.Table, reasons: pa.ChunkedArray, delimiter: str) -> pa.Array:
    """The text of bad rows, cells joined by the delimiter; null for good rows.

    Parameters
    ----------
    raw : pa.Table
        The rows as they were read.
    reasons : pa.ChunkedArray
        The reason of each bad row; null for good rows.
    delimiter : str
        Joins the cells.
    """
    is_bad = pc.is_valid(reasons)
    if raw.num_columns == 0 or not pc.any(is_bad).as_py():
        return pa.nulls(raw.num_rows, pa.string())
    # only bad rows need a text, and there are few
    bad = raw.filter(is_bad)
    cells = [as_text(_flat(column)) for column in bad.columns]
    joined = pc.binary_join_element_wise(
        *cells, delimiter, null_handling="replace", null_replacement=""
    )
    texts = pc.utf8_slice_codeunits(joined, 0, _RAW_LIMIT)
    rows = np.full(raw.num_rows, -1, dtype=np.int64)
    where = np.flatnonzero(np.asarray(is_bad))
    rows[where] = np.arange(len(where))
    return texts.take(pa.array(rows, mask=rows < 0))


def _optional(
    name: str, column: pa.Array, rules: CellRules
) -> tuple[pa.Array, tuple[str, pa.Array] | None]:
    """An optional known column with its type, and the rule that it can break."""
    if name == schema.TIMESTAMP:
        times, wrong = timestamps(column, rules)
        return times, (BAD_TIMESTAMP, wrong)
    if name == schema.VALUE:
        values, wrong = graded(column, rules)
        return pc.fill_null(values, schema.DEFAULT_VALUE), (BAD_VALUE, wrong)
    if name == schema.WEIGHT:
        weights, wrong = numbers(column, rules)
        return pc.fill_null(weights, 1.0), (BAD_WEIGHT, wrong)
    text = ids(column, rules)
    if name == schema.EVENT_TYPE:
        return pc.fill_null(text, schema.DEFAULT_EVENT_TYPE), None
    if name == schema.SPLIT:
        text = _standard_splits(text)
        known = pc.is_in(text, value_set=pa.array(SPLITS))
        return text, (BAD_SPLIT, pc.and_(pc.is_valid(text), pc.invert(known)))
    return text, None


def _standard_splits(texts: pa.Array) -> pa.Array:
    """Standard names of splits, from usual names in any case; other texts stay."""
    # there are few different texts, so Python looks at each once
    spelled = pc.unique(texts).drop_null().to_pylist()
    usual = {**SPLIT_WORDS, **SPLIT_CODES}
    words = {text: usual[text.lower()] for text in spelled if text.lower() in usual}
    words = {text: word for text, word in words.items() if text != word}
    for text, word in words.items():
        texts = pc.if_else(pc.equal(texts, text), word, texts)
    return texts


def _default(name: str, kind: pa.DataType, count: int) -> pa.Array:
    defaults: dict[str, Any] = {
        schema.EVENT_TYPE: schema.DEFAULT_EVENT_TYPE,
        schema.VALUE: schema.DEFAULT_VALUE,
        schema.WEIGHT: 1.0,
    }
    return (
        pa.repeat(pa.scalar(defaults[name], kind), count)
        if name in defaults
        else pa.nulls(count, kind)
    )


def _reasons(verdicts: list[tuple[str, pa.Array]], count: int) -> pa.Array:
    broken = [(reason, wrong) for reason, wrong in verdicts if pc.any(wrong).as_py()]
    if not broken:
        return pa.nulls(count, pa.string())
    conditions = pc.make_struct(
        *(wrong for _, wrong in broken), field_names=[str(i) for i in range(len(broken))]
    )
    return pc.case_when(conditions, *(pa.scalar(reason) for reason, _ in broken))


def _flat(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.chunks else pa.nulls(0, column.type)

"""Attributes as a run reads them, so that ``recsys init`` judges them by the same rules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from recsys.config import section_class
from recsys.data.attribute_fitter import FieldFitter
from recsys.data.attributes import rows_differ
from recsys.data.quantities import quantities
from recsys.inspect.columns import Column
from recsys.sources.validate import CellRules, numbers

_LISTS = ("path", "list", "lists", "vector")


def measure(columns: Sequence[Column], rules: CellRules, of: Column | None = None) -> list[str]:
    """Return the columns that measure items, such as a price, as the member ``place`` selects them.

    Parameters
    ----------
    columns : Sequence[Column]
        Columns of the table of items, or of the events.
    rules : CellRules
        Rules that decide which cells are numbers.
    of : Column | None
        For events: the column of the items; each item gets its first values.
    """
    return quantities(_table([column for column in columns if column.is_numeric], rules, of), [])


def distinguish_users(
    columns: Sequence[Column], rules: CellRules, of: Column | None = None
) -> bool:
    """Whether attributes distinguish users, as the member ``profile`` reads them; lists always
    count.

    Parameters
    ----------
    columns : Sequence[Column]
        Columns of the table of users, or of the events.
    rules : CellRules
        Rules that decide which cells are numbers.
    of : Column | None
        For events: the column of the users.
    """
    if any(column.kind in _LISTS for column in columns):
        return True
    if not columns:
        return False
    table = _table(columns, rules, of)
    settings = section_class("profile").model_validate({"fit": "counts"})
    fields = FieldFitter(table, np.ones(len(table), dtype=bool), settings, "user_fields", ()).fit()  # type: ignore[arg-type]
    return rows_differ(table, fields)


def _table(columns: Sequence[Column], rules: CellRules, of: Column | None) -> pa.Table:
    cells = {
        column.name: numbers(column.values, rules)[0] if column.is_numeric else column.values
        for column in columns
    }
    if of is None or not cells:
        return pa.table(cells)
    frame = pl.DataFrame(
        {
            "\0": pl.from_arrow(of.values),
            **{name: pl.from_arrow(values) for name, values in cells.items()},
        }
    )
    usual = (
        frame.drop_nulls("\0")
        .group_by("\0", maintain_order=True)
        .agg(pl.all().drop_nulls().first())
    )
    return usual.drop("\0").to_arrow()

"""Row rules: raw columns in, typed columns and a reason for every bad row out; vectorised, and never an exception.

Why: one broken row among millions must be named (file, row, reason) and set aside, not stop the run and not slip
through as a null. These rules look at one row alone; rules that need other rows (duplicates, unknown users) are the
business of ``prepare``.

An empty cell is *absent*: it is an error in an id, and means "unknown time", "default type", "value 1" elsewhere.
What is there but wrong (``NaN``, ``inf``, text for a number, a time that is none) makes the row bad.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.config.sources import ABSENT_TEXTS, CellSource

UNREADABLE: Final = "unreadable row"
BAD_TIMESTAMP: Final = "bad timestamp"
BAD_VALUE: Final = "value is not a finite number"
BAD_WEIGHT: Final = "bad weight"
BAD_SPLIT: Final = "bad split"
SELF_LOOP: Final = "self-loop"

SPLITS: Final = ("train", "valid", "test")
ABSENT: Final = ("", "nan", "NaN", "null", "NULL", "None", "<NA>", "\\N")  # texts that writers use for "no id"
LATEST: Final = 4_102_444_800_000_000  # 2100-01-01 in microseconds; times lie in [1970, 2100)
_RAW_LIMIT: Final = 2000  # characters of a bad row that are kept
_PROVENANCE: Final = {
    schema.FILE: pa.string(),
    schema.ROW: pa.int64(),
    schema.ORDER: pa.int64(),
    schema.REASON: pa.string(),
    schema.RAW: pa.string(),
}


@dataclass(frozen=True)
class CellRules:
    """How the text of a cell is understood; see :class:`recsys.config.sources.CellSource`."""

    absent: tuple[str, ...] = ABSENT_TEXTS
    time_format: str = ""
    decimal: str = "."

    @classmethod
    def of(cls, source: CellSource) -> CellRules:
        """Those of a source's configuration."""
        return cls(tuple(source.absent), source.time_format, source.decimal)


@dataclass(frozen=True)
class Layout:
    """The columns of one table as a source gives it: known ones, its own extra ones, provenance."""

    table: schema.TableSchema
    extras: tuple[tuple[str, pa.DataType], ...] = ()
    rules: CellRules = CellRules()

    @property
    def arrow(self) -> pa.Schema:
        """Schema of every block; all nullable, as bad rows may lack anything."""
        return pa.schema([*self.table.columns.items(), *self.extras, *_PROVENANCE.items()])


def missing(column: str) -> str:
    """The reason of a row that lacks an id.

    >>> missing("user_id")
    'missing user_id'
    """
    return f"missing {column}"


def check_rows(raw: pa.Table, layout: Layout) -> pa.Table:
    """Cast the columns of ``raw`` to the layout and give every row that breaks a rule its (first) reason.

    Args:
        raw: columns under their canonical names, of any type; those that are absent are filled with defaults.
        layout: what is wanted.

    Returns:
        The known and extra columns and ``_reason`` (null: good), row by row as in ``raw``.
    """
    count = raw.num_rows
    columns: dict[str, pa.Array] = {}
    verdicts: list[tuple[str, pa.Array]] = []
    given = {name: _flat(raw.column(name)) for name in raw.column_names}
    for name in layout.table.required:
        columns[name] = ids(given[name]) if name in given else pa.nulls(count, pa.string())
        verdicts.append((missing(name), pc.is_null(columns[name])))
    for name, kind in layout.table.optional.items():
        if name not in given:
            columns[name] = _default(name, kind, count)
            continue
        columns[name], verdict = _optional(name, given[name])
        if verdict is not None:
            verdicts.append(verdict)
    if layout.table is schema.SOCIAL:
        loops = pc.equal(columns[schema.SRC_USER_ID], columns[schema.DST_USER_ID])
        verdicts.append((SELF_LOOP, pc.fill_null(loops, False)))
    for name, kind in layout.extras:
        columns[name] = extra(given[name], kind) if name in given else pa.nulls(count, kind)
    columns[schema.REASON] = _reasons(verdicts, count)
    return pa.table(columns)


def finish(checked: pa.Table, layout: Layout, provenance: Mapping[str, pa.Array]) -> pa.Table:
    """Add file, row, order and raw text to checked rows, in the order of the layout; what is absent is null."""
    count = checked.num_rows
    arrays = {**{name: checked.column(name) for name in checked.column_names}, **provenance}
    columns = [arrays[f.name] if f.name in arrays else pa.nulls(count, f.type) for f in layout.arrow]
    return pa.table(columns, schema=layout.arrow)


def bad_rows(layout: Layout, reason: str, file: str, rows: list[int], texts: list[str], order: list[int]) -> pa.Table:
    """A block of rows of which nothing but the text is known."""
    count = len(rows)
    arrays = {
        schema.FILE: pa.array([file] * count, pa.string()),
        schema.ROW: pa.array(rows, pa.int64()),
        schema.ORDER: pa.array(order, pa.int64()),
        schema.REASON: pa.array([reason] * count, pa.string()),
        schema.RAW: pa.array([text[:_RAW_LIMIT] for text in texts], pa.string()),
    }
    return pa.table([arrays.get(f.name, pa.nulls(count, f.type)) for f in layout.arrow], schema=layout.arrow)


def raw_text(raw: pa.Table, reasons: pa.ChunkedArray, delimiter: str) -> pa.Array:
    """The bad rows as text, cells joined by the delimiter; null for good rows."""
    is_bad = pc.is_valid(reasons)
    if raw.num_columns == 0 or not pc.any(is_bad).as_py():
        return pa.nulls(raw.num_rows, pa.string())
    bad = raw.filter(is_bad)
    cells = [_as_text(_flat(column)) for column in bad.columns]
    joined = pc.binary_join_element_wise(*cells, delimiter, null_handling="replace", null_replacement="")
    texts = pc.utf8_slice_codeunits(joined, 0, _RAW_LIMIT)
    rows = np.full(raw.num_rows, -1, dtype=np.int64)
    where = np.flatnonzero(np.asarray(is_bad))
    rows[where] = np.arange(len(where))
    return texts.take(pa.array(rows, mask=rows < 0))


def ids(column: pa.Array) -> pa.Array:
    """Ids as trimmed strings; null where absent. Whole numbers stored as floats lose their ``.0``.

    >>> ids(pa.array([" a ", "", "NaN", "7"])).to_pylist()
    ['a', None, None, '7']
    >>> ids(pa.array([1.0, float("nan"), 2.5])).to_pylist()
    ['1', None, '2.5']
    """
    if pa.types.is_floating(column.type):
        values = column.to_numpy(zero_copy_only=False).astype(np.float64)
        whole = np.isfinite(values) & (np.abs(values) < 2**53) & (values == np.floor(values))
        whole_text = pa.array(np.where(whole, values, 0).astype(np.int64)).cast(pa.string())
        text = pc.if_else(pa.array(whole), whole_text, pa.array(values).cast(pa.string()))
        return pc.if_else(pa.array(np.isfinite(values)), text, None)
    text = pc.utf8_trim_whitespace(_as_text(column))
    absent = pc.is_in(text, value_set=pa.array(ABSENT, pa.string()))
    return pc.if_else(absent, None, text) if pc.any(absent).as_py() else text


def numbers(column: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Numbers as float64 (null where absent or wrong) and a mask of cells that hold anything but a finite number.

    >>> values, wrong = numbers(pa.array(["2.5", "", "inf", "x"]))
    >>> values.to_pylist(), wrong.to_pylist()
    ([2.5, None, None, None], [False, False, True, True])
    """
    if _is_text(column.type):
        series = pl.Series(pl.from_arrow(_as_text(column))).str.strip_chars()
        present = (series.is_not_null() & (series != "")).fill_null(False)
        values = series.cast(pl.Float64, strict=False)
    elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        values = pl.Series(pl.from_arrow(column.cast(pa.float64(), safe=False)))
        present = values.is_not_null()
    else:
        return pa.nulls(len(column), pa.float64()), pc.is_valid(column)
    fine = values.is_finite().fill_null(False)
    cleaned = pl.select(pl.when(fine).then(values)).to_series()
    return cleaned.to_arrow(), (present & ~fine).to_arrow()


def timestamps(column: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Times as microseconds UTC (null where absent or wrong) and a mask of cells that are no time in [1970, 2100).

    Numbers are seconds, milliseconds, microseconds or nanoseconds since the epoch, told apart by magnitude (below
    1e11, 1e14, 1e17, above). Texts may also be ISO 8601 dates or times; without a zone they are UTC.

    >>> times, wrong = timestamps(pa.array(["1000000000", "2001-09-09T01:46:40Z", "yesterday"]))
    >>> times.cast(pa.int64()).to_pylist(), wrong.to_pylist()
    ([1000000000000000, 1000000000000000, None], [False, False, True])
    """
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        naive = column.cast(pa.timestamp("us"), safe=False)
        micros = pl.Series(pl.from_arrow(naive.cast(pa.int64())))
        present = micros.is_not_null()
    elif _is_text(column.type):
        series = pl.Series(pl.from_arrow(_as_text(column))).str.strip_chars()
        present = (series.is_not_null() & (series != "")).fill_null(False)
        micros = _micros_of_text(series, present)
    elif pa.types.is_integer(column.type):
        micros = _micros_of_numbers(pl.Series(pl.from_arrow(column)).cast(pl.Int64, strict=False))
        present = pl.Series(pl.from_arrow(column)).is_not_null()
    elif pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        floats = pl.Series(pl.from_arrow(column.cast(pa.float64(), safe=False)))
        micros, present = _micros_of_numbers(floats), floats.is_not_null()
    else:
        return pa.nulls(len(column), schema.TIMESTAMP_TYPE), pc.is_valid(column)
    fine = micros.is_between(0, LATEST, closed="left").fill_null(False)
    cleaned = pl.select(pl.when(fine).then(micros)).to_series().cast(pl.Int64)
    return cleaned.to_arrow().cast(schema.TIMESTAMP_TYPE), (present & ~fine).to_arrow()


def extra(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """A column of the source's own in its declared type; cells that do not fit are null."""
    if column.type.equals(kind):
        return column
    if pa.types.is_floating(kind):
        return numbers(column)[0].cast(kind)
    if pa.types.is_list(kind) and pa.types.is_floating(kind.value_type) and _is_text(column.type):
        series = pl.Series(pl.from_arrow(_as_text(column))).str.strip_chars().str.split(" ")
        return series.cast(pl.List(pl.Float64), strict=False).to_arrow().cast(kind)
    if pa.types.is_string(kind):
        return _as_text(column)
    return column.cast(kind, safe=False)


def _micros_of_numbers(values: pl.Series) -> pl.Series:
    """Epoch numbers of any unit as microseconds; integers are never rounded through floats."""
    size = values.abs()
    scaled = pl.when(size < 1e11).then(values * 1_000_000).when(size < 1e14).then(values * 1_000)
    unit_known = scaled.when(size < 1e17).then(values)
    micros = unit_known.otherwise(values // 1_000)
    if values.dtype.is_float():
        micros = pl.when(values.is_finite()).then(micros.round()).cast(pl.Int64, strict=False)
    return pl.select(micros).to_series()


def _micros_of_text(series: pl.Series, present: pl.Series) -> pl.Series:
    whole = series.cast(pl.Int64, strict=False)
    micros = _micros_of_numbers(whole)
    if (present & micros.is_null()).any():
        fractions = _micros_of_numbers(series.cast(pl.Float64, strict=False))
        micros = micros.fill_null(fractions)
    left = present & micros.is_null()
    if left.any():
        rows = left.arg_true()
        micros = micros.scatter(rows, _micros_of_iso(series.gather(rows)))
    return micros


def _micros_of_iso(texts: pl.Series) -> pl.Series:
    """ISO 8601 texts as microseconds UTC, null where they are none."""
    plain = texts.str.to_uppercase().str.replace(r"^(\d{4})/(\d{1,2})/", "${1}-${2}-")
    plain = plain.str.replace(r"^(\d{4}-\d{1,2}-\d{1,2})T", "$1 ")
    plain = plain.str.replace(r" ?(Z|UTC|GMT)$", "+00:00").str.replace(r":(\d\d(?:\.\d+)?) ?([+-]\d\d)$", ":$1$2:00")
    found = pl.Series([None] * len(texts), dtype=pl.Int64)
    for layout in ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M"):
        naive = plain.str.to_datetime(layout, time_unit="us", strict=False)
        zoned = plain.str.replace(r" ([+-])", "$1").str.to_datetime(
            layout + "%z", time_unit="us", time_zone="UTC", strict=False
        )
        found = found.fill_null(naive.cast(pl.Int64)).fill_null(zoned.cast(pl.Int64))
    days = plain.str.to_date("%Y-%m-%d", strict=False).cast(pl.Int64)
    return found.fill_null(days * 86_400_000_000)


def _optional(name: str, column: pa.Array) -> tuple[pa.Array, tuple[str, pa.Array] | None]:
    """One optional known column, typed, and the rule it can break."""
    if name == schema.TIMESTAMP:
        times, wrong = timestamps(column)
        return times, (BAD_TIMESTAMP, wrong)
    if name == schema.VALUE:
        values, wrong = numbers(column)
        return pc.fill_null(values, schema.DEFAULT_VALUE), (BAD_VALUE, wrong)
    if name == schema.WEIGHT:
        weights, wrong = numbers(column)
        negative = pc.fill_null(pc.less(weights, 0.0), False)
        return pc.fill_null(weights, 1.0), (BAD_WEIGHT, pc.or_(wrong, negative))
    text = ids(column)
    if name == schema.EVENT_TYPE:
        return pc.fill_null(text, schema.DEFAULT_EVENT_TYPE), None
    if name == schema.SPLIT:
        known = pc.is_in(text, value_set=pa.array(SPLITS))
        return text, (BAD_SPLIT, pc.and_(pc.is_valid(text), pc.invert(known)))
    return text, None


def _default(name: str, kind: pa.DataType, count: int) -> pa.Array:
    defaults: dict[str, Any] = {
        schema.EVENT_TYPE: schema.DEFAULT_EVENT_TYPE,
        schema.VALUE: schema.DEFAULT_VALUE,
        schema.WEIGHT: 1.0,
    }
    return pa.repeat(pa.scalar(defaults[name], kind), count) if name in defaults else pa.nulls(count, kind)


def _reasons(verdicts: list[tuple[str, pa.Array]], count: int) -> pa.Array:
    broken = [(reason, wrong) for reason, wrong in verdicts if pc.any(wrong).as_py()]
    if not broken:
        return pa.nulls(count, pa.string())
    conditions = pc.make_struct(*(wrong for _, wrong in broken), field_names=[str(i) for i in range(len(broken))])
    return pc.case_when(conditions, *(pa.scalar(reason) for reason, _ in broken))


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
        or pa.types.is_string_view(kind) or (pa.types.is_dictionary(kind) and _is_text(kind.value_type))
    )  # fmt: skip


def _flat(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks) if column.chunks else (
        pa.nulls(0, column.type)
    )  # fmt: skip


def _as_text(column: pa.Array) -> pa.Array:
    if pa.types.is_string(column.type):
        return column
    try:
        return column.cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return pa.array([None if cell is None else str(cell) for cell in column.to_pylist()], pa.string())

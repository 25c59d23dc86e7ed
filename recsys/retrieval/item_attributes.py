"""Item attributes as columns, for filters, boosts and limits per category; stored in one file of a
bundle.

Why columns and not an object per item: a condition is one pass over an array, about a millisecond
for 10⁶ items, and the file is plain Parquet with dictionaries.

Legend: N items, X members of lists, C categories.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys import schema
from recsys.data.attributes import as_categories, is_number
from recsys.data.histories import Array
from recsys.data.titles import title_column
from recsys.errors import RequestError, valid_instead
from recsys.retrieval.conditions import BOUNDS, Condition, Value
from recsys.values.arrow_types import is_string, is_variable_list
from recsys.values.moment import moment
from recsys.values.times import timestamps

_TEXT: Final = "text"  # the column that the language model reads
# mean length in characters, above which a column is prose and not an attribute
_LONGEST_MEAN: Final = 80
_SEPARATORS: Final = re.compile(r"\s*[>/|›»]\s*")
_ISO_TIME: Final = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}.*)?$"
_NOWHERE: Final = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Numbers:
    """A column of numbers or times (seconds since the epoch); NaN where missing."""

    values_N: Array  # float64
    is_time: bool = False

    @property
    def num_items(self) -> int:
        """Number of items."""
        return len(self.values_N)

    def holds(self, condition: Condition, where: str) -> Array:
        """Whether the condition holds for each item: bool [N]; ``where`` names it for messages.

        Raises
        ------
        RequestError
            The operator or a value does not fit numbers or times.
        """
        operator = condition.operator
        if operator == "known":
            return np.asarray(np.isnan(self.values_N) != condition.values[0])
        if operator in ("all", "under"):
            raise RequestError(
                f"{where}: {condition.attribute} has {self._name}s, but {operator} works only for"
                " text or lists of text"
            )
        values = [self._read(value, where) for value in condition.values]
        if operator in BOUNDS:
            compare = {
                "lt": np.less,
                "le": np.less_equal,
                "gt": np.greater,
                "ge": np.greater_equal,
            }[operator]
            return np.asarray(compare(self.values_N, values[0]))
        is_there_N = (
            self.values_N == values[0] if len(values) == 1 else np.isin(self.values_N, values)
        )
        return np.asarray(is_there_N if operator == "in" else ~is_there_N)

    @property
    def _name(self) -> str:
        return "time" if self.is_time else "number"

    def _read(self, value: Value, where: str) -> float:
        if self.is_time:
            try:
                found = moment(value)
            except ValueError as error:
                raise RequestError(f"{where}: got {value!r}, {error}") from None
            if found is not None:
                return found.timestamp()
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                return math.inf if value > 0 else -math.inf
        raise RequestError(
            f"{where}: got {value!r} ({type(value).__name__}), expected a {self._name}"
        )


@dataclass(frozen=True)
class Categories:
    """A column of texts (also true/false), or of lists of texts."""

    codes_X: Array  # int32 positions in ``names``, −1 where missing; for lists one per member
    names: list[str]
    starts_N1: Array | None = None  # int64, for lists: where the members of each item begin

    @property
    def num_items(self) -> int:
        """Number of items."""
        return len(self.codes_X) if self.starts_N1 is None else len(self.starts_N1) - 1

    @cached_property
    def _codes(self) -> dict[str, int]:
        return {name: code for code, name in enumerate(self.names)}

    def holds(self, condition: Condition, where: str) -> Array:
        """As :meth:`Numbers.holds`; a category that no item has matches no item.

        Raises
        ------
        RequestError
            The condition is a bound, but the attribute has text values.
        """
        operator = condition.operator
        if operator in BOUNDS:
            raise RequestError(
                f"{where}: {condition.attribute} has text values, but {operator} works only for"
                " numbers and times; if the values are numbers, list the column in"
                " data.source.numbers and prepare again; write times like 2024-05-31 or"
                " 2024-05-31T17:30:00"
            )
        if operator == "known":
            return np.asarray(self._known_N == condition.values[0])
        if operator == "under":
            return self._under([str(value) for value in condition.values])
        codes = [self._codes.get(_text(value), -1) for value in condition.values]
        if operator == "all":
            return np.asarray(np.all([self._has([code]) for code in codes], axis=0))
        return self._has(codes) if operator == "in" else ~self._has(codes)

    def members(self, item: int) -> list[int]:
        """Codes of an item's categories; empty where they are missing."""
        span = (
            slice(item, item + 1)
            if self.starts_N1 is None
            else slice(*self.starts_N1[item : item + 2])
        )
        return [code for code in self.codes_X[span].tolist() if code >= 0]

    def _has(self, codes: Sequence[int]) -> Array:
        """Items that have one of these categories."""
        known = [code for code in codes if code >= 0]
        if len(known) == 1:
            return self._items(self.codes_X == known[0])
        wanted_C = np.zeros(len(self.names), dtype=bool)
        wanted_C[known] = True
        return self._any(wanted_C)

    @cached_property
    def _known_N(self) -> Array:
        """Items that have any category."""
        return self._items(self.codes_X >= 0)

    def _any(self, wanted_C: Array) -> Array:
        """Items that have a marked category."""
        # −1 reads the appended False
        return self._items(np.append(wanted_C, False).take(self.codes_X, mode="wrap"))

    def _items(self, wanted_X: Array) -> Array:
        """Items that have a marked member."""
        if self.starts_N1 is None:
            return np.asarray(wanted_X)
        found_N = np.zeros(len(self.starts_N1) - 1, dtype=bool)
        found_N[self._rows_X[np.flatnonzero(wanted_X)]] = True
        return found_N

    @cached_property
    def _rows_X(self) -> Array:
        """The item of every list member."""
        assert self.starts_N1 is not None, "only columns of lists have members"
        return np.repeat(
            np.arange(len(self.starts_N1) - 1, dtype=np.int32), np.diff(self.starts_N1)
        )

    def _under(self, given: list[str]) -> Array:
        """Items with a path that begins with these parts: in one text, or as list members in this
        order.
        """
        path = [part for text in given for part in _path_parts(text)]
        begins_C = np.array(
            [_path_parts(name)[: len(path)] == path for name in self.names], dtype=bool
        )
        found_N = self._any(begins_C)
        if self.starts_N1 is None or len(path) < 2:
            return found_N
        last_N = np.full(len(found_N), -1, dtype=np.int64)
        ascends_N = np.ones(len(found_N), dtype=bool)
        for part in path:
            positions = np.flatnonzero(self.codes_X == self._codes.get(part, -2))
            rows, firsts = np.unique(self._rows_X[positions], return_index=True)
            first_N = np.full(len(found_N), _NOWHERE)
            first_N[rows] = positions[firsts]
            ascends_N &= (first_N > last_N) & (first_N < _NOWHERE)
            last_N = first_N
        return np.asarray(found_N | ascends_N)


Column = Numbers | Categories


@dataclass(frozen=True)
class ItemAttributes:
    """The attributes of all items in dense order."""

    columns: dict[str, Column]
    num_items: int

    def mask(self, conditions: Iterable[Condition], where: str) -> Array:
        """Items for which all conditions hold: bool [N]; ``where`` names the filter, for messages.

        Raises
        ------
        RequestError
            An attribute is unknown, or a condition does not fit its values.
        """
        found_N = np.ones(self.num_items, dtype=bool)
        for condition in conditions:
            path_of_condition = f"{where}.{condition.where}"
            found_N &= self.column(condition.attribute, path_of_condition).holds(
                condition, path_of_condition
            )
        return found_N

    def column(self, name: str, where: str) -> Column:
        """An attribute by name; ``where`` names the rule, for messages.

        Raises
        ------
        RequestError
            There is no such attribute.
        """
        if name not in self.columns:
            known = valid_instead(
                name,
                self.columns,
                "the model knows",
                none="none, because the table of items has no column of numbers or categories",
            )
            raise RequestError(f"{where}: unknown attribute {name!r}; {known}")
        return self.columns[name]

    def categories(self, name: str, where: str) -> Categories:
        """An attribute with categories; ``where`` names the rule, for messages.

        Raises
        ------
        RequestError
            There is no such attribute, or it has numbers.
        """
        column = self.column(name, where)
        if isinstance(column, Numbers):
            raise RequestError(
                f"{where}: {name} has numbers, expected an attribute with categories"
            )
        return column

    @classmethod
    def of(cls, table: pa.Table, num_items: int) -> ItemAttributes:
        """Attributes from a table that :func:`attribute_table` made."""
        return cls({name: _column(table.column(name)) for name in table.column_names}, num_items)

    @classmethod
    def read(cls, path: Path, num_items: int) -> ItemAttributes:
        """Read attributes from their file.

        Raises
        ------
        pa.ArrowException
            The file is not a Parquet file of attributes.
        """
        return cls.of(pq.read_table(path), num_items)


def attribute_table(features: pa.Table, left_out: Iterable[str] = ()) -> pa.Table:
    """The columns of ``items/features.parquet`` that are attributes.

    These are numbers, times, true/false, categories and lists of categories; not ids, titles,
    prose, vectors and the columns ``left_out``.
    """
    skipped = {schema.ITEM_ID, schema.ENTITY_ID, _TEXT, *left_out}
    title = title_column(features)
    if title is not None and _names_items(features.column(title)):
        skipped.add(title)
    found = {}
    for name in features.column_names:
        column = None if name in skipped else _stored(features.column(name))
        if column is not None:
            found[name] = column
    return pa.table(found) if found else features.select([])


def _names_items(column: pa.ChunkedArray) -> bool:
    """Whether most texts are different, as for titles; brands and categories are shared by many
    items.
    """
    there = len(column) - column.null_count
    return bool(2 * pc.count_distinct(column, mode="only_valid").as_py() > there)


def _stored(column: pa.ChunkedArray) -> Any:
    """A column as stored in the file; None where it is not an attribute."""
    kind = column.type
    if is_number(kind):
        numbers = column.cast(pa.float64(), safe=False)
        # float64 rounds integers above 2⁵³; keys that it would make equal are categories
        if pa.types.is_floating(kind) or pc.count_distinct(numbers).equals(
            pc.count_distinct(column)
        ):
            return numbers
        return as_categories(column).dictionary_encode()
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        micros = pa.timestamp("us", tz=getattr(kind, "tz", None) and "UTC")
        # data frames have nanoseconds, which no filter needs
        return column.cast(options=pc.CastOptions(micros, allow_time_truncate=True))
    if is_variable_list(kind):
        inner = kind.value_type
        if not (is_string(inner) or pa.types.is_integer(inner) or pa.types.is_boolean(inner)):
            return None
        flat, lists = as_categories(pc.list_flatten(column)), column.combine_chunks()
        if _is_prose(flat):
            return None
        lengths = np.asarray(pc.list_value_length(lists).fill_null(0)).astype(np.int64)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]))
        flat = flat.combine_chunks() if isinstance(flat, pa.ChunkedArray) else flat
        return pa.LargeListArray.from_arrays(offsets, flat)
    if not (is_string(kind) or pa.types.is_boolean(kind)):
        return None
    texts = as_categories(column)
    times = _times(texts)
    if times is not None:
        return times
    return None if _is_prose(texts) else texts.dictionary_encode()


def _times(texts: pa.ChunkedArray) -> pa.Array | None:
    """The times of trimmed texts that are all ISO 8601, as CSV and JSON hold times; else None."""
    there = texts.drop_null()
    if not len(there) or not pc.all(pc.match_substring_regex(there, _ISO_TIME)).as_py():
        return None
    micros, is_wrong = timestamps(texts.combine_chunks())
    return None if pc.any(is_wrong).as_py() else micros


def _is_prose(texts: Any) -> bool:
    mean = pc.mean(pc.utf8_length(texts)).as_py()
    return mean is None or mean > _LONGEST_MEAN


def _column(column: pa.ChunkedArray) -> Column:
    kind = column.type
    if pa.types.is_floating(kind):
        return Numbers(np.asarray(column.fill_null(math.nan).combine_chunks()))
    if pa.types.is_timestamp(kind):
        # unsafe: after the year 2255, float64 rounds microseconds
        micros = column.cast(pa.int64()).cast(pa.float64(), safe=False).fill_null(math.nan)
        return Numbers(np.asarray(micros.combine_chunks()) / 1e6, is_time=True)
    if pa.types.is_large_list(kind):
        lists = column.combine_chunks()
        lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
        codes, names = _encoded(lists.flatten())
        starts_N1 = np.concatenate(
            [[0], np.cumsum(np.asarray(pc.list_value_length(lists)))]
        ).astype(np.int64)
        return Categories(codes, names, starts_N1)
    return Categories(*_encoded(column.combine_chunks()))


def _encoded(texts: Any) -> tuple[Array, list[str]]:
    texts = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    if not pa.types.is_dictionary(texts.type):
        texts = texts.dictionary_encode()
    return np.asarray(texts.indices.fill_null(-1)).astype(np.int32), texts.dictionary.to_pylist()


def _path_parts(text: str) -> list[str]:
    """The parts of a category path.

    >>> _path_parts("/Home/Kitchen"), _path_parts("Home > Kitchen >")
    (['Home', 'Kitchen'], ['Home', 'Kitchen'])
    """
    return [part for part in _SEPARATORS.split(text.strip()) if part]


def _text(value: Value) -> str:
    """A value as it is written in columns of categories: true/false in lower case, whole numbers
    without a point.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()

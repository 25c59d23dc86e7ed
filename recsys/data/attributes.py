"""Encode attributes of users and items as numbers: vocabularies, bins, statistics and rows.

Why: a prepared dataset and a request to a served model must use the same encoding. So it is fitted
once, on training rows only, and is stored with the model as plain JSON (see
``ModelSizes.profile``).

A row has a fixed number of slots: one for a number or a category, up to ``max_members`` for a list.
A slot holds a code: 0 is missing (in the field's first slot), 1 is unknown or rare, 2 and above are
a category or the quantile bin of a number, and -1 is the padding of lists. A number also has a
value: (x − median) / spread, clipped to [−3, 3].

Legend: X rows of a table, S slots, M numeric fields, P members of lists, K known members.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.histories import Array
from recsys.errors import DataError
from recsys.values.arrow_types import is_list, is_string

if TYPE_CHECKING:  # `prepare` and its workers read cells with this module, without torch
    import torch
    from torch import Tensor

NOT_GIVEN: Final = -2  # the request does not name the field
PADDING: Final = -1
MISSING: Final = 0
UNKNOWN: Final = 1
FIRST_KNOWN: Final = 2
_FARTHEST: Final = 3.0  # largest absolute value, in spreads from the median


@dataclass(frozen=True)
class Field:
    """How one attribute is encoded."""

    name: str
    kind: Literal["number", "category", "list"]
    slots: int = 1
    categories: tuple[str, ...] = ()  # position + 2 is the code; the most frequent first
    edges: tuple[float, ...] = ()  # between the bins of a number, increasing
    center: float = 0.0
    scale: float = 1.0

    @property
    def num_codes(self) -> int:
        """Number of codes, with those for missing and unknown."""
        known = len(self.edges) + 1 if self.kind == "number" else len(self.categories)
        return FIRST_KNOWN + known

    @property
    def example(self) -> float | str | list[str]:
        """An example of a value in a request."""
        if self.kind == "number":
            return self.center
        return self.categories[0] if self.kind == "category" else [self.categories[0]]

    def codes_of(self, values_X: Array) -> Array:
        """The code of each number's bin: [X] int64."""
        return np.searchsorted(np.array(self.edges), values_X, side="right") + FIRST_KNOWN

    def scaled(self, values_X: Array) -> Array:
        """The numbers in spreads from the median, clipped: [X] float64."""
        return np.clip((values_X - self.center) / self.scale, -_FARTHEST, _FARTHEST)


@dataclass(frozen=True)
class ProfileEncoding:
    """The fields of users and of items."""

    users: tuple[Field, ...]
    items: tuple[Field, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; :meth:`parse` reads them."""
        fields = {"users": self.users, "items": self.items}
        return {
            side: [
                {**asdict(f), "categories": list(f.categories), "edges": list(f.edges)}
                for f in found
            ]
            for side, found in fields.items()
        }

    @staticmethod
    def parse(content: Mapping[str, Any]) -> ProfileEncoding:
        """Read the result of :meth:`to_json` or ``dataclasses.asdict``."""

        def field(row: Mapping[str, Any]) -> Field:
            return Field(
                **{**row, "categories": tuple(row["categories"]), "edges": tuple(row["edges"])}
            )

        return ProfileEncoding(
            tuple(map(field, content["users"])), tuple(map(field, content["items"]))
        )


@dataclass(frozen=True)
class AttributeRows:
    """Encoded rows of users or items."""

    codes_XS: Tensor  # int32
    values_XM: Tensor  # float32, 0 where missing

    def take(self, rows: slice | Tensor) -> AttributeRows:
        """The given rows, in the given order."""
        return AttributeRows(self.codes_XS[rows], self.values_XM[rows])

    def to(self, device: torch.device) -> AttributeRows:
        """The rows on a device."""
        return AttributeRows(self.codes_XS.to(device), self.values_XM.to(device))


@dataclass(frozen=True)
class Profiles:
    """The encoded attributes of all users and items of a dataset."""

    users: AttributeRows
    items: AttributeRows

    def to(self, device: torch.device) -> Profiles:
        """Both tables on a device."""
        return Profiles(self.users.to(device), self.items.to(device))


def encode_table(table: pa.Table, fields: Sequence[Field]) -> AttributeRows:
    """Encode the rows of a table of users or items, in its order.

    Parameters
    ----------
    table : pa.Table
        Rows of users or items, with a column for every field.
    fields : Sequence[Field]
        The fitted fields.

    Returns
    -------
    AttributeRows
        Codes [X, S] int32 and values [X, M] float32.

    Raises
    ------
    DataError
        A column is missing, or is a list where the field is none, or the reverse.
    """
    import torch

    codes = [np.zeros((len(table), 0), dtype=np.int32)]
    values = [np.zeros((len(table), 0), dtype=np.float32)]
    for field in fields:
        column = _column_of(table, field)
        if field.kind == "number":
            numbers_X = as_numbers(column)
            known_X = ~np.isnan(numbers_X)
            codes.append(np.where(known_X, field.codes_of(numbers_X), MISSING)[:, None])
            values.append(np.where(known_X, field.scaled(numbers_X), 0.0)[:, None])
        elif field.kind == "category":
            codes.append(_codes(as_categories(column), field.categories)[:, None])
        else:
            codes.append(_list_codes(column, field))
    return AttributeRows(
        torch.as_tensor(np.concatenate(codes, axis=1).astype(np.int32)),
        torch.as_tensor(np.concatenate(values, axis=1).astype(np.float32)),
    )


def _column_of(table: pa.Table, field: Field) -> pa.ChunkedArray:
    """The column of a field; a dataset may be of another day than the model."""
    has_lists = field.kind == "list"
    found = "is missing"
    if field.name in table.column_names:
        column = table.column(field.name)
        if pa.types.is_null(column.type):
            return column.cast(pa.list_(pa.string()) if has_lists else pa.string())
        if is_list(column.type) == has_lists:
            return column
        found = f"has the type {column.type}"
    raise DataError(
        f"the model reads the attribute {field.name} as a {field.kind}, but the column {found} in"
        " the dataset; add it to the table of items or users as it was when the model was trained,"
        " or train a new model with `recsys run`"
    )


def as_numbers(column: pa.ChunkedArray) -> Array:
    """A column as float64, also from strings of numbers; NaN where a cell is no finite number."""
    if is_string(column.type):
        texts = pc.utf8_trim_whitespace(column.cast(pa.string()))
        is_number = pc.match_substring_regex(texts, r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
        column = pc.if_else(is_number, texts, None)
    column = column.cast(pa.float64(), safe=False)  # whole numbers above 2^53 are rounded
    numbers_X = np.asarray(column.fill_null(math.nan).combine_chunks())
    return np.where(np.isfinite(numbers_X), numbers_X, math.nan)


def as_categories(values: Any) -> Any:
    """Values as trimmed strings; null where the string is empty or the number is not finite."""
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_finite(values), values, None)
    texts = pc.utf8_trim_whitespace(values.cast(pa.string()))
    return pc.if_else(pc.equal(texts, ""), None, texts)


def _codes(texts: Any, categories: Sequence[str]) -> Array:
    positions = pc.index_in(texts, value_set=pa.array(categories, pa.string()))
    codes = np.asarray(pc.add(positions, FIRST_KNOWN).fill_null(UNKNOWN))
    return np.where(np.asarray(pc.is_null(texts)), MISSING, codes)


def _list_codes(column: pa.ChunkedArray, field: Field) -> Array:
    """The first known members of each list, at most ``field.slots`` of them. The code is
    ``UNKNOWN`` only where a list has no known member.
    """
    members, rows = members_of(column)
    codes_P = _codes(members, field.categories)
    out = np.full((len(column), field.slots), PADDING, dtype=np.int64)
    out[:, 0] = MISSING
    out[rows[codes_P == UNKNOWN], 0] = UNKNOWN
    known = np.flatnonzero(codes_P >= FIRST_KNOWN)
    rows_K = rows[known]
    starts_K = np.searchsorted(rows_K, rows_K, side="left")  # rows_K is sorted
    positions_K = np.arange(len(rows_K)) - starts_K
    fits_K = positions_K < field.slots
    out[rows_K[fits_K], positions_K[fits_K]] = codes_P[known][fits_K]
    return out


def members_of(column: pa.ChunkedArray) -> tuple[Any, Array]:
    """The members of all lists as strings, without empty ones, and the row of each member."""
    flat = as_categories(pc.list_flatten(column))
    rows = np.asarray(pc.list_parent_indices(column)).astype(np.int64)
    is_given = pc.is_valid(flat)
    return flat.filter(is_given), rows[np.asarray(is_given)]


def is_number(kind: pa.DataType) -> bool:
    """Whether an Arrow type is an integer, a float or a decimal."""
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )


def rows_differ(table: pa.Table, fields: Sequence[Field]) -> bool:
    """Whether any two rows of the table differ in these fields."""
    codes_XS = encode_table(table, fields).codes_XS
    return bool((codes_XS != codes_XS[:1]).any())


# ----------------------------------------------------------------------------------------- requests

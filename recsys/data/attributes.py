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
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.histories import Array
from recsys.errors import ConfigError, RequestError, choices
from recsys.values.absent import is_absent

if TYPE_CHECKING:  # `prepare` and its workers read cells with this module, without torch
    import torch
    from torch import Tensor

NOT_GIVEN: Final = -2  # the request does not name the field
PADDING: Final = -1
MISSING: Final = 0
UNKNOWN: Final = 1
FIRST_KNOWN: Final = 2
_FARTHEST: Final = 3.0  # largest absolute value, in spreads from the median
_NORMAL_QUARTILES: Final = 1.349  # interquartile range of the standard normal
# Least share of values that must be numbers or, in fields that the user did not name, that the
# categories must cover.
_ENOUGH: Final = 0.5


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


# ----------------------------------------------------------------------------------------- encoding


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
    """
    import torch

    codes = [np.zeros((len(table), 0), dtype=np.int32)]
    values = [np.zeros((len(table), 0), dtype=np.float32)]
    for field in fields:
        column = table.column(field.name)
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


def as_numbers(column: pa.ChunkedArray) -> Array:
    """A column as float64, also from strings of numbers; NaN where a cell is no finite number."""
    if _is_string(column.type):
        texts = pc.utf8_trim_whitespace(column.cast(pa.string()))
        is_number = pc.match_substring_regex(texts, r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
        column = pc.if_else(is_number, texts, None)
    numbers_X = np.asarray(column.cast(pa.float64()).fill_null(math.nan).combine_chunks())
    return np.where(np.isfinite(numbers_X), numbers_X, math.nan)


def as_categories(values: Any) -> Any:
    """Values as trimmed strings; null where the string is empty or the number is not finite."""
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_finite(values), values, None)
    texts = pc.utf8_trim_whitespace(values.cast(pa.string()))
    return pc.if_else(pc.equal(texts, ""), None, texts)


def _codes(texts: Any, categories: Sequence[str]) -> Array:
    places = pc.index_in(texts, value_set=pa.array(categories, pa.string()))
    codes = np.asarray(pc.add(places, FIRST_KNOWN).fill_null(UNKNOWN))
    return np.where(np.asarray(pc.is_null(texts)), MISSING, codes)


def _list_codes(column: pa.ChunkedArray, field: Field) -> Array:
    """The first known members of each list, at most ``field.slots`` of them. The code is
    ``UNKNOWN`` only where a list has no known member.
    """
    members, rows = _members(column)
    codes_P = _codes(members, field.categories)
    out = np.full((len(column), field.slots), PADDING, dtype=np.int64)
    out[:, 0] = MISSING
    out[rows[codes_P == UNKNOWN], 0] = UNKNOWN
    known = np.flatnonzero(codes_P >= FIRST_KNOWN)
    rows_K = rows[known]
    starts_K = np.searchsorted(rows_K, rows_K, side="left")  # rows_K is sorted
    places_K = np.arange(len(rows_K)) - starts_K
    fits_K = places_K < field.slots
    out[rows_K[fits_K], places_K[fits_K]] = codes_P[known][fits_K]
    return out


def _members(column: pa.ChunkedArray) -> tuple[Any, Array]:
    """The members of all lists as strings, without empty ones, and the row of each member."""
    flat = as_categories(pc.list_flatten(column))
    rows = np.asarray(pc.list_parent_indices(column)).astype(np.int64)
    kept = pc.is_valid(flat)
    return flat.filter(kept), rows[np.asarray(kept)]


# ------------------------------------------------------------------------------------------ fitting


class FieldSettings(Protocol):
    """The configuration keys of ``model.granularities.profile`` that decide how columns are
    read.
    """

    user_fields: list[str] | None
    item_fields: list[str] | None
    numeric: list[str]
    categorical: list[str]
    min_frequency: int
    max_categories: int
    max_members: int
    bins: int


@dataclass(frozen=True)
class FieldFitter:
    """Fits the encoding of a table on its ``active_X`` rows: users or items with training events.

    ``key`` is the configuration key that names the columns; error messages show it.
    """

    table: pa.Table
    active_X: Array
    config: FieldSettings
    key: Literal["user_fields", "item_fields"]
    left_out: tuple[str, ...]  # columns that are not attributes: ids, text

    def fit(self) -> tuple[Field, ...]:
        """Fit the fields that the configuration names, or every usable column if it names none.

        Raises
        ------
        ConfigError
            A named column does not exist or cannot be encoded.
        """
        wanted = getattr(self.config, self.key)
        unknown = [name for name in wanted or () if name not in self.columns]
        if unknown:
            raise self._error(
                f"{', '.join(unknown)} not among the columns; columns:"
                f" {choices(self.columns) or 'none'}"
            )
        names = self.columns if wanted is None else wanted
        found = (self._field(name, is_wanted=wanted is not None) for name in names)
        return tuple(field for field in found if field is not None)

    @property
    def columns(self) -> list[str]:
        """The columns that can be attributes."""
        return [name for name in self.table.column_names if name not in self.left_out]

    def _field(self, name: str, is_wanted: bool) -> Field | None:
        kind = self._kind(name)
        if kind is None:
            if is_wanted:
                got = self.table.column(name).type
                raise self._error(
                    f"{name} is {got}; expected numbers, texts, true/false, or lists of texts or"
                    " integers"
                )
            return None
        column = self.table.column(name).filter(pa.array(self.active_X))
        return (
            self._number(name, column, is_wanted)
            if kind == "number"
            else self._categories(name, column, is_wanted)
        )

    def _kind(self, name: str) -> str | None:
        kind = self.table.column(name).type
        if name in self.config.numeric:
            return "number" if is_number(kind) or _is_string(kind) else None
        if _is_list(kind):
            return (
                "list"
                if _is_string(kind.value_type) or pa.types.is_integer(kind.value_type)
                else None
            )
        if is_number(kind):
            return "category" if name in self.config.categorical else "number"
        return "category" if _is_string(kind) or pa.types.is_boolean(kind) else None

    def _number(self, name: str, column: pa.ChunkedArray, is_wanted: bool) -> Field | None:
        numbers_X = as_numbers(column)
        known = numbers_X[~np.isnan(numbers_X)]
        if len(known) < max(_ENOUGH * (len(column) - column.null_count), 1):
            if is_wanted or name in self.config.numeric:
                raise self._error(
                    f"{name} is read as numbers, but only {len(known)} of its"
                    f" {len(column) - column.null_count} values in the training split are numbers;"
                    " take it out of numeric, or fix the column"
                )
            return None
        low, center, high = np.quantile(known, [0.25, 0.5, 0.75])
        scale = (high - low) / _NORMAL_QUARTILES or float(known.std()) or 1.0
        edges = np.unique(
            np.quantile(known, np.arange(1, self.config.bins) / max(self.config.bins, 1))
        )
        # no value is below the minimum, so that bin would be empty
        edges = edges[edges > known.min()]
        return Field(name, "number", 1, (), tuple(edges.tolist()), float(center), float(scale))

    def _categories(self, name: str, column: pa.ChunkedArray, is_wanted: bool) -> Field | None:
        is_list, slots = _is_list(column.type), 1
        if is_list:
            texts, rows = _members(column)
            slots = min(int(np.bincount(rows).max(initial=1)), self.config.max_members)
        else:
            texts = as_categories(column)
        counted = pc.value_counts(texts.drop_null())
        frequency = dict(
            zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True)
        )
        ordered = sorted(frequency, key=lambda text: (-frequency[text], text))
        kept = [text for text in ordered if frequency[text] >= self.config.min_frequency][
            : self.config.max_categories
        ]
        covered = sum(frequency[text] for text in kept)
        if not kept or (not is_wanted and covered < _ENOUGH * sum(frequency.values())):
            if is_wanted:
                raise self._error(
                    f"{name} has no category in at least {self.config.min_frequency} rows of the"
                    " training split; lower min_frequency or leave the field out"
                )
            return None
        return Field(name, "list" if is_list else "category", slots, tuple(kept))

    def _error(self, message: str) -> ConfigError:
        return ConfigError(f"model.granularities.profile.{self.key}: {message}")


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_number(kind: pa.DataType) -> bool:
    """Whether an Arrow type is an integer, a float or a decimal."""
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def rows_differ(table: pa.Table, fields: Sequence[Field]) -> bool:
    """Whether any two rows of the table differ in these fields."""
    codes_XS = encode_table(table, fields).codes_XS
    return bool((codes_XS != codes_XS[:1]).any())


# ----------------------------------------------------------------------------------------- requests


class RequestEncoder:
    """Encodes attributes of requests; fields that are missing or null are ``NOT_GIVEN``."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = {field.name: field for field in fields}
        starts = np.cumsum([0, *(field.slots for field in fields)])
        self._start = dict(zip(self.fields, starts[:-1].tolist(), strict=True))
        numbers = [field.name for field in fields if field.kind == "number"]
        self._place = {name: place for place, name in enumerate(numbers)}
        self._codes = {
            field.name: {text: code for code, text in enumerate(field.categories, FIRST_KNOWN)}
            for field in fields
        }
        self.shape = (int(starts[-1]), len(numbers))

    def encode(
        self, given: Sequence[Mapping[str, Any] | None], numbers: Sequence[int] | None = None
    ) -> AttributeRows:
        """Encode one row per request.

        Parameters
        ----------
        given : Sequence[Mapping[str, Any] | None]
            Attributes of each request, by field.
        numbers : Sequence[int] | None
            Numbers of the requests in the call, for messages; None counts from 0.

        Raises
        ------
        RequestError
            A request names an unknown field, or a value has the wrong type.
        """
        codes_XS = np.full((len(given), self.shape[0]), NOT_GIVEN, dtype=np.int32)
        values_XM = np.zeros((len(given), self.shape[1]), dtype=np.float32)
        for index, attributes in enumerate(given):
            for name, value in (attributes or {}).items():
                where = f"request {index if numbers is None else numbers[index]}: attributes.{name}"
                field = self.fields.get(name)
                if field is None:
                    known = (
                        choices(self.fields) or "none, it was trained without attributes of users"
                    )
                    raise RequestError(f"{where}: unknown field; the model knows: {known}")
                if value is None:
                    continue
                span = slice(self._start[name], self._start[name] + field.slots)
                if field.kind == "number":
                    number = np.array(_number(value, where))
                    codes_XS[index, span] = field.codes_of(number)
                    values_XM[index, self._place[name]] = field.scaled(number)
                else:
                    codes_XS[index, span] = self._category_codes(field, value, where)
        import torch

        return AttributeRows(torch.from_numpy(codes_XS), torch.from_numpy(values_XM))

    def _category_codes(self, field: Field, value: Any, where: str) -> Array:
        members = [value]
        if field.kind == "list":
            if not isinstance(value, (list, tuple)):
                raise RequestError(
                    f"{where}: got {value!r} ({type(value).__name__}), expected a list of texts"
                )
            members = list(value)
        known_texts = self._codes[field.name]
        texts = [_category(member, where) for member in members if member is not None]
        texts = [text for text in texts if text in known_texts or not is_absent(text)]
        codes = [known_texts.get(text, UNKNOWN) for text in texts]
        known = [code for code in codes if code >= FIRST_KNOWN][: field.slots]
        row = np.full(field.slots, PADDING, dtype=np.int32)
        row[0] = UNKNOWN if codes else MISSING
        row[: len(known)] = known
        return row


def _number(value: Any, where: str) -> float:
    number = finite(value)
    if number is None:
        raise RequestError(
            f"{where}: got {value!r} ({type(value).__name__}), expected a finite number"
        )
    return number


def finite(value: Any) -> float | None:
    """A JSON number as a float; None for other values and for integers too large for a float.

    >>> finite(2), finite(True), finite(float("inf")), finite(10**400)
    (2.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _category(value: Any, where: str) -> str:
    """A JSON value as the string that the table would give: true/false, integers as digits."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (str, int)):
        return str(value).strip()
    raise RequestError(f"{where}: got {value!r} ({type(value).__name__}), expected a text")

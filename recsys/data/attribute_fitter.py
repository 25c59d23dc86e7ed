"""Fit the encoding of attributes on the rows of users or items with training events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.attributes import (
    Field,
    as_categories,
    as_numbers,
    is_number,
    members_of,
)
from recsys.data.histories import Array
from recsys.errors import ConfigError, valid_instead
from recsys.values.arrow_types import is_string, is_variable_list

_NORMAL_QUARTILES: Final = 1.349  # interquartile range of the standard normal
# Least share of values that must be numbers or, in fields that the user did not name, that the
# categories must cover.
_ENOUGH: Final = 0.5


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
                f"{', '.join(unknown)} not among the columns;"
                f" {valid_instead(unknown[0], self.columns, 'columns')}"
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
            return "number" if is_number(kind) or is_string(kind) else None
        if is_variable_list(kind):
            return (
                "list"
                if is_string(kind.value_type) or pa.types.is_integer(kind.value_type)
                else None
            )
        if is_number(kind):
            return "category" if name in self.config.categorical else "number"
        return "category" if is_string(kind) or pa.types.is_boolean(kind) else None

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
        has_members, slots = is_variable_list(column.type), 1
        if has_members:
            texts, rows = members_of(column)
            slots = min(int(np.bincount(rows).max(initial=1)), self.config.max_members)
        else:
            texts = as_categories(column)
        counted = pc.value_counts(texts.drop_null())
        frequency = dict(
            zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True)
        )
        ordered = sorted(frequency, key=lambda text: (-frequency[text], text))
        frequent = [text for text in ordered if frequency[text] >= self.config.min_frequency]
        covered = sum(frequency[text] for text in frequent)
        if not frequent or (not is_wanted and covered < _ENOUGH * sum(frequency.values())):
            if is_wanted:
                raise self._error(
                    f"{name} has no category in at least {self.config.min_frequency} rows of the"
                    " training split; lower min_frequency or leave the field out"
                )
            return None
        frequent = frequent[: self.config.max_categories]
        return Field(name, "list" if has_members else "category", slots, tuple(frequent))

    def _error(self, message: str) -> ConfigError:
        return ConfigError(f"model.granularities.profile.{self.key}: {message}")

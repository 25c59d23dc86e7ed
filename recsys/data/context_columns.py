"""Encode context columns of events (weather, device, news topic …) as small codes.

Why one kind of code: a category and a number are both an ``int16``, 0 where the cell is missing. So
histories, batches and bundles carry one array ``context_EC``, whatever the columns are, and padding
means "missing".

    category   1 a value that no training event has, 2 + i the i-th known value
    number     c > 0: (c − 1) / 4000, c < 0: c / 4000 standard deviations from the mean of the
               training events

Legend: E events, C context columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.histories import Array
from recsys.data.request_attributes import finite
from recsys.errors import DataError, RequestError, valid_instead
from recsys.values.absent import is_absent

MISSING: Final = 0
UNKNOWN: Final = 1
_FIRST_VALUE: Final = 2
MAX_VALUES: Final = 30_000  # of a category; codes are int16
STEPS: Final = 4000  # codes a standard deviation of a number
_LIMIT: Final = 8.0  # numbers are clipped at this many standard deviations


@dataclass(frozen=True)
class ContextColumn:
    """One column: known values, or mean and standard deviation, of training events only."""

    name: str
    values: tuple[str, ...] | None  # None: numbers
    mean: float = 0.0
    std: float = 1.0

    @property
    def num_codes(self) -> int:
        """Codes of a category; 0 for numbers."""
        return 0 if self.values is None else _FIRST_VALUE + len(self.values)

    def encode(self, column: pa.ChunkedArray) -> Array:
        """Codes of a column of strings (category) or doubles (number): [E] int16."""
        if self.values is None:
            return number_codes(np.asarray(column.fill_null(np.nan)), self.mean, self.std)
        found = np.asarray(
            pc.index_in(column, value_set=pa.array(self.values, pa.string())).fill_null(-1)
        )
        codes = np.where(found < 0, UNKNOWN, found + _FIRST_VALUE)
        return np.where(np.asarray(pc.is_null(column)), MISSING, codes).astype(np.int16)

    def code(self, value: Any, where: str) -> int:
        """The code of one value of a request; None is missing, a new category is unknown.

        Raises
        ------
        RequestError
            The value has another type; the message begins with ``where``.
        """
        if value is None:
            return MISSING
        if self.values is None:
            number = finite(value)
            if number is None:
                raise RequestError(f"{where}: got {value!r}, expected a finite number or null")
            return int(number_codes(np.array([number]), self.mean, self.std)[0])
        if not isinstance(value, str):
            raise RequestError(
                f"{where}: got {value!r} ({type(value).__name__}), expected a string or null"
                " (categories are text: put numbers in quotes)"
            )
        value = value.strip()
        if value in self.values:
            return self.values.index(value) + _FIRST_VALUE
        return MISSING if is_absent(value) else UNKNOWN

    def to_json(self) -> dict[str, Any]:
        """The column as JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(content: dict[str, Any]) -> ContextColumn:
        """Read the result of :meth:`to_json`."""
        values = content["values"]
        return ContextColumn(**{**content, "values": None if values is None else tuple(values)})


def number_codes(values: Array, mean: float, std: float) -> Array:
    """Numbers as codes, 0 for NaN.

    >>> number_codes(np.array([1.0, 3.0, 2.0, np.nan]), 2.0, 2.0).tolist()
    [-2000, 2001, 1, 0]

    Parameters
    ----------
    values : array, [E] float
        The numbers; NaN where the cell is missing.
    mean : float
        Mean of the training events.
    std : float
        Standard deviation of the training events.

    Returns
    -------
    array, [E] int16
        The codes.
    """
    steps = np.rint(np.clip((values - mean) / std, -_LIMIT, _LIMIT) * STEPS)
    return np.where(np.isnan(steps), MISSING, np.where(steps >= 0, steps + 1, steps)).astype(
        np.int16
    )


def encode_request(
    columns: Sequence[ContextColumn], given: dict[str, Any] | None, where: str
) -> Array:
    """The context of one event or request: [C] int16, missing where ``given`` has no value.

    Parameters
    ----------
    columns : Sequence[ContextColumn]
        The model's context columns.
    given : dict[str, Any] | None
        Values by column; None: no context.
    where : str
        Beginning of error messages.

    Raises
    ------
    RequestError
        The model does not know a column, or a value has the wrong type.
    """
    codes = np.zeros(len(columns), dtype=np.int16)
    unknown = sorted(set(given or {}) - {column.name for column in columns})
    if unknown:
        names = [column.name for column in columns]
        none = "none, the model has no context columns"
        known = valid_instead(unknown[0], names, "context columns", none=none)
        raise RequestError(f"{where}: {unknown[0]!r} is not a context column; {known}")
    for index, column in enumerate(columns):
        codes[index] = column.code((given or {}).get(column.name), f"{where}.{column.name}")
    return codes


# ---------------------------------------------------------------------------------- counting values


@dataclass
class ColumnStatistics:
    """Statistics of one column over some training events: counts of values, or number, mean and
    squared deviation.
    """

    counts: dict[str, int] | None  # None: numbers
    number: int = 0
    mean: float = 0.0
    squares: float = 0.0  # Σ (x − mean)²

    def add(self, other: ColumnStatistics) -> None:
        """Add the statistics of other events (numbers: Chan et al. 1979)."""
        if self.counts is not None:
            for value, count in (other.counts or {}).items():
                self.counts[value] = self.counts.get(value, 0) + count
            return
        total = self.number + other.number
        if other.number == 0:
            return
        apart = other.mean - self.mean
        self.squares += other.squares + apart * apart * self.number * other.number / total
        self.mean += apart * other.number / total
        self.number = total

    def column(self, name: str) -> ContextColumn:
        """The encoding of the column. A number that never varies has standard deviation 1.

        Raises
        ------
        DataError
            The column has too many different values for a category.
        """
        if self.counts is None:
            std = (self.squares / self.number) ** 0.5 if self.number else 0.0
            return ContextColumn(name, None, self.mean, std if std > 0 else 1.0)
        _check_number(name, len(self.counts))
        return ContextColumn(name, tuple(sorted(self.counts)))


def tally(column: pa.ChunkedArray, name: str, is_number: bool) -> ColumnStatistics:
    """Count one column of training events.

    Parameters
    ----------
    column : pa.ChunkedArray
        The cells of the training events; nulls are left out.
    name : str
        Name of the column, for the error.
    is_number : bool
        Whether the column holds numbers; else categories.

    Raises
    ------
    DataError
        The column has too many different values for a category.
    """
    column = column.drop_null()
    if is_number:
        values = np.asarray(column)
        mean = float(values.mean()) if len(values) else 0.0
        return ColumnStatistics(None, len(values), mean, float(np.square(values - mean).sum()))
    counts = pc.value_counts(column)
    _check_number(name, len(counts))
    return ColumnStatistics({entry["values"]: entry["counts"] for entry in counts.to_pylist()})


def _check_number(name: str, number: int) -> None:
    if number > MAX_VALUES:
        raise DataError(
            f"data.context: {name!r} has more than {MAX_VALUES:,} different values in training, too"
            " many for a category; leave it out, group its values, or name it in"
            " data.context_numbers if it is a number"
        )

"""Texts that mean a missing value, and the rules for reading cells.

Why one list: a missing value must be missing in all tables and columns. Programs write it as
``nan``, ``None``, ``NULL`` or ``NA``, or as an empty cell; :class:`CellRules` has the list of these
texts. A whole trimmed cell must be equal to one of them, also in case: the items "Nana" and "NONE
of us" are values. Requests to a served model follow the same rules, so this module needs no polars,
which a registered model does not require.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from recsys.config.text_files import ABSENT_TEXTS, CellSource


@dataclass(frozen=True)
class CellRules:
    """The rules for reading cells; see :class:`recsys.config.sources.CellSource`."""

    absent: tuple[str, ...] = ABSENT_TEXTS
    time_format: str = ""
    decimal: str = "."
    # text in lower case → number, for the values of events
    values: tuple[tuple[str, float], ...] = ()

    @property
    def has_numbers(self) -> bool:
        """Whether a text that means a missing value may be read as a number or time, such as
        -999.
        """
        return any(character.isdigit() for text in self.absent for character in text)

    @classmethod
    def of(cls, source: Any, table: str = "events") -> CellRules:
        """The rules of a source's configuration for a table; the defaults for a source without
        files.
        """
        if not isinstance(source, CellSource):
            return cls()
        given = getattr(source, "values", {})
        values = tuple((text.lower(), number) for text, number in given.items())
        mark = source.decimal
        decimal = mark.get(table, ".") if isinstance(mark, dict) else mark
        return cls(tuple(source.absent), source.time_format, decimal, values)


DEFAULT_RULES: Final = CellRules()


def present_only(texts: Any, rules: CellRules = DEFAULT_RULES) -> Any:
    """Texts (array or chunked array) with null for missing values; other texts stay.

    >>> present_only(pa.array([" a", " ", "nan", "Nana", None])).to_pylist()
    [' a', None, None, 'Nana', None]
    """
    absent = pc.is_in(pc.utf8_trim_whitespace(texts), value_set=absent_set(rules))
    return pc.if_else(absent, None, texts) if pc.any(absent).as_py() else texts


def is_absent(text: str, rules: CellRules = DEFAULT_RULES) -> bool:
    """Whether one text means a missing value.

    >>> is_absent(" None "), is_absent("None", CellRules(absent=()))
    (True, False)
    >>> is_absent("", CellRules(absent=()))
    True
    """
    trimmed = text.strip()
    return not trimmed or trimmed in rules.absent


def absent_set(rules: CellRules) -> pa.Array:
    """The texts that mean a missing value, the empty one included."""
    return pa.array(["", *rules.absent], pa.string())

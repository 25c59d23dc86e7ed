"""How the text of files is read: separators, comments, encodings, renames and missing values."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    field_validator,
)

from recsys.config.section import Section
from recsys.errors import valid_instead

ABSENT_TEXTS: Final = (
    *(
        "NaN",
        "nan",
        "NAN",
        "Nan",
        "-nan",
        "-NaN",
        "None",
        "none",
        "NONE",
        "null",
        "NULL",
        "Null",
        "(null)",
        "<null>",
    ),
    *("NA", "N/A", "n/a", "#N/A", "#NA", "<NA>", "NaT", "nil", "\\N"),
)
"""Texts that programs write where a value is missing; an empty cell is always missing."""

_PROBE: Final = datetime(2021, 11, 25, 13, 14, 15, 167_000, UTC)

TABLES: Final = ("events", "items", "users", "social", "knowledge", "links")

_WORDS: Final = {
    "\\t": "\t",
    "tab": "\t",
    "comma": ",",
    "semicolon": ";",
    "pipe": "|",
    "space": " ",
    "spaces": " ",
}


def _separator(value: Any) -> Any:
    r"""Replace words such as ``tab``, and ``\t``, by the characters they mean."""
    if value is None:
        raise ValueError("got no value; in YAML, write it in quotes, e.g. separator: ';'")
    if not isinstance(value, str):
        return value
    separator = _WORDS.get(value.casefold(), value)
    if separator.strip(" ") == "" and separator:
        return " "
    if any(character in separator for character in '"\n\r\0\ufeff'):
        raise ValueError("a quote, a line end or a null character cannot separate cells")
    if separator and (separator.isalnum() or separator == "."):
        raise ValueError(
            "letters, digits and dots are part of cells; expected ';', '|', '::', ' ', tab and the"
            " like"
        )
    return separator


def _comment(value: Any) -> Any:
    if value is None:
        raise ValueError("got no value; in YAML, write it in quotes: comment: '#'")
    if isinstance(value, str) and any(character in value for character in '\n\r"'):
        raise ValueError("expected what comment lines begin with, e.g. '#'")
    return value


def without_nulls(value: Any) -> Any:
    """Column names with ``null`` and ``~`` replaced by the empty name."""
    if isinstance(value, dict):
        return {name: without_nulls(names) for name, names in value.items()}
    return ["" if name is None else name for name in value] if isinstance(value, list) else value


def check_tables(key: str, names: set[str]) -> None:
    """Check the names of tables in a setting.

    Raises
    ------
    ValueError
        A name is not that of a table.
    """
    if unknown := sorted(names - set(TABLES)):
        raise ValueError(
            f"{key}: {unknown[0]!r} is not a table; {valid_instead(unknown[0], TABLES)}"
        )


Separator = Annotated[str, BeforeValidator(_separator)]

Comment = Annotated[
    str,
    BeforeValidator(_comment),
    Field(description="lines of text files that start with this text are skipped, e.g. '#'"),
]

Encoding = Annotated[str, Field(min_length=1)]

DecimalMark = Literal[".", ","]


def _of_known_tables(rename: dict[str, str | dict[str, str]]) -> dict[str, str | dict[str, str]]:
    check_tables("rename", {name for name, to in rename.items() if not isinstance(to, str)})
    return rename


Rename = Annotated[dict[str, str | dict[str, str]], AfterValidator(_of_known_tables)]
"""Column in the files → canonical column, or table → such a mapping for this table only."""


class CellSource(Section):
    """Keys of every source of files: how the text of a cell is read."""

    absent: list[str] = Field(
        list(ABSENT_TEXTS),
        description="texts that mean a missing value, in addition to an empty cell; []: none",
    )
    time_format: str = Field(
        "",
        description=(
            "strptime format of text timestamps, e.g. %d/%m/%Y; serial: days since 1899-12-30, as"
            " spreadsheets write dates; empty: epoch numbers, ISO 8601, YYYYMMDD …"
        ),
    )
    decimal: DecimalMark | dict[str, DecimalMark] = Field(
        ".",
        description=(
            "decimal mark of numbers in text files; {TABLE: mark} for single tables, the others"
            " have a point"
        ),
    )

    @field_validator("decimal")
    @classmethod
    def _is_of_tables(cls, given: str | dict[str, str]) -> str | dict[str, str]:
        """Refuse unknown tables.

        Raises
        ------
        ValueError
            A name is not that of a table.
        """
        check_tables("decimal", set(given) if isinstance(given, dict) else set())
        return given

    @field_validator("time_format")
    @classmethod
    def _is_a_time_format(cls, form: str) -> str:
        """Refuse a format that strptime does not know or that has no year; empty means no
        format.

        Raises
        ------
        ValueError
            The format is unknown or has no year.
        """
        if form.strip() in ("", "serial"):
            return form.strip()
        expected = (
            "expected a strptime format with a year, e.g. '%d/%m/%Y %H:%M' for 27/11/2020 21:51"
        )
        try:
            read = datetime.strptime(_PROBE.strftime(form), form)
        except ValueError as error:
            raise ValueError(f"{form!r} is not a time format ({error}); {expected}") from None
        if read.year != _PROBE.year:
            raise ValueError(f"{form!r} has no year; {expected}")
        return form

"""Data frames of the Python API as the five tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from recsys.errors import DataError, UserError, choices

if TYPE_CHECKING:
    import pandas as pd


_COLUMNS: Final = {
    "events": ("user_id", "item_id", "timestamp"),
    "items": ("item_id", "attributes"),
    "users": ("user_id", "attributes"),
    "social": ("src_user_id", "dst_user_id"),
    "knowledge": ("head", "relation", "tail"),
}


def table_of(role: str, frame: pd.DataFrame) -> pa.Table:
    """A data frame as an Arrow table.

    Raises
    ------
    DataError
        A column mixes types; the message names the role of the table.
    """
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{role}: {error}; a column must hold values of one type") from None


def check_given(given: Mapping[str, Any], accepts: Callable[[Any], bool], words: str) -> None:
    """Check that the events are given, and that every table has an accepted type.

    Parameters
    ----------
    given : Mapping[str, Any]
        Argument → what the caller gave; None: nothing.
    accepts : Callable[[Any], bool]
        Whether a table has an accepted type.
    words : str
        The accepted types in words, for the message.

    Raises
    ------
    DataError
        The argument ``events`` is missing, or an argument has another type.
    """
    for role, table in given.items():
        if table is None and role == "events":
            raise DataError(
                f"the argument events is missing; give {words} with one row an event: its user and"
                " its item"
            )
        if table is not None and not accepts(table):
            raise DataError(f"{role}: got {type(table).__name__}, expected {words}")


@contextmanager
def naming_arguments(files: Mapping[str, Path]) -> Iterator[None]:
    """Errors inside name the caller's arguments, not the files that their tables are written to.

    Raises
    ------
    UserError
        The error inside, of its own class.
    """
    try:
        yield
    except UserError as error:
        text = str(error)
        for role, file in files.items():
            text = text.replace(f"{role} ({file})", role)
            text = text.replace(str(file), role).replace(file.name, role)
        raise type(error)(text) from None


def check_roles(
    named: Mapping[str, str], found: Mapping[str, str], ignored: Mapping[str, str]
) -> None:
    """Check that every file was detected as the role that it was given as.

    Parameters
    ----------
    named : Mapping[str, str]
        Role → path, as the caller gave them.
    found : Mapping[str, str]
        Path → detected role.
    ignored : Mapping[str, str]
        Path → why the file is not used.

    Raises
    ------
    DataError
        A file was detected as another role, or is not used.
    """
    for role, path in named.items():
        if found.get(path) == role:
            continue
        why = (
            f"it looks like {found[path]}"
            if path in found
            else ignored.get(path, "it was not used")
        )
        raise DataError(
            f"{role} ({path}): {why}; expected {choices(_COLUMNS[role])}. Columns with exactly"
            " these names are always recognised"
        )

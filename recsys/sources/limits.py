"""How much a source may ask of the machine: bounds in bytes, as a small file can hold a large amount of rows.

Why: inputs come from outside. A few kilobytes that unpack to gigabytes, a row without an end or a table of a hundred
thousand columns must be one message within seconds, not the end of the machine's memory. The bounds lie far above what
logs and catalogues need; a file that is refused for its compression alone is read when it is unpacked.
"""

from __future__ import annotations

from typing import Final

from recsys.errors import SourceError

MAX_COLUMNS: Final = 2000
MAX_ROW_BYTES: Final = 64 << 20  # of a line, a JSON object, or a cell of Parquet
FREE_BYTES: Final = 128 << 20  # any file may unpack to so much
MAX_RATIO: Final = 200  # unpacked to packed bytes of gzip, zstd and zip; text reaches about 50
MAX_DECODED_RATIO: Final = 1000  # values to stored bytes of a Parquet row group, which also repeats values
_SHOWN: Final = 20


def check_column_count(count: int, where: str) -> None:
    """

    Raises
    ------
    SourceError
        a table has more columns than can be meant.
    """
    if count > MAX_COLUMNS:
        raise SourceError(
            f"{where} has {count:,} columns, at most {MAX_COLUMNS:,} are read; write a file with the columns that are "
            "needed, and put many values of one kind into a list column (Parquet, JSON)"
        )


def row_too_long(where: str, row: int, limit: int = MAX_ROW_BYTES) -> SourceError:
    """The error for a row (0: the header) or JSON object that is too large."""
    name = f"row {row:,}" if row else "the first line"
    return SourceError(
        f"{where}: {name} is longer than {limit >> 20} MiB; expected one row a line: check the line ends, "
        "the quotes and data.source.format"
    )


def listed(names: list[str] | tuple[str, ...]) -> str:
    """Names for a message, the first of many.

    >>> listed(["a", "b"])
    "'a', 'b'"
    """
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + more

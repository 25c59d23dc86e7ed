"""Limits of the memory that a source may need; a small file can contain a very large table.

Why: input comes from other people. A few kilobytes that unpack to gigabytes, a row without an end
or a table of a hundred thousand columns must give one message within seconds and not fill the
memory. The limits are far above the needs of logs and catalogues. A file that is refused only for
its compression can be unpacked and then read.
"""

from __future__ import annotations

from typing import Final

from recsys.errors import SourceError

MAX_COLUMNS: Final = 2000
MAX_ROW_BYTES: Final = 64 << 20  # of a line, a JSON object, or a cell of Parquet
FREE_BYTES: Final = 128 << 20  # unpacked bytes that are allowed for any file
MAX_RATIO: Final = 200  # unpacked to packed bytes of gzip, zstd and zip; text reaches about 50
# decoded to stored bytes of a Parquet row group, which stores repeated values once
MAX_DECODED_RATIO: Final = 1000
_SHOWN: Final = 20


def check_column_count(count: int, where: str) -> None:
    """Check the number of columns of a table.

    Raises
    ------
    SourceError
        The table has more than ``MAX_COLUMNS`` columns.
    """
    if count > MAX_COLUMNS:
        raise SourceError(
            f"{where} has {count:,} columns, at most {MAX_COLUMNS:,} are allowed; write a file with"
            " the columns that are needed, and put many values of one kind into a list column"
            " (Parquet, JSON)"
        )


def row_too_long(where: str, row: int, limit: int = MAX_ROW_BYTES) -> SourceError:
    """The error for a row (0: the header) or JSON object that is too large.

    Parameters
    ----------
    where : str
        Path of the file.
    row : int
        Row number, from 1; 0: the header.
    limit : int
        The limit in bytes.

    Returns
    -------
    SourceError
        The error to raise.
    """
    name = f"row {row:,}" if row else "the first line"
    return SourceError(
        f"{where}: {name} is longer than {limit >> 20} MiB; expected one row in each line: check"
        " the line ends, the quotes and data.source.format"
    )


def listed(names: list[str] | tuple[str, ...]) -> str:
    """Names for a message; only the first of many.

    >>> listed(["a", "b"])
    "'a', 'b'"
    """
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + more

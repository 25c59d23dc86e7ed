"""Translation of long separators, repeated blanks and comment lines into text that Arrow's parser
reads.

Why: Arrow's parser needs one ASCII character between cells. A chunk is translated as a whole, as
fast as a memory copy, and keeps its number of rows, so that each bad row keeps its number.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from recsys.sources.byte_ranges import Dialect

BLANKS: Final = " "
"""The separator that means any number of spaces and tabs."""
# control characters that do not occur in text
_UNUSED: Final = [*range(0x1F, 0x0D, -1), *range(1, 9)]


def is_plain(dialect: Dialect) -> bool:
    """Whether Arrow's parser reads the dialect without translation."""
    return (
        not dialect.comment
        and len(dialect.delimiter) == 1
        and dialect.delimiter.isascii()
        and not _runs(dialect)
    )


def plain(data: bytes, dialect: Dialect) -> tuple[bytes, Dialect]:
    r"""Rows with one ASCII character between cells and empty lines instead of comments, and their
    dialect.

    Only a chunk that has all control characters keeps a separator of several characters.

    >>> plain(b"1::2\n# note\n3::4\n", Dialect("::", quoted=False, comment="#"))[0]
    b'1\x1f2\n\n3\x1f4\n'
    >>> plain(b" 1   2 \n3\t4\n", Dialect(" ", quoted=False))[0]
    b'1 2\n3 4\n'
    """
    if is_plain(dialect):
        return data, dialect
    if dialect.encoding.lower().replace("_", "-") not in ("utf-8", "utf8", "ascii"):
        # the separator below is searched as UTF-8
        data = data.decode(dialect.encoding, errors="replace").encode()
        dialect = replace(dialect, encoding="utf-8")
    if dialect.comment:
        data = without_comments(data, dialect.comment.encode())
        dialect = replace(dialect, comment="")
    if _runs(dialect):
        return _single_blanks(data), dialect
    if is_plain(dialect):
        return data, dialect
    for code in _UNUSED:
        if (mark := bytes([code])) not in data:
            return data.replace(dialect.delimiter.encode(), mark), replace(
                dialect, delimiter=mark.decode()
            )
    return data, dialect


def _runs(dialect: Dialect) -> bool:
    return dialect.delimiter == BLANKS and not dialect.quoted


def without_comments(data: bytes, mark: bytes) -> bytes:
    """The lines, with those that start with the mark replaced by empty lines."""
    if not data.startswith(mark) and b"\n" + mark not in data:
        return data
    data, kept, start = b"\n" + data, [], 0
    while (position := data.find(b"\n" + mark, start)) >= 0:
        kept.append(data[start : position + 1])
        end = data.find(b"\n", position + 1)
        start = len(data) if end < 0 else end
    return b"".join([*kept, data[start:]])[1:]


def _single_blanks(data: bytes) -> bytes:
    """Replace repeated spaces and tabs by one space, and remove those at the ends of lines."""
    codes = np.frombuffer(data.replace(b"\t", b" "), dtype=np.uint8)
    is_blank = codes == 32
    # the first line starts like the others, after a line end
    after_blank = np.ones(len(codes), dtype=bool)
    after_blank[1:] = (is_blank | (codes == 10))[:-1]
    single: bytes = codes[~(is_blank & after_blank)].tobytes()
    return single.replace(b" \n", b"\n").replace(b" \r\n", b"\r\n").removesuffix(b" ")

"""Whether a file is text in the configured encoding, before its rows are read."""

from __future__ import annotations

from typing import Final

from recsys.errors import SourceError
from recsys.sources.encodings import found_encoding
from recsys.sources.files import InputFile

# share of undecodable lines in the head above which the encoding is wrong
_MAX_UNDECODABLE: Final = 0.01
_BOMS: Final = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_SQLITE: Final = b"SQLite format 3"
_NO_TABLES: Final = {
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs.github.com/spec": "a pointer of Git LFS to the file (git lfs pull)",
}


def check_codec(encoding: str) -> str:
    """Check that an encoding is known and ASCII-compatible, and return its name.

    Raises
    ------
    SourceError
        Python does not know the encoding, or line ends cannot be found in its bytes.
    """
    try:
        if "a,\n".encode(encoding) == b"a,\n":
            return encoding
        problem = "is not ASCII-compatible"
    except LookupError:
        problem = "is unknown"
    raise SourceError(
        f"data.source.encoding {encoding!r} {problem}; use utf-8, latin-1, cp1252 …, or convert the"
        " files"
    )


def check_encoding(file: InputFile, head: bytes, encoding: str) -> None:
    """Check that nearly all lines of the file's head can be decoded; single bad rows go to the
    quarantine later.

    Parameters
    ----------
    file : InputFile
        The file, for the error.
    head : bytes
        The first bytes of the file.
    encoding : str
        The configured encoding.

    Raises
    ------
    SourceError
        The head is not text, or is text in another encoding.
    """
    for mark, name in _BOMS:
        # Excel saves "Unicode text" so; its zero bytes would otherwise be called binary data
        if head.startswith(mark):
            raise SourceError(
                f"{file.path} is {name} (Excel calls it Unicode text); expected {encoding}: save it"
                " as UTF-8"
            )
    if head.startswith(_SQLITE):
        raise SourceError(f"{file.path} is an SQLite database; export its tables as CSV or Parquet")
    # the head of a Parquet file may be free of zero bytes
    if b"\0" in head or head.startswith(b"PAR1"):
        kind = "a Parquet file" if head.startswith(b"PAR1") else "binary data"
        raise SourceError(
            f"{file.path} is {kind}, not delimited text; correct the file or data.source.format"
        )
    for start, what in _NO_TABLES.items():
        if head.lstrip().lower().startswith(start):
            raise SourceError(f"{file.path} is {what}, not a table; download the file itself")
    # the last line may end in the middle of a character
    lines = head.split(b"\n")[:-1] or [head]
    wrong = [number for number, line in enumerate(lines, 1) if not decodable(line, encoding)]
    # a few wrong lines are bad rows; in the first line they spoil the names of columns
    if len(wrong) > _MAX_UNDECODABLE * len(lines) or (wrong and wrong[0] == 1):
        raise SourceError(
            f"{file.path}: line {wrong[0]} is not {encoding} text ({len(wrong)} of the first"
            f" {len(lines)} are not); {_cure_of_encoding(head, encoding)}"
        )


def _cure_of_encoding(head: bytes, encoding: str) -> str:
    found = found_encoding(head)
    if found.name in ("utf-8", encoding) or not found.is_known:
        return (
            "save the file as UTF-8 or set data.source.encoding (e.g. latin-1) if the source has"
            " another encoding"
        )
    return (
        f"it looks like {found.name}, which reads {found.example!r}: set data.source.encoding to"
        f" {found.name} (or another one, such as latin-1, if that is wrong), or save the file as"
        " UTF-8"
    )


def decodable(line: bytes, encoding: str) -> bool:
    """Whether bytes are text in an encoding."""
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True

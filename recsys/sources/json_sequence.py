"""JSON files that are an array of objects, or have objects over several lines, read in constant
memory. The rows of a file that is one object around its rows (``{"data": [{…}, …]}``) are those of
its longest array of objects.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, Final

from recsys.errors import SourceError
from recsys.sources.files import InputFile
from recsys.sources.json_values import parse_object
from recsys.sources.limits import MAX_ROW_BYTES, row_too_long

_CHUNK: Final = 1 << 20
_LONGEST_WORD: Final = 32  # characters of a word or number that the end of a block may cut
_BETWEEN: Final = re.compile(r"[\s,]*")
_COLON: Final = re.compile(r"\s*:\s*")
_START: Final = re.compile(r"\s*(\[\s*)?\{")


def is_sequence(head: str) -> bool:
    r"""Whether the head of a file starts an array of objects or an object over several lines.

    >>> is_sequence('[{"a": 1},'), is_sequence('{\n"a": 1')
    (True, True)
    >>> is_sequence("[1]"), is_sequence("{'a': 1}")
    (False, False)
    """
    found = _START.match(head)
    return found is not None and re.match(r'\s*("|\}|$)', head[found.end() :]) is not None


def is_read_by_element(head: bytes, num_lines: int | None = None) -> bool:
    r"""Whether the rows of a file are elements of arrays or objects over several lines, not lines.

    >>> is_read_by_element(b'{"a": 1}\n{"a": 2}'), is_read_by_element(b'{"data": [{"a": 1}, {}]}')
    (False, True)
    """
    lines = [line for line in head.split(b"\n") if line.strip()]
    if len(lines) == 1 and parse_object(lines[0]) is not None:
        return bool(_inner_rows(lines[0].decode()))
    if any(map(parse_object, lines[:num_lines])):
        return False
    return is_sequence(head.decode(errors="replace"))


def elements(file: InputFile) -> Iterator[str]:
    """The text of each row: the elements of arrays, or the objects outside of an array, in order.

    Yields
    ------
    str
        The JSON text of one row.

    Raises
    ------
    SourceError
        As for the values of the file.
    """
    values = _values(file)
    first = next(values, None)
    if first is None:
        return
    second = next(values, None)
    if second is None:
        yield from _inner_rows(first) or [first]
        return
    yield first
    yield second
    yield from values


def _inner_rows(text: str) -> list[str]:
    """The texts of the objects in the longest array of objects in an object; empty if there is no
    array of two objects.
    """
    decoder, found = json.JSONDecoder(), list[str]()
    place = _BETWEEN.match(text, 0).end()  # type: ignore[union-attr]
    if text[place : place + 1] != "{":
        return found
    place += 1
    while True:
        place = _BETWEEN.match(text, place).end()  # type: ignore[union-attr]
        if text[place : place + 1] != '"':
            return found
        place = decoder.raw_decode(text, place)[1]
        place = _COLON.match(text, place).end()  # type: ignore[union-attr]
        value, end = decoder.raw_decode(text, place)
        rows = list[str]()
        if isinstance(value, dict):
            rows = _inner_rows(text[place:end])
        elif isinstance(value, list) and len(value) > 1 and all(isinstance(v, dict) for v in value):
            rows = _members(decoder, text, place + 1, len(value))
        found = max(found, rows, key=len)
        place = end


def _members(decoder: json.JSONDecoder, text: str, place: int, count: int) -> list[str]:
    rows = []
    for _ in range(count):
        place = _BETWEEN.match(text, place).end()  # type: ignore[union-attr]
        end = decoder.raw_decode(text, place)[1]
        rows.append(text[place:end])
        place = end
    return rows


def _values(file: InputFile) -> Iterator[str]:
    """The text of each element of the arrays, or of each object outside of an array, in order.

    Yields
    ------
    str
        The JSON text of one value.

    Raises
    ------
    SourceError
        The file is not UTF-8, an element is not JSON or too long, or the end of an array is
        missing.
    """  # noqa: DOC501
    decoder, to_text = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8-sig")()
    text, position, row, is_open, at_end = "", 0, 1, False, False
    with file.stream() as stream:
        while True:
            position = _BETWEEN.match(text, position).end()  # type: ignore[union-attr]
            mark = text[position : position + 1]
            if mark in ("[", "]") and is_open == (mark == "]"):
                is_open, position = not is_open, position + 1
                continue
            end, is_broken = _end_of(decoder, text, position) if mark else (None, False)
            if end is not None:
                yield text[position:end]
                position, row = end, row + 1
            elif at_end and not mark and not is_open:
                return
            elif at_end or is_broken:
                raise SourceError(
                    f"{file.path} cannot be read: element {row:,} is not JSON, or the end of the"
                    " file is missing; write or copy it again, if possible with one object in each"
                    " line"
                )
            else:
                text, position = text[position:], 0
                if len(text) > MAX_ROW_BYTES:
                    raise row_too_long(file.path, row)
                block = stream.read(max(_CHUNK, len(text)))
                at_end = not block
                text += _decoded(to_text, block, at_end, file, row)


def _end_of(decoder: json.JSONDecoder, text: str, position: int) -> tuple[int | None, bool]:
    """The end of the value that starts at ``position``, and whether it stays invalid with more
    text.
    """
    try:
        end = decoder.raw_decode(text, position)[1]
    except json.JSONDecodeError as error:
        return (
            None,
            not error.msg.startswith("Unterminated") and error.pos < len(text) - _LONGEST_WORD,
        )
    except (ValueError, RecursionError):
        return None, True
    # a number may continue
    return (end, False) if end < len(text) or text[position] in "[{" else (None, False)


def _decoded(to_text: Any, block: bytes, is_last: bool, file: InputFile, row: int) -> str:
    try:
        return str(to_text.decode(block, is_last))
    except UnicodeDecodeError:
        raise SourceError(
            f"{file.path}: element {row:,} or a later one is not UTF-8 text; save the file as UTF-8"
        ) from None

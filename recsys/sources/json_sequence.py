"""JSON files that are an array of objects, or have objects over several lines, read in constant
memory.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, Final

from recsys.errors import SourceError
from recsys.sources.files import InputFile
from recsys.sources.limits import MAX_ROW_BYTES, row_too_long

_CHUNK: Final = 1 << 20
_LONGEST_WORD: Final = 32  # characters of a word or number that the end of a block may cut
_BETWEEN: Final = re.compile(r"[\s,]*")
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


def elements(file: InputFile) -> Iterator[str]:
    """The text of each element of the arrays, or of each object outside of an array, in order.

    Raises
    ------
    SourceError
        The file is not UTF-8, an element is not JSON or too long, or the end of an array is
        missing.
    """
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

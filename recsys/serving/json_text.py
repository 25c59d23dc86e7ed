"""JSON of requests, read strictly: what a body or a file says is taken as it is, or refused with a reason.

Why not :func:`json.loads` alone: it takes NaN, overflows ``1e999`` to infinity, lets the last of two equal keys win,
reads text that cannot be written back (half a surrogate pair), and ends in a RecursionError on deep nesting.
"""

from __future__ import annotations

import json
import math
from codecs import BOM_UTF8
from typing import Any


def read_json(content: bytes) -> Any:
    """The value of a JSON text in UTF-8, with or without a byte-order mark.

    Raises
    ------
    ValueError
        says in one line what is wrong.
    """
    try:
        text = content.removeprefix(BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is no UTF-8; write the text as UTF-8") from None
    try:
        found = json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_unique)
        if "\\ud" in text.lower():
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("a text holds half a character (a lone surrogate)") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is too large for a number")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"the key {twice[:80]!r} is given twice in one object")
    return found

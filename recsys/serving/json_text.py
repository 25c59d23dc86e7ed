"""Strict JSON for requests: a text is read exactly as written, or refused with a reason.

Why not :func:`json.loads` alone: it accepts NaN, turns ``1e999`` into infinity, keeps the last of
two equal keys, reads text that cannot be written again (half a surrogate pair), and raises
RecursionError for deep nesting.
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
        One line that says what is wrong.
    """
    try:
        text = content.removeprefix(BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {error.start} is not valid UTF-8; encode the text as UTF-8"
        ) from None
    try:
        found = json.loads(
            text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_unique
        )
        if "\\ud" in text.lower():
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError(
            "a string holds half a character (a lone surrogate such as \\ud800)"
        ) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number; use null or leave the field out")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"the key {twice[:80]!r} appears twice in one object; keep one")
    return found

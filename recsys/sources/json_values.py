"""Values of JSON as columns: ids as exact text, other values in the type that the head of the file
has.

Why: JSON has one kind of number, of any length. Arrow and pandas read a column with one NaN as
floats, which hold 53 bits: in one file forty 64-bit ids became one user. Ids are therefore read as
text from the bytes: ``12``, ``"12"`` and ``12.0`` are one id, ``1e5`` is ``100000``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from recsys.sources.ids import id_of_number
from recsys.sources.nested import leaves, outermost, value_at, wide_parents

_EXACT: Final = 2**53  # floats hold all integers up to here
_PLAIN: Final = {bool: "bool", str: "text", dict: "object", type(None): "null"}
_SURROGATE: Final = b"\\ud"


@dataclass(frozen=True)
class Record:
    """One JSON object and its bytes in the file."""

    row: int
    raw: bytes
    values: dict[str, Any]


def parse_object(raw: bytes) -> dict[str, Any] | None:
    """The JSON object in some bytes; None if there is none, or if it has a lone surrogate (half a
    character).
    """
    try:
        # json.loads of bytes would also accept UTF-16 and lone surrogates
        value = json.loads(raw.decode())
        # Arrow cannot store half a character; most lines need no such check
        if _SURROGATE in raw.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


# -------------------------------------------------------------------------------------------- types


def kind_of(value: Any) -> str:
    """The kind of a value, as far as the type of its column depends on it."""
    plain = _PLAIN.get(type(value))
    if plain is not None:
        return plain
    if isinstance(value, list):
        inner = {kind_of(cell) for cell in value} - {"null"}
        is_numbers = inner <= {"int", "float", "nan"}
        return "empty" if not inner else "numbers" if is_numbers else "texts"
    if isinstance(value, float):
        return "float" if math.isfinite(value) else "nan"
    return "int" if abs(value) < _EXACT else "big" if -(2**63) <= value < 2**63 else "huge"


def kinds_of(objects: Iterable[Mapping[str, Any]]) -> dict[str, set[str]]:
    """The columns of some objects, with the kinds of their values.

    >>> kinds_of([{"a": {"b": 1}}, {"a": None, "c": "x"}])
    {'a.b': {'int'}, 'c': {'text'}}
    """
    found: dict[str, set[str]] = {}
    for value in objects:
        for path, cell in leaves(value).items():
            found.setdefault(path, set()).add(kind_of(cell))
    wide = wide_parents(found)
    if wide:  # whole objects, as JSON text
        narrow: dict[str, set[str]] = {}
        for path, kinds in found.items():
            parent = outermost(path, wide)
            narrow.setdefault(parent, set()).update(kinds if parent == path else {"object"})
        found = narrow
    parents = {path[:place] for path in found for place, mark in enumerate(path) if mark == "."}
    return {
        path: kinds
        for path, kinds in found.items()
        if path not in parents or not kinds <= {"null", "object", "empty"}
    }


def type_of(kinds: set[str]) -> pa.DataType:
    """The Arrow type that holds all kinds of values of a key; text if a float would change an
    integer.

    >>> type_of({"int", "float"}), type_of({"big", "float"}), type_of({"big", "nan"})
    (DataType(double), DataType(string), DataType(int64))
    """
    if kinds and kinds <= {"numbers", "empty"} and "numbers" in kinds:
        return pa.list_(pa.float64())
    if kinds and kinds <= {"texts", "empty", "numbers"}:
        return pa.list_(pa.string())
    if kinds and (kinds <= {"int", "big"} or ("big" in kinds and kinds <= {"int", "big", "nan"})):
        return pa.int64()
    if kinds and kinds <= {"int", "float", "nan"}:
        return pa.float64()
    return pa.bool_() if kinds == {"bool"} else pa.string()


# ---------------------------------------------------------------------------------------------- ids


def id_column(records: Sequence[Record], key: str) -> pa.Array:
    """The exact ids of one key; other values as their JSON text."""
    return pa.array([_id(record, key) for record in records], pa.string())


def _id(record: Record, key: str) -> str | None:
    value = value_at(record.values, key)
    if isinstance(value, float) and math.isfinite(value):  # only the bytes have all of its digits
        literal = value_at(json.loads(record.raw.decode(), parse_float=_Literal), key)
        return id_of_number(str(literal))
    return None if isinstance(value, float) else text_of(value)


class _Literal(str):
    """A number as written in the file."""


def quoted(data: bytes, keys: Sequence[str]) -> bytes:
    r"""JSON lines with quotes around the numbers of these keys, so that Arrow reads all their
    digits.

    A quote inside a text is always escaped, so ``"KEY":`` with plain quotes is always a key.

    >>> quoted(b'{"id": 7, "x": 1}\n{"id": 12.0, "x": "id: 5"}\n{"id": NaN}', ["id"])
    b'{"id": "7", "x": 1}\n{"id": "12", "x": "id: 5"}\n{"id": null}'
    """
    names = b"|".join(re.escape(json.dumps(key, ensure_ascii=False).encode()) for key in keys)
    head = rb"((?<!\\)(?:" + names + rb")[ \t]*:[ \t]*)"
    # plain integers need no Python call per match, and nearly all ids are plain integers
    data = re.sub(head + rb"(-?[1-9][0-9]*|0)(?=[ \t\r]*[,}])", rb'\1"\2"', data)
    return re.sub(
        head + rb"(-?(?:[0-9][0-9.eE+-]*|Infinity)|NaN)(?=[ \t\r]*[,}])", _quote_one, data
    )


def _quote_one(found: re.Match[bytes]) -> bytes:
    text = id_of_number(found[2].decode())
    return found[1] + (b"null" if text is None else b'"' + text.encode() + b'"')


# ------------------------------------------------------------------------------------------ columns


def column(
    values: list[Any], kind: pa.DataType, absent: Collection[str]
) -> tuple[pa.Array, list[int]]:
    """The values of one key in the type of the head, and the positions of those that do not fit
    (null in the column).

    Numbers in quotes fit numbers, and all values fit text. Null, NaN and the ``absent`` texts are
    missing values and fit.

    Parameters
    ----------
    values : list[Any]
        Value of each row, as JSON gives it.
    kind : pa.DataType
        Type of the column.
    absent : Collection[str]
        Texts that mean a missing value.

    Returns
    -------
    pa.Array
        The column.
    list[int]
        Positions of the values that do not fit.
    """
    try:
        return pa.array(values, kind), []
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        pass
    fit = _fits(kind)
    cells = [None if value is None else fit(value) for value in values]
    lost = [index for index, cell in enumerate(cells) if cell is None]
    return pa.array(cells, kind), [index for index in lost if not _is_void(values[index], absent)]


def _is_void(value: Any, absent: Collection[str]) -> bool:
    if isinstance(value, str):
        return not value.strip() or value.strip() in absent
    return value is None or (isinstance(value, float) and math.isnan(value))


def _fits(kind: pa.DataType) -> Callable[[Any], Any]:
    if pa.types.is_list(kind):
        return _list_of_texts if pa.types.is_string(kind.value_type) else _list_of_numbers
    if pa.types.is_string(kind):
        return text_of
    if pa.types.is_boolean(kind):
        return _truth
    return _whole if pa.types.is_integer(kind) else _number


def _list_of_texts(value: Any) -> list[str | None] | None:
    """The members as texts; nested lists, such as category paths, become one list without repeats.

    >>> _list_of_texts([["Beauty", "Hair"], ["Beauty", "Skin"]])
    ['Beauty', 'Hair', 'Skin']
    """
    if not isinstance(value, list):
        return None
    if not any(isinstance(cell, list) for cell in value):
        return [text_of(cell) for cell in value]
    inner = [
        cell
        for part in value
        for cell in (_list_of_texts(part) or [] if isinstance(part, list) else [part])
    ]
    return list(dict.fromkeys(map(text_of, inner)))


def _list_of_numbers(value: Any) -> list[float | None] | None:
    return [_number(cell) for cell in value] if isinstance(value, list) else None


def _truth(value: Any) -> bool | None:
    texts: Mapping[Any, bool] = {"true": True, "false": False}
    return (
        value
        if isinstance(value, bool)
        else texts.get(str(value).lower())
        if isinstance(value, str)
        else None
    )


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)) or "_" in str(value):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _whole(value: Any) -> int | None:
    """The value as a 64-bit integer, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)) or "_" in str(value):
        return None
    try:
        number = int(value) if not isinstance(value, float) or value.is_integer() else None
    except (ValueError, OverflowError):
        return None
    return number if number is not None and -(2**63) <= number < 2**63 else None


def text_of(value: Any) -> str | None:
    """A value as text: texts unchanged, other values as JSON.

    >>> text_of("a"), text_of(7), text_of([1, "b"])
    ('a', '7', '[1, "b"]')
    """
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)

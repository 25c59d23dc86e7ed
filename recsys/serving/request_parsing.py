"""Reading of requests: rows of any way of serving → requests, or a message with the row, the field
and the fix.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import pydantic
from pydantic import BaseModel

from recsys.errors import RequestError, valid_instead
from recsys.retrieval.rules import MAX_K as MAX_K
from recsys.retrieval.rules import Boost, Diversify, Explained
from recsys.serving.requests import (
    SIMILAR_TO,
    SUBJECTS,
    AnyRequest,
    HistoryEvent,
    Request,
    SimilarRequest,
)

_LISTS: Final = ("history", "friends", "candidates", "exclude", "boost")
_WHOLE: Final = ("k", "horizon", "offset", "per_user_limit")
R = TypeVar("R", bound=BaseModel)


def parse_requests(rows: Iterable[Any], first: int = 0) -> list[Request]:
    """Check plain dictionaries and turn them into requests; ``first`` is the number of the first
    row.

    Raises
    ------
    RequestError
        A row is malformed; names the first such row (counted from 0) and its wrong fields.
    """
    return [parse_request(row, f"request {index}") for index, row in enumerate(rows, start=first)]


def parse_request(row: Any, where: str) -> Request:
    """Check one dictionary and turn it into a request; ``where`` names it in messages.

    Raises
    ------
    RequestError
        The row is malformed; names its wrong fields.
    """
    return _parsed(Request, row, where, one_of(SUBJECTS))


def parse_similar(rows: Iterable[Any], first: int = 0) -> list[SimilarRequest]:
    """As :func:`parse_requests`, for requests for similar items."""
    return [
        _parsed(SimilarRequest, row, f"request {index}", SIMILAR_TO)
        for index, row in enumerate(rows, start=first)
    ]


def parse_any(rows: Iterable[Any], first: int = 0) -> list[AnyRequest]:
    """As :func:`parse_requests`, for both kinds; a row with the field ``item_id`` asks for similar
    items.
    """
    found: list[AnyRequest] = []
    for index, row in enumerate(rows, start=first):
        is_similar = isinstance(row, SimilarRequest) or (
            isinstance(row, Mapping) and SIMILAR_TO in row
        )
        found += parse_similar([row], index) if is_similar else parse_requests([row], index)
    return found


@contextmanager
def one_request(is_one: bool = True) -> Iterator[None]:
    """Leave the number of the request out of errors, where the caller gave one request, not a list.

    Raises
    ------
    RequestError
        The error inside, without the number.
    """
    try:
        yield
    except RequestError as error:
        if not is_one:
            raise
        raise RequestError(str(error).removeprefix("request 0: ")) from None


def rules_of(content: Mapping[str, Any], where: str) -> Explained:
    """Parse the rules of a request without its other fields.

    Raises
    ------
    RequestError
        Names the wrong fields.
    """
    return _parsed(Explained, dict(content), where, "rules")


def parse_rules(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check the rules of a configuration, which apply to requests that do not set them.

    Raises
    ------
    RequestError
        Names the wrong fields.
    """
    rules_of(content, where)
    return dict(content)


def _parsed(kind: type[R], row: Any, where: str, expected: str) -> R:
    if isinstance(row, kind):
        return row
    if not isinstance(row, Mapping):
        raise RequestError(f"{where}: expected an object with {expected}, got {_short(row)}")
    try:
        return kind.model_validate(dict(row))
    except pydantic.ValidationError as error:
        raise RequestError(
            f"{where}: " + "; ".join(_message(e, kind) for e in error.errors())
        ) from None
    except RecursionError:
        raise RequestError(f"{where}: nested too deeply") from None


def rows_of_columns(given: Mapping[str, Any], what: str) -> list[dict[str, Any]]:
    """Requests from an object that holds columns (per field a list of cells), or that is one
    request itself.

    The object is one request where any field is not a list, or where ``history``, ``friends`` or
    another list field holds ids or objects: as a column its cells would be lists.

    Raises
    ------
    RequestError
        The columns differ in length.

    Examples
    --------
    >>> rows_of_columns({"user_id": ["a", "b"], "k": [1, 2]}, "inputs")
    [{'user_id': 'a', 'k': 1}, {'user_id': 'b', 'k': 2}]
    >>> rows_of_columns({"history": ["a", "b"]}, "inputs")
    [{'history': ['a', 'b']}]
    """
    is_one = any(not isinstance(column, list) for column in given.values()) or any(
        isinstance(cell, (str, Mapping)) for name in _LISTS for cell in given.get(name, ())
    )
    if is_one or not given:
        return [dict(given)]
    if len({len(column) for column in given.values()}) != 1:
        raise RequestError(
            f"{what}: the columns differ in length; give one cell per request in every column"
        )
    return [dict(zip(given, row, strict=True)) for row in zip(*given.values(), strict=True)]


def filled(rows: Iterable[Any], defaults: Mapping[str, Any]) -> list[Any]:
    """Rows without empty cells and with default values.

    Whole numbers that a data frame turned into floats become integers again. A row that asks for
    similar items takes only the default ``k``.

    >>> filled([{"user_id": "u", "history": None, "k": 5.0}], {"k": 3, "exclude_seen": False})
    [{'k': 5, 'exclude_seen': False, 'user_id': 'u'}]
    """
    found: list[Any] = []
    for row in rows:
        if isinstance(row, Mapping):
            is_similar = row.get(SIMILAR_TO) is not None
            mine = {
                name: value for name, value in defaults.items() if name == "k" or not is_similar
            }
            row = {**mine, **{str(name): value for name, value in row.items() if value is not None}}
            row |= {name: _whole(row[name]) for name in _WHOLE if name in row}
        found.append(row)
    return found


def _whole(number: Any) -> Any:
    return int(number) if isinstance(number, float) and number.is_integer() else number


def one_of(names: Sequence[str]) -> str:
    """Names as an English list with "or".

    >>> one_of(["user_id", "history", "friends"])
    'user_id, history or friends'
    """
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _message(error: Any, expected: type[BaseModel]) -> str:
    path = ""
    for part in error["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    kind, got = error["type"], _short(error["input"])
    if kind == "extra_forbidden":
        inner = next(
            (model for start, model in _INNER.items() if path.startswith(start) and path != start),
            expected,
        )
        return f"{path}: unknown field; {valid_instead(error['loc'][-1], inner.model_fields)}"
    if kind in ("model_type", "model_attributes_type") and path.startswith("history"):
        return (
            f"{path}: got {got}, expected an item id (string) or an object with"
            f" {', '.join(HistoryEvent.model_fields)}"
        )
    if kind in ("model_type", "model_attributes_type") and path.startswith(tuple(_INNER)):
        inner = next(model for start, model in _INNER.items() if path.startswith(start))
        return f"{path}: got {got}, expected an object with {', '.join(inner.model_fields)}"
    if kind == "string_type":
        return f"{path}: got {got}, expected a string (ids are strings: put numbers in quotes)"
    if kind == "dict_type" and path.endswith("context"):
        return f"{path}: got {got}, expected an object of context column → value"
    if kind == "missing":
        return f"{path}: missing"
    message = error["msg"].removeprefix("Value error, ")
    if not path:
        return str(message)
    return f"{path}: got {got}; {message[0].lower()}{message[1:]}"


_INNER: Final[dict[str, type[BaseModel]]] = {
    "history": HistoryEvent,
    "boost": Boost,
    "diversify": Diversify,
}


class _Shortened(reprlib.Repr):
    """Shows the beginning of a value of any size or depth."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxdict, self.maxlong, self.maxother = 4, 6, 6, 60, 80

    def repr_str(self, text: str, level: int) -> str:
        return repr(text[:90])


_SHORTENED: Final = _Shortened()


def _short(value: Any) -> str:
    kind = type(value).__name__
    try:
        text = f"{_SHORTENED.repr(value)} ({kind})"
    except ValueError:  # an integer with thousands of digits, which Python refuses to print
        text = f"a value ({kind}) with thousands of digits"
    return text if len(text) <= 80 else text[:77] + "…"

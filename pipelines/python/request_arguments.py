"""The arguments of a model's methods → plain values and requests, or a message that says how to
write them.

Why: frames and arrays give numpy's values, where requests take those of JSON; and a string is a
sequence, too, so it would be read as the list of its letters.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from recsys.errors import RequestError
from recsys.values.moment import moment


def plain(value: Any) -> Any:
    """A value with Python's own types instead of numpy's and pandas'.

    >>> plain({"k": np.int64(3), "candidates": np.array(["a", "b"])})
    {'k': 3, 'candidates': ['a', 'b']}

    Raises
    ------
    RequestError
        The value is nested too deeply.
    """
    try:
        return _plain(value)
    except RecursionError:
        raise RequestError(f"got a {type(value).__name__} that is nested too deeply") from None


def _plain(value: Any) -> Any:
    if isinstance(value, np.datetime64):  # its own conversion may give a number without a unit
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {_plain(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if hasattr(value, "tolist"):
        found = value.tolist()
        return _plain(found) if isinstance(found, list) else found
    return value


def plain_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name as :func:`plain` values.

    Raises
    ------
    RequestError
        ``exclude_seen`` is not a truth value, or a value is nested too deeply.
    """
    found = {name: plain(value) for name, value in given.items()}
    excludes = found.get("exclude_seen")
    if excludes is not None and not isinstance(excludes, bool):
        raise RequestError(f"exclude_seen: got {excludes!r}; expected True, False or None")
    return found


def one_id(given: Any) -> Any:
    """An id as a string where it is a whole number; other values stay, for the message.

    >>> one_id(np.int64(51)), one_id("51"), one_id(True), one_id(None)
    ('51', '51', True, None)
    """
    found = plain(given)
    return str(found) if isinstance(found, int) and not isinstance(found, bool) else found


def ids_of_users(users: Any) -> list[Any]:
    """The ids of one user or of several.

    Raises
    ------
    RequestError
        ``users`` is neither an id nor a sequence of ids.
    """
    user = one_id(users)
    if isinstance(user, str):
        return [user]
    return [one_id(entry) for entry in _members(user, "users", "user ids", '["ID"]')]


def history_of(given: Any, where: str = "history") -> list[Any]:
    """The events of a history.

    Raises
    ------
    RequestError
        The history is not a sequence, or a string, whose letters would be its items.
    """
    return _members(plain(given), where, "item ids", '["ID"]')


def requests_of(histories: Any) -> list[dict[str, Any]]:
    """A request for each of the histories.

    Raises
    ------
    RequestError
        The histories are not a sequence or mapping of histories.
    """
    if isinstance(histories, Mapping):
        return [
            {"user_id": one_id(user), "history": history_of(history, f"histories[{user!r}]")}
            for user, history in histories.items()
        ]
    lists = _members(plain(histories), "histories", "lists of item ids", '[["ID"]]')
    return [
        {"history": history_of(history, f"histories[{number}]")}
        for number, history in enumerate(lists)
    ]


def request_rows(requests: Any) -> list[Any]:
    """Complete requests.

    Raises
    ------
    RequestError
        The requests are not a sequence.
    """
    return _members(plain(requests), "requests", "requests", '[{"user_id": "ID"}]')


def seconds_of(at: Any) -> int | None:
    """A time as seconds since the epoch; None for None.

    Raises
    ------
    RequestError
        It is not a time.

    Examples
    --------
    >>> seconds_of("1970-01-02"), seconds_of(None)
    (86400, None)
    """
    if at is None:
        return None
    try:
        is_numpy = isinstance(at, np.datetime64)
        found = moment(at.astype("datetime64[us]").item() if is_numpy else plain(at))
    except ValueError as error:
        raise RequestError(f"at: got {at!r}, {error}") from None
    if found is None:
        raise RequestError(f"at: got {at!r}; expected a time such as 2024-03-01T12:00:00")
    return math.floor(found.timestamp())


def _members(given: Any, where: str, what: str, example: str) -> list[Any]:
    """The members of a list; ``example`` shows in a message how to write it, with ID for an id."""
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        shown = example.replace("ID", given) if isinstance(given, str) else example
        raise RequestError(
            f"{where}: got {reprlib.repr(given)} ({type(given).__name__}), expected a list of"
            f" {what}; write {shown[:90]}"
        )
    return list(given)

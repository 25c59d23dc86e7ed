"""Calls over HTTP: what a body asks, in our form or MLflow's, and what is said back.

Why apart from the server: no Ray and no web framework is needed to say what a call means, and tests ask it directly.

Our form: POST /recommend with a request as :class:`~recsys.serving.requests.Request` reads it → an answer, or a list of
them → a list of answers. MLflow's: POST /invocations with ``dataframe_records``, ``dataframe_split``, ``inputs`` or
``instances``, and ``params`` → ``{"predictions": [answer, …]}``, so that clients of `mlflow models serve` can switch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from recsys.errors import choices
from recsys.serving.requests import Answer, Request, filled, parse_requests

RECOMMEND: Final = "/recommend"
INVOCATIONS: Final = "/invocations"
METHODS: Final = {
    RECOMMEND: "POST",
    INVOCATIONS: "POST",
    "/health": "GET",
    "/ping": "GET",  # as MLflow's server calls it
    "/model": "GET",
    "/metrics": "GET",
}
Form = Literal["one", "list", "predictions"]
_FRAMES: Final = ("dataframe_records", "dataframe_split", "inputs", "instances")
_PARAMS: Final = ("k", "exclude_seen")


@dataclass(frozen=True)
class Reply:
    """What goes back."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


class CallError(Exception):
    """A call that is refused, with its HTTP status."""

    def __init__(self, status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


@dataclass(frozen=True)
class Call:
    """The requests of a call, and the form that its answers take."""

    requests: list[Request]
    form: Form

    def reply(self, answers: Sequence[Answer]) -> Reply:
        rows = [answer.to_dict() for answer in answers]
        if self.form == "one":
            return reply_json(200, rows[0])
        return reply_json(200, rows if self.form == "list" else {"predictions": rows})


def read_call(path: str, body: bytes, max_requests: int) -> Call:
    """The requests of a body.

    Raises:
        CallError: not JSON, of another form, or with too many requests.
        RequestError: a malformed request.
    """
    try:
        content = _json(body)
    except (ValueError, RecursionError) as error:
        raise CallError(400, f"the body is no JSON: {str(error) or 'nested too deeply'}") from None
    rows = _invoked(content) if path == INVOCATIONS else content if isinstance(content, list) else [content]
    if len(rows) > max_requests:
        raise CallError(413, f"got {len(rows)} requests, a call takes {max_requests}; send them in several")
    form: Form = "predictions" if path == INVOCATIONS else "list" if isinstance(content, list) else "one"
    return Call(parse_requests(rows), form)


def refusal(path: str, error: CallError) -> Reply:
    """An error in the form of the path."""
    if path != INVOCATIONS:
        return reply_json(error.status, {"error": str(error)}, error.headers)
    code = {400: "BAD_REQUEST", 401: "UNAUTHENTICATED", 500: "INTERNAL_ERROR"}.get(error.status, "BAD_REQUEST")
    return reply_json(error.status, {"error_code": code, "message": str(error)}, error.headers)


def reply_json(status: int, content: Any, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    """Numbers with all digits that they have, text as it is."""
    return Reply(status, json.dumps(content, allow_nan=False, ensure_ascii=False).encode(), headers=headers)


def _json(body: bytes) -> Any:
    """What a body says, of numbers and text that an answer can repeat."""
    text = body.decode("utf-8-sig")
    content = json.loads(text, parse_constant=_no_constant)
    if "\\ud" in text.lower():
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a text holds half a character (a lone surrogate)") from None
    return content


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _invoked(content: Any) -> list[Any]:
    """Rows of MLflow's forms, the call's parameters where a row does not say."""
    kinds = [kind for kind in _FRAMES if isinstance(content, Mapping) and kind in content]
    if len(kinds) != 1:
        raise CallError(400, f"expected an object with one of {', '.join(_FRAMES)}, and params")
    extra = set(content) - {kinds[0], "params"}
    if extra:
        raise CallError(400, f"{choices(extra)}: unknown key beside {kinds[0]} and params")
    params = content.get("params") or {}
    if not isinstance(params, Mapping) or not set(params) <= {*_PARAMS}:
        raise CallError(400, f"params: expected an object of {' and '.join(_PARAMS)}")
    return filled(_rows(kinds[0], content[kinds[0]]), params)


def _rows(kind: str, given: Any) -> list[Any]:
    if kind == "dataframe_split":
        if not isinstance(given, Mapping) or not {"columns", "data"} <= set(given):
            raise CallError(400, "dataframe_split: expected an object with columns and data")
        columns, data = given["columns"], given["data"]
        if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
            raise CallError(400, f"dataframe_split: columns: got {str(columns)[:80]}, expected a list of field names")
        if not isinstance(data, list) or any(not isinstance(row, list) or len(row) != len(columns) for row in data):
            raise CallError(400, f"dataframe_split: expected rows of {len(columns)} values, as there are columns")
        return [dict(zip(columns, row, strict=True)) for row in data]
    if isinstance(given, Mapping) and given and all(isinstance(column, list) for column in given.values()):
        if len({len(column) for column in given.values()}) != 1:
            raise CallError(400, f"{kind}: the columns differ in length")
        return [dict(zip(given, row, strict=True)) for row in zip(*given.values(), strict=True)]
    if isinstance(given, Mapping):
        return [given]
    if not isinstance(given, list):
        raise CallError(400, f"{kind}: expected a list of requests, got {type(given).__name__}")
    return given

"""Calls over HTTP: what a body asks, in our form or MLflow's, and what is said back.

Why apart from the server: no Ray and no web framework is needed to say what a call means, and tests ask it directly.

Our form: POST /recommend with a request as :class:`~recsys.serving.requests.Request` reads it → an answer, or a list of
them → a list of answers; POST /similar likewise, of :class:`~recsys.serving.requests.SimilarRequest`. MLflow's:
POST /invocations with ``dataframe_records``, ``dataframe_split``, ``inputs`` or ``instances``, and ``params`` →
``{"predictions": [answer, …]}``, so that clients of `mlflow models serve` can switch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from recsys.errors import choices
from recsys.serving.json_text import read_json
from recsys.serving.requests import (
    AnyAnswer,
    AnyRequest,
    filled,
    parse_any,
    parse_requests,
    parse_similar,
    rows_of_columns,
)

RECOMMEND: Final = "/recommend"
INVOCATIONS: Final = "/invocations"
SIMILAR: Final = "/similar"
STOCK: Final = "/stock"
METHODS: Final = {
    RECOMMEND: "POST",
    INVOCATIONS: "POST",
    SIMILAR: "POST",
    STOCK: "POST",
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

    def __reduce__(self) -> tuple[Any, ...]:
        return CallError, (self.status, str(self), self.headers)


@dataclass(frozen=True)
class Rows:
    """The rows of a body, not yet read as requests, and the form that their answers take."""

    rows: list[Any]
    form: Form


def read_rows(path: str, body: bytes) -> Rows:
    """The rows of a body.

    Raises
    ------
    CallError
        not JSON, or of another form.
    RequestError
        columns of different lengths.
    """
    content = read_body(body)
    if path == INVOCATIONS:
        return Rows(_invoked(content), "predictions")
    return Rows(content, "list") if isinstance(content, list) else Rows([content], "one")


def read_body(body: bytes) -> Any:
    """The JSON of a body.

    Raises
    ------
    CallError
        it is none.
    """
    try:
        return read_json(body)
    except ValueError as error:
        raise CallError(400, f"the body is no JSON: {error}") from None


def parse_rows(path: str, rows: Sequence[Any], first: int = 0) -> list[AnyRequest]:
    """Rows as requests of the kind that a path takes; MLflow's path takes both kinds.

    Raises
    ------
    RequestError
        a malformed request.
    """
    if path == INVOCATIONS:
        return parse_any(rows, first)
    return [*(parse_similar(rows, first) if path == SIMILAR else parse_requests(rows, first))]


def answers_json(answers: Sequence[AnyAnswer]) -> bytes:
    """Answers one after the other, as a list holds them."""
    return json.dumps([answer.to_dict() for answer in answers], allow_nan=False, ensure_ascii=False)[1:-1].encode()


def joined(form: Form, parts: Sequence[bytes]) -> Reply:
    """The reply of parts that :func:`answers_json` made."""
    answers = b", ".join(part for part in parts if part)
    if form == "one":
        return Reply(200, answers)
    return Reply(200, b"[" + answers + b"]" if form == "list" else b'{"predictions": [' + answers + b"]}")


def refusal(path: str, error: CallError) -> Reply:
    """An error in the form of the path."""
    if path != INVOCATIONS:
        return reply_json(error.status, {"error": str(error)}, error.headers)
    codes = {401: "UNAUTHENTICATED", 500: "INTERNAL_ERROR", 503: "TEMPORARILY_UNAVAILABLE"}
    code = codes.get(error.status, "BAD_REQUEST")
    return reply_json(error.status, {"error_code": code, "message": str(error)}, error.headers)


def reply_json(status: int, content: Any, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    """Numbers with all digits that they have, text as it is."""
    return Reply(status, json.dumps(content, allow_nan=False, ensure_ascii=False).encode(), headers=headers)


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
    if isinstance(given, Mapping):
        return list(rows_of_columns(given, kind))
    if not isinstance(given, list):
        raise CallError(400, f"{kind}: expected a list of requests, got {type(given).__name__}")
    return given

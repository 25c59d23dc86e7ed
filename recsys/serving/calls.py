"""Calls over HTTP: parsing of bodies in our format or MLflow's, and formatting of replies.

Why separate from the server: parsing needs neither Ray nor a web framework, and tests call it
directly.

Our format: POST /recommend with one request, as :class:`~recsys.serving.requests.Request` reads it,
returns one answer; a list of requests returns a list of answers. POST /similar works the same way
with :class:`~recsys.serving.requests.SimilarRequest`. MLflow's format: POST /invocations with
``dataframe_records``, ``dataframe_split``, ``inputs`` or ``instances``, and ``params``, returns
``{"predictions": [answer, …]}``, so that clients of `mlflow models serve` can switch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from recsys.errors import choices
from recsys.serving.json_text import read_json
from recsys.serving.request_parsing import (
    filled,
    parse_any,
    parse_requests,
    parse_similar,
    rows_of_columns,
)
from recsys.serving.requests import AnyAnswer, AnyRequest

RECOMMEND: Final = "/recommend"
INVOCATIONS: Final = "/invocations"
SIMILAR: Final = "/similar"
STOCK: Final = "/stock"
OPENAPI: Final = "/openapi.json"
DOCS: Final = "/docs"
METHODS: Final = {
    RECOMMEND: "POST",
    INVOCATIONS: "POST",
    SIMILAR: "POST",
    STOCK: "POST",
    "/health": "GET",
    "/ping": "GET",  # the name of MLflow's server for /health
    "/model": "GET",
    "/metrics": "GET",
    OPENAPI: "GET",
    DOCS: "GET",
}
Form = Literal["one", "list", "predictions"]
FRAMES: Final = ("dataframe_records", "dataframe_split", "inputs", "instances")
PARAMS: Final = ("k", "exclude_seen")
ERROR_CODES: Final = {401: "UNAUTHENTICATED", 500: "INTERNAL_ERROR", 503: "TEMPORARILY_UNAVAILABLE"}
OTHER_ERROR: Final = "BAD_REQUEST"


@dataclass(frozen=True)
class Reply:
    """An HTTP reply."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


class CallError(Exception):
    """A call is refused; carries the HTTP status of the reply."""

    def __init__(
        self, status: int, message: str, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers

    # an exception is pickled with its ``args``, which lack the status; it travels between processes
    def __reduce__(self) -> tuple[Any, ...]:
        return CallError, (self.status, str(self), self.headers)


@dataclass(frozen=True)
class Rows:
    """The rows of a body, not yet parsed as requests, and the format of the reply."""

    rows: list[Any]
    form: Form


def read_rows(path: str, body: bytes) -> Rows:
    """The rows of a body.

    Raises
    ------
    CallError
        The body is not JSON, or has another format.
    RequestError
        Columns have different lengths.
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
        The body is not valid JSON.
    """
    try:
        return read_json(body)
    except ValueError as error:
        raise CallError(400, f"the body is not valid JSON: {error}") from None


def parse_rows(path: str, rows: Sequence[Any], first: int = 0) -> list[AnyRequest]:
    """Parse rows as the kind of request that a path accepts; MLflow's path accepts both kinds.

    Parameters
    ----------
    path : str
        Path of the HTTP request, such as ``/recommend``.
    rows : Sequence[Any]
        One request per row.
    first : int
        Number of the first row, for messages.

    Returns
    -------
    list[AnyRequest]
        The requests, in the order of the rows.

    Raises
    ------
    RequestError
        A request is malformed.
    """
    if path == INVOCATIONS:
        return parse_any(rows, first)
    return [*(parse_similar(rows, first) if path == SIMILAR else parse_requests(rows, first))]


def answers_json(answers: Sequence[AnyAnswer]) -> bytes:
    """Answers as the elements of a JSON list, without its brackets."""
    return json.dumps(
        [answer.to_dict() for answer in answers], allow_nan=False, ensure_ascii=False
    )[1:-1].encode()


def joined(form: Form, parts: Sequence[bytes]) -> Reply:
    """Join parts made by :func:`answers_json` into one reply."""
    answers = b", ".join(part for part in parts if part)
    if form == "one":
        return Reply(200, answers)
    return Reply(
        200, b"[" + answers + b"]" if form == "list" else b'{"predictions": [' + answers + b"]}"
    )


def refusal(path: str, error: CallError) -> Reply:
    """An error reply in the format of the path."""
    if path != INVOCATIONS:
        return reply_json(error.status, {"error": str(error)}, error.headers)
    code = ERROR_CODES.get(error.status, OTHER_ERROR)
    return reply_json(error.status, {"error_code": code, "message": str(error)}, error.headers)


def reply_json(status: int, content: Any, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    """A reply with a JSON body; numbers keep all digits, text is not escaped to ASCII.

    Parameters
    ----------
    status : int
        HTTP status.
    content : Any
        Plain values.
    headers : tuple[tuple[str, str], ...]
        Further headers of the reply.

    Returns
    -------
    Reply
        The reply, with the body in UTF-8.

    Raises
    ------
    ValueError
        The content has NaN or infinity.
    """
    return Reply(
        status, json.dumps(content, allow_nan=False, ensure_ascii=False).encode(), headers=headers
    )


def _invoked(content: Any) -> list[Any]:
    """Rows of MLflow's formats; ``params`` apply to rows that do not set them."""
    kinds = [kind for kind in FRAMES if isinstance(content, Mapping) and kind in content]
    if len(kinds) != 1:
        raise CallError(
            400,
            f"expected an object with exactly one of {', '.join(FRAMES)}, and optionally params",
        )
    extra = set(content) - {kinds[0], "params"}
    if extra:
        raise CallError(400, f"{choices(extra)}: unknown key; expected only {kinds[0]} and params")
    params = content.get("params") or {}
    if not isinstance(params, Mapping) or not set(params) <= {*PARAMS}:
        raise CallError(400, f"params: expected an object with {' and/or '.join(PARAMS)}")
    return filled(_rows(kinds[0], content[kinds[0]]), params)


def _rows(kind: str, given: Any) -> list[Any]:
    if kind == "dataframe_split":
        if not isinstance(given, Mapping) or not {"columns", "data"} <= set(given):
            raise CallError(400, "dataframe_split: expected an object with columns and data")
        columns, data = given["columns"], given["data"]
        if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
            raise CallError(
                400,
                f"dataframe_split: columns: got {str(columns)[:80]}, expected a list of field"
                " names",
            )
        if not isinstance(data, list) or any(
            not isinstance(row, list) or len(row) != len(columns) for row in data
        ):
            raise CallError(
                400, f"dataframe_split: expected {len(columns)} values in every row, one per column"
            )
        return [dict(zip(columns, row, strict=True)) for row in data]
    if isinstance(given, Mapping):
        return list(rows_of_columns(given, kind))
    if not isinstance(given, list):
        raise CallError(400, f"{kind}: expected a list of requests, got {type(given).__name__}")
    return given

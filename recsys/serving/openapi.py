"""The description of the server for programs: an OpenAPI 3.1 document, answered at /openapi.json.

Paths and methods are those of :data:`recsys.serving.calls.METHODS`; the schemas of requests and
answers are derived from their classes (:mod:`recsys.serving.schemas`). Tests compare the rest with
the code and with real replies: every status that the code refuses with, and every key that a reply
has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from recsys import __version__
from recsys.serving.api_examples import Examples
from recsys.serving.calls import DOCS, INVOCATIONS, METHODS, OPENAPI, RECOMMEND, SIMILAR, STOCK
from recsys.serving.prometheus import HELP, PREFIX
from recsys.serving.reply_schemas import components
from recsys.serving.schemas import Schema, fixed_object, ref

if TYPE_CHECKING:  # imports torch
    from recsys.serving.model_traits import ModelTraits

OPEN_TO_ALL: Final = ("/health", "/ping", DOCS)  # paths that need no token
VERSION_HEADER: Final = "X-Model-Version"
# status → when a call is refused with it
STATUSES: Final = {
    400: "The body is not JSON, or not such a request; or the call asks for a WebSocket, or has"
    " several `Authorization` headers. The message names the request, the field and what was"
    " expected. Bytes that are not HTTP get plain text.",
    401: "The token is missing or wrong.",
    403: "This server accepts no changes of the stock (serve.stock_token_env names no token).",
    404: "There is no such path.",
    405: "The path has another method; the header `Allow` names it.",
    408: "The body did not arrive in time (serve.body_timeout_s), or the answer took too long"
    " (serve.timeout_s).",
    413: "The body is too large (serve.max_bytes), or the call asks for too many requests, items"
    " or scores.",
    415: "The `Content-Type` is not `application/json`.",
    431: "The head of the call has more than 64 KiB; the reply has no body.",
    500: "A fault of the server; its log has the details.",
    503: "No replica answers (yet), the server is stopping, or it is full. Send the call again.",
}
_JSON: Final = "application/json"
_TEXT: Final[Schema] = {"type": "string"}
_CALLERS, _WAREHOUSE = "callerToken", "stockToken"


@dataclass(frozen=True)
class ServerTraits:
    """What the description says about the server itself."""

    max_requests: int
    max_bytes: int
    needs_token: bool = False
    takes_stock: bool = False


def document(
    server: ServerTraits, traits: ModelTraits | None = None, about: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The OpenAPI document.

    Parameters
    ----------
    server : ServerTraits
        Limits and tokens of the server.
    traits : ModelTraits | None
        What the loaded model knows; None: the document names no attributes.
    about : Mapping[str, Any] | None
        The description of the loaded model.
    """
    shown = Examples.of(traits)
    operations = {
        RECOMMEND: _recommend(server, shown),
        SIMILAR: _similar(server, shown),
        STOCK: _stock(server, shown),
        INVOCATIONS: _invocations(shown),
        **_reads(shown),
    }
    tokens = _tokens(server)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Multigrain",
            "version": __version__,
            "summary": "Recommendations over HTTP.",
            "description": _introduction(server),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            **({} if about is None else {"x-model": _loaded(about)}),
        },
        "servers": [{"url": ".", "description": "The server that sent this document."}],
        "tags": [
            {"name": "answers", "description": "Recommendations and similar items."},
            {"name": "stock", "description": "Items that no answer may contain."},
            {"name": "state", "description": "The server and its model."},
        ],
        "paths": {
            path: {METHODS[path].lower(): _with_security(path, operation, server)}
            for path, operation in operations.items()
        },
        "components": {"schemas": components(traits), "securitySchemes": tokens},
    }


def _loaded(about: Mapping[str, Any]) -> dict[str, str]:
    """Where the loaded models came from, and their versions."""
    models = [about, *([about["ab"]["model"]] if "ab" in about else [])]
    return {str(one.get("uri") or ""): str(one.get("version") or "") for one in models}


def _introduction(server: ServerTraits) -> str:
    lines = [
        "Bodies are JSON in UTF-8. An unknown field is refused, and so is a number in place of an"
        " id: ids are text. No path reads query parameters.",
        f"A body has at most {server.max_bytes:,} bytes, and a call at most"
        f" {server.max_requests:,} requests.",
    ]
    if server.needs_token:
        lines.append(
            "Calls need a token: `Authorization: Bearer TOKEN`. Without it, only "
            + ", ".join(f"`{path}`" for path in OPEN_TO_ALL)
            + " answer."
        )
    return "\n\n".join(lines)


def _tokens(server: ServerTraits) -> dict[str, Any]:
    """The security schemes that this server has."""
    found = {
        _WAREHOUSE: {
            "type": "http",
            "scheme": "bearer",
            "description": "Token of POST /stock (serve.stock_token_env)",
        }
    }
    if server.needs_token:
        found[_CALLERS] = {
            "type": "http",
            "scheme": "bearer",
            "description": "Token of callers (serve.token_env)",
        }
    return found


def _with_security(path: str, operation: dict[str, Any], server: ServerTraits) -> dict[str, Any]:
    """An operation with its token, and the reply to a call without it."""
    if path == STOCK:
        named: list[dict[str, list[str]]] = [{_WAREHOUSE: []}]
    elif server.needs_token and path not in OPEN_TO_ALL:
        named = [{_CALLERS: []}]
    else:
        return {**operation, "security": []}
    challenge = {"WWW-Authenticate": {"schema": _TEXT, "required": True}}
    refused = _refusal(401, _error_of(path)) | {"headers": challenge}
    responses = {**operation["responses"], "401": refused}
    return {**operation, "security": named, "responses": dict(sorted(responses.items()))}


def _recommend(server: ServerTraits, shown: Examples) -> dict[str, Any]:
    return {
        "operationId": "recommend",
        "tags": ["answers"],
        "summary": "Recommendations for one request, or for a list of requests",
        "description": "One request gets one answer; a list of requests gets a list of answers in"
        " the same order, all from one version of the model.",
        "requestBody": _body(_one_or_list("Request", server), shown.recommend),
        "responses": {
            "200": _ok("The answer, or the answers.", _one_or_list("Answer"), shown.answers)
            | _version_header(),
            **_refusals(RECOMMEND),
        },
    }


def _similar(server: ServerTraits, shown: Examples) -> dict[str, Any]:
    return {
        "operationId": "similar",
        "tags": ["answers"],
        "summary": "Items that are similar to an item, for one request or for a list",
        "requestBody": _body(_one_or_list("SimilarRequest", server), shown.similar),
        "responses": {
            "200": _ok("The answer, or the answers.", _one_or_list("SimilarAnswer"), shown.alike)
            | _version_header(),
            **_refusals(SIMILAR),
        },
    }


def _invocations(shown: Examples) -> dict[str, Any]:
    predictions = {
        "type": "array",
        "items": {"anyOf": [ref("Answer"), ref("SimilarAnswer")]},
    }
    return {
        "operationId": "invocations",
        "tags": ["answers"],
        "summary": "The same answers in the forms of `mlflow models serve`",
        "description": "A row with `item_id` asks for similar items, any other row for"
        " recommendations. `params` apply to rows that do not set them.",
        "requestBody": _body(ref("Invocations"), shown.invocations),
        "responses": {
            "200": _ok(
                "One answer per row.", fixed_object({"predictions": predictions}), shown.predictions
            )
            | _version_header(),
            **_refusals(INVOCATIONS),
        },
    }


def _stock(server: ServerTraits, shown: Examples) -> dict[str, Any]:
    closed = "" if server.takes_stock else " This server has no such token and answers 403."
    return {
        "operationId": "changeStock",
        "tags": ["stock"],
        "summary": "Items that are out of stock, which no answer contains from now on",
        "description": "Needs a token of its own. The reply waits until every replica has the"
        f" change, for 3 s at most.{closed}",
        "requestBody": _body(ref("StockChange"), shown.stock),
        "responses": {
            "200": _ok("The stock after the change.", ref("StockReply"), shown.stock_reply),
            "403": _refusal(403, ref("Error")),
            **_refusals(STOCK),
        },
    }


def _reads(shown: Examples) -> dict[str, dict[str, Any]]:
    """The operations that read: GET, without a body."""
    health = {
        "tags": ["state"],
        "responses": {
            "200": _ok("A replica answers.", ref("Health"), shown.health),
            **_refusals("/health"),
        },
    }
    counted = "\n".join(f"- `{PREFIX}{name}`: {text}" for name, text in HELP.items())
    return {
        "/health": {
            "operationId": "health",
            "summary": "Whether the server is ready",
            "description": "Only 200 means ready. The reply waits for no other call.",
            **health,
        },
        "/ping": {
            "operationId": "ping",
            "summary": "The same as /health, under the name that MLflow's server uses",
            **health,
        },
        "/model": {
            "operationId": "model",
            "tags": ["state"],
            "summary": "The loaded model: version, dataset, metrics, model card",
            "responses": {
                "200": _ok("The model.", ref("ModelDescription")),
                **_refusals("/model"),
            },
        },
        "/metrics": {
            "operationId": "metrics",
            "tags": ["state"],
            "summary": "Counts and latencies of all replicas, for Prometheus",
            "description": f"{counted}\n- `{PREFIX}call_seconds`: a histogram by path\n"
            f"- `{PREFIX}replicas`, `{PREFIX}model_info`: running replicas, the loaded model",
            "responses": {
                "200": _reply("Prometheus' text format.", "text/plain", _TEXT),
                **_refusals("/metrics"),
            },
        },
        **_own_pages(),
    }


def _own_pages() -> dict[str, dict[str, Any]]:
    """The operations that return this document."""
    return {
        OPENAPI: {
            "operationId": "openapi",
            "tags": ["state"],
            "summary": "This document, with the attributes of the loaded model",
            "responses": {
                "200": _ok("An OpenAPI 3.1 document.", {"type": "object"}),
                **_refusals(OPENAPI),
            },
        },
        DOCS: {
            "operationId": "docs",
            "tags": ["state"],
            "summary": "This document as a page, with forms that send calls",
            "description": "Needs no token: before one is entered, the page names nothing of the"
            " model.",
            "responses": {
                "200": _reply("An HTML page.", "text/html", _TEXT),
                **_refusals(DOCS),
            },
        },
    }


def _one_or_list(name: str, server: ServerTraits | None = None) -> Schema:
    several: Schema = {"type": "array", "items": ref(name)}
    if server is not None:
        several["maxItems"] = server.max_requests
    return {"anyOf": [ref(name), several]}


def _body(schema: Schema, examples: Mapping[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {_JSON: {"schema": schema, "examples": examples}}}


def _ok(
    description: str, schema: Schema, examples: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    return _reply(description, _JSON, schema, examples)


def _reply(
    description: str, kind: str, schema: Schema, examples: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    content = {"schema": schema, **({"examples": examples} if examples else {})}
    return {"description": description, "content": {kind: content}}


def _version_header() -> dict[str, Any]:
    text = "The version that answered; with two versions, every one that did."
    return {"headers": {VERSION_HEADER: {"description": text, "schema": _TEXT, "required": True}}}


def _error_of(path: str) -> Schema:
    return ref("InvocationsError" if path == INVOCATIONS else "Error")


def _refusals(path: str) -> dict[str, Any]:
    """The refusals of a path, without those for its token."""
    read = (408, 413, 415) if METHODS[path] == "POST" else () if path in OPEN_TO_ALL else (408,)
    error = _error_of(path)
    found = {str(status): _refusal(status, error) for status in (400, *read, 431, 500, 503)}
    others = {
        "description": "Any other refusal, such as 404 for another path and 405 for another"
        " method.",
        "content": {_JSON: {"schema": error}},
    }
    return {**found, "default": others}


def _refusal(status: int, error: Schema) -> dict[str, Any]:
    found: dict[str, Any] = {"description": STATUSES[status]}
    if status != 431:
        found["content"] = {_JSON: {"schema": error}}
    if status == 400:
        found["content"]["text/plain"] = {"schema": _TEXT}
    if status == 503:
        wait = {"description": "Seconds to wait.", "schema": {"type": "integer"}}
        found["headers"] = {"Retry-After": wait}
    return found

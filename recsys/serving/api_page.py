"""The page /docs: the OpenAPI document as one HTML file that needs nothing from elsewhere.

Why not Swagger UI or Redoc: they are a megabyte of script, mostly loaded from another host, and
ask for a looser Content-Security-Policy. Here the document is written as HTML on the server; a
short script only sends calls and fills in what the loaded model knows.

The page needs no token, since a browser sends none with an address that a person opens. So the
document behind it is the general one; the attributes of the model come from /openapi.json, with
the token that the reader enters.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from typing import Any, Final

import jinja2
from markupsafe import Markup, escape

from recsys.report.pages import environment, packaged, stylesheet
from recsys.serving.calls import Reply
from recsys.serving.openapi import ServerTraits, document
from recsys.serving.schemas import PLACE, Schema

_TEMPLATE: Final = "api_page.html.j2"
_LINE: Final = 72  # characters; the script of the page has the same rule
_WORDS: Final = {
    "string": "text",
    "number": "number",
    "integer": "whole number",
    "boolean": "true or false",
    "null": "null",
    "object": "object",
    "array": "list",
}


@cache
def docs(server: ServerTraits) -> Reply:
    """The reply to GET /docs."""
    style = stylesheet() + packaged("recsys.serving", "api_page.css")
    script = packaged("recsys.serving", "api_page.js")
    templates = environment(
        jinja2.PackageLoader("recsys.serving", "."),
        prose=prose,
        type=type_words,
        fields=fields,
        pretty=pretty,
    )
    api = document(server)
    page = templates.get_template(_TEMPLATE).render(
        api=api, style=Markup(style), script=Markup(script), examples=_data(_examples(api))
    )
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)};"
        " connect-src 'self'; img-src data:; form-action 'none'; base-uri 'none';"
        " frame-ancestors 'none'"
    )
    headers = (
        ("Content-Security-Policy", policy),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cache-Control", "no-cache"),
    )
    return Reply(200, page.encode(), "text/html; charset=utf-8", headers)


def _hash(text: str) -> str:
    """The source of a Content-Security-Policy that allows exactly this inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _examples(api: dict[str, Any]) -> dict[str, Any]:
    """Operation → examples of its body."""
    return {
        operation["operationId"]: operation["requestBody"]["content"]["application/json"][
            "examples"
        ]
        for operations in api["paths"].values()
        for operation in operations.values()
        if "requestBody" in operation
    }


def pretty(content: Any, indent: str = "") -> str:
    """JSON in which a list or an object that fits on a line has no line breaks.

    >>> print(pretty({"user_id": "ada", "k": 5}))
    {"user_id": "ada", "k": 5}
    """
    line = json.dumps(content, ensure_ascii=False)
    if len(indent + line) <= _LINE or not isinstance(content, (dict, list)):
        return line
    inner = indent + "  "
    if isinstance(content, list):
        parts = [inner + pretty(one, inner) for one in content]
        return "[\n" + ",\n".join(parts) + f"\n{indent}]"
    parts = [f"{inner}{json.dumps(name)}: {pretty(one, inner)}" for name, one in content.items()]
    return "{\n" + ",\n".join(parts) + f"\n{indent}}}"


def _data(content: Any) -> Markup:
    """JSON that cannot end the script element around it."""
    return Markup(json.dumps(content, ensure_ascii=False).replace("<", "\\u003c"))


def prose(text: str) -> Markup:
    r"""Paragraphs, lists and code of a description.

    >>> print(prose("Send `k`.\n\n- a\n- b"))
    <p>Send <code>k</code>.</p><ul><li>a</li><li>b</li></ul>
    """
    found = []
    for block in text.split("\n\n"):
        lines = [
            re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(line)))
            for line in block.split("\n")
        ]
        if all(line.startswith("- ") for line in lines):
            found.append("<ul>" + "".join(f"<li>{line[2:]}</li>" for line in lines) + "</ul>")
        else:
            found.append(f"<p>{' '.join(lines)}</p>")
    return Markup("".join(found))


def type_words(schema: Schema) -> Markup:
    """The type of a value in a few words, with links to components.

    >>> print(type_words({"type": "array", "items": {"$ref": "#/components/schemas/Boost"}}))
    list of <a href="#schema-Boost">Boost</a>
    >>> print(type_words({"type": "integer", "minimum": 1, "maximum": 1000}))
    whole number, 1 to 1,000
    """
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(PLACE)
        return Markup('<a href="#schema-{0}">{0}</a>').format(name)
    if "enum" in schema:
        return Markup(" or ").join(
            Markup("<code>{}</code>").format(json.dumps(one, ensure_ascii=False))
            for one in schema["enum"]
        )
    if "anyOf" in schema and "type" not in schema:
        return Markup(" or ").join(dict.fromkeys(type_words(one) for one in schema["anyOf"]))
    kinds = schema.get("type", [])
    words = [_one_type(kind, schema) for kind in ([kinds] if isinstance(kinds, str) else kinds)]
    return Markup(" or ").join(words) if words else Markup("any value")


def _one_type(kind: str, schema: Schema) -> Markup:
    items = schema.get("items")
    if kind == "array" and items:
        inner = type_words(items)
        if " or " in inner:
            return Markup("list of ({})").format(inner)
        plural = inner + ("s" if inner in ("text", "number") else "")
        return Markup("list of ") + plural
    more = schema.get("additionalProperties")
    if kind == "object" and isinstance(more, dict):
        return Markup("object of ") + type_words(more)
    return Markup(_WORDS[kind]) + _bounds(schema)


def _bounds(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if "exclusiveMinimum" in schema:
        return f", above {schema['exclusiveMinimum']:,}, at most {high:,}"
    return "" if low is None or high is None else f", {low:,} to {high:,}"


def fields(schema: Schema) -> list[dict[str, Any]]:
    """The rows of the table of an object's fields; empty for another type."""
    objects = [schema, *(one for one in schema.get("anyOf", ()) if one.get("properties"))]
    found = next((one for one in objects if one.get("properties")), None)
    if found is None or ("properties" not in schema and "type" not in found):
        return []
    return [
        {
            "name": name,
            "type": type_words(part),
            "text": part.get("description", ""),
            "default": json.dumps(part["default"]) if "default" in part else "",
            "required": name in found.get("required", ()),
        }
        for name, part in found["properties"].items()
    ]

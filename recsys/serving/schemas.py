"""JSON schemas of requests and answers, derived from the classes that parse and write them.

The fields, their types and their limits come from pydantic; a field without a description in
:mod:`recsys.serving.field_texts` is an error (a test builds the schemas). Written by hand is only
what pydantic cannot derive: shapes that a validator accepts in addition (an id as an event), the
conditions of filters, and the fields of which one must be given. A test compares what the schemas
and the parsers accept.

Where the traits of a loaded model are known, the schemas name its attributes, context columns and
event types.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter

from recsys.retrieval.conditions import BOUNDS, MAX_CONDITIONS, MAX_VALUES, OF_LISTS, OPERATORS
from recsys.retrieval.rules import Boost, Diversify
from recsys.serving.field_texts import DESCRIPTIONS
from recsys.serving.requests import (
    SUBJECTS,
    Answer,
    HistoryEvent,
    Request,
    SimilarAnswer,
    SimilarRequest,
)
from recsys.serving.stock import StockChange

if TYPE_CHECKING:  # imports torch
    from recsys.serving.model_traits import Attribute, ModelTraits

Schema = dict[str, Any]
PLACE: Final = "#/components/schemas/"
READ: Final = (Request, SimilarRequest, HistoryEvent, Boost, Diversify, StockChange)
WRITTEN: Final = (Answer, SimilarAnswer)

_ID: Final[Schema] = {"type": "string", "minLength": 1}
_CONDITIONS: Final = {
    "number": "NumberCondition",
    "time": "TimeCondition",
    "category": "CategoryCondition",
    "list": "CategoryCondition",
    "mixed": "Condition",
}


def ref(name: str) -> Schema:
    """A reference to a component."""
    return {"$ref": PLACE + name}


def or_null(schema: Schema) -> Schema:
    """A schema that accepts null too."""
    return {"anyOf": [schema, {"type": "null"}]}


def fixed_object(properties: Mapping[str, Schema], required: Iterable[str] | None = None) -> Schema:
    """An object with these properties and no others; by default all are required."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties if required is None else required),
        "additionalProperties": False,
    }


def schemas(traits: ModelTraits | None = None) -> dict[str, Schema]:
    """The components of requests and answers by name; ``traits`` are those of the loaded model."""
    found = {name: _described(name, _untitled(schema)) for name, schema in _derived().items()}
    for one in WRITTEN:
        found[one.__name__] = _without_absent(found[one.__name__])
    _accept_more(found)
    found |= _conditions() | _explanations()
    found |= {
        "Time": {
            "type": ["string", "number"],
            "description": "A time in any form that times of events have: ISO 8601 (UTC without a"
            " zone), or seconds, milli-, micro- or nanoseconds since 1970.",
            "examples": ["2026-11-27 18:00", 1795802400],
        },
        "Filters": _filters(traits),
        "UserAttributes": _user_attributes(traits),
        "Context": _context(traits),
        "RequestRow": _row(found["Request"], "A row of /invocations with the fields of a Request"),
        "SimilarRow": _row(
            found["SimilarRequest"], "A row of /invocations with the fields of a SimilarRequest"
        ),
    }
    if traits is not None:
        _name_known(found, traits)
    return found


@cache
def _derived() -> dict[str, Schema]:
    """The schemas of the classes, as pydantic derives them."""
    definitions: dict[str, Schema] = TypeAdapter.json_schemas(
        [
            *((one.__name__, "validation", TypeAdapter(one)) for one in READ),
            *((one.__name__, "serialization", TypeAdapter(one)) for one in WRITTEN),
        ],
        ref_template=PLACE + "{model}",
    )[1]["$defs"]
    return definitions


def _untitled(schema: Any) -> Any:
    """A schema without the titles and descriptions that pydantic takes from names."""
    if isinstance(schema, list):
        return [_untitled(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: _untitled(value)
        for name, value in schema.items()
        if name not in ("title", "description") or not isinstance(value, str)
    }


def _described(name: str, schema: Schema) -> Schema:
    texts = DESCRIPTIONS[name]
    parts = schema["properties"]
    properties = {field: {"description": texts[field], **parts[field]} for field in texts if field}
    # a default of null says no more than that the field is optional
    for part in properties.values():
        if "default" in part and part["default"] is None:
            del part["default"]
    return {"description": texts[""], **schema, "properties": properties}


def _without_absent(schema: Schema) -> Schema:
    """The schema of an answer: optional fields are left out where they are None."""
    required = schema["required"]
    properties = {}
    for name, part in schema["properties"].items():
        if name not in required:
            [kept] = [one for one in part["anyOf"] if one != {"type": "null"}]
            part = {"description": part["description"], **kept}
        properties[name] = part
    return {**schema, "properties": properties, "additionalProperties": False}


def _accept_more(found: dict[str, Schema]) -> None:
    """What the validators of the classes accept in addition, and which fields they ask for."""
    event = {"anyOf": [_ID, ref("HistoryEvent")]}
    history = found["Request"]["properties"]["history"]["anyOf"][0]
    history["items"] = event
    for owner, name, kept in (
        ("Request", "at", ref("Time")),
        ("HistoryEvent", "timestamp", ref("Time")),
        ("Request", "attributes", ref("UserAttributes")),
        ("Request", "context", ref("Context")),
        ("HistoryEvent", "context", ref("Context")),
        ("Request", "filters", ref("Filters")),
        ("SimilarRequest", "filters", ref("Filters")),
        ("Boost", "filters", ref("Filters")),
    ):
        _set(found, owner, name, or_null(kept))
    for owner in ("Request", "SimilarRequest"):
        several = found[owner]["properties"]["boost"]["anyOf"]
        several.insert(0, ref("Boost"))
    _set(found, "Answer", "explanations", {"type": "array", "items": ref("Explanation")})
    for owner in ("Answer", "SimilarAnswer"):
        _set(found, owner, "unknown_in_rules", ref("UnknownInRules"))
    found["Request"]["anyOf"] = [_given(name) for name in SUBJECTS]
    found["Boost"]["oneOf"] = [_given("items"), _given("filters")]
    capped = [_given("attribute"), _given("most")]
    found["Diversify"]["anyOf"] = [
        {"allOf": [_given("strength"), *({"not": one} for one in capped)]},
        {"allOf": capped},
    ]
    changes = {"anyOf": [_given("add"), _given("remove")]}
    found["StockChange"]["oneOf"] = [_given("out"), changes]


def _set(found: dict[str, Schema], owner: str, name: str, schema: Schema) -> None:
    properties = found[owner]["properties"]
    properties[name] = {"description": properties[name]["description"], **schema}


def _given(name: str) -> Schema:
    """The field is there and not null."""
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}


def _conditions() -> dict[str, Schema]:
    """The conditions of filters: on any attribute, and on those of one kind."""
    any_value = {"type": ["string", "number", "boolean"]}
    number, time = {"type": "number"}, ref("Time")
    return {
        "Condition": _condition(
            "A condition on an attribute", any_value, {"type": ["number", "string"]}
        ),
        "NumberCondition": _condition("A condition on a number", number, number, ("all", "under")),
        "TimeCondition": _condition("A condition on a time", time, time, ("all", "under")),
        "CategoryCondition": _condition(
            "A condition on a category or on a list of categories", any_value, {}, BOUNDS
        ),
    }


def _condition(subject: str, value: Schema, bound: Schema, left_out: Sequence[str] = ()) -> Schema:
    """A condition with values and bounds of these types, and all operators but some."""
    values = {"type": "array", "items": value, "minItems": 1, "maxItems": MAX_VALUES}
    path = {"anyOf": [{"type": "string"}, {**values, "items": {"type": "string"}}]}
    operands: dict[str, Schema] = {
        **dict.fromkeys(OPERATORS, value),
        **dict.fromkeys(OF_LISTS, values),
        **dict.fromkeys(BOUNDS, bound),
        "under": path,
        "known": {"type": "boolean"},
    }
    operators = {
        name: {"description": text, **operands[name]}
        for name, text in OPERATORS.items()
        if name not in left_out
    }
    return {
        "description": f"{subject}: a value (short for `eq`), a list of values (short for `in`), or"
        " an object of operators, which must all hold.",
        "anyOf": [value, values, {**fixed_object(operators, ()), "minProperties": 1}],
    }


def _explanations() -> dict[str, Schema]:
    text, number = {"type": "string"}, {"type": "number"}
    past = fixed_object(
        {
            "item_id": text,
            "title": text,
            "effect": {**number, "description": "Loss of score without this past item."},
        }
    )
    friend = fixed_object(
        {
            "user_id": text,
            "share": {**number, "description": "Share of friends if this were the only one."},
        }
    )
    return {
        "Explanation": {
            "description": "Why an item is listed.",
            **fixed_object(
                {
                    "items": {"type": "array", "items": past, "maxItems": 3},
                    "friends": {"type": "array", "items": friend, "maxItems": 3},
                    "sentence": text,
                }
            ),
        },
        "UnknownInRules": {
            "description": "Rule → ids that the model does not know.",
            **fixed_object(
                {
                    name: {"type": "array", "items": text}
                    for name in ("candidates", "exclude", "boost")
                },
                (),
            ),
        },
    }


def _filters(traits: ModelTraits | None) -> Schema:
    start = "Attribute of items → condition. All conditions must hold."
    found: Schema = {"type": "object", "maxProperties": MAX_CONDITIONS}
    if traits is None:
        return {
            "description": f"{start} The attributes are the columns of the table of items.",
            **found,
            "additionalProperties": ref("Condition"),
            "examples": [{"price": {"lt": 20}, "category": ["lamps", "chairs"]}],
        }
    known = traits.item_attributes
    properties = {
        name: {"description": _sentence(one), **ref(_CONDITIONS[one.kind])}
        for name, one in known.items()
    }
    end = "" if known else " This model knows no attributes of items."
    return {
        "description": start + end,
        **found,
        "properties": properties,
        "additionalProperties": False,
    }


def _user_attributes(traits: ModelTraits | None) -> Schema:
    start = "Attribute of users → value; null is the same as a missing attribute."
    value: Schema = {"type": ["string", "number", "boolean"]}
    several: Schema = {"type": "array", "items": {"type": ["string", "number", "boolean", "null"]}}
    both = {"anyOf": [value, several, {"type": "null"}]}
    if traits is None:
        return {
            "description": start,
            "type": "object",
            "propertyNames": {"minLength": 1},
            "additionalProperties": both,
        }
    by_kind = {
        "number": or_null({"type": "number"}),
        "category": or_null(value),
        "list": or_null(several),
    }
    return {
        "description": start
        + ("" if traits.user_attributes else " This model knows no attributes of users."),
        "type": "object",
        "properties": {
            name: {"description": _sentence(one), **by_kind.get(one.kind, both)}
            for name, one in traits.user_attributes.items()
        },
        "additionalProperties": False,
    }


def _context(traits: ModelTraits | None) -> Schema:
    start = "Context column → value; null is the same as a missing value."
    if traits is None:
        return {
            "description": start,
            "type": "object",
            "additionalProperties": {"type": ["string", "number", "null"]},
        }
    by_kind = {"number": ["number", "null"], "category": ["string", "null"]}
    return {
        "description": start + ("" if traits.context else " This model has no context columns."),
        "type": "object",
        "properties": {
            name: {
                "description": _sentence(one),
                "type": by_kind.get(one.kind, ["string", "number", "null"]),
            }
            for name, one in traits.context.items()
        },
        "additionalProperties": False,
    }


def _sentence(attribute: Attribute) -> str:
    """What an attribute holds, with examples.

    >>> from recsys.serving.model_traits import Attribute
    >>> _sentence(Attribute("number", (0.5, 20.0))), _sentence(Attribute("list", ("a", "b")))
    ('A number, from 0.5 to 20.', 'A list of categories, such as “a”, “b”.')
    """
    kinds = {
        "number": "A number",
        "time": "A time",
        "category": "A category",
        "list": "A list of categories",
        "mixed": "The two models of the A/B test differ in its kind",
    }
    said, examples = kinds[attribute.kind], attribute.examples
    if attribute.kind in ("number", "time") and examples:
        low, high = (f"{one:.6g}" if isinstance(one, float) else one for one in examples)
        return f"{said}, from {low} to {high}."
    if examples:
        return f"{said}, such as {', '.join(f'“{one}”' for one in examples)}."
    return f"{said}."


def _row(schema: Schema, start: str) -> Schema:
    """A request in a table, in which an empty cell is null."""
    properties = {
        name: part
        if {"type": "null"} in part.get("anyOf", ()) or name == "item_id"
        else {"description": part["description"], **or_null(_bare(part))}
        for name, part in schema["properties"].items()
    }
    return {
        **schema,
        "description": f"{start}; an empty cell is null, and a whole number may be written as 5.0.",
        "properties": properties,
    }


def _bare(part: Schema) -> Schema:
    return {name: value for name, value in part.items() if name != "description"}


def _name_known(found: dict[str, Schema], traits: ModelTraits) -> None:
    """Name the event types and categories of the model, and its default for seen items."""
    if traits.event_types:
        _set(found, "HistoryEvent", "event_type", or_null({"enum": list(traits.event_types)}))
    categories = [
        name for name, one in traits.item_attributes.items() if one.kind in ("category", "list")
    ]
    if categories:
        _set(found, "Diversify", "attribute", or_null({"enum": categories}))
    for owner in ("Request", "RequestRow"):
        # null is allowed, and means this
        found[owner]["properties"]["exclude_seen"]["default"] = traits.exclude_seen

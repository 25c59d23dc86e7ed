"""JSON schemas of what no class describes: MLflow's forms, refusals, and replies about the state.

A test compares them with the replies of a server, key by key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from recsys.serving.calls import ERROR_CODES, FRAMES, OTHER_ERROR, PARAMS
from recsys.serving.schemas import Schema, fixed_object, or_null, ref, schemas

if TYPE_CHECKING:  # imports torch
    from recsys.serving.model_traits import ModelTraits

_TEXT: Final[Schema] = {"type": "string"}


def components(traits: ModelTraits | None = None) -> dict[str, Schema]:
    """All components by name; ``traits`` are those of the loaded model."""
    found = schemas(traits)
    rows = {"anyOf": [ref("RequestRow"), ref("SimilarRow")]}
    kinds = [found[kind]["properties"] for kind in ("RequestRow", "SimilarRow")]
    names = list(dict.fromkeys(name for kind in kinds for name in kind))
    number, flag = {"type": "integer"}, {"type": "boolean"}
    version = {"type": ["string", "null"]}
    found |= {
        "Error": {"description": "A refused call.", **fixed_object({"error": _TEXT})},
        "InvocationsError": {
            "description": "A refused call, in the form of `mlflow models serve`.",
            **fixed_object(
                {
                    "error_code": {"enum": [*ERROR_CODES.values(), OTHER_ERROR]},
                    "message": _TEXT,
                }
            ),
        },
        "Rows": {
            "description": "Requests: a list, one request, or one list of cells per field.",
            "anyOf": [
                {"type": "array", "items": rows},
                rows,
                fixed_object({name: {"type": "array"} for name in names}, ())
                | {"minProperties": 1},
            ],
        },
        "Invocations": _invocations_body(found, names),
        "Health": fixed_object({"live": flag, "ready": flag, "model": version, "version": version}),
        "StockSummary": fixed_object(_stock_summary()),
        "StockReply": fixed_object(
            {
                **_stock_summary(),
                "unknown": {
                    **number,
                    "description": "How many of them the model does not know; they are kept.",
                },
                "everywhere": {
                    **flag,
                    "description": "Whether every replica has the change already.",
                },
            }
        ),
        "ModelDescription": _model_description(),
    }
    return dict(sorted(found.items()))


def _invocations_body(found: Mapping[str, Schema], names: Iterable[str]) -> Schema:
    given = {name: found["Request"]["properties"][name] for name in PARAMS}
    params = {name: or_null(schema) for name, schema in given.items()}  # null: as if not given
    split: Schema = {
        "type": "object",
        "properties": {
            "columns": {"type": "array", "items": {"enum": list(names)}},
            "data": {"type": "array", "items": {"type": "array"}},
        },
        "required": ["columns", "data"],
    }
    forms = {name: split if name == "dataframe_split" else ref("Rows") for name in FRAMES}
    return {
        "description": f"Exactly one of {', '.join(FRAMES)}, and optionally params.",
        **fixed_object(forms | {"params": or_null(fixed_object(params, ()))}, ()),
        "oneOf": [{"required": [name]} for name in FRAMES],
    }


def _stock_summary() -> dict[str, Schema]:
    return {
        "out": {"type": "integer", "description": "Number of items out of stock."},
        "revision": {"type": "integer", "description": "Number of changes so far."},
        "changed": {"type": "string", "description": "Time of the last change, UTC."},
    }


def _model_description() -> Schema:
    always: dict[str, Schema] = {
        "uri": {"description": "Where the model came from; for a local folder its name."},
        "name": {"description": "Its registered name; empty for a folder."},
        "version": {"description": "Its registered version; for a folder, 12 digits of its hash."},
        "alias": {"description": "The alias that the server follows."},
        "created": {"description": "When it was trained, UTC."},
        "package_version": {"description": "The release that trained it."},
    }
    always = {name: {**part, **_TEXT} for name, part in always.items()} | {
        "granularities": {"type": "array", "items": _TEXT},
        "dataset": {"type": "object", "description": "Its data: name, counts, split, hash."},
        "metrics": {"type": "object", "description": "How it was evaluated."},
        "exclude_seen": {
            "type": "boolean",
            "description": "Whether seen items are left out where a request does not say.",
        },
        "index": {"type": "object", "description": "The index of a large catalogue, or empty."},
        "card": {"type": ["string", "null"], "description": "The model card, in Markdown."},
    }
    merges = {"type": "boolean", "description": "Whether its users get lists merged from both."}
    second = fixed_object(
        {"share": {"type": "number"}, "interleave": merges, "model": ref("ModelDescription")}
    )
    return fixed_object(
        always
        | {
            "ab": {"description": "The other model, with two versions.", **second},
            "stock": {"description": "After the first change.", **ref("StockSummary")},
        },
        always,
    )

"""The configuration as text: every section and key with type, default and meaning, straight from the models."""

from __future__ import annotations

from types import NoneType
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from recsys.config import SECTIONS, Config, GranularitiesConfig, section_class

_BOUNDS = {
    annotated_types.Ge: ("≥", "ge"),
    annotated_types.Gt: (">", "gt"),
    annotated_types.Le: ("≤", "le"),
    annotated_types.Lt: ("<", "lt"),
}


def reference() -> str:
    """All keys of the configuration, section by section, as the command line takes them."""
    lines = ["configuration keys, in YAML as sections and here as --section.key VALUE:"]
    _section(Config, "", lines)
    return "\n".join(lines)


def _section(model: type[BaseModel], prefix: str, lines: list[str]) -> None:
    """Own keys first, then the sections below."""
    below: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        kinds = [kind for kind in (get_args(field.annotation) or (field.annotation,)) if _is_section(kind)]
        if not kinds:
            lines.append(_key(path, field))
        below += [(path, kind) for kind in kinds]
    if issubclass(model, GranularitiesConfig):  # those that installed packages offer, too
        below += [(f"{prefix}{name}", section_class(name)) for name in model.valid_names() if name not in SECTIONS]
    for path, kind in below:
        tag = kind.model_fields.get("kind") if sum(other == path for other, _ in below) > 1 else None
        head = f"{path} with kind {tag.default}" if tag is not None else path
        about = " ".join((kind.__doc__ or "").split("\n\n")[0].replace("``", "").split())
        lines += ["", f"{head}: {about}" if about else head]
        _section(kind, f"{path}.", lines)


def _key(path: str, field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    shown = "needed" if default is PydanticUndefined else f"default {_plain(default)}"
    about = f"  {field.description}" if field.description else ""
    return f"  --{path:<44} {_type(field.annotation)}{_bounds(field)}, {shown}{about}"


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _bounds(field: FieldInfo) -> str:
    parts = []
    for item in field.metadata:
        for kind, (sign, attribute) in _BOUNDS.items():
            if isinstance(item, kind):
                parts.append(f"{sign} {getattr(item, attribute)}")
    return f" {' '.join(parts)}" if parts else ""


def _type(annotation: Any) -> str:
    """A type in a few characters.

    >>> _type(list[Literal["a", "b"]]), _type(dict[str, int]), _type(float)
    ('list of a|b', 'map of str to int', 'float')
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "|".join(str(argument) for argument in arguments)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"map of {_type(arguments[0])} to {_type(arguments[1])}"
    if origin is Union or (arguments and NoneType in arguments):
        return " or ".join(_type(argument) for argument in arguments)
    if arguments:  # Annotated
        return _type(arguments[0])
    return str(getattr(annotation, "__name__", annotation))


def _plain(value: Any) -> str:
    """A default as it would be written in YAML.

    >>> _plain(True), _plain(""), _plain(["a", 1])
    ('true', '""', '[a, 1]')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(_plain(item) for item in value) + "]"
    return '""' if value == "" else str(value)

"""The configuration as text: every section and key with type, default and meaning, straight from the models."""

from __future__ import annotations

from collections.abc import Sequence
from types import NoneType
from typing import Any, Final, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from recsys.config import SECTIONS, Config, GranularitiesConfig, section_class
from recsys.errors import ConfigError, choices

_BOUNDS = {
    annotated_types.Ge: ("≥", "ge"),
    annotated_types.Gt: (">", "gt"),
    annotated_types.Le: ("≤", "le"),
    annotated_types.Lt: ("<", "lt"),
}


_HEAD: Final = "configuration keys, in YAML as sections and here as --section.key VALUE:"


def reference(prefix: str = "") -> str:
    """All keys of the configuration below ``prefix``, section by section, as the command line takes them.

    Raises:
        ConfigError: there is no such section.
    """
    lines = [_HEAD]
    found = _at(prefix)
    for path, kind in found:
        lines += ["", _titled(path, kind, has_kinds=len(found) > 1)] if path else []
        _write_section(path, kind, lines)
    return "\n".join(lines)


def keys_of(sections: Sequence[str]) -> str:
    """The keys of some sections, and of the sections inside them."""
    lines = [_HEAD]
    for name in sections:
        field = Config.model_fields[name]
        if not _is_section(field.annotation):
            lines += ["", _key(name, field)]
            continue
        for path, kind in _at(name):
            lines += ["", _titled(path, kind)]
            _write_section(path, kind, lines)
    return "\n".join(lines)


def _at(prefix: str) -> list[tuple[str, type[BaseModel]]]:
    """The section of a dotted path, in all its kinds."""
    found: list[tuple[str, type[BaseModel]]] = [("", Config)]
    for part in prefix.split(".") if prefix else ():
        inside = [entry for path, kind in found for entry in _below(path, kind)]
        at = [entry for entry in inside if entry[0].rpartition(".")[2] == part]
        if not at:
            raise ConfigError(f"{prefix}: no section {part!r}; expected one of {choices({path for path, _ in inside})}")
        found = at
    return found


def _below(path: str, model: type[BaseModel]) -> list[tuple[str, type[BaseModel]]]:
    """The sections inside one, each kind of those that have several."""
    prefix = f"{path}." if path else ""
    found = []
    for name, field in model.model_fields.items():
        kinds = [kind for kind in (get_args(field.annotation) or (field.annotation,)) if _is_section(kind)]
        found += [(f"{prefix}{field.alias or name}", kind) for kind in kinds]
    if issubclass(model, GranularitiesConfig):  # those that installed packages offer, too
        found += [(f"{prefix}{name}", section_class(name)) for name in model.valid_names() if name not in SECTIONS]
    return found


def _write_section(path: str, model: type[BaseModel], lines: list[str]) -> None:
    """Own keys first, then the sections below."""
    below = _below(path, model)
    for name, field in model.model_fields.items():
        key = f"{path}.{field.alias or name}".lstrip(".")
        if key not in dict(below):
            lines.append(_key(key, field))
    for inner, kind in below:
        lines += ["", _titled(inner, kind, has_kinds=sum(other == inner for other, _ in below) > 1)]
        _write_section(inner, kind, lines)


def _titled(path: str, model: type[BaseModel], has_kinds: bool = False) -> str:
    tag = model.model_fields.get("kind") if has_kinds else None
    head = f"{path} with kind {tag.default}" if tag is not None else path
    about = " ".join((model.__doc__ or "").split("\n\n")[0].replace("``", "").split())
    return f"{head}: {about}" if about else head


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

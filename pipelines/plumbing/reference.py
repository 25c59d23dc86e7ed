"""Help on the configuration: every section and key with type, default and meaning, from its
classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, Final, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from recsys.config import SECTIONS, Config, GranularitiesConfig, section_class
from recsys.config.granularities import KINDS
from recsys.config.granularity import GranularityConfig
from recsys.config.outside import Offer, load
from recsys.config.shape import is_section
from recsys.errors import ConfigError, valid_instead

_BOUNDS = {
    annotated_types.Ge: ("≥", "ge"),
    annotated_types.Gt: (">", "gt"),
    annotated_types.Le: ("≤", "le"),
    annotated_types.Lt: ("<", "lt"),
}


# names that a person who knows no Python reads
_NAMES: Final = {
    bool: "true|false",
    int: "whole number",
    float: "number",
    str: "text",
    NoneType: "null",
    Any: "value",
}
_HEAD: Final = "configuration keys, in YAML as sections and here as --section.key VALUE:"
_LONG: Final = 40  # lines of a section in the help of a verb


@dataclass(frozen=True)
class Key:
    """One key: its dotted path, type, default and meaning as text."""

    path: str
    type: str
    default: str  # as in YAML; empty: the key is required
    about: str


@dataclass(frozen=True)
class SectionKeys:
    """One section: its dotted path, its kind if there are several, its first sentence, and its own
    keys.
    """

    path: str
    kind: str
    about: str
    keys: list[Key]


def sections(prefix: str = "") -> list[SectionKeys]:
    """The section ``prefix`` and every section inside it, outer sections first.

    Raises
    ------
    ConfigError
        There is no such section.
    """
    found = _at(prefix)
    return [
        entry for path, kind in found for entry in sections_of(path, kind, has_kinds=len(found) > 1)
    ]


def sections_of(
    path: str, model: type[BaseModel], has_kinds: bool = False
) -> Iterator[SectionKeys]:
    """A section and those inside it; ``has_kinds``: other kinds have the same path.

    Parameters
    ----------
    path : str
        Dotted path of the section; empty: the whole configuration.
    model : type[BaseModel]
        Class of the section.
    has_kinds : bool
        Whether several classes share the path, each with its own ``kind``.

    Yields
    ------
    SectionKeys
        The section first, then those inside it, each with its own keys only.
    """
    below = _below(path, model)
    inside = {name for name, _ in below}
    named = (
        (f"{path}.{field.alias or name}".lstrip("."), field)
        for name, field in model.model_fields.items()
    )
    tag = model.model_fields.get("kind") if has_kinds else None
    about = " ".join((model.__doc__ or "").split("\n\n")[0].replace("``", "").split())
    keys = [_key(key, field) for key, field in named if key not in inside]
    yield SectionKeys(path, str(tag.default) if tag is not None else "", about, keys)
    for inner, kind in below:
        yield from sections_of(inner, kind, has_kinds=sum(other == inner for other, _ in below) > 1)


def reference(prefix: str = "") -> str:
    """Help on all keys below ``prefix``, section by section, as options of the command line.

    Raises
    ------
    ConfigError
        There is no such section.
    """
    return "\n".join([_HEAD, *(line for section in sections(prefix) for line in _lines(section))])


def keys_of(names: Sequence[str]) -> str:
    """Help on the keys of some sections.

    If several of them are long, each long one has one line for each section inside it.
    """
    found = {name: sections(name) for name in names if is_section(_annotation(name))}
    whole = {
        name: [line for section in inside for line in _lines(section)]
        for name, inside in found.items()
    }
    is_short = sum(len(lines) > _LONG for lines in whole.values()) <= 1
    lines = [_HEAD]
    for name in names:
        if name not in found:
            lines += ["", _line(_key(name, Config.model_fields[name]))]
        elif is_short or len(whole[name]) <= _LONG:
            lines += whole[name]
        else:
            outer, *inner = found[name]
            lines += [*_lines(outer), *_lines_inside(name, inner)]
    return "\n".join(lines)


def _annotation(name: str) -> Any:
    return Config.model_fields[name].annotation


def _lines_inside(name: str, inner: Sequence[SectionKeys]) -> list[str]:
    """The sections directly inside a section, one line each; the kinds of one path share a line."""
    depth = name.count(".") + 1
    direct = {entry.path: entry for entry in reversed(inner) if entry.path.count(".") == depth}
    lines = [f"  sections in {name}, each explained by `recsys help SECTION`:"]
    for path, entry in reversed(direct.items()):
        kinds = [other.kind for other in inner if other.path == path and other.kind]
        about = f"by kind: {', '.join(kinds)}" if kinds else entry.about.partition(". ")[0]
        lines.append(f"    {path:<44} {about}".rstrip())
    return lines


def _at(prefix: str) -> list[tuple[str, type[BaseModel]]]:
    """The classes of the section at a dotted path, one per kind."""
    found: list[tuple[str, type[BaseModel]]] = [("", Config)]
    for part in prefix.split(".") if prefix else ():
        inside = [entry for path, kind in found for entry in _below(path, kind)]
        at = [entry for entry in inside if entry[0].rpartition(".")[2] == part]
        if not at:
            deeper = {entry.path for entry in sections() if entry.path.endswith(f".{prefix}")}
            meant = f"did you mean {' or '.join(sorted(deeper))}?" if deeper else ""
            known = {path for path, _ in inside}
            raise ConfigError(
                f"{prefix}: no section {part!r}; {meant or valid_instead(prefix, known)}"
            )
        found = at
    return found


def _below(path: str, model: type[BaseModel]) -> list[tuple[str, type[BaseModel]]]:
    """The sections inside a section, one entry per kind."""
    prefix = f"{path}." if path else ""
    found = []
    for name, field in model.model_fields.items():
        kinds = [
            kind for kind in get_args(field.annotation) or (field.annotation,) if is_section(kind)
        ]
        found += [(f"{prefix}{field.alias or name}", kind) for kind in kinds]
    if issubclass(model, GranularitiesConfig):  # and those of other installed packages
        found += [
            (f"{prefix}{name}", section_class(name))
            for name in model.valid_names()
            if name not in SECTIONS
        ]
        found += [  # a model may have several of these, each under its own name
            (f"{prefix}NAME", load(Offer(kind, target, "", ""), GranularityConfig))
            for kind, target in KINDS.items()
        ]
    return found


def _lines(section: SectionKeys) -> list[str]:
    """A section as lines of help; the top level has no heading."""
    head = f"{section.path} with kind {section.kind}" if section.kind else section.path
    titled = f"{head}: {section.about}" if section.about else head
    return [*(["", titled] if section.path else []), *map(_line, section.keys)]


def _line(key: Key) -> str:
    shown = f"default {key.default}" if key.default else "needed"
    return f"  --{key.path:<44} {key.type}, {shown}{f'  {key.about}' if key.about else ''}"


def _key(path: str, field: FieldInfo) -> Key:
    default = field.get_default(call_default_factory=True)
    shown = "" if default is PydanticUndefined else _plain(default)
    return Key(path, f"{_type(field.annotation)}{_bounds(field)}", shown, field.description or "")


def _bounds(field: FieldInfo) -> str:
    parts = []
    for item in field.metadata:
        for kind, (sign, attribute) in _BOUNDS.items():
            if isinstance(item, kind):
                parts.append(f"{sign} {getattr(item, attribute)}")
    return f" {' '.join(parts)}" if parts else ""


def _type(annotation: Any) -> str:
    """A type in a few words of YAML, not of Python.

    >>> _type(list[Literal["a", "b"]]), _type(dict[str, int]), _type(bool | None)
    ('list of a|b', 'map of text to whole number', 'true|false or null')
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
    return _NAMES.get(annotation) or str(getattr(annotation, "__name__", annotation))


def _plain(value: Any) -> str:
    """A default value as YAML text.

    >>> _plain(True), _plain(None), _plain(""), _plain(["a", 1]), _plain({"a": 1})
    ('true', 'null', '""', '[a, 1]', '{a: 1}')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_plain(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_plain(item) for item in value) + "]"
    return '""' if value == "" else str(value)

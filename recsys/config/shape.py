"""Check of a YAML tree against the sections of the configuration, before pydantic checks the
values.

Why before: pydantic sees ``true`` and cannot know that the user wrote ``on``, it reads ``true`` as
the number 1, and its message for an empty section is about a wrong class.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from recsys.config.root import Config
from recsys.config.section import as_word
from recsys.errors import ConfigError, choices

_LARGEST: Final = 2**63 - 1
_WORDS: Final = "YAML reads on, yes and true as true, and off, no and false as false"


def shaped(tree: Any, where: str) -> Any:
    """The tree without empty sections, which then get their defaults.

    Raises
    ------
    ConfigError
        A section is a value, a text or number is true or false, or an integer has more than 63
        bits.
    """
    try:
        return _section(tree, Config, "")
    except ValueError as error:
        raise ConfigError(f"wrong configuration in {where}:\n  {error}") from None


def _section(node: Mapping[Any, Any], model: type[BaseModel], where: str) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    for key, child in node.items():
        dotted = f"{where}.{key}".lstrip(".")
        if isinstance(key, bool):
            raise ValueError(f"{dotted}: a key is {_yaml(key)}: {_WORDS}; write the key in quotes")
        field = fields.get(key) if isinstance(key, str) else None
        if field is None:
            found[key] = child
            continue
        sections = [option for option in union_members(field.annotation) if is_section(option)]
        if not sections:
            if not any(getattr(part, "func", None) is as_word for part in field.metadata):
                _check_plain(child, field.annotation, dotted)
            found[key] = child
        elif child is None:
            if len(sections) > 1:  # the default is generated data, which the user did not mean
                raise ValueError(
                    f"{dotted}: the section is empty; give kind and files, or kind: synthetic"
                )
        elif not isinstance(child, (Mapping, BaseModel)):
            keys = (
                choices(sections[0].model_fields)
                if len(sections) == 1
                else "kind and those of the kind"
            )
            raise ValueError(
                f"{dotted}: expected a section with keys such as {keys}; got {child!r}"[:600]
            )
        elif isinstance(child, BaseModel):
            found[key] = child
        else:
            kinds = (
                {option.model_fields["kind"].default: option for option in sections}
                if len(sections) > 1
                else {}
            )
            kind = child.get("kind")
            chosen = kinds.get(kind) if isinstance(kind, str) and kinds else sections[0]
            found[key] = child if chosen is None else _section(child, chosen, dotted)
    return found


def _check_plain(value: Any, annotation: Any, where: str) -> None:
    """Refuse true and false where a text or a number is expected, also inside lists and
    mappings.

    Raises
    ------
    ValueError
        There is such a value, or an integer that 64 bits cannot hold.
    """
    options = union_members(annotation)
    if isinstance(value, bool):
        if any(option in (bool, Any) for option in options):
            return
        members = [get_args(option)[0] for option in options if get_origin(option) is list]
        if any(option is str or get_origin(option) is Literal for option in (*options, *members)):
            raise ValueError(
                f"{where}: got {_yaml(value)} where a text is expected: {_WORDS}; write the text in"
                f" quotes, such as '{'on' if value else 'off'}'"
            )
        if any(option in (int, float) for option in options):
            raise ValueError(f"{where}: expected a number, got {_yaml(value)} ({_WORDS})")
    elif isinstance(value, int) and abs(value) > _LARGEST and str not in options:
        raise ValueError(
            f"{where}: {str(value)[:40]} is too large; the largest number is {_LARGEST}"
        )
    elif isinstance(value, list):
        for option in options:
            if get_origin(option) is list:
                for index, item in enumerate(value):
                    _check_plain(item, get_args(option)[0], f"{where}[{index}]")
    elif isinstance(value, Mapping):
        for option in options:
            if get_origin(option) is dict:
                for key, item in value.items():
                    _check_plain(key, get_args(option)[0], f"{where}, a key")
                    _check_plain(item, get_args(option)[1], f"{where}.{key}")


def union_members(annotation: Any) -> list[Any]:
    """The members of a union type, without annotations."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return union_members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [option for member in get_args(annotation) for option in union_members(member)]
    return [annotation]


def is_section(option: Any) -> bool:
    """Whether a type is a section of the configuration."""
    return isinstance(option, type) and issubclass(option, BaseModel)


def _yaml(value: bool) -> str:
    return "true" if value else "false"

"""The values of options on the command line: text for a key of text, YAML for every other key.

Why text is not read as YAML: ``try #2`` would lose its end as a comment, ``1e5`` would become the
number 100000.0 and ``|`` an empty text.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal, get_args, get_origin

import yaml

from recsys.config.root import Config
from recsys.config.shape import is_section, union_members
from recsys.config.yaml_reader import parse_yaml
from recsys.errors import ConfigError

_EXPONENT: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")
_ENDS: Final = (yaml.ScalarToken, yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken)


def parse_value(dotted: str, text: str) -> Any:
    """The value of an option: the text itself where the key holds a text, else YAML, and numbers
    such as ``3e-4``, which YAML reads as text.

    A text in quotes is without them, and an empty text is None, a missing value.

    Raises
    ------
    ConfigError
        The text is not YAML, or YAML would drop a part of it as a comment.

    >>> parse_value("train.lr", "3e-4")
    0.0003
    >>> parse_value("evaluate.ks", "[5, 10]")
    [5, 10]
    >>> parse_value("run.name", "try #2"), parse_value("run.name", "1e5")
    ('try #2', '1e5')
    >>> parse_value("data.source.separator", "|"), parse_value("data.source.separator", "'|'")
    ('|', '|')
    """
    forms = _forms(dotted)
    if _is_word(text, forms):
        return text
    if text and str in forms:
        return _text(dotted, text, forms)
    value = parse_yaml(text, f"--{dotted}: {text!r} is not a YAML value")
    if lost := _comment(text):
        raise ConfigError(
            f"--{dotted}: {text!r} has the comment {lost!r}, which would be lost; write a text"
            " with # in quotes inside those of the shell: \"'try #2'\""
        )
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _forms(dotted: str) -> list[Any]:
    """The types that a key may have, of all kinds of sources; empty if the key is unknown."""
    kinds: list[Any] = [Config]
    for part in dotted.split("."):
        kinds = [form for kind in kinds for form in _inside(kind, part)]
    return kinds


def _inside(kind: Any, part: str) -> list[Any]:
    """The types of a key in a section, or in a mapping whose keys are free."""
    if get_origin(kind) is dict:
        return union_members(get_args(kind)[1])
    fields = kind.model_fields.items() if is_section(kind) else ()
    field = next((field for name, field in fields if (field.alias or name) == part), None)
    return [] if field is None else union_members(field.annotation)


def _is_word(text: str, forms: list[Any]) -> bool:
    """Whether the text is one of the words of a choice, such as ``,`` of data.source.decimal."""
    return any(get_origin(form) is Literal and text in get_args(form) for form in forms)


def _text(dotted: str, text: str, forms: list[Any]) -> Any:
    """The value of a key of text: the text, or a list or mapping where the key may have one."""
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    others = [form for form in forms if form is not str]
    if not is_quoted and not others:
        return text
    try:
        value = parse_yaml(text, f"--{dotted}: {text!r} is not a YAML value")
    except ConfigError:
        if others and text.lstrip().startswith(("[", "{")):
            raise
        return text
    if is_quoted:
        return value if isinstance(value, str) else text
    # a separator such as ": " is a mapping without a key in YAML
    is_whole = isinstance(value, (list, dict)) and None not in value
    return value if is_whole and not _comment(text) else text


def _comment(text: str) -> str:
    """The comment at the end of a YAML text that was read before; empty if there is none."""
    if "#" not in text:
        return ""
    ends = [token.end_mark.index for token in yaml.scan(text) if isinstance(token, _ENDS)]
    return text[max(ends, default=0) :].strip()

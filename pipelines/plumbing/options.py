"""Names of options: whether the configuration has such a key, and which one was likely meant.

Why: otherwise the error for a mistyped option would blame the configuration file, which is right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, get_args

from pydantic import BaseModel

from recsys.config import SECTIONS, Config, GranularitiesConfig, section_class
from recsys.config.renamed import RENAMED
from recsys.errors import nearest

_MOST: Final = 3  # suggestions in a message


def is_key(dotted: str) -> bool:
    """Whether the configuration may have this key; below free names every key is accepted here.

    >>> is_key("train.lr"), is_key("data.source.rename.events.my column")
    (True, True)
    >>> is_key("train.lrr"), is_key("budgt")
    (False, False)
    >>> is_key("train.hide_history")  # the old name of a key
    True
    """
    section, _, key = dotted.rpartition(".")
    if key in RENAMED.get(section, {}):
        return True
    kinds: list[Any] = [Config]
    for part in dotted.split("."):
        if not all(_is_closed(kind) for kind in kinds):
            return True
        kinds = [inner for kind in kinds for inner in _inside(kind, part)]
        if not kinds:
            return False
    return True


def likely_meant(name: str, words: Iterable[str]) -> list[str]:
    """The options most similar to a name: one-word options and keys, also by the last part of a
    key.

    >>> likely_meant("budgt", ["budget", "events"])
    ['budget']
    >>> likely_meant("train.lrr", []), likely_meant("evaluate.k", [])
    (['train.lr'], ['evaluate.ks'])
    """
    keys, words = list(dict.fromkeys(_keys("", Config))), list(words)
    if "." in name:
        meant = nearest(name, keys)
        return [meant] if meant else []
    ends: dict[str, list[str]] = {}
    for key in keys:
        ends.setdefault(key.rpartition(".")[2], []).append(key)
    found = nearest(name, [*words, *(end for end in ends if end not in words)])
    return [] if not found else [found] if found in words else ends[found][:_MOST]


def unknown_option(name: str, words: Iterable[str]) -> str:
    """The message for an unknown option.

    >>> unknown_option("budgt", ["budget"])
    '--budgt: there is no such option; did you mean --budget?'
    """
    meant = likely_meant(name, words)
    cure = (
        f"did you mean {' or '.join(f'--{other}' for other in meant)}?" if meant else _valid(name)
    )
    return f"--{name}: {'unknown key' if '.' in name else 'there is no such option'}; {cure}"


def _valid(name: str) -> str:
    """The keys of the section that a name belongs to, or how to list all keys."""
    section, kinds = "", [Config]
    for part in name.split(".")[:-1]:
        inner = [one for kind in kinds for one in _inside(kind, part) if _is_closed(one)]
        if not inner:
            break
        section, kinds = f"{section}.{part}".lstrip("."), inner
    keys = sorted(
        {field.alias or key for kind in kinds for key, field in kind.model_fields.items()}
    )
    return (
        f"valid keys here: {', '.join(keys)}" if section else "`recsys help all` lists the options"
    )


def _is_closed(kind: Any) -> bool:
    """Whether a section accepts no other keys than those of its class."""
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return False
    return kind.model_config.get("extra") != "allow"


def _inside(kind: type[BaseModel], part: str) -> list[Any]:
    """The classes that a key of a section may hold."""
    if issubclass(kind, GranularitiesConfig) and part not in SECTIONS:
        # a separately trained granularity, or one of another package
        return [section_class(part)] if part in kind.valid_names() else [dict]
    field = next(
        (field for name, field in kind.model_fields.items() if (field.alias or name) == part), None
    )
    return [] if field is None else list(get_args(field.annotation) or (field.annotation,))


def _keys(path: str, kind: type[BaseModel]) -> Iterator[str]:
    """The keys of a section and of the sections inside it."""
    for name, field in kind.model_fields.items():
        key = f"{path}.{field.alias or name}".lstrip(".")
        inner = [
            one for one in get_args(field.annotation) or (field.annotation,) if _is_closed(one)
        ]
        if not inner:
            yield key
        for section in inner:
            yield from _keys(key, section)

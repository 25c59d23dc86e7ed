"""The keys of the configuration that hold paths, and their values as absolute paths.

Why from the sections themselves: a job on a cluster and a stored model run in other folders, and a
list that is written by hand lacks each key that is added later.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

from pydantic import BaseModel

from recsys.config.outside import SOURCES, load, resolve
from recsys.config.root import Config
from recsys.config.section import holds_paths, may_be_name
from recsys.config.shape import is_section, union_members
from recsys.config.sources import (
    SOURCE_KINDS,
    OutsideSource,
    map_paths,
    path_keys_of_source,
    source_class,
)
from recsys.storage.uris import expanded, is_remote

# the start of a path that is a variable; $$NAME is the text $NAME
_VARIABLE: Final = re.compile(r"\$\{?[A-Z_]")


@cache
def path_keys() -> dict[str, bool]:
    """The dotted keys with paths, and whether a value may be a name instead of a path.

    The keys of ``data.source`` depend on its kind, see :func:`with_absolute_paths`.

    >>> path_keys()["run.dir"], path_keys()["data.text.model"]
    (False, True)
    """
    return dict(_found("", Config))


def _found(where: str, section: type[BaseModel]) -> Iterator[tuple[str, bool]]:
    for name, field in section.model_fields.items():
        dotted = f"{where}.{field.alias or name}".lstrip(".")
        if holds_paths(field):
            yield dotted, may_be_name(field)
        for inner in union_members(field.annotation):
            if is_section(inner):
                yield from _found(dotted, inner)


def with_absolute_paths(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the sections and values in which relative local paths start at the working folder.

    URIs, paths that begin with a ``$VARIABLE``, and names of models stay.

    >>> with_absolute_paths({"run": {"dir": "s3://bucket/a"}, "update": {"model": "models:/a@b"}})
    {'run': {'dir': 's3://bucket/a'}, 'update': {'model': 'models:/a@b'}}
    """
    found = dict(tree)
    for dotted, may_be_a_name in {**path_keys(), **_keys_of_source(tree)}.items():
        _change(found, dotted.split("."), may_be_a_name)
    return found


def _keys_of_source(tree: Mapping[str, Any]) -> dict[str, bool]:
    source = (tree.get("data") or {}).get("source") or {}
    kind = source.get("kind", "")
    if kind in SOURCE_KINDS:
        cls: type[Any] = source_class(kind)
    else:
        offer = resolve(SOURCES, kind)
        if offer is None:
            return {}
        cls = load(offer, OutsideSource)
    return {f"data.source.{key}": False for key in path_keys_of_source(cls)}


def _change(tree: dict[str, Any], path: list[str], only_existing: bool) -> None:
    """Make the path at a dotted key absolute; changed sections are copied, so the caller's tree
    stays the same.
    """
    first, *rest = path
    child = tree.get(first)
    if child is None:
        return
    if not rest:
        tree[first] = map_paths(child, lambda value: absolute(value, only_existing))
    elif isinstance(child, Mapping):
        tree[first] = dict(child)
        _change(tree[first], rest, only_existing)


def absolute(path: Any, only_existing: bool = False) -> Any:
    """An absolute local path; URIs, registered models and paths that begin with a variable stay.

    >>> absolute("s3://bucket/runs"), absolute("/data"), absolute("models:/shop@champion")
    ('s3://bucket/runs', '/data', 'models:/shop@champion')
    >>> absolute("$RECSYS_DATA/lastfm"), absolute("no such model", only_existing=True)
    ('$RECSYS_DATA/lastfm', 'no such model')
    """
    if isinstance(path, int):  # YAML reads a folder such as 2024 as a number
        path = str(path)
    if not isinstance(path, str) or not path or is_remote(path):
        return path
    full = expanded(path)
    is_name = path.startswith("models:") or (only_existing and not os.path.exists(full))
    return path if is_name or _VARIABLE.match(path) else os.path.abspath(full)

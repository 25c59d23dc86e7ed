"""Renamed keys and class attributes: the old name is accepted for one release, with one deprecation
line on the console.

Why in one table: YAML files, options of the command line, search spaces and the configurations
inside run folders and bundles all use the same keys, and each of them may be older than the release
that reads it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Final

RENAMED: Final[dict[str, dict[str, str]]] = {"train": {"hide_history": "history_mask_rate"}}
"""Dotted path of a section → old key → new key. Remove an entry one release after it was added."""

_announced: set[str] = set()  # old names that this process has named on the console


def current_path(dotted: str) -> str:
    """The present name of a dotted path; an old name is announced on the console.

    >>> current_path("train.lr")
    'train.lr'
    """
    section, _, key = dotted.rpartition(".")
    new = RENAMED.get(section, {}).get(key)
    if new is None:
        return dotted
    announce(section, key)
    return f"{section}.{new}"


def with_current_keys(
    section: str, tree: Mapping[str, Any], silent: bool = False
) -> Mapping[str, Any]:
    """The keys and values of a section under their present names.

    Parameters
    ----------
    section : str
        Dotted path of the section, such as ``train``.
    tree : Mapping[str, Any]
        Keys and values as they were written.
    silent : bool
        Whether old names are accepted without a line on the console. It is for artifacts, which the
        user cannot edit.

    Raises
    ------
    ValueError
        The old and the new name are both given.
    """
    names = RENAMED.get(section, {})
    old_names = [key for key in tree if key in names]
    if not old_names:
        return tree
    for old in old_names:
        if names[old] in tree:
            raise ValueError(
                f"{old} is the old name of {names[old]}, and both are given; remove {old}"
            )
        if not silent:
            announce(section, old)
    return {names.get(key, key): value for key, value in tree.items()}


def announce(section: str, old: str) -> None:
    """Write the deprecation line of an old key to the standard error, once in a process."""
    dotted = f"{section}.{old}"
    if dotted in _announced:
        return
    _announced.add(dotted)
    new = f"{section}.{RENAMED[section][old]}"
    print(
        f"deprecated: {dotted} is now called {new}; the next release refuses the old name",
        file=sys.stderr,
    )


def take_old_name(cls: type, old: str, new: str) -> None:
    """Give a class attribute of another package its present name, with a deprecation line.

    Parameters
    ----------
    cls : type
        A granularity or its section, as its author wrote it.
    old, new : str
        The former and the present name of the attribute.
    """
    if old not in vars(cls) or new in vars(cls):
        return
    setattr(cls, new, vars(cls)[old])
    print(
        f"deprecated: {cls.__module__}.{cls.__qualname__}.{old} is now called {new}; the next"
        " release ignores the old name",
        file=sys.stderr,
    )

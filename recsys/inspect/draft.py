"""A configuration as a person would write it: keys in order, each with its reason, alternatives as
comments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

_WIDTH: Final = 10**6
_COMMENT_AT: Final = 44  # column of a comment after a short line


@dataclass
class _Node:
    """A key with a value, a section with keys, or a commented line."""

    key: str
    value: Any = None
    why: str = ""
    below: list[_Node] | None = None
    is_comment: bool = False

    def add(self, node: _Node) -> None:
        """Append a node to a section."""
        assert self.below is not None, f"{self.key} is a value"
        self.below.append(node)


@dataclass
class Draft:
    """Sections and keys by dotted path, in the order in which they are set."""

    title: list[str] = field(default_factory=list)  # lines of the comment at the top
    _root: _Node = field(default_factory=lambda: _Node("", below=[]))

    def section(self, path: str, why: str = "") -> None:
        """Add a section, with an optional reason."""
        self._section(path.split(".")).why = why

    def set(self, path: str, value: Any, why: str) -> None:
        """Set ``a.b.c`` to a value, with its reason.

        Parameters
        ----------
        path : str
            Dotted path of the key.
        value : Any
            Its value.
        why : str
            The reason, shown as a comment.
        """
        self.put(path.split("."), value, why)

    def other(self, path: str, value: Any, why: str) -> None:
        """Add an alternative value of ``a.b.c`` as a comment.

        Parameters
        ----------
        path : str
            Dotted path of the key.
        value : Any
            The alternative value.
        why : str
            When to use it, shown in the comment.
        """
        self.comment(path.split("."), value, why)

    def put(self, keys: Sequence[str], value: Any, why: str) -> None:
        """Like :meth:`set` with a list of keys, because a key may contain dots.

        Parameters
        ----------
        keys : Sequence[str]
            The section names and the key, from the outermost.
        value : Any
            Its value.
        why : str
            The reason, shown as a comment.
        """
        self._section(keys[:-1]).add(_Node(keys[-1], value, why))

    def comment(self, keys: Sequence[str], value: Any, why: str) -> None:
        """Like :meth:`other` with a list of keys.

        Parameters
        ----------
        keys : Sequence[str]
            The section names and the key, from the outermost.
        value : Any
            The alternative value.
        why : str
            When to use it, shown in the comment.
        """
        self._section(keys[:-1]).add(_Node(keys[-1], value, why, is_comment=True))

    @property
    def tree(self) -> dict[str, Any]:
        """The values, as a YAML reader would load them."""
        return _tree(self._root)

    def text(self) -> str:
        """The YAML text with comments."""
        lines = [f"# {line}".rstrip() for line in self.title]
        for node in self._root.below or []:
            _write(node, 0, lines)
        return "\n".join(lines) + "\n"

    def _section(self, keys: Sequence[str]) -> _Node:
        node = self._root
        for key in keys:
            assert node.below is not None, f"{node.key} is a value"
            found = next(
                (inner for inner in node.below if inner.key == key and not inner.is_comment), None
            )
            if found is None:
                found = _Node(key, below=[])
                node.below.append(found)
            node = found
        assert node.below is not None, f"{node.key} is a value"
        return node


def _tree(section: _Node) -> dict[str, Any]:
    """Values of a section, without empty sections."""
    found = {}
    for node in section.below or []:
        if node.is_comment:
            continue
        value = _tree(node) if node.below is not None else node.value
        if node.below is None or value:
            found[node.key] = value
    return found


def _write(node: _Node, depth: int, lines: list[str]) -> None:
    indent = "  " * depth
    if node.below is None:
        mark = "# " if node.is_comment else ""
        lines.append(_with_reason(f"{indent}{mark}{flow(node.key)}: {flow(node.value)}", node.why))
        return
    if not node.below:
        return
    is_idle = not _tree(node)  # only comments below: the section's own line becomes a comment too
    lines.append(_with_reason(f"{indent}{'# ' if is_idle else ''}{flow(node.key)}:", node.why))
    for inner in node.below:
        _write(inner, depth + 1, lines)


def _with_reason(line: str, why: str) -> str:
    """Append the reason to a line; the reason stays on that line."""
    plain = "".join(character for character in " ".join(why.split()) if character.isprintable())
    return f"{line:<{_COMMENT_AT}}  # {plain}" if plain else line


def flow(value: Any) -> str:
    """Return a value on one line of YAML that reads back as the same value.

    >>> flow({"a: b": ["x", 1, None]}), flow("::"), flow(True)
    ("{'a: b': [x, 1, null]}", "'::'", 'true')
    """
    text = yaml.safe_dump(
        value, default_flow_style=True, width=_WIDTH, allow_unicode=True, sort_keys=False
    )
    return str(text).removesuffix("\n").removesuffix("...").rstrip("\n").replace("\n", " ")

"""The YAML reader of configurations and search spaces: strict where plain YAML loses what a person
wrote.

In plain YAML the last of two equal keys wins, an alias is expanded each time it is used (a file of
300 bytes can expand to gigabytes), ``010`` is 8 and ``12:30`` is 750. Here a repeated key is an
error that names both lines, the expanded size is checked before any value is made, and a number in
an unusual form stays the text that was written, which a numeric key still reads as a number.
"""

from __future__ import annotations

import codecs
from typing import Any, Final

import yaml

from recsys.errors import ConfigError

MAX_BYTES: Final = 1 << 20
MAX_VALUES: Final = 100_000
MAX_EXPANDED: Final = 8 << 20
MAX_DEPTH: Final = 50
_PLACE: Final = 'in "<unicode string>", '  # as PyYAML calls the file
_MERGE: Final = "tag:yaml.org,2002:merge"
_NUMBERS: Final = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_UTF16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Loader(yaml.SafeLoader):
    """A ``SafeLoader`` with the bounds of this module.

    Raises
    ------
    yaml.YAMLError
        The text is not YAML, repeats a key, or exceeds the bounds when aliases are expanded.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._path: list[str] = []

    def get_single_node(self) -> yaml.Node | None:
        """The root node, after a check of its expanded size."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _check_size(node)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node; an invalid value is an error at its position."""
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # a day such as 2020-13-45
            raise _error(
                f"{node.value!r} does not fit its form ({error})", node.start_mark
            ) from None

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node, after a check of the depth of nesting."""
        if len(self._path) > MAX_DEPTH:
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise _error(f"values are nested more than {MAX_DEPTH} levels deep", event.start_mark)
        self._path.append(index.value if isinstance(index, yaml.ScalarNode) else "")
        try:
            return super().compose_node(parent, index)
        finally:
            self._path.pop()

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """The next mapping, after a check for repeated keys."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        first: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            value = self.construct_object(key)
            line = key.start_mark.line + 1
            if value in first:
                section = ".".join(part for part in self._path if part)
                dotted = f"{section}.{key.value}" if section else key.value
                raise _error(
                    f"{dotted} occurs twice, in line {first[value]} and in line {line}; keep one of"
                    " them",
                    key.start_mark,
                )
            first[value] = line
        return node


class ConfigLoader(Loader):
    """A :class:`Loader` that keeps numbers in an unusual form as text, such as ``010``, ``12:30``,
    ``1.10``.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node; a number in an unusual form stays text."""
        value = super().construct_object(node, deep)
        unusual = isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and not node.style
        return (
            node.value
            if unusual and str(value) != node.value and _is_surprising(node.value)
            else value
        )


def parse_yaml(content: bytes | str, problem: str, loader: type[Loader] = ConfigLoader) -> Any:
    """Parse a YAML text; the error message starts with ``problem``.

    Parameters
    ----------
    content : bytes or str
        The text; bytes are decoded.
    problem : str
        Start of the error message.
    loader : type of Loader
        The YAML loader.

    Returns
    -------
    any
        The value of the document.

    Raises
    ------
    ConfigError
        The text is not YAML in UTF-8 or UTF-16, exceeds the bounds, repeats a key, or has a value
        that does not fit its tag or form, such as the day 2020-13-45.
    """
    if len(content) > MAX_BYTES:
        raise ConfigError(
            f"{problem}: it has {len(content):,} bytes, expected at most {MAX_BYTES:,}; name files"
            " by a folder or glob"
        )
    try:
        text = _decoded(content) if isinstance(content, bytes) else content
        return yaml.load(text, loader)  # noqa: S506 - a SafeLoader
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1 if isinstance(content, bytes) else 1
        raise ConfigError(
            f"{problem}: line {line} is not UTF-8 ({error.reason}); save the file as UTF-8"
        ) from None
    except (
        Exception
    ) as error:  # PyYAML lets through whatever int(), datetime and the depth of nesting raise
        said = (
            str(error)
            if isinstance(error, (yaml.YAMLError, ValueError))
            else f"{type(error).__name__}: {error}"
        )
        tab = "; indent with spaces: YAML takes no tabs there" if "'\\t'" in said else ""
        raise ConfigError(f"{problem}: {said.replace(_PLACE, 'in ')}{tab}") from None


def _decoded(content: bytes) -> str:
    return content.decode("utf-16") if content.startswith(_UTF16) else content.decode("utf-8-sig")


def _is_surprising(text: str) -> bool:
    """Whether YAML 1.1 reads a number that differs from the written text.

    >>> [_is_surprising(text) for text in ("010", "12:30", "1.10", "1_000", "7", "0.5", "1.0e-3")]
    [True, True, True, True, False, False, False]
    """
    digits = text.lstrip("+-")
    leading = len(digits) > 1 and digits[0] == "0" and digits[1] not in ".eE"
    trailing = (
        "." in digits and digits.endswith("0") and digits[-2:] != ".0" and "e" not in digits.lower()
    )
    return leading or trailing or ":" in digits or "_" in digits


def _check_size(root: yaml.Node) -> None:
    """Check the number of values and bytes of the document with all aliases expanded, without
    expanding them.

    Raises
    ------
    yaml.YAMLError
        The document exceeds the bounds, or a value contains itself.
    """
    sizes: dict[int, tuple[int, int]] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> tuple[int, int]:
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in open_nodes:
            raise _error("a value contains itself through an alias (&, *)", node.start_mark)
        open_nodes.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            found = 1, len(node.value)
        else:
            pairs = isinstance(node, yaml.MappingNode)
            children = [part for pair in node.value for part in pair] if pairs else node.value
            parts = [size(child) for child in children]
            found = 1 + sum(values for values, _ in parts), sum(length for _, length in parts)
        if found[0] > MAX_VALUES or found[1] > MAX_EXPANDED:
            raise _error(
                f"with its aliases (&, *) expanded it has more than {MAX_VALUES:,} values or"
                f" {MAX_EXPANDED:,} characters; write fewer aliases",
                node.start_mark,
            )
        open_nodes.discard(id(node))
        sizes[id(node)] = found
        return found

    size(root)


def _error(problem: str, mark: Any) -> yaml.YAMLError:
    error: yaml.YAMLError = yaml.constructor.ConstructorError(problem=problem, problem_mark=mark)
    return error

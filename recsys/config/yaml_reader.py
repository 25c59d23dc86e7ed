"""YAML as the configuration and the search spaces read it: strict where plain YAML loses what a person wrote.

Plain YAML lets the last of two equal keys win, expands an alias as often as it is named (a file of 300 bytes can stand
for gigabytes), and reads ``010`` as 8 and ``12:30`` as 750. Here a repeated key is an error that names both lines, the
expanded size is bounded before anything is built, and a number of an unusual form stays the text that was written,
which a numeric key still reads as the number.
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
        yaml.YAMLError: the text is not YAML, repeats a key, or is larger than the bounds when aliases are expanded.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._path: list[str] = []

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _check_size(node)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # a day such as 2020-13-45
            raise _error(f"{node.value!r} is not what its form says ({error})", node.start_mark) from None

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if len(self._path) > MAX_DEPTH:
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise _error(f"values are nested more than {MAX_DEPTH} levels deep", event.start_mark)
        self._path.append(index.value if isinstance(index, yaml.ScalarNode) else "")
        try:
            return super().compose_node(parent, index)
        finally:
            self._path.pop()

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
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
                    f"{dotted} is there twice, in line {first[value]} and in line {line}; keep one of them",
                    key.start_mark,
                )
            first[value] = line
        return node


class ConfigLoader(Loader):
    """The :class:`Loader` of configurations: numbers of an unusual form stay text, as ``010``, ``12:30``, ``1.10``."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        value = super().construct_object(node, deep)
        unusual = isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and not node.style
        return node.value if unusual and str(value) != node.value and _is_surprising(node.value) else value


def parse_yaml(content: bytes | str, problem: str, loader: type[Loader] = ConfigLoader) -> Any:
    """What a text says; ``problem`` begins the message of the error.

    Raises
    ------
    ConfigError
        it is not YAML in UTF-8 or UTF-16, is larger than the bounds, repeats a key, or a value is not what
        its tag or form says, such as the day 2020-13-45.
    """
    if len(content) > MAX_BYTES:
        raise ConfigError(
            f"{problem}: it has {len(content):,} bytes, expected at most {MAX_BYTES:,}; name files by a folder or glob"
        )
    try:
        text = _decoded(content) if isinstance(content, bytes) else content
        return yaml.load(text, loader)  # noqa: S506 - a SafeLoader
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1 if isinstance(content, bytes) else 1
        raise ConfigError(f"{problem}: line {line} is not UTF-8 ({error.reason}); save the file as UTF-8") from None
    except Exception as error:  # PyYAML lets through whatever int(), datetime and the depth of nesting raise
        said = str(error) if isinstance(error, (yaml.YAMLError, ValueError)) else f"{type(error).__name__}: {error}"
        tab = "; indent with spaces: YAML takes no tabs there" if "'\\t'" in said else ""
        raise ConfigError(f"{problem}: {said.replace(_PLACE, 'in ')}{tab}") from None


def _decoded(content: bytes) -> str:
    return content.decode("utf-16") if content.startswith(_UTF16) else content.decode("utf-8-sig")


def _is_surprising(text: str) -> bool:
    """Whether YAML 1.1 reads another number, or another text, than a person sees.

    >>> [_is_surprising(text) for text in ("010", "12:30", "1.10", "1_000", "7", "0.5", "1.0e-3")]
    [True, True, True, True, False, False, False]
    """
    digits = text.lstrip("+-")
    leading = len(digits) > 1 and digits[0] == "0" and digits[1] not in ".eE"
    trailing = "." in digits and digits.endswith("0") and digits[-2:] != ".0" and "e" not in digits.lower()
    return leading or trailing or ":" in digits or "_" in digits


def _check_size(root: yaml.Node) -> None:
    """Bound the values and the bytes of the document with every alias expanded, without expanding one.

    Raises
    ------
        yaml.YAMLError: it is larger, or a value holds itself.
    """
    sizes: dict[int, tuple[int, int]] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> tuple[int, int]:
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in open_nodes:
            raise _error("a value holds itself through an alias (&, *)", node.start_mark)
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
                f"with its aliases (&, *) expanded it has more than {MAX_VALUES:,} values or {MAX_EXPANDED:,} "
                "characters; write fewer aliases",
                node.start_mark,
            )
        open_nodes.discard(id(node))
        sizes[id(node)] = found
        return found

    size(root)


def _error(problem: str, mark: Any) -> yaml.YAMLError:
    error: yaml.YAMLError = yaml.constructor.ConstructorError(problem=problem, problem_mark=mark)
    return error

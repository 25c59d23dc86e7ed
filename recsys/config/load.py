"""From YAML and dotted paths of the command line to a checked configuration, and back."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Final

import pydantic
import yaml
from pydantic import BaseModel

from recsys.config.granularities import GranularitiesConfig
from recsys.config.option_values import parse_value
from recsys.config.redaction import redacted_tree
from recsys.config.renamed import RENAMED, current_path
from recsys.config.root import Config
from recsys.config.section import holds_paths
from recsys.config.shape import shaped
from recsys.config.sources import SOURCE_KINDS, source_class
from recsys.config.yaml_reader import parse_yaml
from recsys.errors import ConfigError, choices, nearest, valid_instead
from recsys.storage.uris import CREDENTIALS, has_credentials, is_remote

_VARIABLE = re.compile(r"\$(?:\$(?=\{?[A-Z_])|([A-Z_][A-Z0-9_]*)|\{([A-Z_][A-Z0-9_]*)(\}?))")
_DOLLAR = re.compile(r"\$(?=\{?[A-Z_])")
_QUOTED = re.compile(r"'([^']*)'")


AUTO: Final = "auto"  # a section model that the product chooses; the same as no section


def load_config(path: str | Path | None, overrides: Sequence[tuple[str, str]] = ()) -> Config:
    """Read a YAML file, apply ``(dotted.path, text)`` overrides, expand ``$VARIABLES`` and check
    everything.

    ``$NAME`` and ``${NAME}`` are environment variables, ``$$NAME`` is the text ``$NAME``;
    ``RECSYS_DATA`` is ``data`` if it is not set. Override texts are read by
    :func:`~recsys.config.option_values.parse_value`. The section ``model`` may be missing or
    ``auto``: the verbs that need a model then choose one (:mod:`pipelines.steps.auto`).

    Raises
    ------
    ConfigError
        The file is missing or not YAML, a key is unknown, or a value is out of its range.
    """
    where = "command line" if path is None else str(path)
    return build_config(
        read_tree(path, overrides), where, options=[dotted for dotted, _ in overrides]
    )


def read_tree(path: str | Path | None, overrides: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """The tree that :func:`load_config` checks: the file with the overrides, without expanding
    ``$VARIABLES``.
    """
    tree = {} if path is None else _read_yaml(str(path))
    for dotted, text in overrides:
        set_path(tree, dotted, parse_value(dotted, text))
    return tree


def build_config(
    tree: Mapping[str, Any],
    where: str = "configuration",
    expand: bool = True,
    options: Sequence[str] = (),
    unset_stay: bool = False,
) -> Config:
    """Check a nested mapping into a :class:`Config`; errors name the dotted path, the value and the
    valid keys.

    Parameters
    ----------
    tree : Mapping[str, Any]
        Sections and keys.
    where : str
        Name of the file or other origin, for messages.
    expand : bool
        Whether ``$VARIABLES`` are expanded. False for a tree of a configuration that was read
        before: a dollar sign in its values is part of the text.
    options : Sequence[str]
        Dotted paths that the command line has set; messages name them as options.
    unset_stay : bool
        Whether ``$VARIABLES`` that are not set here stay as they are, because another machine has
        them.

    Raises
    ------
    ConfigError
        A key is unknown, or a value is missing, out of its range or contradicts another.
    """
    if isinstance(tree.get("model"), str) and tree["model"].strip().lower() == AUTO:
        tree = {key: value for key, value in tree.items() if key != "model"}
    try:
        found = _expand(tree, "", unset_stay) if expand else tree
        return Config.model_validate(shaped(found, where))
    except pydantic.ValidationError as error:
        raise ConfigError(
            _explain(error, where, [current_path(option) for option in options])
        ) from None
    except RecursionError:
        raise ConfigError(
            f"wrong configuration in {where}: a value is nested too deeply, or contains itself"
            " through a YAML alias (&, *)"
        ) from None


def dump_config(config: Config) -> str:
    """The configuration as YAML that :func:`load_config` reads back to an equal object."""
    return yaml.safe_dump(
        _escaped(config.model_dump(mode="json")), sort_keys=False, allow_unicode=True
    )


def _escaped(node: Any) -> Any:
    """The tree with each dollar sign doubled that :func:`_expand` would read as a variable."""
    if isinstance(node, dict):
        return {key: _escaped(child) for key, child in node.items()}
    if isinstance(node, list):
        return [_escaped(child) for child in node]
    return _DOLLAR.sub("$$", node) if isinstance(node, str) else node


def redacted(config: Config) -> Config:
    """A copy without secrets, at any key. To run it again, the user gives the secrets again."""
    found: Config = _without_secrets(config, "")
    return found


def _without_secrets(value: Any, name: str) -> Any:
    if not isinstance(value, BaseModel):
        return redacted_tree(value, name)
    changed = {}
    fields = type(value).model_fields
    for key in [*fields, *(value.model_extra or {})]:
        before = getattr(value, key)
        # the path of a key is no secret
        is_path = key in fields and holds_paths(fields[key])
        after = _without_secrets(before, "" if is_path else key)
        if after != before:
            changed[key] = after
    return value.model_copy(update=changed) if changed else value


def set_path(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set ``tree["a"]["b"] = value`` for the path ``a.b`` and add the sections that are missing.

    A renamed key is set under its new name and replaces a value that the tree has under the old
    one.

    Parameters
    ----------
    tree : dict
        The sections and values; changed in place.
    dotted : str
        The path of the key, e.g. ``a.b``.
    value : any
        The value of the key.

    Raises
    ------
    ConfigError
        A part of the path is a value, not a section.
    """
    *sections, last = current_path(dotted).split(".")
    node = tree
    for section in sections:
        child = node.get(section)
        if not isinstance(child, dict | None):
            raise ConfigError(f"--{dotted}: {section!r} is a value, not a section")
        # a copy, because a YAML alias (&, *) makes several sections one mapping
        node[section] = dict(child or {})
        node = node[section]
    for old, new in RENAMED.get(".".join(sections), {}).items():
        if new == last:
            node.pop(old, None)
    node[last] = value


def _read_yaml(path: str) -> dict[str, Any]:
    tree = parse_yaml(_content(path), f"{path} is not valid YAML")
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: expected sections such as data, model, train at the top, got"
            f" {type(tree).__name__}"
        )
    return tree


def _content(path: str) -> bytes:
    try:
        if is_remote(path):
            from recsys.storage.filesystems import read_bytes

            return read_bytes(path)
        return Path(path).read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise ConfigError(
            f"configuration file {path} does not exist; the shipped ones are in pipelines/configs/"
        ) from None


def _expand(node: Any, where: str, unset_stay: bool) -> Any:
    if isinstance(node, Mapping):
        return {
            key: _expand(child, f"{where}.{key}".lstrip("."), unset_stay)
            for key, child in node.items()
        }
    if isinstance(node, list):
        return [_expand(child, where, unset_stay) for child in node]
    if isinstance(
        node, date
    ):  # YAML reads 2020-01-01 as a date; every time of the configuration is text
        return node.isoformat()
    if not isinstance(node, str):
        return node
    text = _VARIABLE.sub(lambda match: _variable(match, where, unset_stay), node)
    if has_credentials(text):
        raise ConfigError(f"{where}: {CREDENTIALS.format(text.partition('://')[0])}")
    return text


def _variable(match: re.Match[str], where: str, unset_stay: bool) -> str:
    if match.group() == "$$":
        return "$"
    if match.group(2) and not match.group(3):
        raise ConfigError(f"{where}: {match.string!r} has a ${{ without a }}")
    name = match.group(1) or match.group(2)
    value = os.environ.get(name, "data" if name == "RECSYS_DATA" else None)
    if value is None and unset_stay:
        return match.group()
    if value is None:
        raise ConfigError(f"{where}: the environment variable {name} is not set")
    return value


def _explain(error: pydantic.ValidationError, where: str, options: Sequence[str] = ()) -> str:
    of_file, of_options = list[str](), list[str]()
    for problem in _of_meant_form(error.errors(include_url=False)):
        path = [str(part) for part in problem["loc"]]
        dotted = ".".join(part for part in _without_tags(path) if not _FORM.fullmatch(part))
        line = _line(problem, path, dotted)
        if f"{dotted}.kind" in options and _is_about_kind(problem):
            reason = line.removeprefix(f"{dotted}: ").removeprefix("kind: ")
            of_options.append(f"  --{dotted}.kind: {reason}")
        elif any(_is_set_by(option, dotted, problem["type"]) for option in options):
            of_options.append(f"  --{line}")
        else:
            of_file.append(f"  {line}")
    lines = [f"wrong configuration in {where}:", *of_file] if of_file else []
    return "\n".join(
        [*lines, *(["wrong option of the command line:", *of_options] if of_options else [])]
    )


def _is_set_by(option: str, dotted: str, kind: str) -> bool:
    """Whether an option set a wrong key: directly, with its whole section, or as an unknown
    section.
    """
    is_below = dotted.startswith(f"{option}.")
    return (
        option == dotted
        or is_below
        or (kind == "extra_forbidden" and option.startswith(f"{dotted}."))
    )


def _is_about_kind(problem: Any) -> bool:
    """Whether the error of a section is about its ``kind``: then the message has that value."""
    section = problem["input"]
    return isinstance(section, Mapping) and str(section.get("kind", "")) in problem["msg"]


def _line(problem: Any, path: Sequence[str], dotted: str) -> str:
    """The line about a wrong key, with the cure."""
    if problem["type"] == "extra_forbidden":
        keys = _keys_at(path[:-1])
        return f"{dotted}: unknown key; {valid_instead(path[-1], keys, 'valid keys here')}"
    if problem["type"] == "missing":
        return f"{dotted}: missing, and it has no default"
    if problem["type"] == "union_tag_not_found":
        return f"{dotted}.kind: missing; expected one of {choices(SOURCE_KINDS)}"
    if problem["input"] is None:
        return f"{dotted}: is empty; give a value ([] for an empty list), or leave the key out"
    message, got = problem["msg"].removeprefix("Value error, "), problem["input"]
    message = _PLAIN.get(problem["type"], message).replace("Input should be ", "expected ")
    is_told = isinstance(got, str) and repr(got) in message  # the message has the value already
    shown = "" if is_told or isinstance(got, (dict, BaseModel)) else f" (got {_short(got)})"
    if problem["type"] == "literal_error":
        meant = nearest(got, _QUOTED.findall(problem["ctx"]["expected"]))
        shown += f"; did you mean {meant}?" if meant else ""
    return f"{dotted or 'configuration'}: {message}{shown}"


def _of_meant_form(problems: list[Any]) -> list[Any]:
    """Drop problems of a form that the value does not have, where a key takes several forms.

    If the value of such a key is a mapping of tables, "expected a text" is not a useful message.
    """

    def of_value(problem: Any) -> tuple[Any, ...]:
        end = next(
            (i for i, part in enumerate(problem["loc"]) if _FORM.fullmatch(str(part))),
            len(problem["loc"]),
        )
        return tuple(problem["loc"][:end])

    def is_other_form(problem: Any) -> bool:
        return bool(_FORM.fullmatch(str(problem["loc"][-1]))) and problem["type"] in _TYPE_ERRORS

    meant = {of_value(problem) for problem in problems if not is_other_form(problem)}
    return [
        problem
        for problem in problems
        if not (is_other_form(problem) and of_value(problem) in meant)
    ]


_PLAIN: Final = {  # pydantic messages that do not say how to write the value
    "list_type": "expected a list, such as [10, 20]",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "int_type": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]} …"


# pydantic's names of the kinds of values
_FORM: Final = re.compile(r"str|float|constrained-\w+|(?:list|dict|function-\w+)\[.*\]")
_TYPE_ERRORS: Final = ("string_type", "float_type", "list_type", "dict_type")


def _without_tags(path: Sequence[str]) -> list[str]:
    """Drop the union tag that pydantic adds after ``data.source``."""
    return [
        p
        for i, p in enumerate(path)
        if not (p in SOURCE_KINDS and i > 0 and path[i - 1] == "source")
    ]


def _keys_at(path: Sequence[str]) -> list[str]:
    model: Any = Config
    for i, part in enumerate(path):
        if part in SOURCE_KINDS and i > 0 and path[i - 1] == "source":
            return key_names(source_class(part))
        annotation = next(
            (f.annotation for n, f in model.model_fields.items() if (f.alias or n) == part), None
        )
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return model.valid_names() if issubclass(model, GranularitiesConfig) else key_names(model)


def key_names(model: type[BaseModel]) -> list[str]:
    """The keys of a section as users write them, sorted; a field with an alias has the alias."""
    return sorted(field.alias or name for name, field in model.model_fields.items())

"""The words of a command line: ``--config FILE``, ``--section.key VALUE`` and one-word options.

Why not argparse: every dotted path of the configuration is an option, and :mod:`recsys.config`
already has its checks, defaults and messages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_TEXTS = {"force": "promote.force", "item": "similar.item"}
_FLAGS = ("--dry-run", "--help", "--ablate", "--resume", "--rollback", "--retrain", "--replace")
_SET_BY_FLAG = {
    "--retrain": "forget.retrain",
    "--rollback": "promote.rollback",
    "--replace": "update.replace",
    "--resume": "run.resume",
}
_WORDS = (
    "config",
    "events",
    "user",
    "also",
    "budget",
    *_TEXTS,
    *(flag.removeprefix("--") for flag in _FLAGS),
)
USAGE = "recsys VERB --config FILE [--section.key VALUE …] [--dry-run]"


class UsageError(Exception):
    """The command line cannot be understood."""


@dataclass(frozen=True)
class Arguments:
    """The words after the verb, parsed."""

    config: str | None
    overrides: list[tuple[str, str]]
    dry_run: bool
    help: bool


def parse(words: Sequence[str], short: Mapping[str, str] | None = None) -> Arguments:
    """Split the words after the verb.

    Parameters
    ----------
    words : Sequence[str]
        The words after the verb.
    short : Mapping[str, str] | None
        Further one-word options of this verb, and the configuration key of each.

    Raises
    ------
    UsageError
        A word is not an option, an option is unknown, or its value is missing.

    Examples
    --------
    >>> parse(["--config", "a.yaml", "--train.lr", "3e-4", "--seed=-1", "--dry-run"]).overrides
    [('train.lr', '3e-4'), ('seed', '-1')]
    """
    short = short or {}
    config: str | None = None
    overrides: list[tuple[str, str]] = []
    events, users, also = list[str](), list[str](), list[str]()
    flags, rest = set[str](), list(words)
    while rest:
        word = rest.pop(0)
        word = "--help" if word == "-h" else word
        if word in _FLAGS:
            flags.add(word)
            continue
        name, value = _option(word, rest, short)
        if name == "config":
            config = value
        elif name == "events":
            events += [value, *_further_values(rest)]
        elif name == "user":
            users += "\n".join([value, *_further_values(rest)]).split("\n")
        elif name == "also":
            also += [value, *_further_values(rest)]
        else:
            overrides.append(_override(name, value, short))
    if events:
        overrides.append(("update.events", _listed(events)))
    if users:
        overrides.append(("forget.users", json.dumps(users)))
    if also:
        overrides.append(("forget.also", _listed(also)))
    overrides += [(key, "true") for flag, key in _SET_BY_FLAG.items() if flag in flags]
    if "--ablate" in flags:
        overrides.insert(0, ("evaluate.ablation", "full"))  # first: an explicit value wins
    return Arguments(config, overrides, "--dry-run" in flags, "--help" in flags)


def _option(word: str, rest: list[str], short: Mapping[str, str]) -> tuple[str, str]:
    """Name and value of ``--name=value``, or of ``--name`` with the value taken from ``rest``."""
    if not word.startswith("--") or len(word) == 2:
        raise UsageError(
            f"unexpected argument {word!r}; options have the form --section.key VALUE. Usage:"
            f" {USAGE}"
        )
    name, equals, value = word[2:].partition("=")
    if f"--{name}" in _FLAGS:
        raise UsageError(f"--{name} takes no value, got {value!r}")
    _check_name(name, short)
    if not equals:
        if not rest or rest[0].startswith("--"):
            raise UsageError(f"--{name} needs a value: --{name} VALUE or --{name}=VALUE")
        value = rest.pop(0)
    return name, value


def _further_values(rest: list[str]) -> list[str]:
    """Take the words up to the next option from ``rest``."""
    found = []
    while rest and not rest[0].startswith("--"):
        found.append(rest.pop(0))
    return found


def _override(name: str, value: str, short: Mapping[str, str]) -> tuple[str, str]:
    """The key of the configuration that an option sets, and its value as YAML."""
    if name == "budget":
        return "run.budget", value
    if name in short:
        return short[name], value
    if name in _TEXTS:
        # stays a string: YAML must not read 42 as a number
        return _TEXTS[name], "'{}'".format(value.replace("'", "''"))
    return name, value


def _check_name(name: str, short: Mapping[str, str]) -> None:
    if name in _WORDS or name in short:
        return
    from pipelines.plumbing.options import is_key, unknown_option

    if not is_key(name):
        raise UsageError(unknown_option(name, [*_WORDS, *short]))


def _listed(texts: Sequence[str]) -> str:
    """Texts as a YAML list of strings.

    >>> _listed(["a b.csv", "it's"])
    "['a b.csv', 'it''s']"
    """
    return "[{}]".format(", ".join("'{}'".format(text.replace("'", "''")) for text in texts))

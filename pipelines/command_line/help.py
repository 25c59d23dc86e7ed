"""The help texts of the command line: all verbs, one verb, or a section of the configuration."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from functools import partial
from typing import Final

from pipelines.plumbing.arguments import USAGE, UsageError
from pipelines.stages import VERBS

_BELOW: Final = " " * 8  # indent of the lines below the first one of a key
_COMMON: Final = """\
options:
  --config FILE         a YAML file, or a name from pipelines/configs/, e.g. demo or lastfm
  --section.key VALUE   set a key of the configuration, e.g. --train.lr 3e-4 --run.dir runs/first
  --dry-run             print the merged configuration and the stages that would run, then stop
  --help                after a verb: its options and keys, with type, default and meaning
  --version             print the version
{of_verbs}

help:
  recsys VERB --help    usage, options and keys of a verb
  recsys help SECTION   keys of a section, e.g. data.text or train
  recsys help all       all keys

exit codes: 0 done, 1 refused by a gate or an unexpected error, 2 wrong input or configuration,
            129 terminal closed, 130 interrupted, 143 terminated"""


def overview() -> str:
    """``recsys --help``: all verbs, the common options and the exit codes."""
    verbs = "\n".join(f"  {name:<10} {verb.summary}" for name, verb in VERBS.items())
    return f"usage: {USAGE}\n\nverbs:\n{verbs}\n\n{_COMMON.format(of_verbs=_options_of_verbs())}"


def _options_of_verbs() -> str:
    """The options of single verbs; an option of several verbs is one line."""
    verbs_of: dict[tuple[str, str], list[str]] = {}
    for name, verb in VERBS.items():
        for option in verb.options if verb.stages else ():
            verbs_of.setdefault(option, []).append(name)
    return "\n".join(
        textwrap.fill(
            f"  {word:<21} {', '.join(names)}: {meaning}",
            width=100,
            subsequent_indent=" " * 24,
            break_on_hyphens=False,
        )
        for (word, meaning), names in verbs_of.items()
    )


def help_of(words: Sequence[str]) -> str:
    """``recsys help VERB``, ``recsys help SECTION`` or ``recsys help all``.

    Raises
    ------
    UsageError
        There is not exactly one word.
    """
    from pipelines.plumbing.reference import reference

    if len(words) != 1:
        raise UsageError(
            f"help: got {len(words)} words, expected one: a verb, a section such as data.text, or"
            " `all`"
        )
    if words[0] in VERBS:
        return verb_help(words[0])
    return _fitted(reference("" if words[0] == "all" else words[0]))


def verb_help(verb: str) -> str:
    """``recsys VERB --help``: the usage of a verb and its keys of the configuration."""
    from pipelines.plumbing.reference import keys_of

    about = VERBS[verb]
    options = "\n".join(f"  {word:<16} {meaning}" for word, meaning in about.options)
    keys = keys_of(about.sections) if about.sections else ""
    more = "".join(f"\n\n{_fitted(text)}" for text in (options, keys) if text)
    return (
        f"usage: {usage(verb)}\n\n{about.summary}{more}\n\n"
        "all keys of the configuration: recsys help all"
    )


def usage(verb: str) -> str:
    """The line of usage of a verb.

    >>> usage("similar")
    'recsys similar --config FILE --item ID [--section.key VALUE …] [--dry-run]'
    """
    about = VERBS[verb]
    return about.usage or USAGE.replace("VERB --config FILE", f"{verb} {about.input}")


def _fitted(text: str) -> str:
    """Wrap lines at the width of the terminal; in a file each key stays one line, for ``grep``."""
    if not sys.stdout.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return "\n".join(wrapped(line, width) for line in text.split("\n"))


def wrapped(line: str, width: int) -> str:
    """A line of help; a key has its type and default in the first line and its meaning below.

    >>> print(wrapped("  --train.lr          float > 0, default 0.001  highest learning rate", 32))
      --train.lr  float > 0, default
            0.001
            highest learning rate
    """
    key, *rest = re.split(r" {2,}", line.strip(), maxsplit=2)
    fill = partial(textwrap.fill, width=width, subsequent_indent=_BELOW)
    if not key.startswith("--") or len(rest) < 2:
        return fill(line)
    return f"{fill(f'  {key}  {rest[0]}')}\n{fill(rest[1], initial_indent=_BELOW)}"

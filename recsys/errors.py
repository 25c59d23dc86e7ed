"""Exceptions of Multigrain.

    MultigrainError
    ├── Refusal              the request was checked, and the answer is no: exit code 1
    ├── Unavailable          the machine lacks something that the command needs: exit code 1
    └── UserError            the user's input or configuration is wrong: exit code 2
        ├── ConfigError      a configuration key or value
        ├── SourceError      a file or table that is missing, unreadable or incomplete
        │   └── EmptyFile    a file without rows
        ├── StorageError     a remote URI that does not answer, denies access, or does not exist
        ├── DataError        readable data that breaks a rule (too many bad rows, an empty split,
        │                    a leak)
        ├── TrainingError    training that cannot continue with these settings
        ├── ArtifactError    a prepared dataset, run folder or registered model that is missing,
        │                    stale or damaged
        │   └── NotRegistered  a registered model, alias or version that does not exist
        └── RequestError     a malformed request to a served model

The command line prints only the message of these errors, without a traceback. Every message says
what was got, what was expected and the cure. Errors that are not the user's mistake stay ordinary
Python exceptions (exit code 1). Our own invariants are ``assert`` statements.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

_ALIKE: Final = 0.7  # smallest similarity of a mistyped name and the one that was likely meant


class MultigrainError(Exception):
    """Base of all exceptions raised on purpose by this package."""


class Refusal(MultigrainError):
    """The answer is no, with reasons. The command line prints only the reasons and exits with 1."""


class Unavailable(MultigrainError):
    """The machine lacks something that the command needs. The command line prints the message and
    exits with 1.
    """


class UserError(MultigrainError):
    """An error that the user can fix. The command line prints only the message and exits with 2."""


class ConfigError(UserError):
    """A configuration key or value is wrong."""


class SourceError(UserError):
    """A source file or table is missing, unreadable or lacks a column."""


class EmptyFile(SourceError):
    """A source file has no rows: it is empty, or has only a header."""


class StorageError(UserError):
    """A remote URI such as ``s3://…`` does not answer, denies access, or does not exist."""


class DataError(UserError):
    """The data can be read but break a rule."""


class TrainingError(UserError):
    """Training cannot continue with these settings."""


class ArtifactError(UserError):
    """A folder or model of an earlier stage is missing, stale or damaged."""


class NotRegistered(ArtifactError):
    """A registered model, alias or version does not exist.

    Parameters
    ----------
    message : str
        The message, with what is registered.
    uri : str
        What was asked for.
    instead : str
        ``models:/NAME/VERSION`` of the newest version of this model; empty: it has none.
    """

    def __init__(self, message: str, uri: str = "", instead: str = "") -> None:
        super().__init__(message)
        self.uri, self.instead = uri, instead


class RequestError(UserError):
    """A recommendation request is malformed."""


def first_line(error: BaseException) -> str:
    r"""The first line of an exception's message, or its class name if it has no message.

    >>> first_line(ValueError("no such table\nmore")), first_line(KeyError())
    ('no such table', 'KeyError')
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def choices(options: Iterable[str]) -> str:
    """Join the valid options for an error message.

    >>> choices(["gru", "lstm"])
    'gru, lstm'
    """
    return ", ".join(sorted(str(option) for option in options))


def nearest(name: object, options: Iterable[str]) -> str:
    """The option most similar to a mistyped name, in any letter case; empty if none is similar.

    >>> nearest("epoch", ["lr", "epochs"]), nearest("epoch", ["lr"])
    ('epochs', '')
    """
    by_lower = {str(option).lower(): str(option) for option in options}
    found = get_close_matches(str(name).lower(), by_lower, 1, _ALIKE)
    return by_lower[found[0]] if found else ""


def valid_instead(
    name: object,
    options: Iterable[str],
    label: str = "expected one of",
    listed: str = "",
    none: str = "none",
) -> str:
    """The valid options for an error message, after the one that was likely meant.

    Parameters
    ----------
    name : object
        The mistyped name.
    options : Iterable[str]
        The valid names.
    label : str
        Words before the list.
    listed : str
        The list; empty: the sorted options.
    none : str
        Words instead of the list if there are no options.

    Examples
    --------
    >>> valid_instead("lst", ["gru", "lstm"])
    'did you mean lstm? Expected one of: gru, lstm'
    >>> valid_instead("x", ["gru", "lstm"], "valid keys here")
    'valid keys here: gru, lstm'
    """
    options = list(options)
    meant = nearest(name, options)
    text = f"{label}: {listed or choices(options) or none}"
    return f"did you mean {meant}? {text[0].upper()}{text[1:]}" if meant else text

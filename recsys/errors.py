"""Exceptions of Multigrain.

    MultigrainError
    ├── Refusal              what was asked was looked at, and the answer is no: exit code 1, message only
    ├── Unavailable          the machine cannot do it now, whatever is asked: exit code 1, message only
    └── UserError            the user's input or configuration is wrong: exit code 2, message only, no traceback
        ├── ConfigError      a configuration key or value
        ├── SourceError      a file or table that cannot be read, or lacks what it must have
        │   └── EmptyFile    a file without a row
        ├── StorageError     a remote place that does not answer, refuses, or is not there
        ├── DataError        readable data that breaks a rule (too many bad rows, an empty split, a leak)
        ├── TrainingError    training that cannot go on with these settings
        ├── ArtifactError    a prepared dataset, run folder or registered model that is missing, stale or damaged
        └── RequestError     a malformed request to a served model

Every message says what was got, what was expected and the cure. What is not the user's mistake stays an ordinary
Python exception (exit code 1); our own invariants are ``assert``.
"""

from __future__ import annotations

from collections.abc import Iterable


class MultigrainError(Exception):
    """Base of all exceptions raised on purpose by this package."""


class Refusal(MultigrainError):
    """The answer is no, with reasons. The command line prints them alone and exits with 1: it is no mistake."""


class Unavailable(MultigrainError):
    """Nobody's mistake: the machine lacks what it needs. The command line prints the message and exits with 1."""


class UserError(MultigrainError):
    """Something the user can fix. The command line prints the message alone and exits with 2."""


class ConfigError(UserError):
    """A configuration key or value is wrong."""


class SourceError(UserError):
    """A source file or table is missing, unreadable or lacks a column."""


class EmptyFile(SourceError):
    """A source file holds no row: nothing at all, or a header alone."""


class StorageError(UserError):
    """A remote place such as ``s3://`` does not answer, refuses, or is not there."""


class DataError(UserError):
    """The data can be read but breaks a rule."""


class TrainingError(UserError):
    """Training cannot go on with these settings."""


class ArtifactError(UserError):
    """A folder or model that an earlier stage should have made is missing, stale or damaged."""


class RequestError(UserError):
    """A recommendation request is malformed."""


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its name where it says nothing.

    >>> first_line(ValueError("no such table\\nmore")), first_line(KeyError())
    ('no such table', 'KeyError')
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def choices(options: Iterable[str]) -> str:
    """Join the valid options for an error message.

    >>> choices(["gru", "lstm"])
    'gru, lstm'
    """
    return ", ".join(sorted(str(option) for option in options))

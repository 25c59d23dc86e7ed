"""The message for a user's mistake that an exception stands for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise


def user_message(error: BaseException, words: Sequence[str] = ()) -> str | None:
    """The message for a user's mistake that caused an exception, also in a Ray worker, or None;
    ``words`` is the command line.

    The text of an exception that Ray wraps is a traceback; the inner one has the message.
    """
    from recsys.errors import UserError

    if isinstance(error, UserError) and not hasattr(error, "cause"):
        return _with_cure(error, words)  # without the imports below, which take seconds
    from recsys.registry.mlflow_client import outage
    from recsys.storage.filesystems import message_of

    outside: str | None = None
    for current in causes(error):
        if isinstance(current, UserError) and not hasattr(current, "cause"):
            return _with_cure(current, words)
        outside = outside or message_of(current) or outage(current)
    return outside


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and all that it wraps, the outer ones first.

    Ray wraps the exception of a task (``cause``), and Ray Train wraps the exceptions of its workers
    (``worker_failures``).

    Yields
    ------
    BaseException
        The exception, then those inside.
    """
    waiting: list[BaseException] = [error]
    seen: set[int] = set()
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        failures = getattr(current, "worker_failures", None)
        inner = [
            getattr(current, "cause", None),
            getattr(current, "_base_exc", None),
            current.__cause__,
        ]
        inner += list(failures.values()) if isinstance(failures, dict) else []
        waiting += [cause for cause in inner if isinstance(cause, BaseException)]


def _with_cure(error: BaseException, words: Sequence[str]) -> str:
    """The message of an error; where a model is not registered, with the option that names the
    newest version.

    >>> from recsys.errors import NotRegistered
    >>> error = NotRegistered("shop@best is not registered", "models:/shop@best", "models:/shop/3")
    >>> _with_cure(error, ["promote"])
    'shop@best is not registered; for its newest version: --promote.model models:/shop/3'
    """
    uri, instead = getattr(error, "uri", ""), getattr(error, "instead", "")
    if not instead or not words:
        return str(error)
    given = [before.partition("=")[0] for before, word in pairwise((*words, "")) if word == uri]
    given += [word.partition("=")[0] for word in words if word.partition("=")[2] == uri]
    option = next((one for one in given if one.startswith("--")), f"--{words[0]}.model")
    return f"{error}; for its newest version: {option} {instead}"

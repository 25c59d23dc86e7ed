"""Metrics and durations in the configuration, checked when it is read.

Why here: a wrong metric that only a late stage parses wastes the time of the stages before it, and
a dry run would not find it. :mod:`recsys.values.times` reads times, see
:mod:`pipelines.command_line.configuration_checks`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import AfterValidator

from recsys.config.outside import METRICS, load_function, offers, resolve
from recsys.errors import valid_instead

MAX_K: Final = 10_000
ACCURACY: Final = ("hit", "map", "mrr", "ndcg", "precision", "recall")


def metric_kind(text: str) -> str:
    """The standard spelling of a metric without its cut-off: ours in lower case, or one of another
    package (:mod:`recsys.config.outside`).

    Raises
    ------
    ValueError
        There is no such metric.

    >>> metric_kind("NDCG")
    'ndcg'
    """
    kind = _kind_of(text.strip())
    if kind is None:
        known = valid_instead(text.partition("@")[0], [*ACCURACY, *offers(METRICS)])
        raise ValueError(f"unknown metric; {known}, or module:function")
    return kind


def metric_name(text: str) -> str:
    """The standard spelling of a metric with its cut-off.

    Raises
    ------
    ValueError
        There is no such metric, or K is not a number in range.

    >>> metric_name("NDCG@10")
    'ndcg@10'
    """
    name, _, k = (part.strip() for part in text.partition("@"))
    is_number = k.isascii() and k.isdigit() and len(k) < 10
    if not is_number or not 1 <= int(k) <= MAX_K or (kind := _kind_of(name)) is None:
        kinds = [*ACCURACY, *offers(METRICS)]
        known = ", ".join(f"{kind}@K" for kind in kinds)
        instead = valid_instead("" if name in kinds else name, kinds, listed=known)
        raise ValueError(
            f"unknown metric; {instead}, or module:function@K, with K from 1 to {MAX_K:,}, such as"
            " ndcg@20"
        )
    return f"{kind}@{int(k)}"


def _kind_of(kind: str) -> str | None:
    if kind.lower() in ACCURACY:
        return kind.lower()
    offer = resolve(METRICS, kind)
    if offer is None:
        return None
    load_function(offer)
    return kind


MetricName = Annotated[str, AfterValidator(metric_name)]
"""An accuracy metric such as ``ndcg@20``, in upper or lower case."""
MetricKind = Annotated[str, AfterValidator(metric_kind)]
"""An accuracy metric without a cut-off, such as ``ndcg``."""


_DURATION: Final = re.compile(
    r"(?:(\d+(?:\.\d+)?)\s*h)?\s*(?:(\d+(?:\.\d+)?)\s*m(?:in)?)?\s*(?:(\d+(?:\.\d+)?)\s*s)?"
)


def seconds_of(text: str) -> float:
    """Seconds of a duration; 0 for an empty text.

    Raises
    ------
    ValueError
        The text is not a duration.

    >>> seconds_of("20m"), seconds_of("1h30m"), seconds_of("1.5 h"), seconds_of("")
    (1200.0, 5400.0, 5400.0, 0.0)
    """
    found = _DURATION.fullmatch(text.strip().lower())
    if found is None or (text.strip() and not any(found.groups())):
        raise ValueError(
            f"{text!r} is not a duration; expected hours, minutes or seconds such as 20m, 1h30m"
            " or 90s"
        )
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return 3600 * hours + 60 * minutes + seconds


def _duration(text: str) -> str:
    seconds_of(text)
    return text


Duration = Annotated[str, AfterValidator(_duration)]


def merged(tree: Mapping[str, Any], *changes: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with the values of ``changes``, section by section; the last change wins.

    >>> merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"d": 4})
    {'a': {'b': 3, 'c': 2}, 'd': 4}
    """
    found = dict(tree)
    for change in changes:
        for key, value in change.items():
            inner = found.get(key)
            if isinstance(inner, Mapping) and isinstance(value, Mapping):
                value = merged(inner, value)
            found[key] = value
    return found

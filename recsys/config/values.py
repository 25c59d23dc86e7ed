"""Texts of the configuration with a form of their own: metrics and times, checked when the configuration is read.

Why here: a wrong date or metric that only a later stage parses costs the time of the stages before it, and a dry run
would not find it.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Final

from pydantic import AfterValidator

MAX_K: Final = 10_000
ACCURACY: Final = ("hit", "map", "mrr", "ndcg", "precision", "recall")
_METRIC: Final = re.compile(r"([a-z_]+)\s*@\s*(\d{1,9})")
_EXAMPLE: Final = "2024-03-01T12:00:00+00:00"


def metric_name(text: str) -> str:
    """The metric as it is written everywhere.

    >>> metric_name("NDCG@10")
    'ndcg@10'
    """
    found = _METRIC.fullmatch(text.strip().lower())
    if found is None or found[1] not in ACCURACY or not 1 <= int(found[2]) <= MAX_K:
        names = ", ".join(f"{kind}@K" for kind in ACCURACY)
        raise ValueError(f"unknown metric; expected one of {names}, with K from 1 to {MAX_K:,}, such as ndcg@20")
    return f"{found[1]}@{int(found[2])}"


def iso_microseconds(text: str) -> int:
    """Microseconds since the epoch of an ISO time; a time without a zone is UTC.

    Raises:
        ValueError: the text is no ISO time.

    >>> iso_microseconds("1970-01-02") == 24 * 3600 * 10**6
    True
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"not an ISO time; expected YYYY-MM-DD or YYYY-MM-DDTHH:MM:SS with a zone, such as {_EXAMPLE}"
        ) from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _iso_time(text: str) -> str:
    if text.strip():
        iso_microseconds(text.strip())
    return text.strip()


IsoTime = Annotated[str, AfterValidator(_iso_time)]
"""An ISO time, or empty."""

MetricName = Annotated[str, AfterValidator(metric_name)]
"""An accuracy metric such as ``ndcg@20``, in whatever case."""

"""How the report writes numbers, metrics and durations."""

from __future__ import annotations

import math
import re
from typing import Any, Final

from markupsafe import Markup, escape

_METRIC_NAMES: Final = {"ndcg": "NDCG", "mrr": "MRR", "map": "MAP"}


def metric_name(name: str) -> str:
    """``ndcg@20`` as people write it.

    >>> metric_name("ndcg@20"), metric_name("recall@5"), metric_name("package.module:rbp@20")
    ('NDCG@20', 'Recall@5', 'Rbp@20')
    """
    kind, _, k = name.partition("@")
    kind = kind.rpartition(":")[2]
    shown = _METRIC_NAMES.get(kind, kind.capitalize())
    return f"{shown}@{k}" if k else shown


_MEANINGS: Final = {
    "ndcg": "how high the items that users chose later rank among the first {k} recommendations",
    "recall": (
        "the share of the items that users chose later that the first {k} recommendations contain"
    ),
    "precision": "the share of the first {k} recommendations that users chose later",
    "hit": "the share of users who later chose at least one of the first {k} recommendations",
    "mrr": (
        "one divided by the rank of the first recommendation that the user chose later; 0 if it is"
        " not among the first {k}"
    ),
    "map": "how high all items that users chose later rank among the first {k} recommendations",
}


def metric_meaning(name: str) -> str:
    """What an accuracy metric measures, for readers who do not know it; empty for other metrics.

    >>> metric_meaning("precision@5")
    'the share of the first 5 recommendations that users chose later'
    """
    kind, _, k = name.partition("@")
    return _MEANINGS.get(kind, "").format(k=k)


RECOMMENDER_NAMES: Final = {
    "model": "Multigrain",
    "popularity": "Popularity",
    "item_knn": "Item-kNN",
    "ease": "EASE",
    "als": "ALS",
    "frequency": "Own frequency",
    "recent_popularity": "Popular lately",
}


BASELINE_NOTES: Final = {
    "popularity": "the items with the most users, the same list for everyone",
    "item_knn": (
        "the items most similar to the user's own; two items are similar if many users have both"
    ),
    "ease": (
        "a linear model that predicts each item from the user's other items, solved in closed form"
        " (Steck 2019)"
    ),
    "als": (
        "matrix factorisation of users and items with 64 factors, by alternating least squares (Hu"
        " et al. 2008)"
    ),
    "frequency": "the items that the user had most often, newer events counting more",
    "recent_popularity": "the items with the most events lately; newer events count more",
}


def recommender_name(name: str) -> str:
    """The name of a recommender as people write it."""
    return RECOMMENDER_NAMES.get(name, name)


_SEGMENT_NAMES: Final = {
    "new_targets": "items new to the user",
    "repeat_targets": "items the user had before",
}


def segment_name(label: str) -> str:
    """The label of a segment in ``metrics.json`` in plain words.

    >>> segment_name("repeat_targets"), segment_name("10–19")
    ('items the user had before', '10–19')
    """
    return _SEGMENT_NAMES.get(label, label)


def number(value: float | None, decimals: int = 4) -> str:
    """A metric value; a dash for nothing.

    >>> number(0.28), number(None)
    ('0.2800', '–')
    """
    return (
        "–"
        if value is None or not math.isfinite(value)
        else f"{value:.{decimals}f}".replace("-", "−")
    )


def signed(value: float, decimals: int = 4) -> str:
    """A difference with its sign.

    >>> signed(0.01), signed(-0.5, 1)
    ('+0.0100', '−0.5')
    """
    return ("+" if value >= 0 else "−") + f"{abs(value):.{decimals}f}"


def figure(value: Any) -> str:
    """A count with thin spaces between thousands; other values as text.

    >>> figure(92834)
    '92\u202f834'
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace(",", "\u202f")
    return str(value)


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(4.21), duration(75), duration(3700)
    ('4.2 s', '1 min 15 s', '1 h 1 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def breakable(path: str) -> Markup:
    """A path or name that a browser may break behind its dots and underscores; numbers stay whole.

    >>> print(breakable("evolution.input_dropout"), breakable("0.25"))
    evolution.<wbr>input_<wbr>dropout 0.25
    """
    return Markup(re.sub(r"(?<!\d)\.|_", r"\g<0><wbr>", str(escape(path))))  # noqa: S704 - escaped


def sentence(text: str) -> str:
    """A text with a capital and a full stop; ``str.capitalize`` would make names small.

    >>> sentence("the best is EASE")
    'The best is EASE.'
    """
    return f"{text[:1].upper()}{text[1:]}."

"""The report's panel on interest drift: the share of each group of items in a user's interest,
event by event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np

from recsys.evaluation.interest_drift import OTHER
from recsys.report.chart_geometry import areas

_NUM_COLOURS: Final = 8


def interest_drift_panel(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The data for the template: for users with at least two events, areas in percent with one
    colour per group.

    The groups with the largest weight over all users have their own colour, the rest is "other".
    """
    shown = [
        (example["user"], example["interest_drift"])
        for example in examples
        if example.get("interest_drift")
    ]
    shown = [(user, drift) for user, drift in shown if len(drift["events"]) >= 2]
    if not shown:
        return None
    labels = shown[0][1]["labels"]
    weight_G = np.zeros(len(labels))
    for _, drift in shown:
        for shares in (drift["long"], drift["immediate"]):
            weight_G += np.mean(shares, axis=0) if shares else 0.0
    leading = [int(g) for g in np.argsort(-weight_G, kind="stable")[: _NUM_COLOURS - 1]]
    colours = {labels[g]: colour for colour, g in enumerate(leading)}
    return {
        "by": shown[0][1]["by"],
        "keys": [*colours.items()],
        "others": (
            len(labels) > len(leading) or any(OTHER in drift["chosen"] for _, drift in shown)
        ),
        "two": any(drift["immediate"] for _, drift in shown),
        "users": [_user(user, drift, leading, colours) for user, drift in shown],
    }


def _user(
    user: str, drift: Mapping[str, Any], leading: list[int], colours: Mapping[str, int]
) -> dict[str, Any]:
    count = len(drift["events"])
    known = [seconds for seconds in drift["times"] if seconds > 0]
    dates = [
        datetime.fromtimestamp(second, UTC).strftime("%-d %b %Y")
        for second in (known or [0])[:: len(known) - 1 or 1]
    ]
    moved = 0.5 * float(np.abs(np.subtract(drift["long"][-1], drift["long"][0])).sum())
    return {
        "user": user,
        "events": count,
        "first": dates[0] if known else "oldest event",
        "last": dates[-1] if known else "newest event",
        "long": _areas(drift["long"], leading),
        "immediate": _areas(drift["immediate"], leading) if drift["immediate"] else None,
        "share": drift["share"],
        "moved": moved,
        "chosen": [
            {
                "title": title,
                "label": label,
                "colour": colours.get(label),
                "left": 100 * i / count,
                "width": 100 / count,
            }
            for i, (title, label) in enumerate(zip(drift["events"], drift["chosen"], strict=True))
        ],
    }


def _areas(shares_LG: Sequence[Sequence[float]], leading: list[int]) -> list[tuple[int, str]]:
    """Paths of the leading groups from the bottom, with their colours; the background stands for
    "other".
    """
    return list(enumerate(areas(np.asarray(shares_LG)[:, leading].T.tolist())))

"""The report's panel on interest drift: the share of each group of items in a user's interest,
event by event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np

from recsys.evaluation.interest_drift import OTHER
from recsys.report.charts import areas

_NUM_COLOURS: Final = 8


def interest_drift_panel(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The data for the template: for users with at least two events, areas in percent with one
    colour per group.

    The groups with the largest weight over all users have their own colour, the rest is "other".
    """
    shown = [
        (example["user"], example["movement"]) for example in examples if example.get("movement")
    ]
    shown = [(user, movement) for user, movement in shown if len(movement["events"]) >= 2]
    if not shown:
        return None
    labels = shown[0][1]["labels"]
    weight_G = np.zeros(len(labels))
    for _, movement in shown:
        for part in (movement["long"], movement["immediate"]):
            weight_G += np.mean(part, axis=0) if part else 0.0
    leading = [int(g) for g in np.argsort(-weight_G, kind="stable")[: _NUM_COLOURS - 1]]
    colours = {labels[g]: colour for colour, g in enumerate(leading)}
    return {
        "by": shown[0][1]["by"],
        "keys": [*colours.items()],
        "others": (
            len(labels) > len(leading) or any(OTHER in movement["chosen"] for _, movement in shown)
        ),
        "two": any(movement["immediate"] for _, movement in shown),
        "users": [_user(user, movement, leading, colours) for user, movement in shown],
    }


def _user(
    user: str, movement: Mapping[str, Any], leading: list[int], colours: Mapping[str, int]
) -> dict[str, Any]:
    count = len(movement["events"])
    known = [seconds for seconds in movement["times"] if seconds > 0]
    dates = [
        datetime.fromtimestamp(second, UTC).strftime("%-d %b %Y")
        for second in (known or [0])[:: len(known) - 1 or 1]
    ]
    moved = 0.5 * float(np.abs(np.subtract(movement["long"][-1], movement["long"][0])).sum())
    return {
        "user": user,
        "events": count,
        "first": dates[0] if known else "oldest event",
        "last": dates[-1] if known else "newest event",
        "long": _areas(movement["long"], leading),
        "immediate": _areas(movement["immediate"], leading) if movement["immediate"] else None,
        "share": movement["share"],
        "moved": moved,
        "chosen": [
            {
                "title": title,
                "label": label,
                "colour": colours.get(label),
                "left": 100 * i / count,
                "width": 100 / count,
            }
            for i, (title, label) in enumerate(
                zip(movement["events"], movement["chosen"], strict=True)
            )
        ],
    }


def _areas(shares_LG: Sequence[Sequence[float]], leading: list[int]) -> list[tuple[int, str]]:
    """Paths of the leading groups from the bottom, with their colours; the background stands for
    "other".
    """
    return list(enumerate(areas(np.asarray(shares_LG)[:, leading].T.tolist())))

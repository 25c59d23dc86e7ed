"""Event types that say that a user does not want an item.

Why: a model that learns from them recommends what people did not want. Words such as ``pass`` and
``left`` say so only beside their opposite: beside ``fail``, a pass is a success.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from recsys.inspect.columns import has_known
from recsys.inspect.common_names import NEGATIVE

_ALONE: Final = ("report", "reported")  # with another word it is about a document: view_report
_LIKED: Final = ("like", "superlike", "love", "right", "match", "smash", "interested")
_BESIDE: Final = {
    "pass": _LIKED,
    "passed": _LIKED,
    "left": ("right", "join"),
    "leave": ("join",),
    "down": ("up",),
    "no": ("yes",),
}
"""Type → words of other types beside which it is negative."""


def negative_types(types: Sequence[str]) -> list[str]:
    """The negative ones of all event types of a data set.

    >>> negative_types(["like", "pass"]), negative_types(["pass", "fail"])
    (['pass'], ['fail'])
    >>> negative_types(["pin", "unpin", "swipe-left", "view_report"])
    ['unpin', 'swipe-left']
    """
    lowered = {name.lower() for name in types}
    return [
        name
        for name in types
        if has_known(name, NEGATIVE)
        or name.lower() in _ALONE
        or any(has_known(other, _BESIDE.get(name.lower(), ())) for other in types)
        or re.sub(r"^(?:un|dis)[-_ ]?", "", name.lower()) in lowered - {name.lower()}
    ]

"""What is said when users have only targets that they had before, which ``evaluate.exclude_seen`` leaves out.

Why: with plays or groceries most targets are repeats, and figures that look like those of all users are of a few.
"""

from __future__ import annotations

from typing import Final

_MANY: Final = 0.1  # share of the users beyond which the setting is likely not what was meant


def repeats_line(part: str, num_left_out: int, num_users: int) -> str:
    """One line for the console; empty where nobody is left out.

    >>> repeats_line("test", 37, 40)[:62]
    'warning: 37 of 40 test users have only targets that they had b'
    >>> repeats_line("test", 0, 40)
    ''
    """
    if not num_left_out:
        return ""
    said = (
        f"{num_left_out:,} of {num_users:,} {part} users have only targets that they had before and do not count: the "
        f"figures are of {num_users - num_left_out:,} users"
    )
    if num_left_out <= _MANY * num_users:
        return said
    return f"warning: {said}; set evaluate.exclude_seen false if repeats are to be predicted"


def no_targets(part: str) -> str:
    """The message that a part holds nothing to measure on.

    >>> no_targets("test")[:41]
    'no test user has a target that counts: ea'
    """
    return (
        f"no {part} user has a target that counts: each is an item that the user had before; set "
        "evaluate.exclude_seen false if repeats are to be predicted, or change data.split"
    )

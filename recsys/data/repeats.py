"""Messages about users with repeated targets only, which ``evaluate.exclude_seen`` leaves out.

Why: with music or groceries most targets are repeats, and metrics that seem to be over all users
are over a few.
"""

from __future__ import annotations

from typing import Final

_MANY: Final = 0.1  # share of users above which the setting is probably wrong


def repeats_line(split: str, num_left_out: int, num_users: int) -> str:
    """One line for the console; empty where no user is left out.

    Parameters
    ----------
    split : str
        Name of the split.
    num_left_out : int
        Number of users without a target that counts.
    num_users : int
        Number of users with targets.

    Examples
    --------
    >>> repeats_line("test", 37, 40)[:62]
    'warning: 37 of 40 test users have only targets that they had b'
    >>> repeats_line("test", 0, 40)
    ''
    """
    if not num_left_out:
        return ""
    line = (
        f"{num_left_out:,} of {num_users:,} {split} users have only targets that they had before"
        f" and do not count: the metrics are over {num_users - num_left_out:,} users"
    )
    if num_left_out <= _MANY * num_users:
        return line
    return f"warning: {line}; set evaluate.exclude_seen false if repeats should be predicted"


def no_targets(split: str) -> str:
    """The message that a split has no target to measure.

    >>> no_targets("test")[:41]
    'no test user has a target that counts: ea'
    """
    return (
        f"no {split} user has a target that counts: each is an item that the user had before; set "
        "evaluate.exclude_seen false if repeats should be predicted, or change data.split"
    )

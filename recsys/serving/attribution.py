"""Attribution: which logged answer an event belongs to, and the reward of every shown item.

An event with an ``answer_id`` belongs to that answer. Any other event belongs to the newest answer
to its user that shows its item and came before the event, within a time window. A tolerance of one
second allows for clock differences and for times stored in whole seconds.

Legend: E events.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from recsys import schema
from recsys.data.histories import Array
from recsys.serving.answer_log import Logged
from recsys.serving.feedback import read_rows, rewards_of

ANSWER_ID: Final = "answer_id"
_SLACK_S: Final = 1.0


@dataclass(frozen=True)
class Events:
    """Events on shown items, with their rewards."""

    users: list[str]
    items: list[str]
    rewards_E: Array
    seconds: list[float | None]
    answer_ids: list[str | None]

    def __len__(self) -> int:
        return len(self.users)


def read_events(files: Sequence[str], rewards: Mapping[str, float], max_bad: float) -> Events:
    """Read events from Parquet, CSV, TSV or JSON lines files.

    Parameters
    ----------
    files : Sequence[str]
        Files, folders or globs with the canonical columns and, optionally, ``answer_id``.
    rewards : Mapping[str, float]
        Event type → reward.
    max_bad : float
        Largest share of bad rows, 0 to 1.

    Raises
    ------
    ConfigError
        No file is given, or an event type has no reward.
    SourceError
        A file is missing or unreadable, or lacks a column.
    DataError
        There are no rows, or the share of bad rows is above ``max_bad``.
    """
    good, _ = read_rows(files, max_bad, "compare.feedback")
    rewards_E = rewards_of(
        good, rewards, "compare.rewards", "give every type a reward, 0 for no value"
    )
    nothing = [None] * len(good)
    times = (
        good.column(schema.TIMESTAMP).to_pylist()
        if schema.TIMESTAMP in good.column_names
        else nothing
    )
    named = good.column(ANSWER_ID).to_pylist() if ANSWER_ID in good.column_names else nothing
    return Events(
        good.column(schema.USER_ID).to_pylist(),
        good.column(schema.ITEM_ID).to_pylist(),
        rewards_E,
        [None if time is None else time.timestamp() for time in times],
        [None if answer is None else str(answer) for answer in named],
    )


def attributed(
    logged: Sequence[Logged], events: Events, window_s: float
) -> tuple[list[Array], int]:
    """The reward of every shown item of every answer, and the number of events without an answer.

    Parameters
    ----------
    logged : Sequence[Logged]
        Answers in order of time.
    events : Events
        Events with rewards.
    window_s : float
        Longest time from an answer to an event, in seconds.

    Returns
    -------
    tuple[list[Array], int]
        One float64 array per answer, one reward per item; and the number of events that belong
        to no answer.
    """
    rewards = [np.zeros(len(one.item_ids)) for one in logged]
    by_id = {one.answer_id: number for number, one in enumerate(logged)}
    shown: dict[tuple[str, str], list[tuple[float, int, int]]] = {}
    for number, one in enumerate(logged):
        if one.user_id is not None:
            for rank, item in enumerate(one.item_ids):
                shown.setdefault((one.user_id, item), []).append((one.time, number, rank))
    num_lost = 0
    rows = zip(
        events.users,
        events.items,
        events.rewards_E.tolist(),
        events.seconds,
        events.answer_ids,
        strict=True,
    )
    for user, item, reward, seconds, answer_id in rows:
        found = None
        if answer_id is not None:
            mine_id = by_id.get(answer_id, -1)
            # the event may name an item that the answer did not show
            if mine_id >= 0 and item in logged[mine_id].item_ids:
                found = mine_id, logged[mine_id].item_ids.index(item)
        elif seconds is not None:
            # in order of time, because ``logged`` is, so a binary search finds the newest answer
            mine = shown.get((user, item), [])
            newest = bisect_right(mine, seconds + _SLACK_S, key=lambda one: one[0]) - 1
            if newest >= 0 and seconds - mine[newest][0] <= window_s:
                found = mine[newest][1:]
        if found is None:
            # counted and not an error: events may come from lists that were not logged
            num_lost += 1
        else:
            rewards[found[0]][found[1]] += reward
    return rewards, num_lost

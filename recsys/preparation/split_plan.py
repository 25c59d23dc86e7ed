"""How the events of a dataset are split: kind, cut-offs, cold users, and what must not be empty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from recsys.config import DataConfig, SplitConfig
from recsys.data.cold_start import ColdUsers
from recsys.data.split import NEVER, SplitPlan, check_split, resolved
from recsys.errors import DataError
from recsys.preparation.buckets import BucketSummary
from recsys.preparation.event_encoding import Coding
from recsys.preparation.event_roles import SPLITS
from recsys.preparation.record import Record


def plan_split(
    data: DataConfig,
    seed: int,
    summaries: Sequence[BucketSummary],
    coding: Coding,
    is_timed: bool,
    find_cut_offs: Callable[[SplitConfig], tuple[int, int]],
    record: Record,
) -> SplitPlan:
    """The plan of ``data.split`` for these events.

    Parameters
    ----------
    data : DataConfig
        The section ``data``.
    seed : int
        Seed of the split.
    summaries : Sequence[BucketSummary]
        Summaries of the buckets.
    coding : Coding
        Event types and order.
    is_timed : bool
        Whether every interaction has a timestamp.
    find_cut_offs : Callable[[SplitConfig], tuple[int, int]]
        Gives the first microseconds of validation and of test; called for a temporal split only.
    record : Record
        Gets the notes.

    Raises
    ------
    ConfigError
        The split contradicts the order or the times of the events.
    """
    has_times = data.order != "none" and any(s.interactions > s.untimed for s in summaries)
    split = resolved(data.split, coding.order, has_times)
    if split.kind != data.split.kind and split.kind == "ratio":
        record.note(
            f"no event has a time: {split.valid:.0%} of each user's events, drawn at random,"
            f" are validation and {split.test:.0%} test (data.split.kind ratio); set data.order"
            " file if the rows are in time order"
        )
    given = sum((Counter(summary.given) for summary in summaries), Counter[str]())
    unnamed = given.pop("", 0)
    check_split(split, coding.order, is_timed, given)
    if split.kind == "given" and unnamed:
        record.notes.append(f"{unnamed:,} events without a given split count as training")
    valid_from, test_from = find_cut_offs(split) if split.kind == "temporal" else (NEVER, NEVER)
    cold_start = None
    if split.cold_users:
        cold_start = ColdUsers(split.cold_users, split.cold_keep, seed)
    return SplitPlan(
        split.kind,
        split.valid,
        split.test,
        valid_from,
        test_from,
        coding.order != "none",
        given.get("valid", 0) > 0,
        cold_start,
        coding.target_types,
    )


def split_seed(split: SplitConfig, seed: int) -> int:
    """The seed of the split; 0 where the content hash ignores the seed."""
    return 0 if split.kind == "auto" and not split.cold_users else seed


def check_no_split_is_empty(kind: str, counts: Mapping[str, int]) -> None:
    """Refuse a dataset without training, validation or test events, or without targets in them.

    Raises
    ------
    DataError
        A split is empty; the message shows the sizes.
    """
    empty = [split for split in SPLITS if not counts[split]]
    empty += [
        f"target among the {split}"
        for split in SPLITS[1:]
        if counts.get(f"{split}_targets", 1) == 0
    ]
    if not empty:
        return
    sizes = ", ".join(f"{split}: {counts[split]:,}" for split in SPLITS)
    three = {"leave-last": "events", "leave-last-basket": "baskets (times)"}.get(kind)
    rule = f": it holds out events of users with three or more {three}" if three else ""
    raise DataError(
        f"data.split.kind {kind} leaves no {' and no '.join(empty)} events ({sizes}){rule};"
        " change data.split (kind, shares, cut-offs) or give more events per user"
    )

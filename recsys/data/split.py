"""The split of every event (training, validation, test), as pure functions over one shard of users.

Legend: U users, E events (user by user, in the order of the data). Validation and test are always
disjoint, and every user keeps at least one training event in a random or proportional split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np

from recsys.config import SplitConfig
from recsys.data.cold_start import CUT, ColdUsers
from recsys.data.histories import NO_TYPES, Array, Split
from recsys.errors import ConfigError, DataError
from recsys.values.moment import moment

NEVER: Final = np.iinfo(np.int64).max
_BINS: Final = 1 << 14
_SECOND: Final = 1_000_000  # microseconds
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class SplitPlan:
    """Everything that determines the split of an event; cut-offs are in microseconds."""

    kind: str
    valid: float = 0.1
    test: float = 0.1
    valid_from: int = NEVER
    test_from: int = NEVER
    ordered: bool = True
    given_valid: bool = False  # the source names validation events itself
    cold_start: ColdUsers | None = None  # cold users, whose training events are cut
    target_types: tuple[int, ...] = ()  # ids of the event types that are predicted; empty: all

    @property
    def random(self) -> bool:
        """Whether events are held out by the hash of (user, item)."""
        return not self.ordered and (
            self.kind == "ratio" or (self.kind == "given" and not self.given_valid)
        )

    def describe(self) -> dict[str, Any]:
        """Kind, shares and cut-offs (ISO times) for the manifest."""
        separate = ("valid_from", "test_from", "cold_start", "target_types")
        names = [field.name for field in fields(self) if field.name not in separate]
        described = {name: getattr(self, name) for name in names}
        if self.cold_start:
            described |= self.cold_start.describe()
        if self.kind == "temporal":
            described |= {"valid_from": _iso(self.valid_from), "test_from": _iso(self.test_from)}
        return described


def plan_of(described: Mapping[str, Any], target_types: Sequence[int]) -> SplitPlan:
    """The plan from the result of :meth:`SplitPlan.describe`."""
    plan = SplitPlan(
        described["kind"],
        described["valid"],
        described["test"],
        ordered=described["ordered"],
        given_valid=described["given_valid"],
        cold_start=ColdUsers.of(described),
        target_types=tuple(target_types),
    )
    if plan.kind != "temporal":
        return plan
    valid_from, test_from = (
        parse_time(str(described[key]), f"split.{key}") for key in ("valid_from", "test_from")
    )
    return replace(plan, valid_from=valid_from, test_from=test_from)


def assign(
    plan: SplitPlan,
    offsets_U1: Array,
    times_E: Array,
    given_E: Array,
    uniform_E: Array,
    types_E: Array = NO_TYPES,
) -> Array:
    """The split of every event: [E] uint8, see :class:`~recsys.data.histories.Split`; :data:`CUT`
    where it is in none.

    Shares and last events count predicted types only. The other events belong to the split of the
    target before them, so that later queries see them.

    Parameters
    ----------
    plan : SplitPlan
        The rule of the split.
    offsets_U1 : Array
        Where each user's events start: [U + 1] int64.
    times_E : Array
        Microseconds since the epoch: [E] int64; used by ``temporal`` and ``leave-last-basket``.
    given_E : Array
        Splits named by the source: [E]; used by ``given``.
    uniform_E : Array
        Numbers in [0, 1), equal for equal (user, item) pairs: [E] float64; used by random splits.
    types_E : Array
        Event type ids: [E] uint8; used where only some types are predicted.
    """
    is_target_E = (
        np.isin(types_E, plan.target_types)
        if plan.target_types
        else np.ones(offsets_U1[-1], dtype=bool)
    )
    if plan.kind == "given":
        splits = given_E.astype(np.uint8)
        if plan.given_valid:
            return splits
        if plan.ordered:
            return _latest_training(offsets_U1, splits, plan.valid, is_target_E)
        return _random(offsets_U1, uniform_E, splits == Split.TRAIN, plan.valid, 0.0, splits)
    if plan.kind == "leave-last":
        return _leave_last(offsets_U1, is_target_E, *_targets_behind(offsets_U1, is_target_E))
    if plan.kind == "leave-last-basket":
        # whole seconds, as a dataset stores them
        behind = _baskets_behind(offsets_U1, is_target_E, times_E // _SECOND)
        return _leave_last(offsets_U1, is_target_E, *behind)
    if plan.kind == "temporal":
        return ((times_E >= plan.valid_from).astype(np.uint8) + (times_E >= plan.test_from)).astype(
            np.uint8
        )
    if plan.ordered:
        return _latest(offsets_U1, plan.valid, plan.test, is_target_E)
    splits = np.zeros(len(uniform_E), dtype=np.uint8)
    return _random(
        offsets_U1, uniform_E, np.ones(len(splits), dtype=bool), plan.valid, plan.test, splits
    )


def _leave_last(
    offsets_U1: Array, is_target_E: Array, behind_E: Array, num_behind_U: Array
) -> Array:
    """The last target, or basket of targets, is test; the one before it and the events between them
    are validation; events after it are cut. Users with fewer than three stay in training.
    """
    held_E = np.repeat(num_behind_U >= 3, np.diff(offsets_U1))
    splits = np.zeros(offsets_U1[-1], dtype=np.uint8)
    splits[held_E & (behind_E <= 1)] = Split.VALID
    splits[held_E & (behind_E == 0)] = CUT
    splits[held_E & (behind_E == 0) & is_target_E] = Split.TEST
    return splits


def _targets_behind(offsets_U1: Array, is_target_E: Array) -> tuple[Array, Array]:
    """Number of the user's targets after each event [E], and number of targets of each user [U]."""
    total_E1 = np.concatenate([[0], np.cumsum(is_target_E)])
    ends_U = total_E1[offsets_U1[1:]]
    return np.repeat(ends_U, np.diff(offsets_U1)) - total_E1[1:], ends_U - total_E1[offsets_U1[:-1]]


def _baskets_behind(offsets_U1: Array, is_target_E: Array, times_E: Array) -> tuple[Array, Array]:
    """Number of later times with a target of the user, for each event [E], and number of times with
    a target of each user [U].
    """
    users_E = np.repeat(np.arange(len(offsets_U1) - 1), np.diff(offsets_U1))
    targets = np.flatnonzero(is_target_E)
    is_next_new = (np.diff(users_E[targets]) != 0) | (np.diff(times_E[targets]) != 0)
    is_end_E = np.zeros(len(users_E), dtype=bool)  # the last target of its time
    is_end_E[targets[np.append(is_next_new, True)[: len(targets)]]] = True
    after_E, num_U = _targets_behind(offsets_U1, is_end_E)
    after_E = after_E + is_end_E  # with itself
    ends = np.flatnonzero(is_end_E)
    next_E = np.append(ends, 0)[np.searchsorted(ends, np.arange(len(users_E)))]
    return after_E - ((after_E > 0) & (times_E[next_E] == times_E)), num_U


def _latest(offsets_U1: Array, valid: float, test: float, is_target_E: Array) -> Array:
    """Each user's latest ``round(share · n)`` targets; the earliest one always stays in
    training.
    """
    behind_E, num_U = _targets_behind(offsets_U1, is_target_E)
    lengths_U = np.diff(offsets_U1)
    # floor(x + ½), as NumPy's round takes halves to the even number
    num_test_U = np.minimum(np.floor(num_U * test + 0.5).astype(np.int64), np.maximum(num_U - 1, 0))
    num_valid_U = np.floor(num_U * valid + 0.5).astype(np.int64)
    num_valid_U = np.minimum(num_valid_U, np.maximum(num_U - 1 - num_test_U, 0))
    is_test_E = behind_E < np.repeat(num_test_U, lengths_U)
    is_held_E = behind_E < np.repeat(num_test_U + num_valid_U, lengths_U)
    return np.where(
        is_test_E, np.uint8(Split.TEST), np.where(is_held_E, np.uint8(Split.VALID), np.uint8(0))
    )


def _latest_training(offsets_U1: Array, splits_E: Array, valid: float, is_target_E: Array) -> Array:
    """Each user's latest share of the events marked training becomes validation; the other events
    keep their split.
    """
    splits_E = splits_E.copy()
    is_train_E = splits_E == Split.TRAIN
    of_training_U1 = np.concatenate([[0], np.cumsum(is_train_E)])[offsets_U1]
    splits_E[is_train_E] = _latest(of_training_U1, valid, 0.0, is_target_E[is_train_E])
    return splits_E


def _random(
    offsets_U1: Array, uniform_E: Array, free_E: Array, valid: float, test: float, splits_E: Array
) -> Array:
    """Hold out the free events whose number is below the shares; each user's largest number stays
    in training.
    """
    splits_E = splits_E.copy()
    drawn_E = np.where(uniform_E < test, np.uint8(Split.TEST), np.uint8(Split.VALID))
    lengths_U = np.diff(offsets_U1)
    users_E = np.repeat(np.arange(len(lengths_U)), lengths_U)
    largest_U = np.full(len(lengths_U), -1.0)
    # ``at``, because a plain assignment would keep only one event of a user
    np.maximum.at(largest_U, users_E[free_E], uniform_E[free_E])
    # below the largest, so that the event with the largest number stays in training
    held_E = free_E & (uniform_E < test + valid) & (uniform_E < largest_U[users_E])
    splits_E[held_E] = drawn_E[held_E]
    return splits_E


def cut_off(histogram: Callable[[int, int], Array], low: int, high: int, rank: int) -> int:
    """The exact ``rank``-th largest of many integers in [low, high] that are not in memory.

    Each pass narrows the range to one of :data:`_BINS` bins.

    Parameters
    ----------
    histogram : Callable[[int, int], Array]
        (start, width) → number of values in each of ``_BINS`` bins of that width, from ``start``
        on.
    """
    while True:
        width = -(-(high - low + 1) // _BINS)
        # the bins end at ``high``: ``rank`` already excludes larger values
        low = high + 1 - _BINS * width
        counts = histogram(low, width)
        from_top = np.cumsum(counts[::-1])
        position = int(np.searchsorted(from_top, rank))
        assert position < _BINS, "fewer values than the rank"
        rank -= int(from_top[position - 1]) if position else 0
        low += (_BINS - 1 - position) * width
        high = low + width - 1
        if width == 1:
            return low


def bin_counts(values: Array, start: int, width: int) -> Array:
    """Counts of the values in each bin of :func:`cut_off`; values outside the bins are left out.

    Parameters
    ----------
    values : array of int
        The values.
    start : int
        Lower end of the first bin.
    width : int
        Width of a bin.

    Returns
    -------
    array of int
        One count per bin.
    """
    bins = (values - start) // width
    return np.bincount(bins[(values >= start) & (bins < _BINS)], minlength=_BINS)


def parse_time(text: str, key: str) -> int:
    """Microseconds since the epoch of a time in any format of sources; UTC without a zone.

    Raises
    ------
    ConfigError
        The value of ``key`` is not a time.

    Examples
    --------
    >>> parse_time("1970-01-02", "data.split.test_from") == 24 * 3600 * 10**6
    True
    """
    try:
        found = moment(text)
    except ValueError as error:
        raise ConfigError(
            f"{key}: {text!r} is not a time such as 2024-03-01T12:00:00+00:00; {error}"
        ) from None
    if found is None:
        raise ConfigError(
            f"{key}: {text!r} is not a time; expected one such as 2024-03-01T12:00:00+00:00"
        )
    return (found - _EPOCH) // timedelta(microseconds=1)


def resolved(config: SplitConfig, ordered_by: str, has_times: bool) -> SplitConfig:
    """The split with ``auto`` resolved: ``ratio`` for events without any order, which have no last
    event, else ``leave-last``.

    If only some events have a time, the kind is ``leave-last``, whose check then reports that the
    others need one.

    >>> resolved(SplitConfig(), "time", True).kind, resolved(SplitConfig(), "none", False).kind
    ('leave-last', 'ratio')

    Parameters
    ----------
    config : SplitConfig
        The section ``data.split``.
    ordered_by : str
        What orders the events; ``none``: nothing does.
    has_times : bool
        Whether some event has a time that may be used (``data.order`` is not ``none``).
    """
    if config.kind != "auto":
        return config
    return config.model_copy(
        update={"kind": "ratio" if ordered_by == "none" and not has_times else "leave-last"}
    )


def check_split(config: SplitConfig, ordered_by: str, timed: bool, given: dict[str, int]) -> None:
    """Refuse a split that the data does not support.

    Parameters
    ----------
    ordered_by : str
        ``time``, ``file`` or ``none``.
    given : dict[str, int]
        Split named by the source → number of events.

    Raises
    ------
    DataError
        The data does not support the split; the message says what is missing and which kinds work.
    """
    if config.kind == "leave-last" and ordered_by == "none":
        raise DataError(
            "data.split.kind leave-last needs an order, but the events have none (no timestamp on"
            " every event); set data.split.kind ratio, or data.order file when the order of the"
            " rows is the order of events"
        )
    if config.kind == "leave-last-basket" and ordered_by != "time":
        raise DataError(
            "data.split.kind leave-last-basket needs times, because the events of one time are a"
            " basket; set data.split.kind leave-last or ratio"
        )
    if config.kind == "temporal" and not timed:
        raise DataError(
            "data.split.kind temporal needs a timestamp on every event, but some or all have none; "
            "set data.split.kind ratio or leave-last"
        )
    if config.kind == "given" and not given.get("test"):
        found = (
            ", ".join(f"{split}: {count:,}" for split, count in sorted(given.items()))
            or "no split column"
        )
        raise DataError(
            f"data.split.kind given needs events that the source marks as test, got {found}; give"
            " split_files or a split column, or set data.split.kind to leave-last, temporal or"
            " ratio"
        )


def _iso(microseconds: int) -> str:
    return (_EPOCH + timedelta(microseconds=microseconds)).isoformat()

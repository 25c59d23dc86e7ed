"""Statistics of the events: how many, when, types and values, repeats, and the split that tests a
model like in production.

Legend: E events, in the order of the files unless stated otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.data.foresight import Foresight, spread_of
from recsys.data.pseudonyms import email_note
from recsys.data.time_cut import Cuts, Temporal, temporal_cuts
from recsys.inspect.columns import Column, has_known
from recsys.inspect.common_names import NEGATIVE, NO_GOAL, SHOWN, STRONG, WEAK
from recsys.inspect.negative_types import negative_types
from recsys.sources.validate import CellRules, Layout, check_rows
from recsys.values.overlap import ids_in_two_forms

_MANY_REPEATS: Final = 0.1
_LEAST_TESTABLE: Final = 20  # users with enough events for leave-last …
_TESTABLE: Final = 0.1  # … or this share of them, if that is less
_MOSTLY: Final = 0.5
_IN_BASKETS: Final = 0.6  # share of events at the time of the user's event before
_LEAVE_LAST: Final = 3  # events to predict that it needs: for training, validation and test
_MOST_UNTIMED: Final = 0.001
_SOME_USERS: Final = 20
_NEW_USERS: Final = 0.1  # share of known users among those of a test, up to which it is not used
_LARGEST: Final = 0.05  # share of the events of one user, from which it may be no person …
_TIMES_NEXT: Final = 10  # … if it has so many times the events of the next one


@dataclass(frozen=True)
class EventStatistics:
    """Statistics of the sampled events."""

    num_rows: int
    num_events: int  # valid events
    num_users: int
    num_items: int
    bad: Mapping[str, float]  # reason → share of rows
    timed: float = 0.0  # share of events with a time
    first: datetime | None = None
    last: datetime | None = None
    types: Mapping[str, int] = field(default_factory=dict)
    splits: Mapping[str, int] = field(default_factory=dict)
    temporal: Temporal | None = None  # a split in time with enough users; None if there is none
    best_temporal: Temporal | None = None  # the one with most users, for the message
    repeats: float = 0.0  # share of the events to predict whose user had the item before
    # share of users' last events to predict that directly follow an event on the same item
    echoes: float = 0.0
    echo_types: tuple[str, ...] = ()  # types most of whose events do so, if there are other types
    low: float = 1.0
    high: float = 1.0
    num_values: int = 0  # number of distinct values
    negative: float = 0.0  # share of values below zero
    small: float = 0.0  # share of values below the middle of the scale
    same_time: float = 0.0  # share of events at the same time as the user's previous event
    all_types: tuple[str, ...] = ()  # including those that do not count
    num_testable: int = 0  # users with enough events to predict for leave-last
    num_testable_baskets: int = 0  # the same with the events of one time as one
    foresight: Foresight | None = None  # leak from the future with a leave-last split

    @property
    def has_times(self) -> bool:
        """Whether nearly all events have a time."""
        return self.timed >= 1 - _MOST_UNTIMED

    @property
    def repeats_are_common(self) -> bool:
        """Whether repeats are common among the events to predict."""
        return self.repeats > _MANY_REPEATS

    @property
    def echoes_are_common(self) -> bool:
        """Whether last events often repeat the previous item."""
        return self.echoes > _MANY_REPEATS

    @property
    def are_baskets(self) -> bool:
        """Whether most events come with others at one time, and enough users have several times."""
        least = min(_LEAST_TESTABLE, _TESTABLE * self.num_users)
        return self.same_time > _IN_BASKETS and self.num_testable_baskets >= max(least, 1)

    @property
    def bad_share(self) -> float:
        """Share of invalid rows."""
        return sum(self.bad.values())


@dataclass(frozen=True)
class Types:
    """The meaning of the event types."""

    targets: tuple[str, ...] = ()  # what to predict; empty: all
    history: tuple[str, ...] = ()  # types that count at all; empty: all
    # the goal of the other types, which too few users reach often enough to be tested
    rare: tuple[str, ...] = ()
    why: str = ""  # why the others do not count; empty: negative, or only shown


def roles_of_types(types: Sequence[str]) -> Types:
    """Find the types to predict, and exclude negative ones and exposures.

    >>> roles_of_types(["view", "cart", "purchase"]).targets
    ('purchase',)
    >>> roles_of_types(["VIEW", "LIKE", "FOLLOW"]).targets
    ()
    >>> roles_of_types(["order_view", "checkout_error", "apply_coupon", "order_completed"]).targets
    ('order_completed',)
    >>> roles_of_types(["view", "report"]).history, roles_of_types(["view", "open_report"]).history
    (('view',), ())
    """
    negative = negative_types(types)
    shown = [name for name in types if has_known(name, SHOWN) and name not in negative]
    left = [name for name in types if name not in (*negative, *shown)]
    if not left:
        return Types()
    out = (*negative, *shown)
    history = tuple(left) if out else ()
    strong = [name for name in left if is_goal(name)]
    weak = [name for name in left if has_known(name, WEAK) and name not in strong]
    # without a weaker type there is nothing that leads to the goal
    if strong and weak:
        return Types(tuple(strong), history)
    return Types((), history)


def is_goal(name: str) -> bool:
    """Whether events of a type are what the others lead to. A cart is on the way to a purchase, and
    the view of an order, or of a book, is a view.

    >>> [is_goal(name) for name in ("purchase", "order_view", "apply_coupon", "checkout_error")]
    [True, False, False, False]
    """
    return has_known(name, STRONG) and not has_known(name, (*WEAK, *NO_GOAL, *NEGATIVE))


def with_rated(types: Types, rows: pa.Table, value: Column | None) -> Types:
    """Predict the types whose events have values, if others have none: ratings, not the tags and
    tips that some of the raters write too.

    Parameters
    ----------
    types : Types
        What is known from the names of the types.
    rows : pa.Table
        Rows of all files of events, with their types.
    value : Column | None
        The column of the values.
    """
    if value is None:
        return types
    frame = pl.DataFrame(
        {
            "type": pl.Series(pl.from_arrow(rows.column(schema.EVENT_TYPE))),
            "value": pl.Series(pl.from_arrow(rows.column(value.name))),
        }
    )
    every = frame.group_by("type").agg(pl.col("value").is_not_null().mean()).drop_nulls("type")
    counted = [
        (str(kind), share)
        for kind, share in every.rows()
        if not types.history or kind in types.history
    ]
    rated = sorted(kind for kind, share in counted if share > _MOSTLY)
    if not rated or any(0 < share <= _MOSTLY for _, share in counted) or len(rated) == len(counted):
        return types
    return Types(tuple(rated), types.history)


def with_enough_tests(types: Types, statistics: EventStatistics) -> Types:
    """Predict all types if leave-last is the split, and too few users have the three events of the
    types to predict that it needs, such as purchases in visits of a shop.

    Parameters
    ----------
    types : Types
        What is known from the names of the types.
    statistics : EventStatistics
        Statistics of the events with these types.
    """
    is_last = statistics.temporal is None and statistics.timed > _MOSTLY
    least = min(_LEAST_TESTABLE, _TESTABLE * statistics.num_users)
    if not types.targets or not is_last or statistics.num_testable >= max(least, 1):
        return types
    return replace(types, targets=(), rare=types.targets)


def without_hints(types: Types, events: pa.Table) -> Types:
    """Count one kind of event per item, if the events have no times and several kinds are on the
    same items, such as the purchase of a game and its hours of play.

    Why: without an order a run tests random events, and the other event on the item would tell
    what to predict.

    Parameters
    ----------
    types : Types
        What is known from the names of the types.
    events : pa.Table
        Events of :func:`events_of`.
    """
    frame = _frame(events).drop_nulls("type")
    if len(frame) and frame["time"].null_count() < _MOSTLY * len(frame):
        return types
    if types.history:
        frame = frame.filter(pl.col("type").is_in(list(types.history)))
    frame = frame.select("user", "item", "type").unique()
    counted = _counts(frame["type"])
    targets = types.targets or tuple(counted)[:1]
    is_target = pl.col("type").is_in(list(targets))
    others = frame.filter(~is_target)
    known = frame.filter(is_target).join(others, ["user", "item"], "semi")
    share = len(known) / max(sum(counted.get(kind, 0) for kind in targets), 1)
    if share <= _MANY_REPEATS:
        return types
    why = f"there are no times, and {share:.0%} of the events to predict have another one on"
    return Types((), targets, why=f"{why} the same item, which would tell them")


def events_of(
    rows: pa.Table, names: Mapping[str, str], rules: CellRules
) -> tuple[pa.Table, dict[str, float]]:
    """Return the valid events of a sample as the readers type them, and the shares of invalid rows
    by reason.

    Parameters
    ----------
    rows : pa.Table
        Rows of the sample, with the column names of the files.
    names : Mapping[str, str]
        Column of the files → canonical column; only columns of events are used.
    rules : CellRules
        Rules for missing values, times and numbers.

    Returns
    -------
    pa.Table
        The valid rows, with typed canonical columns.
    dict[str, float]
        Reason → share of all rows, from 0 to 1.
    """
    given = pa.table(
        {to: rows.column(name) for name, to in names.items() if to in schema.EVENTS.columns}
    )
    checked = check_rows(given, Layout(schema.EVENTS, rules=rules))
    reasons = checked.column(schema.REASON)
    counted = (
        pc.value_counts(reasons.drop_null().combine_chunks())
        if reasons.null_count < len(reasons)
        else None
    )
    bad = {}
    if counted is not None:
        pairs = zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True)
        bad = {reason: number / max(rows.num_rows, 1) for reason, number in pairs}
    return checked.filter(pc.is_null(reasons)), bad


def _note_on_one_user(events: pa.Table) -> str:
    """A note on a user who has many times the events of all others, such as guests or a robot."""
    counts = pl.Series(pl.from_arrow(events.column(schema.USER_ID))).value_counts(sort=True)
    if len(counts) < _SOME_USERS or not len(events):
        return ""
    (user, most), (_, next_most) = counts.rows()[:2]
    if most < _LARGEST * len(events) or most < _TIMES_NEXT * next_most:
        return ""
    return (
        f"the user {user!r} has {most / len(events):.0%} of the events, {most / next_most:.0f}"
        " times those of the next one: if it stands for guests, tests or a program, leave it out"
        f" with data.source.drop {{{schema.USER_ID}: [{user!r}]}}"
    )


def note_on_new_users(events: pa.Table) -> str:
    """A note on a split in which the users of the test events have no training events, as if each
    visit of a shop were a user; empty if they have some, or without a split.

    Why: such a split asks for lists of users without a history, and a model can only answer with
    popular items.

    Parameters
    ----------
    events : pa.Table
        Events of :func:`events_of`.
    """
    frame = _frame(events)
    trained, tested = (
        frame.filter(pl.col("split") == split)["user"].unique() for split in ("train", "test")
    )
    known = tested.is_in(trained.implode()).sum()
    if not len(tested) or known > _NEW_USERS * len(tested):
        return ""
    return (
        f"{known:,} of the {len(tested):,} users with test events have training events, so the"
        " split of the files would ask for lists without a history: it is not used, all events are"
        " read as one log"
    )


def notes_on_ids(events: pa.Table) -> tuple[list[str], bool]:
    """Notes on ids in several forms and on ids that identify a person, and whether user ids look
    like e-mail addresses.

    Parameters
    ----------
    events : pa.Table
        Events of :func:`events_of`.
    """
    users, items = (
        events.column(name).combine_chunks().unique() for name in (schema.USER_ID, schema.ITEM_ID)
    )
    email = email_note(users)
    notes = (
        ids_in_two_forms(users, "users"),
        ids_in_two_forms(items, "items"),
        email,
        _note_on_one_user(events),
    )
    return [note for note in notes if note], bool(email)


def statistics_of(
    events: pa.Table,
    bad: Mapping[str, float],
    targets: Sequence[str] = (),
    min_value: float | None = None,
    has_clock: bool = True,
) -> EventStatistics:
    """Compute the statistics of the valid events.

    Parameters
    ----------
    events : pa.Table
        Events of :func:`events_of`.
    bad : Mapping[str, float]
        Reason → share of invalid rows.
    targets : Sequence[str]
        Event types to predict; empty: all.
    min_value : float | None
        Events with smaller values are left out.
    has_clock : bool
        Whether the times of different users can be compared; numbers that count the events of each
        user cannot.
    """
    # the events are only the valid rows
    num_rows = round(events.num_rows / max(1e-9, 1 - sum(bad.values()))) if events.num_rows else 0
    frame = _frame(events)
    values = frame["value"]
    if not len(frame):
        return EventStatistics(0, 0, 0, 0, bad)
    splits = _counts(frame["split"])
    types = _counts(frame["type"])
    used = frame if min_value is None else frame.filter(pl.col("value") >= min_value)
    times: Any = used["time"].drop_nulls()
    timed = len(times) / max(len(used), 1)
    middle = _middle(values)
    cuts, known_future = Cuts(), None
    if has_clock and timed >= 1 - _MOST_UNTIMED and len(used):
        is_target = pl.col("type").is_in(list(targets)) if targets else pl.lit(True)
        cuts = temporal_cuts(used.with_columns(is_target=is_target))
        known_future = _foresight(used, targets, cuts)
    temporal = cuts.fitting
    return EventStatistics(
        num_rows,
        len(used),
        used["user"].n_unique(),
        used["item"].n_unique(),
        dict(bad),
        timed,
        _moment(times.min()) if len(times) else None,
        _moment(times.max()) if len(times) else None,
        types,
        splits,
        temporal,
        cuts.best,
        _repeats(used, temporal, targets),
        *_echoes(used, targets),
        _number(values.min()),
        _number(values.max()),
        values.n_unique(),
        _number((values < 0).mean()),
        _number((values < middle).mean()),
        _same_time(used) if timed > 0.5 else 0.0,
        num_testable=_num_testable(used, targets, ["item", "type", "time"]),
        num_testable_baskets=_num_testable(used, targets, ["time"]),
        foresight=known_future,
    )


def _frame(events: pa.Table) -> pl.DataFrame:
    """User, item, time (microseconds), type, value and split of the events."""
    columns = {
        "user": events.column(schema.USER_ID),
        "item": events.column(schema.ITEM_ID),
        "time": events.column(schema.TIMESTAMP).cast(pa.int64()),
        "type": events.column(schema.EVENT_TYPE),
        "value": events.column(schema.VALUE),
        "split": events.column(schema.SPLIT).cast(pa.string()),
    }
    return pl.DataFrame({name: pl.Series(pl.from_arrow(c)) for name, c in columns.items()})


def _foresight(frame: pl.DataFrame, targets: Sequence[str], cuts: Cuts) -> Foresight | None:
    """The leak of leave-last, as a run reports it, from the last events of users with at least
    three.
    """
    times = frame["time"]
    evaluated = _of_types(frame, targets).group_by("user").agg(pl.col("time").max(), pl.len())
    last = evaluated.filter(pl.col("len") >= _LEAVE_LAST)["time"].to_numpy() // 1_000_000
    first, end = (int(moment) // 1_000_000 for moment in (times.min(), times.max()))  # type: ignore[arg-type]
    return spread_of(last, first, end, cuts.why_none) if len(last) else None


def _num_testable(frame: pl.DataFrame, targets: Sequence[str], by: Sequence[str]) -> int:
    every = _of_types(frame, targets).select("user", *by).unique()
    return int((every["user"].value_counts()["count"] >= _LEAVE_LAST).sum())


def _counts(texts: pl.Series) -> dict[str, int]:
    """Counts by value, the most frequent first, ties by name."""
    rows = texts.drop_nulls().value_counts().rows()
    return {
        str(name): int(count) for name, count in sorted(rows, key=lambda row: (-row[1], row[0]))
    }


def _number(value: Any) -> float:
    return float(value) if value is not None else 0.0


def _middle(values: pl.Series) -> float:
    return (_number(values.min()) + _number(values.max())) / 2


def _moment(micros: int) -> datetime:
    return datetime.fromtimestamp(micros // 1_000_000, UTC)


def _of_types(frame: pl.DataFrame, targets: Sequence[str]) -> pl.DataFrame:
    return frame.filter(pl.col("type").is_in(list(targets))) if targets else frame


def _repeats(frame: pl.DataFrame, temporal: Temporal | None, targets: Sequence[str]) -> float:
    """The share of events to predict whose user had the item before by such an event, as in an
    evaluation.

    Before means before the cut; without a cut, at an earlier time or in an earlier row. Rows with
    the same user, item, type and time are one event.
    """
    has_times = temporal is not None or frame["time"].null_count() < 0.5 * len(frame)
    # as ``prepare`` does, so that the share is that of the run
    every = frame.unique(subset=["user", "item", "type", "time"], keep="first", maintain_order=True)
    rows, first = _of_types(every, targets), pl.col("time").min().over(["user", "item"])
    if temporal is not None:
        cut = int(temporal.test_from.timestamp() * 1e6)
        # a new user cannot repeat anything
        known = every.filter(pl.col("time") < cut)["user"].unique().implode()
        rows = rows.with_columns(again=first < cut)
        evaluated = rows.filter((pl.col("time") >= cut) & pl.col("user").is_in(known))
        return _number(evaluated["again"].mean()) if len(evaluated) else 0.0
    if has_times:
        rows = rows.sort(["user", "time"], maintain_order=True)
    # events of one time keep the order of the files: views and purchases of a day
    rows = rows.with_columns(again=pl.int_range(pl.len()).over(["user", "item"]) > 0)
    rows = rows.with_columns(rank=pl.col("user").cum_count().over("user"))
    # the later half of each user stands for the test: early events cannot be repeats
    evaluated = rows.filter((pl.col("rank") > 1) & (pl.col("rank") > 0.5 * pl.len().over("user")))
    return _number(evaluated["again"].mean()) if len(evaluated) else 0.0


def _echoes(frame: pl.DataFrame, targets: Sequence[str]) -> tuple[float, tuple[str, ...]]:
    """The share of users' last events to predict that directly follow an event of the user on the
    same item.

    Also returns the types most of whose events do so, unless all types do. Why: if each user's last
    event is the test, a model solves it by repeating the item of the previous event.
    """
    rows = frame.unique(subset=["user", "item", "type", "time"], keep="first", maintain_order=True)
    if rows["time"].null_count() < 0.5 * len(rows):
        rows = rows.sort(["user", "time"], maintain_order=True)
    rows = rows.with_columns(echo=pl.col("item") == pl.col("item").shift().over("user")).drop_nulls(
        "echo"
    )
    evaluated = _of_types(rows, targets).group_by("user", maintain_order=True).last()
    if not len(evaluated):
        return 0.0, ()
    by_type = rows.group_by("type").agg(pl.col("echo").mean()).filter(pl.col("type").is_not_null())
    shares = {str(name): float(share) for name, share in by_type.rows()}
    mostly = tuple(sorted(name for name, share in shares.items() if share >= _MOSTLY))
    return _number(evaluated["echo"].mean()), mostly if len(mostly) < len(shares) else ()


def _same_time(frame: pl.DataFrame) -> float:
    rows = frame.sort(["user", "time"])
    same = (rows["user"] == rows["user"].shift()) & (rows["time"] == rows["time"].shift())
    return _number(same.mean())

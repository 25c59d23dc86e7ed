"""What was found and what was left out, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from recsys.inspect.understood import Understood, percent

_MOST_NAMES: Final = 40  # of unused columns
_ALWAYS: Final = "popularity, item-kNN, EASE and ALS as baselines; item_cf, user_cf, collaborative"


def summary_of(found: Understood) -> str:
    """Return lines on tables, columns, events, signals, and what is left out."""
    return "\n".join([*_tables(found), *_events(found), *_signals(found), *_ignored(found)])


def _tables(found: Understood) -> Iterator[str]:
    for table in found.tables:
        yield f"{table.role:<10} {table.files}  ({table.form})"
        for name, what in table.columns.items():
            yield f"             {name:<12} {what}"
    for noun, attributes in (("item", found.items), ("user", found.users)):
        if attributes is None:
            continue
        named = [f"{name} ({attributes.kinds.get(name, 'category')})" for name in attributes.used]
        if named:
            where = (
                " from columns of the events" if noun == "item" and found.items_by_events else ""
            )
            more = f" and {len(named) - 12} more" if len(named) > 12 else ""
            yield f"{noun + 's have':<10} {', '.join(named[:12])}{more}{where}"
        yield from _not_used(attributes.idle, 8)


def _not_used(idle: Mapping[str, str], most: int) -> Iterator[str]:
    """The columns that are not used, so many of them with the reason."""
    for name, why in list(idle.items())[:most]:
        yield f"             not used: {name} ({why})"
    if more := list(idle)[most:]:
        names = ", ".join(more[:_MOST_NAMES]) + ", …" * (len(more) > _MOST_NAMES)
        yield f"             not used: {len(more):,} more: {names}"


def _events(found: Understood) -> Iterator[str]:
    statistics = found.statistics
    where = " in a sample of the files" if found.is_sampled else ""
    yield (
        f"seen       {statistics.num_events:,} events of {statistics.num_users:,} users and"
        f" {statistics.num_items:,} items{where}"
    )
    has_dates = found.has_dates and statistics.timed > 0.5
    if has_dates and statistics.first is not None and statistics.last is not None:
        by_day = ", without time of day" if found.day_only else ""
        yield f"             from {statistics.first:%Y-%m-%d} to {statistics.last:%Y-%m-%d}{by_day}"
    if len(statistics.types) > 1:
        yield "             types: " + ", ".join(
            f"{kind} {count:,}" for kind, count in list(statistics.types.items())[:8]
        )
    if found.meaning.history:
        others = [kind for kind in statistics.all_types if kind not in found.meaning.history]
        why = f" ({found.meaning.why})" if found.meaning.why else ""
        yield f"             left out: {', '.join(others)}{why}; see interactions in the file"
    if found.meaning.rare:
        rare = ", ".join(found.meaning.rare)
        yield f"             to predict: all types; too few users have three events of type {rare}"
    if found.meaning.targets:
        yield f"             to predict: {', '.join(found.meaning.targets)}"
    yield from _not_used(found.idle, 12)
    yield (
        f"             repeats: {percent(statistics.repeats)} of the events to predict have an"
        " item of the user's history"
    )
    is_last_tested = statistics.temporal is None and found.order != "none"
    if statistics.echoes_are_common and is_last_tested:
        yield (
            f"             echoes: {statistics.echoes:.1%} of the users' last events directly"
            " follow one of theirs on the same item; see the comments in the file"
        )
    if statistics.bad_share:
        yield (
            f"             {percent(statistics.bad_share)} of the rows are invalid:"
            f" {found.bad_why.get('events', '')}"
        )


def _signals(found: Understood) -> Iterator[str]:
    """The members that the data supports."""
    members = [_ALWAYS]
    items, users = found.items, found.users
    if found.event_text or (items and items.text):
        members.append("behaviour and content (item text)")
    if found.order != "none":
        members.append("evolution (ordered events)")
    if found.statistics.has_times and found.has_clock:
        members.append("recent popularity (times of events)")
    if found.statistics.repeats_are_common:
        members.append("repeat (repeated items)")
    if found.friends:
        members.append(f"social ({found.friends})")
    if found.triples or (items and items.triples):
        members.append("knowledge (triples)")
    if users and users.are_informative:
        members.append("profile (user attributes)")
    if items and items.place:
        members.append("place (coordinates)")
    elif items and items.measures:
        members.append(f"place ({', '.join(items.measures)})")
    if items and items.vectors:
        members.append("media (item vectors)")
    yield "can use    " + "; ".join(members)


def _ignored(found: Understood) -> Iterator[str]:
    for path, why in found.warnings.items():
        yield f"warning    {path} {why}; the configuration does not use it"
    for path, why in found.ignored.items():
        yield f"ignored    {path}: {why}"
    statistics = found.statistics
    if (
        found.split is None
        and statistics.temporal is None
        and found.order != "none"
        and statistics.foresight is not None
    ):
        yield f"note       {statistics.foresight.note}"
    for note in found.notes:
        yield f"note       {note}"

"""What was found and what was left out, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from recsys.inspect.understood import Understood

_ALWAYS = "popularity, item-kNN, EASE and ALS as baselines; item_cf, user_cf, collaborative"


def told(found: Understood) -> str:
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
        for name, why in list(attributes.idle.items())[:8]:
            yield f"             not used: {name} ({why})"


def _events(found: Understood) -> Iterator[str]:
    habits = found.habits
    where = " in a sample of the files" if found.is_sampled else ""
    yield (
        f"seen       {habits.num_events:,} events of {habits.num_users:,} users and"
        f" {habits.num_items:,} items{where}"
    )
    if habits.first is not None and habits.last is not None and habits.timed > 0.5:
        by_day = ", without time of day" if found.day_only else ""
        yield f"             from {habits.first:%Y-%m-%d} to {habits.last:%Y-%m-%d}{by_day}"
    if len(habits.types) > 1:
        yield "             types: " + ", ".join(
            f"{kind} {count:,}" for kind, count in list(habits.types.items())[:8]
        )
    if found.meaning.targets:
        yield f"             to predict: {', '.join(found.meaning.targets)}"
    for name, why in list(found.idle.items())[:12]:
        yield f"             not used: {name} ({why})"
    yield (
        f"             repeats: {habits.repeats:.1%} of the events to predict have an item of the"
        " user's history"
    )
    if habits.echoes_are_common and habits.temporal is None:
        yield (
            f"             echoes: {habits.echoes:.1%} of the users' last events directly follow"
            " one of theirs on the same item; see the comments in the file"
        )
    if habits.bad_share:
        yield (
            f"             {habits.bad_share:.1%} of the rows are invalid:"
            f" {found.bad_why.get('events', '')}"
        )


def _signals(found: Understood) -> Iterator[str]:
    """The members that the data supports."""
    lives = [_ALWAYS]
    items, users = found.items, found.users
    if found.event_text or (items and items.text):
        lives.append("behaviour and content (item text)")
    if found.order != "none":
        lives.append("evolution (ordered events)")
    if found.habits.has_times:
        lives.append("recent popularity (times of events)")
    if found.habits.repeats_are_common:
        lives.append("repeat (repeated items)")
    if found.friends:
        lives.append(f"social ({found.friends})")
    if found.facts or (items and items.facts):
        lives.append("knowledge (facts)")
    if users and users.tells:
        lives.append("profile (user attributes)")
    if items and items.place:
        lives.append("place (coordinates)")
    elif items and items.measures:
        lives.append(f"place ({', '.join(items.measures)})")
    if items and items.vectors:
        lives.append("media (item vectors)")
    yield "can use    " + "; ".join(lives)


def _ignored(found: Understood) -> Iterator[str]:
    for path, why in found.warnings.items():
        yield f"warning    {path} {why}; the configuration does not use it"
    for path, why in found.ignored.items():
        yield f"ignored    {path}: {why}"
    habits = found.habits
    if (
        found.split is None
        and habits.temporal is None
        and found.order != "none"
        and habits.foresight is not None
    ):
        yield f"note       {habits.foresight.note}"
    for note in found.notes:
        yield f"note       {note}"

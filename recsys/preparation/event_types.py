"""Which event types a dataset has, which of them are predicted, and in what order events are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Final

from recsys.config import DataConfig
from recsys.errors import ConfigError, DataError, choices, valid_instead
from recsys.preparation.buckets import BucketSummary
from recsys.preparation.event_encoding import Coding
from recsys.preparation.event_roles import EventRules
from recsys.preparation.record import Record

_MAX_EVENT_TYPES: Final = 255
_FEW_UNTIMED: Final = 0.5  # largest share of events without a timestamp for an order by time


def coding_of(
    summaries: Sequence[BucketSummary],
    rules: EventRules,
    config: DataConfig,
    base_types: Sequence[str],
    earlier_types: Collection[str],
    record: Record,
) -> Coding:
    """The event types and the order of events, checked against the events.

    Parameters
    ----------
    summaries : Sequence[BucketSummary]
        Summaries of the buckets.
    rules : EventRules
        Which events are interactions and which are text.
    config : DataConfig
        The section ``data``.
    base_types : Sequence[str]
        Event types that keep their ids; new types follow them.
    earlier_types : Collection[str]
        Types of all rows of the dataset to append to, which may lack new events.
    record : Record
        Gets the notes.

    Raises
    ------
    ConfigError
        The configuration names a type that no event has.
    DataError
        There is no interaction, there are too many types, or the order needs timestamps that are
        missing.
    """
    types = sum((Counter(summary.types) for summary in summaries), Counter[str]())
    _check_named(rules, types, {*base_types, *earlier_types})
    found = set(rules.interactions or set(types) - set(rules.text_types)) - set(base_types)
    event_types = [*base_types, *sorted(found)]
    _check_types(event_types, types, config.targets)
    for name, count in sorted(types.items()):
        if name not in {*event_types, *rules.text_types}:
            record.notes.append(
                f"{count:,} events of the type {name} are not interactions (data.interactions)"
            )
    untimed = sum(summary.untimed for summary in summaries)
    interactions = sum(summary.interactions for summary in summaries)
    targets = tuple(sorted(event_types.index(name) for name in set(config.targets)))
    targets = () if len(targets) == len(event_types) else targets
    order = _order(config, untimed, interactions, record)
    return Coding(rules, tuple(event_types), order, targets)


def _check_named(rules: EventRules, types: Counter[str], before: set[str]) -> None:
    """Refuse rules that name a type that no event has."""
    missing = sorted({*rules.interactions, *rules.text_types} - set(types) - before)
    if missing:
        key = (
            "data.interactions"
            if set(missing) & set(rules.interactions)
            else "data.text.event_types"
        )
        raise ConfigError(
            f"{key}: no event has the type {', '.join(missing)};"
            f" {valid_instead(missing[0], types, 'types')}"
        )


def _check_types(event_types: list[str], types: Counter[str], targets: Sequence[str]) -> None:
    """Refuse targets that are no event type, and a dataset with no type or too many of them."""
    if unknown := sorted(set(targets) - set(event_types)):
        raise ConfigError(
            f"data.targets: no event has the type {', '.join(unknown)};"
            f" {valid_instead(unknown[0], event_types, 'types')}"
        )
    if not event_types:
        raise DataError(
            f"no event is an interaction; event types: {choices(types) or 'none'}; see"
            " data.interactions"
        )
    if len(event_types) > _MAX_EVENT_TYPES:
        raise DataError(
            f"{len(event_types)} event types, at most {_MAX_EVENT_TYPES} are supported; see"
            " data.interactions"
        )


def _order(config: DataConfig, untimed: int, interactions: int, record: Record) -> str:
    """The order of events: the configured one, or the best that the timestamps allow."""
    order = config.order
    if order == "time" and untimed:
        raise DataError(
            f"data.order time: {untimed:,} interactions have no timestamp; set data.order to"
            " file (the rows are in the order of events) or none"
        )
    if order != "auto":
        return order
    if not untimed:
        return "time"
    if untimed <= _FEW_UNTIMED * interactions:
        record.note(
            f"{untimed:,} of {interactions:,} events have no timestamp; they count as each"
            " user's first (data.order none: events without an order)"
        )
        return "time"
    return "file" if config.source.kind == "sequences" else "none"

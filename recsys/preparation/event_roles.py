"""The columns of events on their way to histories, and which events are used as what."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from recsys import schema
from recsys.config import DataConfig
from recsys.data.histories import Array
from recsys.errors import ConfigError, valid_instead
from recsys.preparation.filters import EventFilters
from recsys.preparation.keys import (
    CODED,
    codes_in,
    where,
)
from recsys.values.absent import DEFAULT_RULES, CellRules

TERM: Final = "_term"  # the text of an auxiliary event
NO_TIME: Final = np.iinfo(np.int64).min
SPLITS: Final = ("train", "valid", "test")  # position = Split

TEXT_COLUMNS: Final = [
    schema.USER_ID,
    schema.ITEM_ID,
    schema.TIMESTAMP,
    schema.EVENT_TYPE,
    schema.VALUE,
    TERM,
]
_COLUMNS: Final[dict[str, pa.DataType]] = {
    **schema.EVENTS.columns,
    schema.FILE: pa.string(),
    schema.ROW: pa.int64(),
    schema.ORDER: pa.int64(),
    schema.REASON: pa.string(),
    schema.RAW: pa.string(),
    TERM: pa.string(),
}
CODED_COLUMNS: Final = frozenset(
    {name for name, kind in _COLUMNS.items() if pa.types.is_string(kind)}
)
CONTEXT: Final = "_context_"  # prefix of context columns, which can have any name

EVENT_SCHEMA: Final = pa.schema(
    [
        ("user", pa.int32()),
        ("item", pa.int32()),
        ("type", pa.uint8()),
        ("time", pa.int64()),  # microseconds, NO_TIME where unknown
        ("value", pa.float32()),
        ("given", pa.uint8()),
    ]
)
TEXT_SCHEMA: Final = pa.schema(
    [("user", pa.int32()), ("item", pa.int32()), ("time", pa.int64()), ("term", pa.string())]
)


@dataclass(frozen=True)
class EventRules:
    """Which events are interactions and which are text about items."""

    interactions: tuple[str, ...]  # empty: all except the text types
    text_types: tuple[str, ...]
    text_column: str
    context: tuple[str, ...] = ()  # context columns
    context_numbers: tuple[str, ...] = ()  # context columns that are numbers
    cells: CellRules = DEFAULT_RULES
    filters: EventFilters = EventFilters()
    keep_duplicates: bool = False

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """The columns of an event in the exchange."""
        kinds = {
            name: pa.float64() if name in self.context_numbers else pa.string()
            for name in self.context
        }
        return {**_COLUMNS, **{f"{CONTEXT}{name}": kind for name, kind in kinds.items()}}

    @property
    def exchange_schema(self) -> pa.Schema:
        """The schema of rows in the exchange; string columns of every event are coded (see
        :mod:`recsys.preparation.keys`).
        """
        return pa.schema(
            [
                (name, CODED if name in CODED_COLUMNS else kind)
                for name, kind in self.columns.items()
            ]
        )

    @property
    def event_schema(self) -> pa.Schema:
        """:data:`EVENT_SCHEMA` and the context columns before their encoding."""
        kinds = list(self.columns.items())[len(_COLUMNS) :]
        return pa.schema([*EVENT_SCHEMA, *(pa.field(name, kind) for name, kind in kinds)])

    @staticmethod
    def of(config: DataConfig) -> EventRules:
        """The rules of a configuration.

        Raises
        ------
        ConfigError
            Text types without a text column (or the reverse), a type that is both interaction and
            text, invalid context columns, or an empty time window.
        """
        text = config.text
        if bool(text.event_types) != bool(text.event_column):
            raise ConfigError(
                "data.text.event_types (which events are text about items) and"
                " data.text.event_column (the column with the text) belong together: set both or"
                f" none; got {text.event_types} and {text.event_column!r}"
            )
        both = sorted(set(text.event_types) & set(config.interactions))
        if both:
            raise ConfigError(
                f"{', '.join(both)} cannot be in both data.interactions and data.text.event_types"
            )
        _check_context(config.context, config.context_numbers)
        return EventRules(
            tuple(config.interactions),
            tuple(text.event_types),
            text.event_column,
            tuple(config.context),
            tuple(config.context_numbers),
            CellRules.of(config.source),
            EventFilters.of(config),
            config.duplicates == "keep",
        )

    def is_text(self, types: pa.ChunkedArray) -> Array:
        """Which rows are text, from the coded column of event types: [E] bool."""
        return codes_in(types, pa.array(self.text_types, pa.string())) >= 0

    def is_interaction(self, types: pa.ChunkedArray) -> Array:
        """Which rows are interactions, from the coded column of event types: [E] bool."""
        if self.interactions:
            return codes_in(types, pa.array(self.interactions, pa.string())) >= 0
        return ~self.is_text(types)

    def filtered(self, good: pa.Table) -> tuple[pa.Table, Counter[str]]:
        """The good rows that pass the filters, and the number of the others by reason."""
        if not good.num_rows or not self.filters.is_on:
            return good, Counter()
        out, dropped = self.filters.left_out(
            good, self.is_interaction(good.column(schema.EVENT_TYPE))
        )
        return where(good, ~out), dropped


def _check_context(names: list[str], numbers: list[str]) -> None:
    known = sorted(set(names) & set(schema.EVENTS.columns))
    if known:
        raise ConfigError(
            f"data.context: {known[0]!r} is a standard column of events; name other columns only"
        )
    if len(set(names)) < len(names):
        raise ConfigError(f"data.context names a column twice: {', '.join(names)}")
    stray = sorted(set(numbers) - set(names))
    if stray:
        raise ConfigError(
            f"data.context_numbers: {stray[0]!r} is not in data.context;"
            f" {valid_instead(stray[0], names, 'data.context has')}"
        )


def written_out(table: pa.Table) -> pa.Table:
    """The table with strings instead of codes."""
    arrays = [
        column.cast(pa.string()) if name in CODED_COLUMNS else column
        for name, column in _columns_of(table)
    ]
    return pa.table(arrays, names=table.column_names)


def _columns_of(table: pa.Table) -> zip[tuple[str, pa.ChunkedArray]]:
    return zip(table.column_names, table.columns, strict=True)

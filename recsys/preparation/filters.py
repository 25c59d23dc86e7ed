"""Filters of good events: a time window and a smallest value; both are off by default.

Why here: users want "ratings of at least 4" or "the last two years" without rewriting their files.
The order is fixed: first the window and the value (row by row, in the task that gathers a bucket),
then duplicates, then the k-core (:mod:`recsys.preparation.k_core`), then the split.
``manifest.dropped`` counts the rows of each filter.

An event without a time is outside every window. A missing value counts as 1. The window also
applies to text events (``data.text.event_types``), the smallest value does not; the k-core removes
the text events of the users and items that it removes. Users and items of an earlier dataset stay.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.config import DataConfig
from recsys.data.histories import Array
from recsys.data.split import NEVER, parse_time
from recsys.errors import ConfigError

TOO_EARLY: Final = "before data.from"
TOO_LATE: Final = "from data.until on"
UNTIMED: Final = "no time, and data.from or data.until is set"
TOO_SMALL: Final = "value below data.min_value"
_ALWAYS: Final = -NEVER


@dataclass(frozen=True)
class EventFilters:
    """The window of time, in microseconds since the epoch, and the smallest value."""

    first: int = _ALWAYS
    end: int = NEVER
    min_value: float | None = None

    @classmethod
    def of(cls, config: DataConfig) -> EventFilters:
        """The filters of a configuration.

        Raises
        ------
        ConfigError
            A time cannot be parsed, or the window is empty.
        """
        first = parse_time(config.from_, "data.from") if config.from_ else _ALWAYS
        end = parse_time(config.until, "data.until") if config.until else NEVER
        if first >= end:
            raise ConfigError(
                f"data.from {config.from_!r} is not before data.until {config.until!r}; events from"
                " data.from on and before data.until are used"
            )
        return cls(first, end, config.min_value)

    @property
    def is_on(self) -> bool:
        """Whether any filter is on."""
        return self.has_window or self.min_value is not None

    @property
    def has_window(self) -> bool:
        """Whether there is a time window."""
        return self.first != _ALWAYS or self.end != NEVER

    def left_out(self, good: pa.Table, is_interaction: Array) -> tuple[Array, Counter[str]]:
        """Which rows are left out ([E] bool), and their number by reason."""
        out = np.zeros(good.num_rows, dtype=bool)
        counts: Counter[str] = Counter()

        def leave(mask: Any, reason: str) -> None:
            fresh = np.asarray(pc.fill_null(mask, False)) & ~out
            if number := int(fresh.sum()):
                counts[reason] += number
                out[fresh] = True

        if self.has_window:
            times = good.column(schema.TIMESTAMP).cast(pa.int64())
            leave(pc.is_null(times), UNTIMED)
            leave(pc.less(times, self.first), TOO_EARLY)
            leave(pc.greater_equal(times, self.end), TOO_LATE)
        if self.min_value is not None:
            values = pc.fill_null(good.column(schema.VALUE), schema.DEFAULT_VALUE)
            leave(pc.and_(pc.less(values, self.min_value), pa.array(is_interaction)), TOO_SMALL)
        return out, counts

"""Event types whose items are unknown, and the type that a person may want to predict.

Why: a log of a site has searches and filters in the column of items, too. As items they are the
most popular ones, and everybody gets them recommended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import polars as pl
import pyarrow as pa

from recsys import schema
from recsys.inspect.columns import has_known
from recsys.inspect.common_names import WEAK
from recsys.inspect.event_statistics import Types, is_goal

_HARDLY: Final = 0.02  # most events of a type on known items, if its events are on no items …
_NEARLY: Final = 0.95  # … and least, if they are on items
_LEAST: Final = 5  # events of a type, of which fewer may be on new items by chance


def without_strange_items(types: Types, events: pa.Table, known: pa.Array) -> Types:
    """Leave out the types whose items are not in the table of items, such as searches, if
    those of other types are.

    Parameters
    ----------
    types : Types
        What is known from the names of the types.
    events : pa.Table
        Events of :func:`recsys.inspect.event_statistics.events_of`.
    known : pa.Array
        Ids of the table of items.
    """
    if not events.num_rows:
        return types
    names = {"type": schema.EVENT_TYPE, "item": schema.ITEM_ID}
    frame = pl.DataFrame({to: pl.from_arrow(events.column(name)) for to, name in names.items()})
    is_known = pl.col("item").is_in(pl.Series(pl.from_arrow(known)).implode())
    every = frame.group_by("type").agg(share=is_known.mean(), num=pl.len()).sort("type")
    counts = [row for row in every.rows() if not types.history or row[0] in types.history]
    strange = [name for name, share, num in counts if share <= _HARDLY and num >= _LEAST]
    targets = tuple(name for name in types.targets if name not in strange) or types.targets
    strange = [name for name in strange if name not in targets]
    if not strange or not any(share >= _NEARLY for _, share, _ in counts):
        return types
    why = "their items are not in the table of items, as with searches or filters"
    if types.history:
        others = types.why or "negative, or only shown to the user"
        why = f"{others}; the items of {', '.join(strange)} are not in the table of items"
    history = tuple(name for name, _, _ in counts if name not in strange)
    return replace(types, targets=targets, history=history, why=why)


def type_to_try(counts: Mapping[str, int]) -> tuple[str, str]:
    """The type that a person may want to predict alone, and why.

    Parameters
    ----------
    counts : Mapping[str, int]
        Type → number of events, the most frequent first.

    >>> type_to_try({"view": 9, "like": 5, "order": 1})[0], type_to_try({"1": 9, "4": 2})[0]
    ('order', '4')
    """
    if all(name.strip().isdigit() for name in counts):
        why = "this predicts the rarest type, as purchases are rare; check what the numbers mean"
        return list(counts)[-1], why
    strong = [name for name in counts if is_goal(name)]
    other = [name for name in counts if not has_known(name, WEAK)]
    return [*strong, *other, *counts][0], "this predicts one of them"

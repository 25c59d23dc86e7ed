"""Encode the good events of a bucket with dense ids: in order, without duplicates, text apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.data.hashing import pair_hashes, string_hashes
from recsys.data.histories import Array
from recsys.preparation.event_roles import (
    CONTEXT,
    EVENT_SCHEMA,
    NO_TIME,
    SPLITS,
    TERM,
    TEXT_COLUMNS,
    TEXT_SCHEMA,
    EventRules,
    written_out,
)
from recsys.preparation.keys import (
    codes_in,
    lex_order,
    own_codes,
    parts_of,
    where,
)
from recsys.preparation.quarantine import DUPLICATE, QUARANTINE_SCHEMA, bad_rows, mark

_NO_ORDER_SEED: Final = 0x6E6F6E65  # never change it; no split uses it

# order of the data → keys that sort a user's events; ties keep the order of the files
_WITHIN: Final = {
    "time": ("time", "order", "file", "row"),
    "file": ("order", "file", "row"),
    # by hash, so that a cut of the history does not depend on the names of items
    "none": ("pair", "item", "type", "time", "order", "file", "row"),
}


@dataclass(frozen=True)
class Coding:
    """How a bucket is encoded: the order of the data and the event types in use."""

    rules: EventRules
    event_types: tuple[str, ...]  # position = type id
    order: str  # time, file or none
    target_types: tuple[int, ...] = ()  # ids of the types that are predicted; empty: all


def encode_bucket(
    good: pa.Table,
    coding: Coding,
    users: pa.Array,
    dense_users: Array,
    item_ids: pa.Array,
) -> tuple[pa.Table, pa.Table, pa.Table, int]:
    """Encode interactions and text rows with dense ids, user by user in the order of the data,
    without duplicates.

    Parameters
    ----------
    good : pa.Table
        Good rows of :func:`gather_bucket`.
    coding : Coding
        Order and event types.
    users : pa.Array
        External ids of the bucket's users; ``dense_users`` has their dense ids.
    item_ids : pa.Array
        All external item ids in dense order.

    Returns
    -------
    tuple[pa.Table, pa.Table, pa.Table, int]
        Tables of ``rules.event_schema`` and :data:`TEXT_SCHEMA`, the duplicates for the quarantine,
        and the number of text rows left out because they are empty or about an item outside the
        vocabulary.
    """
    return encode_appended(good, coding, users, dense_users, item_ids, num_before=0)[:4]


def encode_appended(
    good: pa.Table,
    coding: Coding,
    users: pa.Array,
    dense_users: Array,
    item_ids: pa.Array,
    num_before: int,
) -> tuple[pa.Table, pa.Table, pa.Table, int, Array]:
    """The results of :func:`encode_bucket`, and which of the events were in the earlier dataset.

    Parameters
    ----------
    good : pa.Table
        Good rows: first those of the earlier dataset, then the new ones, which are later in the
        order of files. So the first row of several equal ones is an earlier row, if there is one.
    coding : Coding
        Order and event types.
    users : pa.Array
        External ids of the bucket's users; ``dense_users`` has their dense ids.
    item_ids : pa.Array
        All external item ids in dense order.
    num_before : int
        Number of rows of the earlier dataset; their duplicates were reported before.

    Returns
    -------
    tuple[pa.Table, pa.Table, pa.Table, int, Array]
        Those of :func:`encode_bucket`, and for each event whether it is an earlier one: bool.
    """
    if good.num_rows == 0:
        return (
            coding.rules.event_schema.empty_table(),
            TEXT_SCHEMA.empty_table(),
            QUARANTINE_SCHEMA.empty_table(),
            0,
            np.zeros(0, dtype=bool),
        )
    types = good.column(schema.EVENT_TYPE)
    is_text = coding.rules.is_text(types)
    is_used = coding.rules.is_interaction(types) | is_text
    num_before = int(is_used[:num_before].sum())
    good, is_text = where(good, is_used), is_text[is_used]
    keys = _keys(good, users, dense_users, item_ids)
    if coding.order == "none":
        keys["pair"] = _pair_hashes(good)
    position = lex_order([keys[name] for name in ("user", *_WITHIN[coding.order])])
    if coding.rules.keep_duplicates:
        is_duplicate = np.zeros(len(position), dtype=bool)
    else:
        is_duplicate = _duplicates(keys, position, coding.order == "file", is_text)
    is_new = is_duplicate & (np.arange(len(is_duplicate)) >= num_before)
    duplicates = _for_quarantine(good.filter(pa.array(is_new)))
    position = position[~is_duplicate[position]]
    of_text = is_text[position]
    text = _encoded_text(good, keys, position[of_text])
    position_E = position[~of_text]
    events = _encoded_events(good, keys, position_E, coding)
    return events, text, duplicates, int(of_text.sum()) - text.num_rows, position_E < num_before


def _keys(
    good: pa.Table, users: pa.Array, dense_users: Array, item_ids: pa.Array
) -> dict[str, Array]:
    """The columns that identify or order a row, as integers."""
    times = good.column(schema.TIMESTAMP).cast(pa.int64()).fill_null(NO_TIME)
    return {
        "user": dense_users[codes_in(good.column(schema.USER_ID), users)],
        "item": codes_in(good.column(schema.ITEM_ID), item_ids),
        "type": own_codes(good.column(schema.EVENT_TYPE)),
        "term": own_codes(good.column(TERM), trimmed=True),
        "time": np.asarray(times),
        "order": np.asarray(good.column(schema.ORDER).fill_null(0)),
        "file": own_codes(good.column(schema.FILE)),
        "row": np.asarray(good.column(schema.ROW).fill_null(0)),
    }


def _pair_hashes(good: pa.Table) -> Array:
    """A hash of every row's external (user, item)."""
    hashes = []
    for name in (schema.USER_ID, schema.ITEM_ID):
        texts, codes_E = parts_of(good.column(name))
        hashes.append(string_hashes(texts)[codes_E])
    return pair_hashes(hashes[0], hashes[1], _NO_ORDER_SEED)


def _duplicates(keys: dict[str, Array], position: Array, by_file: bool, is_text: Array) -> Array:
    """Which rows repeat user, item, type, term and time of an earlier row in the order
    ``position``.

    In data ordered by file without times, a repeated item is a repeated event and not a duplicate
    row.
    """
    names = ("user", "item", "type", "term", "time")
    rank = np.empty(len(position), dtype=np.int64)
    rank[position] = np.arange(len(position))
    found = lex_order([*(keys[name] for name in names), rank])
    same = np.ones(max(len(found) - 1, 0), dtype=bool)
    for name in names:
        same &= np.diff(keys[name][found]) == 0
    is_duplicate = np.zeros(len(found), dtype=bool)
    is_duplicate[found[1:]] = same
    return is_duplicate & (is_text | (keys["time"] != NO_TIME)) if by_file else is_duplicate


def _for_quarantine(repeated: pa.Table) -> pa.Table:
    """Duplicate rows in the format of the quarantine."""
    rows = written_out(repeated)
    rows = rows.append_column(schema.RAW, pa.nulls(rows.num_rows, pa.string()))
    return bad_rows(mark(rows, np.ones(rows.num_rows, dtype=bool), DUPLICATE), TEXT_COLUMNS)


def _encoded_events(
    good: pa.Table, keys: dict[str, Array], position: Array, coding: Coding
) -> pa.Table:
    types = codes_in(good.column(schema.EVENT_TYPE), pa.array(coding.event_types, pa.string()))
    parts = np.maximum(codes_in(good.column(schema.SPLIT), pa.array(SPLITS)), 0)
    values = np.asarray(good.column(schema.VALUE).fill_null(schema.DEFAULT_VALUE))
    columns = (keys["user"], keys["item"], types, keys["time"], values, parts)
    arrays = [
        pa.array(column.astype(kind.type.to_pandas_dtype(), copy=False)[position])
        for column, kind in zip(columns, EVENT_SCHEMA, strict=True)
    ]
    context = [
        good.column(f"{CONTEXT}{name}").take(pa.array(position)) for name in coding.rules.context
    ]
    return pa.table([*arrays, *context], schema=coding.rules.event_schema)


def _encoded_text(good: pa.Table, keys: dict[str, Array], position: Array) -> pa.Table:
    position = position[(keys["item"][position] >= 0) & (keys["term"][position] > 0)]
    terms = pc.utf8_trim_whitespace(good.column(TERM).take(pa.array(position)).cast(pa.string()))
    arrays = [
        pa.array(keys["user"][position].astype(np.int32)),
        pa.array(keys["item"][position].astype(np.int32)),
        pa.array(keys["time"][position]),
        terms,
    ]
    table = pa.table(arrays, schema=TEXT_SCHEMA)
    return table.filter(pc.not_equal(table.column("term"), ""))

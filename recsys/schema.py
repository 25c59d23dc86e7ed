"""The five canonical tables; no other file spells their column names.

Why: every adapter in :mod:`recsys.sources` makes these tables and every later stage reads them. A
new format needs only an adapter, and renaming a column is one edit.

``events`` and ``items`` may have further columns (context columns, text fields, attributes, media
vectors). The names here are those that the pipeline itself reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

USER_ID: Final = "user_id"
ITEM_ID: Final = "item_id"
TIMESTAMP: Final = "timestamp"  # microseconds since the epoch, UTC; null where unknown
EVENT_TYPE: Final = "event_type"
VALUE: Final = "value"
SPLIT: Final = "split"  # "train" | "valid" | "test", only if the source gives the split

SRC_USER_ID: Final = "src_user_id"
DST_USER_ID: Final = "dst_user_id"
WEIGHT: Final = "weight"

HEAD: Final = "head"
RELATION: Final = "relation"
TAIL: Final = "tail"

ENTITY_ID: Final = (
    "entity_id"  # in ``items``: the entity of the knowledge graph for this item, or null
)

# Provenance, added by every reader and dropped when the prepared dataset is written.
FILE: Final = "_file"
ROW: Final = "_row"  # 1-based data row in the file, header not counted
ORDER: Final = (
    "_order"  # int64: sorting by it gives the order of the input, also if no time is known
)
REASON: Final = "_reason"  # null for a good row
RAW: Final = "_raw"  # a bad row as text, null for a good one

DEFAULT_EVENT_TYPE: Final = "interact"
DEFAULT_VALUE: Final = 1.0

TIMESTAMP_TYPE: Final = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class TableSchema:
    """One canonical table: its required and optional columns with their Arrow types."""

    name: str
    required: dict[str, pa.DataType]
    optional: dict[str, pa.DataType]
    key: tuple[str, ...]  # columns that identify a row: equal keys are duplicates

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """All known columns with their Arrow types, required ones first."""
        return {**self.required, **self.optional}

    def arrow(self) -> pa.Schema:
        """The Arrow schema of the known columns, required ones non-nullable."""
        fields = [pa.field(name, kind, nullable=False) for name, kind in self.required.items()]
        fields += [pa.field(name, kind) for name, kind in self.optional.items()]
        return pa.schema(fields)


EVENTS: Final = TableSchema(
    "events",
    required={USER_ID: pa.string(), ITEM_ID: pa.string()},
    optional={
        TIMESTAMP: TIMESTAMP_TYPE,
        EVENT_TYPE: pa.string(),
        VALUE: pa.float64(),
        SPLIT: pa.string(),
    },
    key=(USER_ID, ITEM_ID, TIMESTAMP, EVENT_TYPE),
)
ITEMS: Final = TableSchema(
    "items", required={ITEM_ID: pa.string()}, optional={ENTITY_ID: pa.string()}, key=(ITEM_ID,)
)
USERS: Final = TableSchema("users", required={USER_ID: pa.string()}, optional={}, key=(USER_ID,))
SOCIAL: Final = TableSchema(
    "social",
    required={SRC_USER_ID: pa.string(), DST_USER_ID: pa.string()},
    optional={WEIGHT: pa.float64(), TIMESTAMP: TIMESTAMP_TYPE},
    key=(SRC_USER_ID, DST_USER_ID),
)
KNOWLEDGE: Final = TableSchema(
    "knowledge",
    required={HEAD: pa.string(), RELATION: pa.string(), TAIL: pa.string()},
    optional={},
    key=(HEAD, RELATION, TAIL),
)

LINKS: Final = TableSchema(
    "links",
    required={ITEM_ID: pa.string(), ENTITY_ID: pa.string()},
    optional={},
    key=(ITEM_ID,),
)
"""Files with the entity of each item; an adapter adds them to its table of items."""

TABLES: Final[dict[str, TableSchema]] = {
    t.name: t for t in (EVENTS, ITEMS, USERS, SOCIAL, KNOWLEDGE)
}
FILE_TABLES: Final[dict[str, TableSchema]] = {**TABLES, LINKS.name: LINKS}
"""The tables that files can have."""

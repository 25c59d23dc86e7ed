"""Friends and facts as edge tables with dense ids, sorted by source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.data.destination import Folder
from recsys.data.events import NO_TIME
from recsys.data.histories import Array
from recsys.data.quarantine import DUPLICATE, QUARANTINE_SCHEMA, UNKNOWN_USER, bad_rows, mark
from recsys.data.split import NEVER
from recsys.data.vocabulary import union

EDGE_SCHEMA: Final = pa.schema([("src", pa.int32()), ("dst", pa.int32()), ("weight", pa.float32())])
_ROW_SCHEMA: Final = pa.schema(
    [
        *schema.SOCIAL.columns.items(),
        (schema.FILE, pa.string()),
        (schema.ROW, pa.int64()),
        (schema.REASON, pa.string()),
        (schema.RAW, pa.string()),
    ]
)
_SOCIAL_TEXT: Final = [schema.SRC_USER_ID, schema.DST_USER_ID, schema.WEIGHT]
_FACT_TEXT: Final = [schema.HEAD, schema.RELATION, schema.TAIL]


@dataclass(frozen=True)
class SocialRules:
    """Which friendships become which edges."""

    directed: bool = False
    before: int = NEVER  # microseconds; friendships from this time on are left out


@dataclass
class SocialReport:
    """Numbers of friend rows, and of the edges made of them."""

    read: int
    timed: int  # good rows with a timestamp
    late: int  # good rows left out for their time
    edges: int

    def note(self, temporal: bool, events_timed: bool) -> str:
        """What a person should know of time and friendships; "" when there is nothing to say."""
        if temporal and self.late:
            return f"{self.late:,} friendships from the validation cut-off on were left out"
        if not temporal and events_timed and self.timed:
            return (
                f"{self.timed:,} friendships have a timestamp, but only a temporal split has a cut-off in time: all of "
                "them are in the graph, also those later than held-out events"
            )
        return ""


def social_edges(users: pa.Array, rules: SocialRules, *blocks: pa.Table) -> tuple[pa.Table, pa.Table, SocialReport]:
    """Edges between known users (:data:`EDGE_SCHEMA`), the bad rows, and the numbers.

    A row is bad when an end is not a known user, or when an earlier row (by file and row) has the same source and
    destination. Undirected: a friend row counts both ways, and a pair named from both sides takes the larger weight.
    Rows that are too late neither make an edge nor count as an earlier row; rows without a timestamp are never late.
    """
    table = pa.concat_tables([_social_rows(block) for block in blocks if block.num_rows] or [_ROW_SCHEMA.empty_table()])
    table = table.combine_chunks().sort_by([(schema.FILE, "ascending"), (schema.ROW, "ascending")])
    ends = [pc.index_in(table.column(name), value_set=users) for name in (schema.SRC_USER_ID, schema.DST_USER_ID)]
    src, dst = (np.asarray(end.fill_null(-1)).astype(np.int64) for end in ends)
    good = np.asarray(pc.is_null(table.column(schema.REASON)))
    unknown = good & ((src < 0) | (dst < 0))
    times = np.asarray(table.column(schema.TIMESTAMP).cast(pa.int64()).fill_null(NO_TIME))
    late = good & ~unknown & (times >= rules.before)
    duplicate = _repeats(src * max(len(users), 1) + dst, good & ~unknown & ~late)
    marked = mark(mark(table, unknown, UNKNOWN_USER), duplicate, DUPLICATE)
    kept = good & ~unknown & ~late & ~duplicate
    weights = np.asarray(table.column(schema.WEIGHT).fill_null(1.0)).astype(np.float32)
    edges = _sorted_edges(src[kept], dst[kept], weights[kept], rules.directed)
    timed = good & ~unknown & (times != NO_TIME)
    report = SocialReport(table.num_rows, int(timed.sum()), int(late.sum()), edges.num_rows)
    return edges, bad_rows(marked, _SOCIAL_TEXT), report


def _social_rows(block: pa.Table) -> pa.Table:
    arrays = [
        block.column(field.name).cast(field.type)
        if field.name in block.column_names
        else pa.nulls(block.num_rows, field.type)
        for field in _ROW_SCHEMA
    ]
    return pa.table(arrays, schema=_ROW_SCHEMA)


def _repeats(keys: Array, among: Array) -> Array:
    """Rows of ``among`` whose key an earlier row of it has."""
    rows = np.flatnonzero(among)
    _, first = np.unique(keys[rows], return_index=True)
    repeated = among.copy()
    repeated[rows[first]] = False
    return repeated


def _sorted_edges(src: Array, dst: Array, weights: Array, directed: bool) -> pa.Table:
    if not directed:
        src, dst, weights = np.append(src, dst), np.append(dst, src), np.append(weights, weights)
    position = np.lexsort((-weights, dst, src))
    src, dst, weights = src[position], dst[position], weights[position]
    first = np.ones(len(src), dtype=bool)
    first[1:] = (src[1:] != src[:-1]) | (dst[1:] != dst[:-1])
    arrays = [pa.array(src[first].astype(np.int32)), pa.array(dst[first].astype(np.int32)), pa.array(weights[first])]
    return pa.table(arrays, schema=EDGE_SCHEMA)


def facts(features: pa.Table, *blocks: pa.Table) -> tuple[dict[str, pa.Table], pa.Table, int]:
    """Facts with dense entities and relations, as the files to write; the bad rows; the number of rows read.

    ``vocab/entities.parquet`` says which item an entity is, where the item table links them.
    """
    filled = [block for block in blocks if block.num_rows]
    if not filled:
        return {}, QUARANTINE_SCHEMA.empty_table(), 0
    table = pa.concat_tables(filled, promote_options="permissive").combine_chunks()
    table = table.sort_by([(schema.FILE, "ascending"), (schema.ROW, "ascending")])
    good = np.asarray(pc.is_null(table.column(schema.REASON)))
    clean = table.filter(pa.array(good))
    head, relation, tail = (clean.column(name).combine_chunks().cast(pa.string()) for name in _FACT_TEXT)
    entities, relations = union([head, tail]), union([relation])
    codes = [
        np.asarray(pc.index_in(values, value_set=known)).astype(np.int64)
        for values, known in ((head, entities), (relation, relations), (tail, entities))
    ]
    keys = np.full(table.num_rows, -1, dtype=np.int64)
    keys[good] = (codes[0] * max(len(relations), 1) + codes[1]) * max(len(entities), 1) + codes[2]
    duplicate = _repeats(keys, good)
    marked = mark(table, duplicate, DUPLICATE)
    unique = np.unique(keys[good])
    columns = {
        "head": unique // (len(relations) * len(entities)) if len(unique) else unique,
        "relation": unique // max(len(entities), 1) % max(len(relations), 1),
        "tail": unique % max(len(entities), 1),
    }
    files = {
        "graphs/knowledge.parquet": pa.table({name: pa.array(code.astype(np.int32)) for name, code in columns.items()}),
        "vocab/entities.parquet": pa.table({"entity": entities, "item": _linked_items(entities, features)}),
        "vocab/relations.parquet": pa.table({"relation": relations}),
    }
    return files, bad_rows(marked, _FACT_TEXT), table.num_rows


def _linked_items(entities: pa.Array, features: pa.Table) -> pa.Array:
    """Dense item id of every entity, null where it is none."""
    if schema.ENTITY_ID not in features.column_names:
        return pa.nulls(len(entities), pa.int32())
    return pc.index_in(entities, value_set=features.column(schema.ENTITY_ID).combine_chunks().cast(pa.string()))


def write_social(
    folder: Folder, users: pa.Array, rules: SocialRules, *blocks: pa.Table
) -> tuple[pa.Table, SocialReport]:
    """Write ``graphs/social.parquet``: the bad rows and the numbers. Runs in one task, not in the driver."""
    edges, bad, report = social_edges(users, rules, *blocks)
    folder.write_table("graphs/social.parquet", edges)
    return bad, report


def write_facts(folder: Folder, features: pa.Table, *blocks: pa.Table) -> tuple[int, pa.Table, int]:
    """Write the knowledge graph and its vocabularies: number of facts, bad rows, rows read."""
    files, bad, read = facts(features, *blocks)
    for name, table in files.items():
        folder.write_table(name, table)
    return files["graphs/knowledge.parquet"].num_rows if files else 0, bad, read

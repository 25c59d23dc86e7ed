"""Friendships as a table of edges with dense ids, sorted by source and built in parts of the users.

Why parts: the number of friendships grows with the users. One task encodes the rows of some blocks
and distributes the edges by their source. Another task removes the duplicates of one part and sorts
it. The parts are written to one file in order, so no process holds all edges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.data.histories import Array
from recsys.data.split import NEVER
from recsys.preparation.blocks import fetch, put, task
from recsys.preparation.dataset_writer import Folder
from recsys.preparation.event_roles import NO_TIME
from recsys.preparation.keys import coded, lex_order, own_codes, parts_of
from recsys.preparation.quarantine import DUPLICATE, UNKNOWN_USER, bad_rows, mark
from recsys.preparation.record import Record
from recsys.values.overlap import SideIds, compare

EDGE_SCHEMA: Final = pa.schema(
    # time: for the audit
    [("src", pa.int32()), ("dst", pa.int32()), ("weight", pa.float32()), ("time", pa.int64())]
)
_ROW_SCHEMA: Final = pa.schema(
    [
        *schema.SOCIAL.columns.items(),
        (schema.FILE, pa.string()),
        (schema.ROW, pa.int64()),
        (schema.REASON, pa.string()),
        (schema.RAW, pa.string()),
    ]
)
_TEXT: Final = [schema.SRC_USER_ID, schema.DST_USER_ID, schema.WEIGHT]
_MAX_COMPARED: Final = 10_000  # ids of a piece that are reported
_MAX_PIECES: Final = 64  # each piece looks up all users once
_MAX_PARTS: Final = 16  # more parts would be so small that the driver holds them


@dataclass(frozen=True)
class SocialRules:
    """How friendships become edges."""

    directed: bool = False
    before: int = NEVER  # microseconds; friendships from this time on are left out


@dataclass
class SocialReport:
    """Numbers of friendship rows and edges."""

    read: int = 0
    timed: int = 0  # good rows with a timestamp
    late: int = 0  # good rows left out because of their time
    edges: int = 0
    known: set[str] = field(default_factory=set)  # some ids that are users, …
    unknown: set[str] = field(default_factory=set)  # … and some that are not

    def note(self, temporal: bool, events_timed: bool) -> str:
        """The note on the times of friendships for the manifest; empty where none is needed."""
        if temporal and self.late:
            return f"{self.late:,} friendships from the validation cut-off on were left out"
        if not temporal and events_timed and self.timed:
            return (
                f"{self.timed:,} friendships have a timestamp, but only a temporal split has a"
                " cut-off: all of them are in the graph, also those later than held-out events"
            )
        return ""


class Friendships:
    """The edges between known users, and the bad rows, of a social table.

    A row is left out if one of its ids is not a known user, or if an earlier row (by file and row)
    has the same source and destination. In undirected data a row makes edges in both directions,
    and a pair that is given from both sides gets the larger weight. Late rows make no edge and do
    not count as earlier rows; rows without a timestamp are never late.
    """

    def __init__(self, users: pa.Array, rules: SocialRules, blocks: Sequence[Any]) -> None:
        num_parts = min(max(len(blocks), 1), _MAX_PARTS)
        splitter, merger = task(number_rows, 2 + num_parts), task(merge_shard, 2)
        known, num_pieces = put(users), min(max(len(blocks), 1), _MAX_PIECES)
        pieces = [blocks[piece::num_pieces] for piece in range(num_pieces)]
        numbered = [splitter.remote(known, rules, num_parts, *piece) for piece in pieces]
        self._merged = [
            merger.remote(known, *(refs[2 + part] for refs in numbered))
            for part in range(num_parts)
        ]
        self._bad = [refs[1] for refs in numbered] + [refs[1] for refs in self._merged]
        reports = fetch([refs[0] for refs in numbered])
        self.report = SocialReport(
            *(sum(getattr(r, name) for r in reports) for name in ("read", "timed", "late"))
        )
        self.report.known, self.report.unknown = (
            set().union(*(getattr(r, name) for r in reports)) for name in ("known", "unknown")
        )

    def bad(self) -> Iterator[pa.Table]:
        """The bad rows in the format of the quarantine."""
        yield from map(fetch, self._bad)

    def edges(self) -> Iterator[pa.Table]:
        """Yield the edges (:data:`EDGE_SCHEMA`), part by part in the order of the source, and count
        them in the report.

        Yields
        ------
        Table
            One part.
        """
        for refs in self._merged:
            part = fetch(refs[0])
            self.report.edges += part.num_rows
            yield part


def write_friendships(
    folder: Folder,
    users: pa.Array,
    rules: SocialRules,
    blocks: Sequence[Any],
    min_overlap: float,
    events_timed: bool,
    record: Record,
) -> None:
    """Write ``graphs/social.parquet``, and count its edges.

    Parameters
    ----------
    folder : Folder
        Folder of the dataset.
    users : pa.Array
        All external user ids in dense order.
    rules : SocialRules
        Directed or not, and the cut-off.
    blocks : Sequence[Any]
        References to the blocks of the social table.
    min_overlap : float
        Share of ids in common with the events below which there is a note.
    events_timed : bool
        Whether every interaction has a timestamp.
    record : Record
        Gets the counts, the notes and the bad rows.

    Raises
    ------
    DataError
        There are too many bad rows, or no id is in the events.
    """
    friendships = Friendships(users, rules, blocks)
    report = friendships.report
    ends = pa.array(sorted(report.known | report.unknown), pa.string())
    side = SideIds("social", f"{schema.SRC_USER_ID}, {schema.DST_USER_ID}", ends)
    record.note(compare(side, SideIds("events", schema.USER_ID, users), min_overlap))
    record.add_bad_rows("social", report.read, friendships.bad())
    folder.write_parts("graphs/social.parquet", EDGE_SCHEMA, friendships.edges())
    is_temporal = rules.before != NEVER
    record.counts["social_edges"] = report.edges
    if is_temporal:
        record.counts["social_rows_late"] = report.late
    if note := report.note(is_temporal, events_timed):
        record.notes.append(note)


def number_rows(
    users: pa.Array, rules: SocialRules, num_parts: int, *blocks: pa.Table
) -> list[Any]:
    """Encode some blocks; returns their report, the rows with unknown users or other errors, and
    one table of edges per part of the users.

    Parameters
    ----------
    users : pa.Array
        External user ids in dense order.
    rules : SocialRules
        Say whether friendships are directed, and which are too late.
    num_parts : int
        Number of parts of the users.
    *blocks : pa.Table
        Rows of the source.

    Returns
    -------
    list
        A :class:`SocialReport`, a table of bad rows, and ``num_parts`` tables of edges by source.
    """
    table = pa.concat_tables(
        [_as_rows(block) for block in blocks] or [_ROW_SCHEMA.empty_table()]
    ).combine_chunks()
    src, dst, known, strange = _dense_ends(table, users)
    good = np.asarray(pc.is_null(table.column(schema.REASON)))
    unknown = good & ((src < 0) | (dst < 0))
    times = np.asarray(table.column(schema.TIMESTAMP).cast(pa.int64()).fill_null(NO_TIME))
    late = good & ~unknown & (times >= rules.before)
    timed = good & ~unknown & (times != NO_TIME)
    report = SocialReport(
        table.num_rows, int(timed.sum()), int(late.sum()), known=known, unknown=strange
    )
    kept = np.flatnonzero(good & ~unknown & ~late)
    rows = pa.table(
        {
            "src": src[kept],
            "dst": dst[kept],
            "weight": table.column(schema.WEIGHT).fill_null(1.0).take(kept),
            "time": times[kept],
            "file": coded(table.column(schema.FILE).take(kept)),
            "row": table.column(schema.ROW).take(kept),
            "back": np.zeros(len(kept), dtype=np.uint8),
        }
    )
    if not rules.directed:
        back = pa.array(np.ones(len(kept), dtype=np.uint8))
        turned = rows.rename_columns(["dst", "src", *rows.column_names[2:]]).set_column(
            6, "back", back
        )
        rows = pa.concat_tables([rows, turned.select(rows.column_names)])
    part = np.asarray(rows.column("src")).astype(np.int64) * num_parts // max(len(users), 1)
    parts = [rows.filter(pa.array(part == number)) for number in range(num_parts)]
    return [report, bad_rows(mark(table, unknown, UNKNOWN_USER), _TEXT), *parts]


def _dense_ends(table: pa.Table, users: pa.Array) -> tuple[Array, Array, set[str], set[str]]:
    """The dense ids of source and destination (-1 for unknown users), and samples of known and
    unknown ids.

    The few ids of the rows are hashed, and the many users are looked up among them; the reverse
    would be slower.
    """
    columns = [
        table.column(name).combine_chunks() for name in (schema.SRC_USER_ID, schema.DST_USER_ID)
    ]
    texts, codes = parts_of(pa.chunked_array([pa.concat_arrays(columns).dictionary_encode()]))
    place_V = pc.index_in(users, value_set=texts)
    number = np.full(len(texts) + 1, -1, dtype=np.int32)  # the last one is for rows without an id
    number[np.asarray(place_V.drop_null())] = np.flatnonzero(np.asarray(place_V.is_valid()))
    src, dst = np.split(number[codes], 2)
    is_known = pa.array(number[:-1] >= 0)
    some = (
        texts.filter(mask).slice(0, _MAX_COMPARED).to_pylist()
        for mask in (is_known, pc.invert(is_known))
    )
    known, unknown = (set(names) for names in some)
    return src, dst, known, unknown


def merge_shard(users: pa.Array, *blocks: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The sorted edges of one part of the users, and the duplicate rows."""
    table = (
        pa.concat_tables(blocks, promote_options="default").unify_dictionaries().combine_chunks()
    )
    src, dst, weights, times, back = (
        np.asarray(table.column(n)) for n in ("src", "dst", "weight", "time", "back")
    )
    keys = [
        back,
        src,
        dst,
        own_codes(table.column("file")),
        np.asarray(table.column("row").fill_null(0)),
    ]
    position = lex_order([key.astype(np.int64) for key in keys])
    again = np.zeros(len(position), dtype=bool)
    again[position[1:]] = np.all([np.diff(key[position]) == 0 for key in keys[:3]], axis=0)
    repeated = table.filter(pa.array(again & (back == 0)))
    position = position[~again[position]]
    # the larger weight first; of equal weights the edge in the direction of its row
    position = position[
        np.lexsort((back[position], -weights[position], dst[position], src[position]))
    ]
    first = np.ones(len(position), dtype=bool)
    first[1:] = (np.diff(src[position]) != 0) | (np.diff(dst[position]) != 0)
    kept = position[first]
    columns = zip((src, dst, weights, times), EDGE_SCHEMA, strict=True)
    arrays = [pa.array(column[kept]).cast(of.type, safe=False) for column, of in columns]
    return pa.table(arrays, schema=EDGE_SCHEMA), _written_out(repeated, users)


def _written_out(repeated: pa.Table, users: pa.Array) -> pa.Table:
    count = repeated.num_rows
    rows = {
        schema.SRC_USER_ID: users.take(repeated.column("src").combine_chunks()),
        schema.DST_USER_ID: users.take(repeated.column("dst").combine_chunks()),
        schema.WEIGHT: repeated.column("weight"),
        schema.FILE: repeated.column("file").cast(pa.string()),
        schema.ROW: repeated.column("row"),
        schema.REASON: pa.array([DUPLICATE] * count, pa.string()),
        schema.RAW: pa.nulls(count, pa.string()),
    }
    return bad_rows(pa.table(rows), _TEXT)


def _as_rows(block: pa.Table) -> pa.Table:
    arrays = [
        (
            block.column(field.name).cast(field.type)
            if field.name in block.column_names
            else pa.nulls(block.num_rows, field.type)
        )
        for field in _ROW_SCHEMA
    ]
    return pa.table(arrays, schema=_ROW_SCHEMA)

"""Parquet: damaged bytes of a good file, and files of any column types."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.config import CanonicalSource
from tests.fuzz.reading import tables_of, write


def _file(**columns: pa.Array) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, row_group_size=2, write_page_checksum=True)
    return sink.getvalue()


COLUMNS = [
    pa.array(["a", None, "c"]),
    pa.array([1, 2, None]),
    pa.array([1.0, float("nan"), 2.5]),
    pa.array([True, False, None]),
    pa.array([b"\xff", b"a", None]),
    pa.array(["a", "b", "a"]).dictionary_encode(),
    pa.array([0, 1, 2**40], pa.timestamp("us")),
    pa.array([0, 1, None], pa.timestamp("ns", "Europe/Rome")),
    pa.array([[1, 2], None, []], pa.list_(pa.int64())),
    pa.array([{"a": 1}, None, {"a": 3}]),
    pa.array([0, 1, 2], pa.date32()),
    pa.array([0, 1, 2], pa.time64("us")),
    pa.array([None, None, None], pa.null()),
    pa.array([1, 2, 2**63], pa.uint64()),
    pa.array([0, 1, 2], pa.duration("s")),
    pa.array([["a"], [None], None], pa.list_(pa.string())),
    pa.array([[1.0, 2.0], [1.0, 2.0], None], pa.list_(pa.float32(), 2)),
    pa.array(["a", "b", "c"], pa.large_string()),
    pa.array([1, 2, 3], pa.int8()),
    pa.array([1.5, None, 0.0], pa.float16()),
    pa.array([b"\xff", b"a", None], pa.binary()).view(pa.string()),
    pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int64())),
]
NAMES = ("user_id", "item_id", "timestamp", "value", "event_type", "split", "extra")
GOOD = _file(user_id=COLUMNS[0], item_id=COLUMNS[0], timestamp=COLUMNS[6], value=COLUMNS[2])
SEEDS = [
    b"\x00" + GOOD,
    b"\x01" + bytes(range(7)),
    b"\x01" + bytes(range(7, 14)),
    b"\x01" + bytes(range(14, 22)),
]


def run(data: bytes) -> None:
    """First byte 0: the other bytes are a file. First byte 1: each other byte is the type of a
    column."""
    if not data:
        return
    knob, content = data[0], data[1:]
    if knob & 1:
        chosen = {
            name: COLUMNS[kind % len(COLUMNS)] for name, kind in zip(NAMES, content, strict=False)
        }
        content = _file(**chosen) if chosen else b""
    tables_of(CanonicalSource(events=[write("table.parquet", content)]))

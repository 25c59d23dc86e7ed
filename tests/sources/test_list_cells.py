"""Rows with lists: each member is an event, ids keep all digits, lists of other lengths are bad."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys import schema
from recsys.config import CanonicalSource
from recsys.errors import SourceError
from recsys.sources import open_source
from recsys.sources.base import read_all

BIG = 1234567890123456001
ROWS: list[dict[str, Any]] = [
    {"user": "u", "liked": [BIG, BIG + 1], "at": [1_700_000_000, 1_700_000_001]},
    {"user": "v", "liked": [], "at": []},
    {"user": "w", "liked": [7], "at": [1_700_000_009]},
]
RENAME = {"user": "user_id", "liked": "item_id", "at": "timestamp"}


def read(path: Path, **options: Any) -> pa.Table:
    source = CanonicalSource(events=[str(path)], **{"rename": RENAME, **options})
    return read_all(open_source(source).pieces()["events"])


@pytest.mark.parametrize("form", ["jsonl", "parquet", "csv"])
def test_each_member_is_an_event(form: str, tmp_path: Path) -> None:
    path, mark = tmp_path / f"liked.{form}", ";" if form == "csv" else ""
    if form == "jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        cells = [
            (row["user"], *("; ".join(map(str, row[k])) for k in ("liked", "at"))) for row in ROWS
        ]
        path.write_text("user,liked,at\n" + "".join(f"{','.join(row)}\n" for row in cells))
    found = read(path, lists={"liked": mark, "at": mark})
    assert found.column(schema.USER_ID).to_pylist() == ["u", "u", "w"]
    assert found.column(schema.ITEM_ID).to_pylist() == [str(BIG), str(BIG + 1), "7"]
    times = pc.cast(found.column(schema.TIMESTAMP), pa.int64()).to_pylist()
    assert [time // 1_000_000 - 1_700_000_000 for time in times] == [0, 1, 9]
    order = found.column(schema.ORDER).to_pylist()
    assert order == sorted(set(order))


def test_rows_with_lists_of_different_lengths_are_bad(tmp_path: Path) -> None:
    path = tmp_path / "liked.jsonl"
    rows = [ROWS[0], {"user": "x", "liked": [1, 2], "at": [1_700_000_000]}]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = read(path, lists={"liked": "", "at": ""})
    bad = found.filter(pc.is_valid(found.column(schema.REASON))).to_pylist()
    assert [(row[schema.ROW], row[schema.REASON]) for row in bad] == [
        (2, "lists of different lengths")
    ]
    assert found.num_rows == 3


def test_column_of_lists_that_no_file_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "liked.jsonl"
    path.write_text(f"{json.dumps(ROWS[0])}\n")
    with pytest.raises(SourceError, match="data.source.lists: no file of events has .*'likes'"):
        read(path, lists={"likes": ""})

"""Nested objects of JSON and Parquet are plain columns: paths as names, exact ids, no lost rows."""

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
from recsys.inspect.look import look
from recsys.sources import open_source
from recsys.sources.base import read_all

BIG = 1234567890123456001
RENAME = {"user.id": "user_id", "item.sku": "item_id", "at": "timestamp"}
ROWS: list[dict[str, Any]] = [
    {"user": {"id": BIG + n % 3}, "item": {"sku": f"s{n}", "tags": ["a"]}, "at": 1_700_000_000 + n}
    for n in range(6)
]


def written(path: Path, form: str) -> str:
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=4)
    elif form == "lines":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    elif form == "wrapped":
        path.write_text(json.dumps({"page": {"size": 6}, "result": {"data": ROWS}}))
    elif form == "wrapped over lines":
        path.write_text(json.dumps({"data": ROWS, "seen": [{"x": 1}, {"x": 2}]}, indent=1))
    else:
        path.write_text(json.dumps(ROWS))
    return str(path)


@pytest.mark.parametrize("form", ["lines", "array", "wrapped", "wrapped over lines", "parquet"])
def test_fields_of_objects_are_columns(form: str, tmp_path: Path) -> None:
    path = written(tmp_path / f"log.{'parquet' if form == 'parquet' else 'json'}", form)
    source = open_source(CanonicalSource(events=[path], rename=RENAME))
    source.check()
    read = read_all(source.pieces()["events"])
    assert read.column(schema.USER_ID).to_pylist() == [str(row["user"]["id"]) for row in ROWS]
    assert read.column(schema.ITEM_ID).to_pylist() == [row["item"]["sku"] for row in ROWS]
    assert read.column("item.tags").to_pylist() == [["a"]] * 6
    assert read.column(schema.TIMESTAMP).null_count == read.column(schema.REASON).null_count - 6


def test_large_fractional_ids_inside_objects_are_exact(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"user": {{"id": {BIG}.0}}, "item": {{"sku": "a"}}, "at": 1700000000}}\n')
    read = read_all(
        open_source(CanonicalSource(events=[str(path)], rename=RENAME)).pieces()["events"]
    )
    assert read.column(schema.USER_ID).to_pylist() == [str(BIG)]


def test_values_that_mongodb_wraps_are_read(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text(
        '{"user": {"$oid": "5f"}, "item": {"$numberLong": "7"},'
        ' "at": {"$date": "2023-11-14T22:13:20.000Z"}}\n'
        '{"user": {"$oid": "60"}, "item": {"$numberLong": "8"},'
        ' "at": {"$date": {"$numberLong": "1700000000000"}}}\n'
    )
    rename: dict[str, Any] = {"user": "user_id", "item": "item_id", "at": "timestamp"}
    read = read_all(
        open_source(CanonicalSource(events=[str(path)], rename=rename)).pieces()["events"]
    )
    assert read.column(schema.USER_ID).to_pylist() == ["5f", "60"]
    assert read.column(schema.ITEM_ID).to_pylist() == ["7", "8"]
    assert len(pc.unique(read.column(schema.TIMESTAMP))) == 1


def test_objects_with_ids_as_keys_stay_json_text(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    rows = [
        {"user_id": f"u{n}", "item_id": "a", "votes": {f"v{n}": 1, f"w{n}": 2}} for n in range(50)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    read = read_all(open_source(CanonicalSource(events=[str(path)])).pieces()["events"])
    assert json.loads(read.column("votes")[3].as_py()) == rows[3]["votes"]


def test_null_objects_have_no_column_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    rows: list[dict[str, Any]] = [
        {"user_id": "u", "item_id": "a", "from": None},
        {"user_id": "u", "item_id": "b", "from": {"page": "home"}},
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    read = read_all(open_source(CanonicalSource(events=[str(path)])).pieces()["events"])
    assert read.column("from.page").to_pylist() == [None, "home"]
    assert "from" not in read.column_names


@pytest.mark.parametrize("form", ["lines", "parquet"])
def test_init_finds_ids_inside_objects(form: str, tmp_path: Path) -> None:
    rows = [
        {
            "id": n,
            "author": {"handle": f"@{n % 40}", "karma": n % 40},
            "thread": {"id": 5000 + (n * 7) % 90},
            "at": 1_700_000_000 + 60 * n,
        }
        for n in range(1200)
    ]
    path = tmp_path / f"replies.{'parquet' if form == 'parquet' else 'jsonl'}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    source = look([str(path)]).config.data.source
    assert isinstance(source, CanonicalSource)
    assert source.rename["events"] == {
        "author.handle": "user_id",
        "thread.id": "item_id",
        "at": "timestamp",
    }

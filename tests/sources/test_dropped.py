"""`data.source.drop`: events that did not take place are not read, from any format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from recsys import schema
from recsys.config import CanonicalSource
from recsys.errors import SourceError
from recsys.sources import open_source
from recsys.sources.base import read_all

ROWS = pa.table(
    {
        "user_id": ["u1", "u2", "u3", "u4", "u5"],
        "item_id": ["a", "b", "a", "c", "d"],
        "state": ["paid", "Canceled ", "paid", None, "paid"],
        "is_test": [False, False, True, False, None],
        "stock": [1.5, 2.0, 3.0, 4.0, 5.0],
    }
)


def written(folder: Path, form: str) -> str:
    path = folder / f"events.{form}"
    match form:
        case "parquet":
            pq.write_table(ROWS, path)
        case "csv":
            pyarrow.csv.write_csv(ROWS, path)
        case _:
            path.write_text("".join(json.dumps(row) + "\n" for row in ROWS.to_pylist()))
    return str(path)


def users(events: str, **keys: Any) -> list[str]:
    source = CanonicalSource.model_validate({"events": [events], **keys})
    return read_all(open_source(source).pieces()["events"]).column(schema.USER_ID).to_pylist()


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_rows_with_one_of_the_values_are_not_read(form: str, tmp_path: Path) -> None:
    events = written(tmp_path, form)
    assert users(events) == ["u1", "u2", "u3", "u4", "u5"]
    assert users(events, drop={"state": "canceled"}) == ["u1", "u3", "u4", "u5"]
    assert users(events, drop={"state": ["CANCELED"], "is_test": "true"}) == ["u1", "u4", "u5"]
    assert users(events, drop={"item_id": ["a", "d"]}) == ["u2", "u4"]


def test_column_may_have_its_name_in_the_file_or_the_new_one(tmp_path: Path) -> None:
    events = written(tmp_path, "csv")
    rename = {"events": {"state": "event_type"}}
    for name in ("state", "event_type"):
        assert users(events, rename=rename, drop={name: "canceled"}) == ["u1", "u3", "u4", "u5"]


def test_items_come_from_the_remaining_events(tmp_path: Path) -> None:
    keys = {"item_columns": ["stock"], "drop": {"is_test": "true", "state": "canceled"}}
    source = CanonicalSource.model_validate({"events": [written(tmp_path, "parquet")], **keys})
    items = read_all(open_source(source).pieces()["items"])
    found = zip(items.column("item_id").to_pylist(), items.column("stock").to_pylist(), strict=True)
    assert dict(found) == {"a": 1.5, "c": 4.0, "d": 5.0}


def test_unknown_column_is_an_error_that_lists_the_columns(tmp_path: Path) -> None:
    source = CanonicalSource.model_validate(
        {"events": [written(tmp_path, "csv")], "drop": {"status": "canceled"}}
    )
    with pytest.raises(SourceError, match="drop: the events have no column 'status'.*state"):
        open_source(source).check()

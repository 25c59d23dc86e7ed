"""Tables made from columns of the events, numbers of text files, HTML, nested lists, event types by
file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pydantic import ValidationError

from recsys import schema
from recsys.config import CanonicalSource
from recsys.errors import ConfigError, SourceError
from recsys.preparation.html_text import without_html
from recsys.sources import open_source
from recsys.sources.base import read_all
from recsys.sources.canonical import CanonicalAdapter
from tests.own_data import write, write_json

LINES = [
    ("user_id", "item_id", "label", "price", "country", "tags"),
    ("u1", "i1", "lamp", "$10.00", "NO", "a"),
    ("u2", "i1", "LAMP?", "$30.00", "SE", "a"),
    ("u1", "i1", "lamp", "$12.00", "NO", "b"),
    ("", "i1", "broken", "$99.00", "NO", "b"),
    ("u2", "i2", "", "about 7", "SE", "c"),
]


def tables(**options: Any) -> dict[str, pa.Table]:
    source = open_source(CanonicalSource(**options))
    source.check()
    return {name: read_all(pieces) for name, pieces in source.pieces().items()}


def lines(tmp_path: Path) -> str:
    return str(write(tmp_path / "lines.csv", LINES))


def test_items_and_users_are_made_from_columns_of_the_events(tmp_path: Path) -> None:
    """The most frequent text and the median number, only from good rows."""
    found = tables(
        events=[lines(tmp_path)],
        numbers={"events": ["price"]},
        item_columns=["label", "price"],
        user_columns=["country"],
    )
    items = found["items"].select(["item_id", "label", "price"]).to_pylist()
    assert items == [
        {"item_id": "i1", "label": "lamp", "price": 12.0},
        {"item_id": "i2", "label": None, "price": None},
    ]
    assert found["users"].select(["user_id", "country"]).to_pylist() == [
        {"user_id": "u1", "country": "NO"},
        {"user_id": "u2", "country": "SE"},
    ]
    assert found["items"].column(schema.ROW).to_pylist() == [
        1,
        5,
    ], "the rows where the ids appear first"
    assert found["events"].num_rows == 5


def test_each_piece_of_the_events_gives_one_row_for_each_id(tmp_path: Path) -> None:
    source = CanonicalSource(events=[lines(tmp_path)], item_columns=["label"])
    adapter = open_source(source)
    assert isinstance(adapter, CanonicalAdapter)
    whole = read_all(adapter.pieces()["items"])
    assert whole.num_rows == pc.count_distinct(whole.column("item_id")).as_py()


def test_column_that_the_events_lack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match="item_columns: the events have no column 'colour' besides the standard"
    ):
        tables(events=[lines(tmp_path)], item_columns=["colour"])
    with pytest.raises(SourceError, match="the table events has no column 'colour'"):
        tables(events=[lines(tmp_path)], numbers={"events": ["colour"]})
    with pytest.raises(ValidationError, match="give one of them"):
        CanonicalSource(events=["a.csv"], items=["b.csv"], item_columns=["label"])


def test_declared_numbers_of_text_files_are_numbers(tmp_path: Path) -> None:
    events = write(tmp_path / "e.csv", [("user_id", "item_id"), ("u", "i")])
    items = write(
        tmp_path / "i.csv",
        [("item_id", "price", "lat"), ("i", "1,299.50 EUR", "59.9"), ("j", "-", "")],
    )
    found = tables(events=[str(events)], items=[str(items)], numbers={"items": ["price", "lat"]})[
        "items"
    ]
    assert found.select(["price", "lat"]).to_pylist() == [
        {"price": 1299.5, "lat": 59.9},
        {"price": None, "lat": None},
    ]


def test_event_type_is_set_by_file(tmp_path: Path) -> None:
    view = str(write(tmp_path / "v.csv", [("user_id", "item_id"), ("u", "i")]))
    buy = str(write(tmp_path / "b.csv", [("user_id", "item_id"), ("u", "j")]))
    found = tables(events=[view, buy], type_files={"view": [view], "purchase": [buy]})["events"]
    assert found.column("event_type").to_pylist() == ["view", "purchase"]
    with pytest.raises(SourceError, match="is in type_files of view and purchase"):
        tables(events=[view], type_files={"view": [view], "purchase": [view]})


def test_nested_lists_of_json_are_one_list(tmp_path: Path) -> None:
    events = write(tmp_path / "e.csv", [("user_id", "item_id"), ("u", "i")])
    rows = [
        {"item_id": "i", "paths": [["Home", "Lamps"], ["Home", "Gifts"]]},
        {"item_id": "j", "paths": []},
    ]
    items = write_json(tmp_path / "items.json", rows)
    found = tables(events=[str(events)], items=[str(items)])["items"]
    assert found.column("paths").to_pylist() == [["Home", "Lamps", "Gifts"], []]


def test_html_becomes_plain_text() -> None:
    texts = [
        "<p>Oil &amp; paint<br>for <b>walls</b></p>",
        "2 < 3 and 5 > 4",
        "&lt;i&gt;old&lt;/i&gt; page",
        None,
    ]
    features = pa.table(
        {
            "item_id": ["a", "b", "c", "d"],
            "body": texts,
            "parts": [["<b>x</b>", "y"], [], None, ["z"]],
        }
    )
    found = without_html(features, ["body", "parts"])
    assert found.column("body").to_pylist() == [
        "Oil & paint for walls",
        "2 < 3 and 5 > 4",
        "old page",
        None,
    ]
    assert found.column("parts").to_pylist() == [["x", "y"], [], None, ["z"]]
    assert without_html(features, ["body"]).column_names == features.column_names
    with pytest.raises(ConfigError, match="data.text.html: title not among"):
        without_html(features, ["title"])

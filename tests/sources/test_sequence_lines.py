"""Lines of USER ITEM ITEM … and links of items to entities as tables of the canonical source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from recsys import schema
from recsys.config import CanonicalSource
from recsys.errors import SourceError
from recsys.sources import open_source
from tests.sources.test_sources import bad, read, write


def lines(folder: Path, **options: Any) -> CanonicalSource:
    files = [
        write(folder / "train.txt", "a 5 1 3\nb 2\n"),
        write(folder / "test.txt", "b 4 1\na 9\nc\n"),
    ]
    given: dict[str, Any] = {"events": files, "format": {"events": "sequences"}, **options}
    return CanonicalSource(**given)


def test_lines_of_several_files_keep_the_order_of_each_user(tmp_path: Path) -> None:
    source = lines(tmp_path)
    found = read(source).sort_by(schema.ORDER)
    assert [(r["user_id"], r["item_id"]) for r in found.to_pylist()] == [
        *(("a", "5"), ("a", "1"), ("a", "3"), ("b", "2")),
        *(("b", "4"), ("b", "1"), ("a", "9"), ("c", None)),
    ]
    assert bad(found) == [("test.txt", 3, "missing item_id")]


def test_files_of_splits_may_have_users_without_events(tmp_path: Path) -> None:
    files = [str(tmp_path / "train.txt")], [str(tmp_path / "test.txt")]
    source = lines(tmp_path, split_files=dict(zip(("train", "test"), files, strict=True)))
    found = read(source).to_pylist()
    assert [r["split"] for r in found] == ["train"] * 4 + ["test"] * 3
    assert all(r["_reason"] is None for r in found)


def test_separator_and_comment_of_lines_are_used(tmp_path: Path) -> None:
    path = write(tmp_path / "e.dat", "# one line a user\na,1,2\nb,2\n")
    source = lines(tmp_path, events=[path], separator={"events": ","}, comment={"events": "#"})
    assert read(source).column("item_id").to_pylist() == ["1", "2", "2"]


@pytest.mark.parametrize(
    "settings",
    [
        {"columns": ["user_id", "item_id"]},
        {"lists": {"item_id": " "}},
        {"lookup": {"item_id": ["more.csv"]}},
        {"date_columns": ["year", "month"]},
        {"clock": "hour"},
    ],
)
def test_settings_of_columns_are_refused_for_lines(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    key = next(iter(settings))
    with pytest.raises(ValidationError, match=f"{key} is for events with columns"):
        lines(tmp_path, **settings)


@pytest.mark.parametrize("form", ["sequences", {"items": "sequences"}])
def test_lines_are_refused_for_other_tables(tmp_path: Path, form: Any) -> None:
    with pytest.raises(ValidationError, match="only the events may be sequences"):
        lines(tmp_path, format=form)


def test_lines_with_a_header_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "e.txt", "user items\na 1 2\n")
    with pytest.raises(SourceError, match="looks like a header"):
        open_source(lines(tmp_path, events=[path])).check()


def linked(folder: Path, **options: Any) -> CanonicalSource:
    return CanonicalSource(
        events=[write(folder / "events.csv", "user_id,item_id\na,1\n")],
        links=[write(folder / "links.csv", "movie,entity_id\n1,Q7\n1,Q8\n3,\n2,Q9\n")],
        rename={"links": {"movie": "item_id"}},
        **options,
    )


def test_first_link_gives_an_item_its_entity(tmp_path: Path) -> None:
    items = [write(tmp_path / "items.csv", "item_id,title\n1,One\n2,Two\n4,Four\n")]
    found = read(linked(tmp_path, items=items), "items")
    assert [(r["item_id"], r["title"], r["entity_id"]) for r in found.to_pylist()] == [
        *(("1", "One", "Q7"), ("2", "Two", "Q9"), ("4", "Four", None)),
        ("3", None, None),
    ]
    assert bad(found) == [("links.csv", 3, "missing entity_id")]


def test_links_alone_are_the_items(tmp_path: Path) -> None:
    found = read(linked(tmp_path), "items").to_pylist()
    assert {r["item_id"]: r["entity_id"] for r in found if not r["_reason"]} == {
        "1": "Q8",
        "2": "Q9",
    }


def test_items_from_columns_of_the_events_get_their_links(tmp_path: Path) -> None:
    log = write(tmp_path / "events.csv", "user_id,item_id,title\na,1,One\na,2,Two\n")
    links = write(tmp_path / "links.csv", "item_id,entity_id\n2,Q9\n")
    source = CanonicalSource(events=[log], links=[links], item_columns=["title"])
    found = read(source, "items").to_pylist()
    assert [(r["item_id"], r["title"], r["entity_id"]) for r in found] == [
        ("1", "One", None),
        ("2", "Two", "Q9"),
    ]

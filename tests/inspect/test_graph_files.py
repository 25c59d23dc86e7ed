"""`recsys init` on the files of graph recommenders: lines of users in a file for each split, and
triples about entities that a column or a file links to the items.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from recsys import schema
from tests.inspect.test_init import good, proposed

USERS, ITEMS = 120, 60


def listens() -> dict[int, list[int]]:
    """8 to 14 items of each user, without order."""
    random = np.random.default_rng(3)
    return {u: random.choice(ITEMS, 8 + u % 7, replace=False).tolist() for u in range(USERS)}


EVENTS = sum(map(len, listens().values()))


def lines(path: Path, of_user: dict[int, list[int]]) -> Path:
    text = "".join(" ".join(map(str, [user, *items])) + "\n" for user, items in of_user.items())
    path.write_text(text)
    return path


def rows(path: Path, cells: list[tuple[Any, ...]], mark: str = ",") -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=mark, lineterminator="\n").writerows(cells)
    return path


def parts(folder: Path) -> list[Path]:
    """Lines of users in train.txt and test.txt; the first user has no test event."""
    every = listens()
    train = {user: items[: -1 - user % 4] for user, items in every.items()}
    test = {user: items[-1 - user % 4 :] if user else [] for user, items in every.items()}
    return [lines(folder / "test.txt", test), lines(folder / "train.txt", train)]


def log(folder: Path) -> Path:
    random = np.random.default_rng(4)
    cells = [
        (f"u{u}", f"m{i}", int(random.integers(1.4e9, 1.5e9)))
        for u, items in listens().items()
        for i in items
    ]
    return rows(folder / "log.csv", [("user_id", "movie_id", "timestamp"), *cells])


def facts(name: str = "Q{}") -> list[tuple[Any, ...]]:
    """Two triples about the entity of each item, whose number is 1,000 + that of the item."""
    return [
        (name.format(1000 + i), relation, name.format(9000 + 100 * k + i % 7))
        for i in range(ITEMS)
        for k, relation in enumerate(("film.genre", "film.country"))
    ]


def test_lines_in_two_files_are_the_given_split(tmp_path: Path) -> None:
    _, config, tables = proposed(*parts(tmp_path))
    assert (config.data.split.kind, config.data.order) == ("given", "none")
    events = tables["events"]
    assert len(good(events)) == events.num_rows == EVENTS - 1, "an empty line is no bad row"
    of_test = events.filter(pc.equal(events.column("split"), "test")).to_pylist()
    assert len(of_test) == USERS * 5 // 2 - 1
    assert {r["item_id"] for r in of_test if r["user_id"] == "3"} == set(
        map(str, listens()[3][-4:])
    )


def test_files_of_lines_that_are_no_split_are_named(tmp_path: Path) -> None:
    others = [lines(tmp_path / name, listens()) for name in ("test_negatives.txt", "friends.txt")]
    found, _, tables = proposed(*parts(tmp_path), *others)
    assert tables["events"].num_rows == EVENTS - 1
    assert "sampled negatives" in found.found.ignored[str(others[0])]
    assert "neither split nor event type" in found.found.ignored[str(others[1])]


def test_lines_with_one_test_item_are_in_order(tmp_path: Path) -> None:
    every = listens()
    lines(tmp_path / "train.txt", {user: items[:-1] for user, items in every.items()})
    lines(tmp_path / "test.txt", {user: items[-1:] for user, items in every.items()})
    _, config, _ = proposed(tmp_path / "train.txt", tmp_path / "test.txt")
    assert (config.data.split.kind, config.data.order) == ("given", "file")


def test_lines_that_are_sorted_by_id_are_sets(tmp_path: Path) -> None:
    path = lines(tmp_path / "events.txt", {u: sorted(items) for u, items in listens().items()})
    _, config, _ = proposed(path)
    assert config.data.order == "none"


def test_numbered_triples_are_read_next_to_lines(tmp_path: Path) -> None:
    cells = [(i, k, ITEMS + 10 * k + i % 7) for i in range(ITEMS) for k in range(3)]
    triples = rows(tmp_path / "kg_final.txt", cells, " ")
    _, config, tables = proposed(*parts(tmp_path), triples)
    assert len(good(tables["knowledge"])) == 3 * ITEMS
    assert config.data.split.kind == "given"


def linked_by_column(folder: Path) -> list[Path]:
    cells = [(f"m{i}", f"The tale of {i % 5} and {i}", f"Q{1000 + i}") for i in range(ITEMS)]
    return [rows(folder / "movies.csv", [("movie_id", "title", "wikidata_id"), *cells])]


def linked_by_file(folder: Path) -> list[Path]:
    cells = [(f"m{i}", f"The tale of {i % 5} and {i}") for i in range(ITEMS)]
    links = [(f"m{i}", f"Q{1000 + i}") for i in range(ITEMS)]
    return [
        rows(folder / "movies.csv", [("movie_id", "title"), *cells]),
        rows(folder / "movie2entity.csv", [("movie_id", "entity"), *links]),
    ]


def linked_by_file_alone(folder: Path) -> list[Path]:
    links = [(f"m{i}", f"Q{1000 + i}") for i in range(ITEMS)]
    return [rows(folder / "item_index2entity_id.txt", links, "\t")]


@pytest.mark.parametrize("links", [linked_by_column, linked_by_file, linked_by_file_alone])
def test_triples_about_entities_are_linked_to_items(tmp_path: Path, links: Any) -> None:
    triples = rows(tmp_path / "triples.csv", [("subject", "predicate", "object"), *facts()])
    _, _, tables = proposed(log(tmp_path), triples, *links(tmp_path))
    assert len(good(tables["knowledge"])) == 2 * ITEMS
    entities = {r[schema.ITEM_ID]: r[schema.ENTITY_ID] for r in tables["items"].to_pylist()}
    assert entities == {f"m{i}": f"Q{1000 + i}" for i in range(ITEMS)}


def test_links_win_over_ids_that_are_equal_by_chance(tmp_path: Path) -> None:
    events = [(f"u{u}", 3 * i) for u, items in listens().items() for i in items]
    files = [
        rows(tmp_path / "log.csv", [("user_id", "item_id"), *events]),
        rows(tmp_path / "kg.txt", [(h - 1000, r, t) for h, r, t in numbers()], "\t"),
        rows(tmp_path / "link.txt", [(3 * i, ITEMS - 1 - i) for i in range(ITEMS)], "\t"),
    ]
    _, _, tables = proposed(*files)
    entities = {r[schema.ITEM_ID]: r[schema.ENTITY_ID] for r in tables["items"].to_pylist()}
    assert entities["3"] == str(ITEMS - 2)


def numbers() -> list[tuple[int, str, int]]:
    return [(int(h), r, int(t)) for h, r, t in facts("{}")]


def test_triples_without_link_are_left_out(tmp_path: Path) -> None:
    triples = rows(tmp_path / "triples.csv", [("subject", "predicate", "object"), *facts()])
    found, _, tables = proposed(log(tmp_path), triples)
    assert "knowledge" not in tables
    assert "match no item" in found.found.ignored[str(triples)]


def test_links_leave_items_to_columns_of_the_events(tmp_path: Path) -> None:
    cells = [
        (f"u{u}", f"m{i}", f"The tale of {i % 5} and {i}")
        for u, items in listens().items()
        for i in items
    ]
    events = rows(tmp_path / "log.csv", [("user_id", "movie_id", "title"), *cells])
    triples = rows(tmp_path / "triples.csv", [("subject", "predicate", "object"), *facts()])
    _, _, tables = proposed(events, triples, *linked_by_file_alone(tmp_path))
    found = {r["item_id"]: (r["title"], r["entity_id"]) for r in good(tables["items"]).to_pylist()}
    assert found["m7"] == ("The tale of 2 and 7", "Q1007")

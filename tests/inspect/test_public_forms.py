"""`recsys init`: the forms of public data sets; one property each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.config import CanonicalSource
from recsys.errors import SourceError
from recsys.inspect.look import Look, look
from recsys.sources import open_source
from recsys.sources.base import read_all

START = 1_572_000_000
NUM_USERS, NUM_ITEMS, NUM_EVENTS = 50, 60, 1000


def triples() -> list[tuple[int, int, int]]:
    """Users, items and times (seconds), each pair of user and item once."""
    random = np.random.default_rng(0)
    pairs = random.permutation(NUM_USERS * NUM_ITEMS)[:NUM_EVENTS]
    times = START + np.sort(random.integers(0, 90 * 86_400, NUM_EVENTS))
    return [
        (int(pair) // NUM_ITEMS + 1, int(pair) % NUM_ITEMS + 1, int(time))
        for pair, time in zip(pairs, times, strict=True)
    ]


def write(path: Path, rows: Iterable[Sequence[Any]], mark: str = ",") -> str:
    path.write_text("".join(mark.join(map(str, row)) + "\n" for row in rows))
    return str(path)


def source_of(found: Look) -> CanonicalSource:
    source = found.config.data.source
    assert isinstance(source, CanonicalSource)
    return source


def test_clicks_are_the_events_of_lists_of_shown_news(tmp_path: Path) -> None:
    rows = [
        (n, f"U{u}", "11/11/2019 9:05:58 AM", "N1 N2", f"N{i}-1 N{i % NUM_ITEMS + 1}-0")
        for n, (u, i, _) in enumerate(triples())
    ]
    news = [(f"N{n}", "sports", f"Title of the article {n}") for n in range(1, NUM_ITEMS + 1)]
    paths = [
        write(tmp_path / "behaviors.tsv", rows, "\t"),
        write(tmp_path / "news.tsv", news, "\t"),
    ]
    source = source_of(look(paths))
    assert source.chosen == {"item_id": "-1"} and source.items == [paths[1]]
    events = read_all(open_source(source).pieces()["events"])
    assert events["item_id"].to_pylist() == [f"N{i}" for _, i, _ in triples()]


def test_friends_in_a_column_of_the_users_are_links(tmp_path: Path) -> None:
    reviews = [
        {"user_id": f"u-{u:x}q", "business_id": f"b-{i}", "stars": 4} for u, i, _ in triples()
    ]
    users = [
        {"user_id": f"u-{u:x}q", "fans": u % 7, "friends": f"u-{u % 9 + 1:x}q, u-{u % 8 + 20:x}q"}
        for u in range(1, NUM_USERS + 1)
    ]
    paths = []
    for name, rows in (("review", reviews), ("user", users)):
        paths.append(write(tmp_path / f"{name}.json", [[json.dumps(row)] for row in rows]))
    source = source_of(look(paths))
    assert source.users == source.social == [paths[1]]
    links = read_all(open_source(source).pieces()["social"])
    assert len(links) == 2 * NUM_USERS and links["dst_user_id"][1].as_py() == "u-15q"


def test_tables_of_codes_are_neither_users_nor_items(tmp_path: Path) -> None:
    ratings = [("userId", "movieId", "rating", "timestamp")]
    ratings += [(u, i, (u + i) % 5 + 1, t) for u, i, t in triples()]
    scores = [("movieId", "tagId", "relevance")]
    scores += [(i, g, i * g / 10_000) for i in range(1, NUM_ITEMS + 1) for g in range(1, 41)]
    tags = [("tagId", "tag"), *((g, f"tag {g}") for g in range(1, 41))]
    tables = {"ratings.csv": ratings, "genome-scores.csv": scores, "genome-tags.csv": tags}
    found = look([write(tmp_path / name, rows) for name, rows in tables.items()])
    source = source_of(found)
    assert source.users == source.items == source.knowledge == []
    reasons = " ".join(found.found.ignored.values())
    assert "every item has every tagId" in reasons and "describes tagId" in reasons


def test_visits_are_the_users_of_a_file_without_names(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = []
    for visit in range(300):
        start = int(START + random.integers(0, 90 * 86_400))
        items = random.integers(214_000_000, 214_000_060, 4).tolist()
        rows += [(visit * 3 + 11, start + n * 60, item) for n, item in enumerate(items)]
    source = source_of(look([write(tmp_path / "clicks.dat", rows)]))
    assert source.columns == {"events": ["user_id", "timestamp", "item_id"]}


def test_rows_that_were_only_shown_are_left_out(tmp_path: Path) -> None:
    rows = [("user_id", "video_id", "time_ms", "is_click")]
    rows += [(u, i, f"{t}000", int(n % 3 == 0)) for n, (u, i, t) in enumerate(triples())]
    assert source_of(look([write(tmp_path / "log.csv", rows)])).drop == {"is_click": ["0"]}


def test_category_of_the_item_is_no_rating(tmp_path: Path) -> None:
    rows = [(u, i, i % 6 + 1, (u * i) % 5 + 1, t) for u, i, t in triples()]
    columns = source_of(look([write(tmp_path / "rating.txt", rows, "\t")])).columns
    assert columns["events"][3] == "value"


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([["7:"], *([u, 4, "2005-09-06"] for u in range(30))], "blocks of rows.*'7:'"),
        ([[n, *np.arange(n, n + 40) % 11 / 3, 99] * 1 for n in range(60)], "matrix.*melt"),
    ],
)
def test_forms_that_are_no_table_of_events_are_named(
    rows: list[list[Any]], says: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=says):
        look([write(tmp_path / "ratings.txt", rows)])

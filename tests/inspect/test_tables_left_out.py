"""`recsys init`: what is left out, with the reason and what to do to use it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.errors import SourceError
from recsys.inspect.look import Look, look
from recsys.inspect.terminal_summary import summary_of
from recsys.sources import open_source
from recsys.sources.base import read_all
from tests.inspect.test_public_forms import NUM_ITEMS, NUM_USERS, source_of, triples, write

Rows = list[Sequence[Any]]


def ratings(tmp_path: Path) -> str:
    rows: Rows = [("user_id", "book_id", "rating"), *((u, i, u % 5 + 1) for u, i, _ in triples())]
    return write(tmp_path / "interactions.csv", rows)


def ignored(found: Look, path: str) -> str:
    return found.found.ignored[path]


def test_tables_of_other_ids_are_left_out_and_lead_to_the_table_with_these_ids(
    tmp_path: Path,
) -> None:
    books = [(i, 9_000_000 + i * 13) for i in range(1, NUM_ITEMS + 1)]
    titles = [(other, f"Title of the book {i}") for i, other in books]
    paths = [
        ratings(tmp_path),
        write(tmp_path / "book_id_map.csv", [("book_id_csv", "book_id"), *books]),
        write(tmp_path / "books.csv", [("book_id", "title"), *titles]),
    ]
    found = look(paths)
    assert source_of(found).items == []
    assert ignored(found, paths[1]) == "it has only other ids of the same users or items"
    why = "its ids are book_id of book_id_map.csv; add a column with book_id_csv of that file"
    assert ignored(found, paths[2]) == f"{why} to use it"
    ids = dict((other, i) for i, other in books)
    rows = [(ids[other], other, title) for other, title in titles]
    write(tmp_path / "books.csv", [("book_id_csv", "book_id", "title"), *rows])
    assert source_of(look(paths)).items == [paths[2]], "the cure works"


@pytest.mark.parametrize("has_books", [True, False])
def test_counts_of_tags_are_no_users_and_other_ids_no_items(
    has_books: bool, tmp_path: Path
) -> None:
    """All ids count from 1, and so do the counts."""
    books: Rows = [("book_id", "goodreads_book_id", "title")]
    books += [(i, i * 3 + 2, f"The tale of the book {i}") for i in range(1, NUM_ITEMS + 1)]
    key = "goodreads_book_id" if has_books else "book_id"
    tags: Rows = [(key, "tag_id", "count")]
    tags += [(i, (i * n) % 30, (i * n) % 70 + 1) for i, *_ in books[1:] for n in range(1, 9)]
    if has_books:
        tags[1:] = [(i * 3 + 2, tag, count) for i, tag, count in tags[1:]]
    paths = [ratings(tmp_path), write(tmp_path / "book_tags.csv", tags)]
    if has_books:
        paths.append(write(tmp_path / "books.csv", books))
    found = look(paths)
    assert source_of(found).events == paths[:1]
    if has_books:
        why = "its ids are goodreads_book_id of books.csv; add a column with book_id of that file"
        assert ignored(found, paths[1]) == f"{why} to use it"
    else:
        assert source_of(found).knowledge == paths[1:]


def test_table_with_the_kinds_of_items_is_preferred_to_one_with_their_counts(
    tmp_path: Path,
) -> None:
    items = range(1, NUM_ITEMS + 1)
    kinds: Rows = [("book_id", "author_id", "tag"), *((i, i // 3, i % 5) for i in items)]
    more = [f"{action}_user_num" for action in ("show", "play", "like", "share", "hate", "skip")]
    counts: Rows = [("book_id", "shown", "played", "liked", *more)]
    counts += [(i, i * 7.5, i * 3.25, i * 1.75, *(i * n for n in range(2, 8))) for i in items]
    names = ("basic.csv", "statistics.csv")
    paths = [
        write(tmp_path / name, rows) for name, rows in zip(names, (kinds, counts), strict=True)
    ]
    found = look([ratings(tmp_path), *paths])
    assert source_of(found).items == paths[:1]
    assert found.config.data.knowledge.item_columns == ["author_id", "tag"]


def test_table_of_a_split_is_no_table_of_users_next_to_another_one(tmp_path: Path) -> None:
    """Its users have labels to predict, such as the shop to which they come back."""
    users = range(1, NUM_USERS + 1)
    people: Rows = [("user_id", "age"), *((u, 20 + u % 40) for u in users)]
    labels: Rows = [("user_id", "merchant_id", "city_id"), *((u, u % 9, u % 7) for u in users)]
    paths = [
        write(tmp_path / name, rows)
        for name, rows in (("user_info.csv", people), ("train_format1.csv", labels))
    ]
    assert source_of(look([ratings(tmp_path), *paths])).users == paths[:1]


@pytest.mark.parametrize(
    "codes", [[80, 4_145_813, 2_355_072, 982_926, 5_161_669, 1_320_293], [1, 2, 3, 4, 5, 9]]
)
def test_codes_without_a_name_are_categories_and_no_place(codes: list[int], tmp_path: Path) -> None:
    rows = [(u + 10**6, i + 3 * 10**6, codes[i % 6], "pv", t) for u, i, t in triples()]
    found = look([write(tmp_path / "behavior.csv", rows)])
    assert found.config.data.knowledge.item_columns == ["number_3"]
    assert "place" not in summary_of(found.found)


@pytest.mark.parametrize("is_timed", [True, False])
def test_types_on_the_same_items_are_left_out_if_nothing_orders_them(
    is_timed: bool, tmp_path: Path
) -> None:
    rows: Rows = [("user_id", "game_id", "behavior", *["time"] * is_timed)]
    for u, i, t in triples():
        rows.append((u, i, "purchase", *[t] * is_timed))
        if i % 2:
            rows.append((u, i, "play", *[t + 60] * is_timed))
    found = look([write(tmp_path / "games.csv", rows)])
    assert found.config.data.interactions == ([] if is_timed else ["purchase"])
    assert ("left out: play" in summary_of(found.found)) is not is_timed
    assert ("there are no times, and 5" in found.draft.text()) is not is_timed


@pytest.mark.parametrize("has_names", [True, False])
def test_events_with_other_columns_say_how_to_use_them(has_names: bool, tmp_path: Path) -> None:
    clicks: Rows = [("user_id", "timestamp", "item_id", "event")] * has_names
    clicks += [(u, t, i, ("view", "buy")[u % 2]) for u, i, t in triples()]
    more: Rows = [("author_id", "timestamp", "item_id", "price", "pieces")] * has_names
    more += [(u, t + 60, i, 100 + i % 7, u % 3 + 1) for u, i, t in triples()[::3]]
    paths = [write(tmp_path / "clicks.dat", clicks), write(tmp_path / "more.dat", more)]
    why = ignored(look(paths), paths[1])
    if has_names:
        assert "user_id in author_id and item_id in item_id" in why and "into one file" in why
    else:
        assert "give both files a first line with names" in why


def test_dropped_rows_of_two_columns_are_counted_together(tmp_path: Path) -> None:
    rows: Rows = [("user_id", "video_id", "time_ms", "is_click", "is_hate")]
    for n, (u, i, t) in enumerate(triples()):
        rows.append((u, i, f"{t}000", int(n % 4 > 0), int(n % 100 == 1)))
    text = look([write(tmp_path / "log.csv", rows)]).draft.text()
    assert text.count("other rows: 26.0% of all rows, together") == 2


def test_numbers_that_order_events_have_no_dates_in_the_summary(tmp_path: Path) -> None:
    rows: Rows = [("user_id", "item_id", "order_number")]
    count = dict.fromkeys(range(1, NUM_USERS + 1), 0)
    for u, i, _ in triples():
        count[u] += 1
        rows.append((u, i, count[u]))
    found = look([write(tmp_path / "orders.csv", rows)])
    assert found.config.data.order == "time"
    shown = summary_of(found.found)
    assert "1899" not in shown and "1900" not in shown
    assert "recent popularity" not in shown
    assert "order_number orders the events of each user" in found.draft.text()


@pytest.mark.parametrize("per_visit", [1, 4])
def test_purchases_are_predicted_only_if_leave_last_can_test_them(
    per_visit: int, tmp_path: Path
) -> None:
    rows: Rows = [("session_id", "item_id", "event", "day")]
    for visit in range(300):
        items = [(visit * 7 + n * 11) % NUM_ITEMS for n in range(6)]
        day = np.datetime64("2014-05-01") + visit % 90
        rows += [(visit, item, "view", day) for item in items]
        rows += [(visit, item, "purchase", day) for item in items[:per_visit] if visit % 3 == 0]
    found = look([write(tmp_path / "visits.csv", rows)])
    assert found.config.data.split.kind == "leave-last"
    assert found.config.data.targets == (["purchase"] if per_visit == 4 else [])
    few = "to predict: all types; too few users have three events of type purchase"
    assert (few in summary_of(found.found)) is (per_visit == 1)


def test_purchase_on_the_day_of_the_view_is_a_repeat(tmp_path: Path) -> None:
    rows: Rows = [("session_id", "item_id", "event", "day")]
    for visit in range(300):
        day = np.datetime64("2014-05-01") + visit % 90
        items = [(visit * 7 + n * 11) % NUM_ITEMS for n in range(4)]
        rows += [(visit, item, "view", day) for item in items]
        rows.append((visit, items[-1], "purchase", day))
    found = look([write(tmp_path / "visits.csv", rows)])
    assert found.config.evaluate.exclude_seen is False


def test_numbered_days_of_a_split_in_time_have_no_dates(tmp_path: Path) -> None:
    rows: Rows = [("household_key", "product_id", "day")]
    rows += [(u, i, (t - triples()[0][2]) // 86_400 + 1) for u, i, t in triples()]
    found = look([write(tmp_path / "transactions.csv", rows)])
    assert found.config.data.split.kind == "temporal"
    assert "test on the latest events, with" in found.draft.text()
    assert "1900-" not in summary_of(found.found) + found.draft.text()


def test_sampled_negatives_are_no_triples(tmp_path: Path) -> None:
    train = [(u, i, u * i % 5 + 1, t) for u, i, t in triples()]
    negatives = [
        (f"({u},{u % NUM_ITEMS})", *((u * 7 + n * 3) % NUM_ITEMS + 1 for n in range(30)))
        for u in range(1, NUM_USERS + 1)
    ]
    paths = [
        write(tmp_path / "ml.train.rating", train, "\t"),
        write(tmp_path / "ml.test.negative", negatives, "\t"),
    ]
    found = look(paths)
    assert source_of(found).knowledge == []
    assert "sampled negatives" in ignored(found, paths[1])


def test_table_of_users_without_an_attribute_is_left_out(tmp_path: Path) -> None:
    lists = [(u, f"{u} {u + 1} {u + 2}") for u in range(1, NUM_USERS + 1)]
    people: Rows = [("user_id", "prediction"), *lists]
    paths = [ratings(tmp_path), write(tmp_path / "submission.csv", people)]
    found = look(paths)
    assert source_of(found).users == []
    assert ignored(found, paths[1]).startswith(
        "it looks like users, but no column can be used (prediction: "
    )


def test_seller_of_an_item_is_a_category(tmp_path: Path) -> None:
    ads: Rows = [("book_id", "customer", "price")]
    ads += [(i, i // 3 + 7, i * 1.5) for i in range(1, NUM_ITEMS + 1)]
    found = look([ratings(tmp_path), write(tmp_path / "ads.csv", ads)])
    assert found.config.data.knowledge.item_columns == ["customer"]


def test_column_that_may_be_users_as_well_as_items_makes_no_events(tmp_path: Path) -> None:
    sales = [(u, i % NUM_USERS + 1, u * i % 3 + 1) for u, i, _ in triples()]
    homes = [("65+", "B", u % 40 + 1, "None", n) for n, (u, _, _) in enumerate(triples()[:80])]
    paths = [write(tmp_path / "sales.csv", sales), write(tmp_path / "homes.csv", homes)]
    assert source_of(look(paths)).events == paths[:1]


@pytest.mark.parametrize("mark", [",", "|"])
def test_few_items_with_several_codes_have_lists(mark: str, tmp_path: Path) -> None:
    """Most videos have one tag."""
    tags = [f"{i % 7}" + f"{mark}{(i + 1) % 7}" * (i % 8 == 0) for i in range(1, NUM_ITEMS + 1)]
    rows = [("book_id", "tag"), *((i, f'"{tag}"') for i, tag in enumerate(tags, 1))]
    found = look([ratings(tmp_path), write(tmp_path / "books.csv", rows)])
    assert found.config.data.knowledge.separators == {"tag": mark}


def test_columns_that_are_not_used_have_a_true_reason_or_at_least_a_name(tmp_path: Path) -> None:
    names = [f"c{n}" for n in range(12)]
    people: Rows = [("user_id", "age", "active", "news", *names)]
    for u in range(1, NUM_USERS + 1):
        news = "NONE" if u % 4 else "Regularly"
        people.append((u, 20 + u % 40, "1.0" if u % 2 else "", news, *["x"] * 12))
    found = look([ratings(tmp_path), write(tmp_path / "users.csv", people)]).found
    assert found.users is not None
    assert found.users.idle["active"].startswith("one value, 1.0, in 50% of the rows; empty cells")
    assert found.users.idle["news"].startswith("one value, Regularly, in 24% of the rows; empty")
    assert found.users.idle["c0"] == "the same value in every row"
    assert "not used: 6 more: c6, c7, c8, c9, c10, c11" in summary_of(found)


def test_numbers_of_days_without_a_year_have_no_period(tmp_path: Path) -> None:
    rows: Rows = [("user_id", "item_id", "time_stamp")]
    rows += [(u, i, 501 + (t // 86_400 % 7) * 100 + t % 28) for u, i, t in triples()]
    text = look([write(tmp_path / "log.csv", rows)]).draft.text()
    assert "temporal" in text and "over a long period, so the model would know" in text


@pytest.mark.parametrize("is_of_events", [True, False])
def test_numbers_with_a_text_for_unknown_are_numbers(is_of_events: bool, tmp_path: Path) -> None:
    scores = {i: "Unknown" if i % 9 == 0 else f"{5 + i * 0.07:.2f}" for _, i, _ in triples()}
    if is_of_events:
        events = [("user_id", "book_id", "score_of_book")]
        events += [(u, i, scores[i]) for u, i, _ in triples()]  # type: ignore[misc]
        paths = [write(tmp_path / "log.csv", events)]
    else:
        books = [("book_id", "score_of_book"), *scores.items()]
        paths = [ratings(tmp_path), write(tmp_path / "books.csv", books)]
    found = look(paths)
    assert found.found.items is not None and "score_of_book" in found.found.items.measures
    assert "of the rows with Unknown" in found.found.items.kinds["score_of_book"]
    assert not found.found.bad.get("items") and not found.found.bad["events"]
    read = read_all(open_source(found.config.data.source).pieces()["items"])
    known = dict(zip(read["item_id"].to_pylist(), read["score_of_book"].to_pylist(), strict=True))
    codes = [("book_id", "author_code"), *((i, "Unknown" if i % 9 == 0 else i % 5) for i in scores)]
    found = look([ratings(tmp_path), write(tmp_path / "codes.csv", codes)])  # type: ignore[arg-type]
    assert found.found.items is not None
    assert found.found.items.kinds["author_code"] == "categories"
    assert known == {str(i): None if i % 9 == 0 else float(text) for i, text in scores.items()}


def test_only_negative_number_of_a_column_has_a_remark_with_a_cure(tmp_path: Path) -> None:
    people: Rows = [("user_id", "age", "trend")]
    people += [(u, -1 if u % 4 else 20 + u, u % 3 - 1) for u in range(1, NUM_USERS + 1)]
    found = look([ratings(tmp_path), write(tmp_path / "users.csv", people)])
    assert found.found.users is not None
    kinds = found.found.users.kinds
    assert ", -1 in 76% of the rows; if it means unknown, add '-1'" in kinds["age"]
    assert kinds["trend"] == "numbers"
    source = source_of(found)
    source = source.model_copy(update={"absent": [*source.absent, "-1"]})
    ages = read_all(open_source(source).pieces()["users"]).column("age")
    assert (
        ages.null_count == sum(u % 4 > 0 for u in range(1, NUM_USERS + 1))
        and min(ages.drop_null().to_pylist()) >= 20
    )


def searches(tmp_path: Path, types: tuple[str, ...], share: float) -> Look:
    """Events with searches in the column of items, and a table of this share of the items."""
    rows: Rows = [("user_id", "timestamp", "action_type", "reference")]
    for n, (u, i, t) in enumerate(triples()):
        kind = types[n % len(types)]
        rows.append((u, t, kind, "Best Value" if kind == "filter" else 3_400_000 + i))
    items: Rows = [("item_id", "properties")]
    items += [(3_400_000 + i, "Pool|Golf" if i % 2 else "Pool") for i in range(1, 61)]
    paths = [
        write(tmp_path / "train.csv", rows),
        write(tmp_path / "items.csv", items[: round(share * 61)]),
    ]
    return look(paths)


@pytest.mark.parametrize("share", [1.0, 0.6])
def test_types_on_no_items_of_the_table_are_left_out(share: float, tmp_path: Path) -> None:
    found = searches(tmp_path, ("filter", "filter", "view item", "go to shop"), share)
    data = found.config.data
    if share < 1:
        assert not data.interactions
        return
    assert data.interactions == ["go to shop", "view item"]
    assert data.unknown_items == "keep", "a run checks the items of all events"
    assert "left out: filter (their items are not in the table of items" in summary_of(found.found)
    assert "Best Value" not in str(found.found.statistics)
    assert "# targets: [go to shop]" in found.draft.text()


def test_negative_types_keep_their_reason_next_to_types_on_no_items(tmp_path: Path) -> None:
    found = searches(tmp_path, ("filter", "skip", "view item"), 1.0)
    assert found.config.data.interactions == ["view item"]
    why = "negative, or only shown to the user; the items of filter are not in the table of items"
    assert why in found.draft.text()


def test_numbers_of_types_propose_the_rarest(tmp_path: Path) -> None:
    found = searches(tmp_path, ("1", "1", "4", "1"), 1.0)
    assert "# targets: ['4']" in found.draft.text()
    assert "check what the numbers mean" in found.draft.text()


def test_offers_of_a_week_are_no_knowledge_but_the_shelf_of_an_item_is(tmp_path: Path) -> None:
    shelves = [(i, f"shelf {(i + k) % 9}") for i in range(1, NUM_ITEMS + 1) for k in range(2)]
    offers = [(i, shelf, week) for i, shelf in shelves for week in range(2601, 2606)]
    paths = [
        ratings(tmp_path),
        write(tmp_path / "promotions.csv", [("book_id", "display", "week"), *offers]),
    ]
    found = look(paths)
    assert not found.found.triples
    assert ignored(found, paths[1]).startswith("its pairs of book_id and display repeat over week")
    write(tmp_path / "promotions.csv", [("book_id", "display"), *shelves])
    assert look(paths).found.triples, "the cure works"


@pytest.mark.parametrize(
    "item", [pytest.param("lifecycle", id="attribute"), pytest.param("visit", id="visit")]
)
def test_attribute_of_users_and_their_visits_are_no_items(item: str, tmp_path: Path) -> None:
    rows: Rows = [
        (f"u{u}", f"{u}-{t // 3}" if item == "visit" else ("new", "active", "lost")[u % 3], f"p{t}")
        for u in range(60)
        for t in range(9)
    ]
    path = write(
        tmp_path / "log.csv",
        [
            ("customer", item, "date"),
            *((u, i, f"2026-03-{1 + int(t[1:])} 10:00:00") for u, i, t in rows),
        ],
    )
    with pytest.raises(SourceError, match="no table has events"):
        look([path])

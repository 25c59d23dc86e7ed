"""`recsys init`: the forms of public data sets; one property each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys.config import CanonicalSource
from recsys.errors import SourceError
from recsys.inspect.look import Look, look
from recsys.inspect.terminal_summary import summary_of
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
        (n, f"U{u}", "11/11/2019 9:05:58 AM", f"N{u} N2", f"N{i}-1 N{i % NUM_ITEMS + 1}-0")
        for n, (u, i, _) in enumerate(triples())
    ]
    news = [(f"N{n}", "sports", f"Title of the article {n}") for n in range(1, NUM_ITEMS + 1)]
    paths = [
        write(tmp_path / "behaviors.tsv", rows, "\t"),
        write(tmp_path / "news.tsv", news, "\t"),
    ]
    found = look(paths)
    source = source_of(found)
    assert found.found.idle["column_4"].startswith("lists of items, such as a history")
    assert source.chosen == {"item_id": "-1"} and source.items == [paths[1]]
    events = read_all(open_source(source).pieces()["events"])
    assert events["item_id"].to_pylist() == [f"N{i}" for _, i, _ in triples()]


@pytest.mark.parametrize("mark", [", ", ";", "|", ""])
def test_marks_of_clicks_are_read_in_every_form_of_lists(mark: str, tmp_path: Path) -> None:
    shown = [[f"N{i}-1", f"N{i % NUM_ITEMS + 1}-0"] for _, i, _ in triples()]
    users = [f"U{u}" for u, _, _ in triples()]
    cells = [mark.join(members) for members in shown] if mark else shown
    pq.write_table(pa.table({"user": users, "impressions": cells}), tmp_path / "log.parquet")
    source = source_of(look([str(tmp_path / "log.parquet")]))
    events = read_all(open_source(source).pieces()["events"])
    assert events["item_id"].to_pylist() == [f"N{i}" for _, i, _ in triples()]


@pytest.mark.parametrize(
    "shown, chosen, are_clicks",
    [
        ("article_ids_inview", "article_ids_clicked", True),
        ("impressions", "item_id", True),
        ("items", "items_purchased", True),
        ("items_viewed", "items_purchased", False),
    ],
)
def test_list_of_what_was_chosen_wins_over_that_of_what_was_shown(
    shown: str, chosen: str, are_clicks: bool, tmp_path: Path
) -> None:
    rows = triples()
    lists = [[i, i % NUM_ITEMS + 1, (i + 7) % NUM_ITEMS + 1] for _, i, _ in rows]
    clicks = [[i] for _, i, _ in rows] if chosen != "item_id" else [i for _, i, _ in rows]
    columns = {"user_id": [u for u, _, _ in rows], "time": [t for _, _, t in rows]}
    pq.write_table(pa.table({**columns, shown: lists, chosen: clicks}), tmp_path / "log.parquet")
    found = look([str(tmp_path / "log.parquet")])
    events = read_all(open_source(source_of(found)).pieces()["events"])
    assert len(events) == (NUM_EVENTS if are_clicks else 3 * NUM_EVENTS)
    if shown != "items":
        assert found.found.idle[shown if are_clicks else chosen]
    if shown == "impressions":
        assert "shown to the user" in found.found.idle[shown]


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
    ("code", "share", "counts"),
    [("-1", 0.2, True), ("0", 0.5, True), ("0", 0.1, True), ("-1", 0.0, False)],
)
def test_code_of_no_grade_counts_as_the_median(
    code: str, share: float, counts: bool, tmp_path: Path
) -> None:
    rows: list[Sequence[Any]] = [("user_id", "anime_id", "rating")]
    for n, (u, i, _) in enumerate(triples()):
        rows.append((u, i, code if n < share * NUM_EVENTS else (2, 4, 4, 5, 4, 3)[n % 6]))
    rows[-1] = (*rows[-1][:2], 1)
    found = look([write(tmp_path / "rating.csv", rows)])
    assert source_of(found).values == ({code: 4} if counts else {})
    assert found.config.data.min_value is None
    events = read_all(open_source(source_of(found)).pieces()["events"])
    assert events["value"].to_pylist()[0] == (4 if counts else 2)


@pytest.mark.parametrize("mark", [".", ","])
def test_ratings_with_a_cell_that_is_no_number_are_read(mark: str, tmp_path: Path) -> None:
    rows: list[Sequence[Any]] = [("user_id", "anime_id", "rating")]
    for n, (u, i, _) in enumerate(triples()):
        rows.append((u, i, f"{(0, 2, 4, 5)[n % 4]}{mark}{5 * (n % 4 > 0)}"))
    rows[7] = ("user_id", "anime_id", "rating")  # the header of a file that was appended
    found = look([write(tmp_path / "rating.csv", rows, ";")])
    assert source_of(found).values == {f"0{mark}0": 4.5}


@pytest.mark.parametrize("mark", ["\t", "\t\t"])
def test_numbers_with_signs_are_grades_in_a_file_without_names(mark: str, tmp_path: Path) -> None:
    rows = [(u, i, (t * 7 + u * i) % 2000 / 100 - 10) for u, i, t in triples()]
    found = look([write(tmp_path / "jester.dat", rows, mark)])
    events = read_all(open_source(source_of(found)).pieces()["events"])
    assert events["value"].to_pylist() == [row[2] for row in rows]
    assert found.config.data.min_value == 1e-9, "negative grades are dislikes"


def test_customers_with_a_number_for_each_order_are_found(tmp_path: Path) -> None:
    lines: list[Sequence[Any]] = [("order_id", "product_id", "price", "freight_value")]
    orders: list[Sequence[Any]] = [("order_id", "customer_id", "order_purchase_timestamp")]
    people: list[Sequence[Any]] = [("customer_id", "customer_unique_id", "customer_zip")]
    for n, (u, i, t) in enumerate(triples()):
        lines.append((f"o{n}x", f"p{i}", 9.9, n % 17 / 10))
        orders.append((f"o{n}x", f"c{n}", np.datetime64(t, "s")))
        people.append((f"c{n}", f"one{u}", 14400 + u % 9))
    tables = {"order_items.csv": lines, "orders.csv": orders, "customers.csv": people}
    paths = [write(tmp_path / name, rows) for name, rows in tables.items()]
    source = source_of(look(paths))
    assert source.lookup == {"order_id": [paths[1]], "customer_id": [paths[2]]}
    assert "freight_value" not in source.rename["events"]
    assert source.user_columns == ["customer_zip"] and source.numbers == {
        "events": ["customer_zip"]
    }
    events = read_all(open_source(source).pieces()["events"])
    assert events["user_id"].to_pylist() == [f"one{u}" for u, _, _ in triples()]


def test_user_ids_may_have_a_point_and_lists_hold_large_times(tmp_path: Path) -> None:
    rows = []
    for u in range(NUM_USERS):
        seen = [(i, t) for user, i, t in triples() if user == u + 1]
        events = [{"aid": i, "ts": t * 1000 + 1, "type": "clicks"} for i, t in seen]
        rows.append({"user_pseudo_id": f"{u + 100}.{u * 77 + 1234}", "events": events})
    path = write(tmp_path / "sessions.jsonl", [[json.dumps(row)] for row in rows])
    source = source_of(look([path]))
    names = {"user_pseudo_id": "user_id", "events.aid": "item_id", "events.ts": "timestamp"}
    assert names.items() <= source.rename["events"].items()
    events = read_all(open_source(source).pieces()["events"])
    first = events["timestamp"].to_pylist()[0]
    assert first.microsecond == 1000 and events["user_id"][0].as_py() == "100.1234"


def test_written_lists_are_lists_without_brackets(tmp_path: Path) -> None:
    words = ["vegan", "main-dish", "15 minutes", "mexican"]
    recipes = ["id|name|tags|home"]
    for n in range(1, NUM_ITEMS + 1):
        tags = str([words[n % 4], words[(n + 1) % 4]])
        recipes.append(f"{n}|Recipe of number {n}|{tags}|{('Entire home/apt', 'Room')[n % 2]}")
    ratings = [("user_id", "recipe_id", "rating"), *((u, i, u % 5 + 1) for u, i, _ in triples())]
    items = write(tmp_path / "recipes.csv", [[row] for row in recipes])
    found = look([items, write(tmp_path / "ratings.csv", ratings)])
    knowledge = found.config.data.knowledge
    assert knowledge.item_columns == ["tags", "home"]
    assert knowledge.separators == {"tags": ","}  # and no path "Entire home", "apt"


def test_time_of_an_event_is_not_that_of_its_visit(tmp_path: Path) -> None:
    rows: list[Sequence[Any]] = [("user_id", "session_start", "click_article_id", "click_time")]
    rows += [(u, t - t % 9000, i, t) for u, i, t in triples()]
    source = source_of(look([write(tmp_path / "clicks.csv", rows)]))
    assert source.rename["events"]["click_time"] == "timestamp"


def test_time_that_unpaid_orders_lack_is_not_that_of_the_event(tmp_path: Path) -> None:
    rows: list[Sequence[Any]] = [("Email", "Paid at", "Created at", "sku", "Payment Status")]
    for n, (u, i, t) in enumerate(triples()):
        day = np.datetime64(t, "s")
        status = ("paid", "pending", "refunded")[n % 10 // 4]
        rows.append((f"u{u}@x.org", day if n % 2 else "", day, f"SKU-{i}", status))
    source = source_of(look([write(tmp_path / "orders.csv", rows)]))
    assert source.rename["events"]["Created at"] == "timestamp"
    assert source.drop == {"Payment Status": ["refunded"]}


def test_skipped_songs_are_left_out_and_other_flags_are_no_value(tmp_path: Path) -> None:
    rows: list[Sequence[Any]] = [("session_id", "track_id", "not_skipped", "no_pause_before_play")]
    rows += [(f"s{u}", f"t{i}", str(i * u % 3 == 0).lower(), u * i % 2) for u, i, _ in triples()]
    found = look([write(tmp_path / "log.csv", rows)], name="songs")
    source = source_of(found)
    assert source.drop == {"not_skipped": ["false"]} and "value" not in str(source.rename)
    assert found.config.registry.name == "multigrain-songs"


def test_hours_of_play_next_to_purchases_of_value_one_are_no_ratings(tmp_path: Path) -> None:
    """A least value in the middle of the scale would leave out every purchase."""
    rows: list[Sequence[Any]] = []
    for u, i, t in triples():
        rows.append((1000 + u, f"Game {i}", "purchase", 1.0, 0))
        if t % 2:
            rows.append((1000 + u, f"Game {i}", "play", (1 + t % 5) * 3.5, 0))
    found = look([write(tmp_path / "steam-200k.csv", rows)])
    assert found.config.data.min_value is None
    assert found.config.data.interactions == ["purchase"]


def test_id_of_a_person_is_preferred_to_the_name(tmp_path: Path) -> None:
    rows: list[Sequence[Any]] = [("item_id", "user_name", "fit", "user_id")]
    rows += [(i, f"Emily{u // 2}", "fit", 991571 + u) for u, i, _ in triples()]
    source = source_of(look([write(tmp_path / "clothes.csv", rows)]))
    events = read_all(open_source(source).pieces()["events"])
    assert {*events["user_id"].to_pylist()} == {str(991571 + u) for u, _, _ in triples()}


def test_header_may_start_with_a_comment_mark(tmp_path: Path) -> None:
    people: list[Sequence[Any]] = [("#id", "gender", "country")]
    people += [(f"user_{u}", "mf"[u % 2], ("Peru", "Japan")[u % 2]) for u in range(1, 51)]
    plays = [(f"user_{u}", np.datetime64(t, "s"), f"song {i}") for u, i, t in triples()]
    paths = [
        write(tmp_path / "plays.tsv", plays, "\t"),
        write(tmp_path / "profile.tsv", people, "\t"),
    ]
    source = source_of(look(paths))
    assert source.users == [paths[1]] and source.rename["users"] == {"#id": "user_id"}


def test_ratings_and_tags_without_names_are_not_one_table(tmp_path: Path) -> None:
    rates = [(u, i, u % 5 + 1, t) for u, i, t in triples()]
    tags = [(u, i, "dark comedy", t) for u, i, t in triples()[:300]]
    paths = [write(tmp_path / "ratings.dat", rates, "::"), write(tmp_path / "tags.dat", tags, "::")]
    assert source_of(look(paths)).events == paths[:1]


def test_files_of_two_event_types_may_split_their_times_differently(tmp_path: Path) -> None:
    views: list[Sequence[Any]] = [("session", "customer", "item", "viewed_at")]
    orders: list[Sequence[Any]] = [("session", "customer", "date", "time", "number", "item")]
    for n, (u, i, t) in enumerate(triples()):
        viewed, ordered = (str(np.datetime64(t + later, "s")) for later in (0, 60))
        views.append((f"s{u}", "" if n % 2 else f"c{u}", i, viewed.replace("T", " ")))
        if n % 5 == 0:
            orders.append((f"s{u}", "" if n % 2 else f"c{u}", *ordered.split("T"), n, i))
    paths = [write(tmp_path / "orders.csv", orders), write(tmp_path / "views.csv", views)]
    source = source_of(look(paths))
    assert source.type_files == {"view": [paths[1]], "order": [paths[0]]}
    assert source.clock == "time"
    events = read_all(open_source(source).pieces()["events"])
    bought = events.filter(pc.equal(events["event_type"], "order"))
    times = [time.timestamp() for time in bought["timestamp"].to_pylist()]
    assert times == [t + 60 for _, _, t in triples()[::5]]


@pytest.mark.parametrize(
    ("names", "date"),
    [
        ("Kd.-Nr.;Art.-Nr.;Belegdatum", "{day}. März 2020"),
        ("client;produit;date", "{day} août 2020 10:30"),
        ("cliente;producto;fecha", "{day} de marzo de 2020"),
        ("klient;produkt;data", "{day} sierpnia 2020"),
    ],
)
def test_months_have_names_of_other_languages(names: str, date: str, tmp_path: Path) -> None:
    rows = [names]
    rows += [f"{u + 100};A{i};{date.format(day=t % 28 + 1)}" for u, i, t in triples()]
    found = look([write(tmp_path / "export.csv", [[row] for row in rows])])
    assert found.config.data.order == "time"
    events = read_all(open_source(source_of(found)).pieces()["events"])
    assert {time.month for time in events["timestamp"].to_pylist()} <= {3, 8}
    assert events["user_id"][0].as_py() == str(triples()[0][0] + 100)


@pytest.mark.parametrize("has_names", [True, False])
def test_split_files_with_one_event_per_user_are_events_not_users(
    has_names: bool, tmp_path: Path
) -> None:
    rows = {"train": list[Sequence[Any]](), "valid": list[Sequence[Any]](), "test": []}
    for user in range(1, NUM_USERS + 1):
        own = [(u, i, u * i % 5 + 1, t) for u, i, t in triples() if u == user]
        for part, row in zip((*["train"] * (len(own) - 2), "valid", "test"), own, strict=True):
            rows[part].append(row)
    head = [("user_id", "parent_asin", "rating", "timestamp")] * has_names
    paths = {part: write(tmp_path / f"beauty.{part}.csv", [*head, *rows[part]]) for part in rows}
    found = look(list(paths.values()))
    source = source_of(found)
    assert source.split_files == {part: [path] for part, path in paths.items()}
    assert source.users == [] and found.config.data.split.kind == "given"


def test_songs_of_playlists_are_events_in_their_order(tmp_path: Path) -> None:
    playlists = []
    for user in range(NUM_USERS):
        songs = [i for u, i, _ in triples() if u == user + 1]
        tracks = [
            {"pos": n, "track_uri": f"song:{i:x}q", "artist_uri": f"by:{i // 4:x}q"}
            for n, i in enumerate(songs)
        ]
        name = ("Rock", "chill", "90s", "party")[user % 4]
        playlists.append({"name": name, "pid": user, "num_tracks": len(songs), "tracks": tracks})
    path = tmp_path / "slice.json"
    path.write_text(json.dumps({"info": {"version": "v1"}, "playlists": playlists}, indent=1))
    found = look([str(path)])
    names = {"pid": "user_id", "tracks.track_uri": "item_id", "tracks.pos": "timestamp"}
    assert names.items() <= source_of(found).rename["events"].items()
    assert found.config.data.split.kind == "leave-last"
    assert "1970" not in summary_of(found.found) + found.draft.text()


def test_lists_of_owned_games_are_events_next_to_a_table_of_games(tmp_path: Path) -> None:
    owners = []
    for user in range(1, NUM_USERS + 1):
        mine = [{"item_id": str(i), "minutes": i * user} for u, i, _ in triples() if u == user]
        owners.append({"user_id": f"765{user:05d}", "items_count": len(mine), "items": mine})
    games = [
        {"id": str(i), "publisher": f"P{i % 9}", "developer": f"D{i % 16}", "title": f"Game {i}"}
        for i in range(1, NUM_ITEMS + 1)
    ]
    paths = [
        write(tmp_path / name, [[json.dumps(row)] for row in rows])
        for name, rows in (("owners.jsonl", owners), ("games.jsonl", games))
    ]
    source = source_of(look(paths))
    assert source.events == paths[:1] and source.items == paths[1:]
    # how many games a user has is no rating
    assert source.rename["events"] == {"items.item_id": "item_id"}


def test_lines_of_python_have_a_command_that_makes_them_json(tmp_path: Path) -> None:
    path = write(tmp_path / "reviews.json", [["{u'user': u'a', u'item': u'b'}"]] * 30)
    with pytest.raises(SourceError, match=r"Python literals.*json\.dumps\(ast\.literal_eval"):
        look([path])


def test_reason_that_many_files_have_is_said_once(tmp_path: Path) -> None:
    for n in range(3):
        rows = [[f"{n}:"], *([u, 4, "2005-09-06"] for u in range(30))]
        write(tmp_path / f"mv_{n}.txt", rows)
    with pytest.raises(SourceError, match="mv_0.txt and 2 more files: blocks of rows") as caught:
        look([str(tmp_path)])
    assert str(caught.value).count("blocks of rows") == 1


def test_codes_with_a_column_of_their_names_are_no_second_triple(tmp_path: Path) -> None:
    kinds = ("Vest top", "Warm socks", "Long dress")
    things: list[Sequence[Any]] = [("item_id", "type_no", "type_name", "colour")]
    things += [(i, 250 + i % 3, kinds[i % 3], ("red", "blue")[i // 30 % 2]) for i in range(61)]
    events = [("user_id", "item_id"), *((u, i) for u, i, _ in triples())]
    found = look([write(tmp_path / "a.csv", events), write(tmp_path / "articles.csv", things)])
    assert found.config.data.knowledge.item_columns == ["type_name", "colour"]
    assert found.found.items is not None
    assert found.found.items.idle["type_no"] == "groups the items like type_name"


@pytest.mark.parametrize(
    ("days", "form"), [("11/{}/2019", "%m/%d/%Y %H:%M"), ("{}/11/2019", "%d/%m/%Y %H:%M")]
)
def test_part_of_a_date_that_never_changes_is_the_month(
    days: str, form: str, tmp_path: Path
) -> None:
    rows: list[Sequence[Any]] = [("user_id", "item_id", "time")]
    for u, i, t in triples():
        rows.append((u, i, f"{days.format(t % 7 + 2)} {t % 24}:{t % 60:02d}"))
    assert source_of(look([write(tmp_path / "log.csv", rows)])).time_format == form


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([["7:"], *([u, 4, "2005-09-06"] for u in range(30))], "blocks of rows.*'7:'"),
        ([[f"{u} 7:3" + " 8:5" * (1 + u % 3)] for u in range(30)], "pairs of item and value.*awk"),
        ([["3 7 8 9"], *[["2 5 6"], ["1 4"]] * 9], r"is the number of the other ids.*\{\$1 = NR"),
        ([["3 7 8 9 4"], *[["2 5 6"], ["2 4"]] * 9], "is on several lines.*print NR"),
        (
            [["item: B1"], ["score: 5"], [], *[["item: B2"], ["score: 4"], []] * 9],
            "block to one JSON object",
        ),
        ([[n, *np.arange(n, n + 40) % 11 / 3, 99] * 1 for n in range(60)], "matrix.*melt"),
    ],
)
def test_forms_that_are_no_table_of_events_are_named(
    rows: list[list[Any]], says: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=says):
        look([write(tmp_path / "ratings.txt", rows)])

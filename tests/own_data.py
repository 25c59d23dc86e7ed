"""Generate files in the form of well-known exports, for `recsys init`."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

START = datetime(2023, 1, 2, 8, tzinfo=UTC)
WORDS = [
    *(
        "red",
        "blue",
        "warm",
        "soft",
        "metal",
        "garden",
        "kitchen",
        "winter",
        "summer",
        "lamp",
        "chair",
        "mug",
    ),
    *("candle", "poster", "bag", "clock", "frame", "vase"),
]
GENRES = ["Action", "Adventure", "Comedy", "Drama", "Horror", "Romance", "Sci-Fi", "Thriller"]


@dataclass(frozen=True)
class Event:
    user: int
    item: int
    time: datetime
    value: float


class World:
    """Users 0 … with events on items 0 … over a year; each user prefers a part of the catalogue."""

    def __init__(
        self,
        users: int = 120,
        items: int = 60,
        per_user: int = 14,
        repeats: float = 0.0,
        seed: int = 0,
    ):
        self.random = np.random.default_rng(seed)
        self.users, self.items = users, items
        found: list[Event] = []
        for user in range(users):
            seen: list[int] = []
            for _ in range(max(4, int(self.random.poisson(per_user)))):
                again = seen and self.random.random() < repeats
                fresh = [item for item in range(items) if item not in seen]
                item = int(self.random.choice(seen if again or not fresh else fresh))
                seen.append(item)
                seconds = int(self.random.integers(0, 365 * 86_400))
                found.append(
                    Event(
                        user,
                        item,
                        START + timedelta(seconds=seconds),
                        float(self.random.integers(1, 6)),
                    )
                )
        self.events = sorted(found, key=lambda event: event.time)
        self.titles = [self._title() for _ in range(items)]
        self.prices = [round(float(self.random.uniform(2, 300)), 2) for _ in range(items)]
        self.genres = [
            sorted({str(g) for g in self.random.choice(GENRES, 2)}) for _ in range(items)
        ]

    def _title(self) -> str:
        return " ".join(str(word) for word in self.random.choice(WORDS, 3)).title()

    def friends(self) -> list[tuple[int, int]]:
        pairs = self.random.integers(0, self.users, (self.users * 3, 2)).tolist()
        return sorted({(a, b) for a, b in pairs if a != b})


def epoch(time: datetime) -> int:
    return int(time.timestamp())


def write(
    path: Path,
    rows: Sequence[Sequence[Any]],
    separator: str = ",",
    encoding: str = "utf-8",
    end: str = "\n",
) -> Path:
    """Write rows as separated text; CSV cells are quoted if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if len(separator) == 1 and separator in ",;":
        stream = io.StringIO()
        csv.writer(stream, delimiter=separator, lineterminator=end).writerows(rows)
        text = stream.getvalue()
    else:
        text = "".join(separator.join(map(str, row)) + end for row in rows)
    path.write_bytes(text.encode(encoding))
    return path


def write_json(path: Path, rows: Sequence[dict[str, Any]], as_array: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(rows, indent=1) if as_array else "".join(json.dumps(row) + "\n" for row in rows)
    )
    return path


# ---------------------------------------------------------------------------------------- MovieLens


def movielens_100k(folder: Path) -> list[Path]:
    """u.data (tabs), u.item (bars, latin-1, flags of genres), u.user (bars); a readme, a split of
    u.data."""
    world = World()
    rows = [(e.user + 1, e.item + 1, int(e.value), epoch(e.time)) for e in world.events]
    items = [
        (
            i + 1,
            f"{title} café (1995)",
            "01-Jan-1995",
            "",
            f"http://us.imdb.com/M/title-exact?{i}",
            *((i >> k) & 1 for k in range(6)),
            *([0, 1] * 6),
            0,
        )
        for i, title in enumerate(world.titles)
    ]
    jobs = ["writer", "engineer", "student"]
    users = [
        (u + 1, 18 + u % 50, "MF"[u % 2], jobs[u % 3], f"{10000 + u * 37}")
        for u in range(world.users)
    ]
    write(
        folder / "README",
        [("This data set consists of ratings, collected by a project, for research.",)] * 3,
        "|",
    )
    write(folder / "u1.base", rows[: int(0.8 * len(rows))], "\t")
    write(folder / "u1.test", rows[int(0.8 * len(rows)) :], "\t")
    write(folder / "u.genre", [(genre, number) for number, genre in enumerate(GENRES)], "|")
    return [
        write(folder / "u.data", rows, "\t"),
        write(folder / "u.item", items, "|", "latin-1"),
        write(folder / "u.user", users, "|"),
    ]


def movielens_1m(folder: Path) -> list[Path]:
    """ratings.dat, movies.dat and users.dat with two colons."""
    world = World(seed=1)
    movies = [
        (i + 1, f"{title} (19{i % 90 + 10})", "|".join(world.genres[i]))
        for i, title in enumerate(world.titles)
    ]
    users = [
        (u + 1, "FM"[u % 2], [1, 18, 25, 35][u % 4], u % 20, f"{20000 + u}")
        for u in range(world.users)
    ]
    return [
        write(
            folder / "ratings.dat",
            [(e.user + 1, e.item + 1, int(e.value), epoch(e.time)) for e in world.events],
            "::",
        ),
        write(folder / "movies.dat", movies, "::", "latin-1"),
        write(folder / "users.dat", users, "::"),
    ]


def movielens_latest(folder: Path) -> list[Path]:
    """ratings.csv, movies.csv, links.csv and tags.csv with headers."""
    world = World(seed=2)
    ratings = [(e.user + 1, e.item * 7 + 3, e.value - 0.5, epoch(e.time)) for e in world.events]
    movies = [
        (i * 7 + 3, f"{t}, The (1999)", "|".join(world.genres[i]))
        for i, t in enumerate(world.titles)
    ]
    links = [(i * 7 + 3, f"{114709 + i:07d}", 862 + i) for i in range(world.items)]
    tags = [
        (e.user + 1, e.item * 7 + 3, WORDS[e.item % 18], epoch(e.time)) for e in world.events[:200]
    ]
    return [
        write(folder / "ratings.csv", [("userId", "movieId", "rating", "timestamp"), *ratings]),
        write(folder / "movies.csv", [("movieId", "title", "genres"), *movies]),
        write(folder / "links.csv", [("movieId", "imdbId", "tmdbId"), *links]),
        write(folder / "tags.csv", [("userId", "movieId", "tag", "timestamp"), *tags]),
    ]


# ------------------------------------------------------------------------------------------- Amazon


def amazon(folder: Path) -> list[Path]:
    """Reviews and meta as JSON lines, gzipped reviews; HTML descriptions, nested categories, prices
    as text."""
    world = World(seed=3)
    reviews = [
        {
            "reviewerID": f"A{e.user:04d}XYZ",
            "asin": f"B{e.item:05d}QQ",
            "reviewerName": f"Some Name {e.user}",
            "helpful": [0, 1],
            "reviewText": f"I like this {world.titles[e.item]} a lot, and it works well for me.",
            "overall": e.value,
            "summary": "Good buy",
            "unixReviewTime": epoch(e.time) // 86_400 * 86_400,
            "reviewTime": f"{e.time:%m} {e.time.day}, {e.time:%Y}",
        }
        for e in world.events
    ]
    meta = [
        {
            "asin": f"B{i:05d}QQ",
            "title": title,
            "description": (
                f"<p>A very <b>nice</b> {title} &amp; more of it.<br/>Made with care for you.</p>"
            ),
            "price": f"${world.prices[i]}",
            "imUrl": f"http://ecx.images-amazon.com/images/I/{i}.jpg",
            "brand": ["Acme", "Globex", "Initech"][i % 3],
            "categories": [["Beauty", "Skin Care"], ["Beauty", ["Hair Care", "Make up"][i % 2]]],
            "also_bought": [f"B{j:05d}QQ" for j in range(i, min(i + 5, world.items))],
        }
        for i, title in enumerate(world.titles)
    ]
    plain = write_json(folder / "reviews_Beauty_5.json", reviews)
    packed = folder / "reviews_Beauty_5.json.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    return [packed, write_json(folder / "meta_Beauty.json", meta)]


# ------------------------------------------------------------------------------------ shops, places


def invoices(folder: Path) -> list[Path]:
    """Lines of invoices with descriptions, prices, countries, cancellations and rows without a
    customer; day/month."""
    world = World(repeats=0.5, per_user=25, seed=4)
    rows: list[tuple[Any, ...]] = []
    for number, e in enumerate(world.events):
        cancelled = number % 50 == 49
        rows.append(
            (
                f"{'C' if cancelled else ''}{536365 + number // 3}",
                f"{20000 + e.item}{'A' if e.item % 5 == 0 else ''}",
                world.titles[e.item].upper(),
                -1 if cancelled else int(e.value),
                f"{e.time:%d/%m/%Y %H:%M}",
                f"{world.prices[e.item]:.2f}".replace(".", ","),
                "" if number % 6 == 5 else 12346 + e.user,
                ["United Kingdom", "France", "Germany"][e.user % 3],
            )
        )
    header = (
        "InvoiceNo",
        "StockCode",
        "Description",
        "Quantity",
        "InvoiceDate",
        "UnitPrice",
        "CustomerID",
        "Country",
    )
    return [write(folder / "invoices.csv", [header, *rows], ";")]


def check_ins(folder: Path) -> list[Path]:
    """Four files without headers: visits, categories, coordinates, friends; ids are consecutive
    numbers in all of them."""
    world = World(seed=5, items=90)
    places = [(i, 40 + i * 0.00137, -80 + i * 0.00213) for i in range(world.items)]
    visits = [(e.user, e.item, f"{epoch(e.time) // 86_400 * 86_400}.0") for e in world.events]
    categories = [(i, (i * k) % 23) for i in range(world.items) for k in (1, 2, 5)]
    return [
        write(folder / "a.txt", visits, "\t"),
        write(folder / "b.txt", categories, "\t"),
        write(folder / "c.txt", places, "\t"),
        write(folder / "d.txt", world.friends(), "\t"),
    ]


def shop(folder: Path) -> list[Path]:
    """Events, products, customers and followers with unusual names; customers are e-mail
    addresses."""
    world = World(seed=6)
    kinds = ["product_view", "product_view", "add_to_cart", "purchase"]

    def mail(user: int) -> str:
        return f"person{user}@example.org"

    log = [
        (
            f"{e.time:%Y-%m-%dT%H:%M:%SZ}",
            kinds[n % 4],
            mail(e.user),
            f"SKU-{e.item:03d}",
            ["web", "app"][n % 2],
        )
        for n, e in enumerate(world.events)
    ]
    goods = [
        (f"SKU-{i:03d}", t, f"<div>Nice {t} for <b>every</b> day</div>", f"{world.prices[i]} EUR",
         f"Home > {WORDS[i % 6]} > x{i % 3}", f"https://shop.example.org/p/{i}", f"/img/{i}.jpg")
        for i, t in enumerate(world.titles)
    ]  # fmt: skip
    people = [
        (u, mail(u), 20 + u % 40, ["Berlin", "Paris", "Rome"][u % 3]) for u in range(world.users)
    ]
    follows = [(mail(a), mail(b)) for a, b in world.friends()]
    return [
        write(
            folder / "tracking_2023.csv",
            [("ts", "what_type", "customer_email", "article_sku", "channel"), *log],
        ),
        write(
            folder / "catalog.tsv",
            [("sku", "label", "body", "price", "breadcrumb", "link", "picture"), *goods],
            "\t",
        ),
        write(folder / "crm.csv", [("no", "email", "age", "city"), *people]),
        write(folder / "net.csv", [("follower", "followee"), *follows]),
    ]


def hive(folder: Path) -> Path:
    """Parquet in folders by event type and day."""
    world = World(seed=7)
    for kind in ("view", "purchase"):
        for month in (1, 5, 9, 12):
            rows = [
                e
                for n, e in enumerate(world.events)
                if e.time.month == month and (n % 3 == 0) == (kind == "purchase")
            ]
            table = pa.table(
                {
                    "member_id": [f"m{e.user}" for e in rows],
                    "product_id": [e.item + 1000 for e in rows],
                    "event_time": pa.array([e.time for e in rows], pa.timestamp("ms", tz="UTC")),
                }
            )
            target = folder / f"action={kind}" / f"month=2023-{month:02d}"
            target.mkdir(parents=True)
            pq.write_table(table, target / "part-0000.snappy.parquet")
    return folder


def sequences(folder: Path) -> list[Path]:
    """Lines of user and items, and a table of the items."""
    world = World(seed=8)
    lines = [
        (u + 1, *(e.item + 1 for e in world.events if e.user == u)) for u in range(world.users)
    ]
    items = [(i + 1, t, world.prices[i]) for i, t in enumerate(world.titles)]
    return [
        write(folder / "sequences.txt", lines, " "),
        write(folder / "items.tsv", [("item_id", "title", "price"), *items], "\t"),
    ]


def recbole(folder: Path) -> Path:
    """Atomic files."""
    world = World(seed=9)
    name = folder.name
    inter = [(e.user, e.item, int(e.value), float(epoch(e.time))) for e in world.events]
    items = [(i, t, " ".join(world.genres[i])) for i, t in enumerate(world.titles)]
    users = [(u, 20 + u % 30, "MF"[u % 2]) for u in range(world.users)]
    header = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
    write(folder / f"{name}.inter", [header, *inter], "\t")
    write(
        folder / f"{name}.item",
        [("item_id:token", "title:token_seq", "genre:token_seq"), *items],
        "\t",
    )
    write(folder / f"{name}.user", [("user_id:token", "age:token", "gender:token"), *users], "\t")
    return folder


def hetrec(folder: Path) -> Path:
    """The five files of the HetRec 2011 Last.fm release, and held-out pairs."""
    world = World(seed=10)
    listens = sorted({(e.user + 2, e.item + 1): 10 * e.value for e in world.events}.items())
    crlf = "\r\n"
    rows = [(u, i, int(v)) for (u, i), v in listens]
    write(folder / "user_artists.dat", [("userID", "artistID", "weight"), *rows], "\t", end=crlf)
    tagged = [(u, i, i % 18 + 1, 1, 4, 2009) for u, i, _ in rows[::3]]
    header = ("userID", "artistID", "tagID", "day", "month", "year")
    write(folder / "user_taggedartists.dat", [header, *tagged], "\t", end=crlf)
    write(
        folder / "tags.dat",
        [("tagID", "tagValue"), *[(n + 1, w) for n, w in enumerate(WORDS)]],
        "\t",
        "latin-1",
        crlf,
    )
    artists = [
        (i + 1, t, f"http://last.fm/{i}", f"http://img/{i}.jpg") for i, t in enumerate(world.titles)
    ]
    write(folder / "artists.dat", [("id", "name", "url", "pictureURL"), *artists], "\t")
    friends = [(a + 2, b + 2) for a, b in world.friends()]
    write(folder / "user_friends.dat", [("userID", "friendID"), *friends], "\t", end=crlf)
    write(
        folder / "splits" / "held-out.tsv",
        [("userID", "artistID"), *[(u, i) for u, i, _ in rows[::5]]],
        "\t",
    )
    return folder


def arrays(folder: Path) -> list[Path]:
    """JSON arrays of plays and tracks."""
    world = World(seed=11)
    plays = [
        {
            "listener": f"u-{e.user}",
            "track": {"no": 1},
            "track_id": f"t{e.item}",
            "played_at": e.time.isoformat(),
        }
        for e in world.events
    ]
    tracks = [
        {"track_id": f"t{i}", "name": t, "genres": world.genres[i]}
        for i, t in enumerate(world.titles)
    ]
    return [
        write_json(folder / "plays.json", plays, True),
        write_json(folder / "tracks.json", tracks, True),
    ]


def one_file(folder: Path) -> Path:
    """A zip with one CSV of users and items, without times."""
    world = World(seed=12)
    rows = [("borrower", "book_isbn"), *[(f"b{e.user}", f"978{e.item:07d}") for e in world.events]]
    path = write(folder / "loans.csv", rows)
    packed = folder / "loans.csv.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(path, "loans.csv")
    path.unlink()
    return packed

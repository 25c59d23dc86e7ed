"""Write a generated shop as files in one of many export formats. The seed decides names of columns
and files, formats, separators, forms of ids and times. The meaning of the files is kept with
them."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.shop_world import TYPES, World

Columns = dict[str, list[Any]]  # name → cells

FORMATS: Final = ("csv", "csv", "semicolon", "tsv", "csv.gz", "parquet", "jsonl", "jsonl.gz")
USER_NAMES: Final = (
    "user_id",
    "customer_id",
    "CustomerID",
    "userId",
    "client_no",
    "member",
    "visitorid",
    "buyer_id",
)
ITEM_NAMES: Final = (
    "item_id",
    "product_id",
    "sku",
    "StockCode",
    "productId",
    "article_no",
    "asin",
    "offer_id",
)
TIME_NAMES: Final = (
    "timestamp",
    "ts",
    "created_at",
    "order_date",
    "event_time",
    "date",
    "purchasedAt",
    "when",
)
TYPE_NAMES: Final = ("event_type", "action", "event", "behavior")
FILES: Final = {
    "events": (
        "events",
        "orders",
        "transactions",
        "clickstream",
        "interactions",
        "sales_export",
        "history",
    ),
    "items": ("products", "catalog", "articles", "items", "assortment"),
    "users": ("customers", "users", "members", "accounts", "crm"),
    "social": ("friends", "follows", "network", "contacts"),
}
FRIEND_NAMES: Final = (
    ("user_id", "friend_id"),
    ("follower", "followee"),
    ("src", "dst"),
    ("from_user", "to_user"),
)
TYPE_WORDS: Final = (
    TYPES,
    ("pv", "addtocart", "buy"),
    ("product_view", "add_to_cart", "order_completed"),
)
REGIONS: Final = ("North", "South", "East", "West", "Capital", "Coast", "Islands", "Abroad")
BRANDS: Final = (
    "Acme",
    "Globex",
    "Initech",
    "Umbra",
    "Velto",
    "Norda",
    "Lumo",
    "Karst",
    "Pavo",
    "Tessel",
    "Orlin",
)
CATEGORIES: Final = (
    "Garden", "Kitchen", "Toys", "Sports", "Beauty", "Office", "Pets", "Music", "Books", "Outdoor",
    "Baby", "Travel", "Lighting", "Storage", "Clothing", "Grocery",
)  # fmt: skip
THEMES: Final = (  # words of the titles of a style
    "rose seed pot spade hose bulb trellis mower soil herb",
    "pan whisk oven kettle ladle grill spice bowl apron knife",
    "robot puzzle doll blocks kite train dice puppet marble yoyo",
    "ball racket jersey helmet skate dumbbell goal mat",
    "serum lotion lipstick shampoo cream perfume balm soap mascara",
    "stapler binder pen ledger folder printer ink",
    "leash collar kennel aquarium litter treat cage saddle",
    "guitar drum violin amplifier vinyl piano flute cable",
    "novel atlas poetry comic dictionary biography thriller diary",
    "tent lantern compass rope canoe boots axe",
    "pram bib rattle crib bottle diaper pacifier onesie",
    "suitcase passport pillow adapter map visor tote flask",
)  # fmt: skip
COMMON: Final = (
    "classic",
    "large",
    "small",
    "new",
    "set",
    "deluxe",
    "basic",
    "red",
    "blue",
    "green",
    "black",
    "pack",
)


@dataclass
class Shop:
    """Files of a shop, and their true meaning."""

    world: World
    files: list[Path] = field(default_factory=list)
    # events, items, users, social → name of the file
    roles: dict[str, str] = field(default_factory=dict)
    # role → what it is → name of the column
    columns: dict[str, dict[str, str]] = field(default_factory=dict)
    users: list[str] = field(default_factory=list)  # ids of the users of the world, as text
    items: list[str] = field(default_factory=list)
    types: tuple[str, ...] = ()
    # of the events, seconds, as precise as the files say them
    times: list[int] = field(default_factory=list)
    forms: dict[str, str] = field(default_factory=dict)


def write_shop(world: World, folder: Path) -> Shop:
    """Write the files of a shop into a folder."""
    return _Export(world, folder).written()


class _Export:
    """Draw names and forms."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.plan, self.folder = world, world.plan, folder
        self.random = np.random.default_rng([world.plan.seed, 2])
        self.shop = Shop(world)
        self._order: list[int] = []  # of the rows of events
        self.is_mixed = self.random.random() < 0.35
        self.format = self._one_of(FORMATS)
        self.user, self.item, self.time = (
            self._one_of(names) for names in (USER_NAMES, ITEM_NAMES, TIME_NAMES)
        )
        self.shop.users = self._ids(
            self.plan.num_users, (_plain, _letter("u"), _letter("C"), _mail, _hexadecimal)
        )
        self.shop.items = self._ids(
            self.plan.num_items, (_plain, _offset, _letter("SKU-"), _letter("P"), _ean)
        )

    def _one_of(self, choices: Sequence[Any]) -> Any:
        return choices[int(self.random.integers(0, len(choices)))]

    def _ids(self, num: int, forms: Sequence[Callable[[int], str]]) -> list[str]:
        form = self._one_of(forms)
        return [form(int(number)) for number in self.random.permutation(num)]

    def written(self) -> Shop:
        is_flat = self.random.random() < 0.15  # one export with the item columns in every row
        items = self._items()
        events = self._events()
        if is_flat:
            of_event = self.world.items[self._order].tolist()
            events |= {
                name: [cells[i] for i in of_event]
                for name, cells in items.items()
                if name not in events
            }
        self._write("events", events)
        if not is_flat:
            self._write("items", items)
        if self.plan.shows("attributes"):
            self._write("users", self._users())
        if self.plan.shows("friends"):
            self._write("social", self._friends())
        return self.shop

    def _events(self) -> Columns:
        world, shop, num = self.world, self.shop, len(self.world.users)
        form, cells, step = self._times(world.times.tolist())
        shop.times = [time // step * step for time in world.times.tolist()]
        shop.forms["times"] = form
        named: Columns = {
            self.user: [shop.users[user] for user in world.users.tolist()],
            self.item: [shop.items[item] for item in world.items.tolist()],
            self.time: cells,
        }
        shop.columns["events"] = {
            "user_id": self.user,
            "item_id": self.item,
            "timestamp": self.time,
        }
        if self.plan.has("types"):
            shop.types = self._one_of(TYPE_WORDS)
            name = shop.columns["events"]["event_type"] = self._one_of(TYPE_NAMES)
            named[name] = [shop.types[kind] for kind in world.kinds.tolist()]
        if self.random.random() < 0.4:
            named["channel"] = [
                ("web", "app", "store")[int(n)] for n in self.random.integers(0, 3, num)
            ]
        if self.random.random() < 0.3:
            named["order_no"] = [f"O{100_000 + row // 2}" for row in range(num)]
        if self.random.random() < 0.3:
            named["quantity"] = [int(n) for n in self.random.geometric(0.7, num)]
        names = list(named)
        if (
            self.random.random() < 0.5
        ):  # the order of columns, and of rows, is not always the usual one
            self.random.shuffle(names)
        rows = self.random.permutation(num).tolist() if self.random.random() < 0.25 else range(num)
        self._order = list(rows)
        return {name: [named[name][row] for row in rows] for name in names}

    def _times(self, seconds: list[int]) -> tuple[str, list[Any], int]:
        """The form, the cells, and the precision in seconds."""
        form = self._one_of(
            ("epoch", "epoch_ms", "iso", "iso_zone", "day_first", "month_first", "native")
        )
        if form == "epoch":
            return form, seconds, 1
        if form == "epoch_ms":
            return form, [1000 * second for second in seconds], 1
        moments = [datetime.fromtimestamp(second, UTC) for second in seconds]
        if form == "native":  # a timestamp where the format has one, else text
            return form, moments, 1
        pattern, step = {
            "iso": ("%Y-%m-%d %H:%M:%S", 1),
            "iso_zone": ("%Y-%m-%dT%H:%M:%SZ", 1),
            "day_first": ("%d/%m/%Y %H:%M", 60),
            "month_first": ("%m/%d/%Y %H:%M", 60),
        }[form]
        return form, [moment.strftime(pattern) for moment in moments], step

    def _items(self) -> Columns:
        world, shop, plan, random = self.world, self.shop, self.plan, self.random
        table: Columns = {self.item: shop.items}
        truth = shop.columns["items"] = {"item_id": self.item}
        if plan.shows("text"):
            truth["text"] = self._one_of(
                ("title", "name", "product_name", "description", "Description")
            )
            table[truth["text"]] = [self._title(item) for item in range(plan.num_items)]
        truth["category"] = self._one_of(("category", "department", "product_group", "type"))
        table[truth["category"]] = [CATEGORIES[c] for c in world.categories.tolist()]
        if plan.shows("brands"):
            written = world.brands if plan.has("brands") else random.permutation(world.brands)
            truth["brand"] = self._one_of(("brand", "manufacturer", "vendor"))
            table[truth["brand"]] = [_brand(brand) for brand in written.tolist()]
        if plan.shows("price"):
            written = world.prices if plan.has("price") else random.permutation(world.prices)
            truth["price"] = self._one_of(("price", "unit_price", "list_price"))
            mark = self._one_of(("{:.2f}", "{:.2f}", "{:.2f} EUR", "${:.2f}"))
            shop.forms["price"] = mark
            table[truth["price"]] = [
                mark.format(price) if " " in mark or "$" in mark else price for price in written
            ]
        if plan.has("place"):
            truth["latitude"], truth["longitude"] = self._one_of(
                (("lat", "lon"), ("latitude", "longitude"))
            )
            table[truth["latitude"]] = [
                round(48.2 + y / 111, 5) for y in world.item_places[:, 1].tolist()
            ]
            table[truth["longitude"]] = [
                round(11.5 + x / 74, 5) for x in world.item_places[:, 0].tolist()
            ]
        if random.random() < 0.3:
            table["image_url"] = [
                f"https://img.shop.example.org/{item}.jpg" for item in range(plan.num_items)
            ]
        if random.random() < 0.3:
            first = datetime.fromtimestamp(plan.start, UTC)
            table["listed_on"] = [
                f"{first + timedelta(days=float(day)):%Y-%m-%d}" for day in world.launched.tolist()
            ]
        return table

    def _title(self, item: int) -> str:
        """Words of the item's style, or of any style if the text is uninformative, between common
        words."""
        random = self.random
        style = (
            int(self.world.item_styles[item])
            if self.plan.has("text")
            else int(random.integers(0, len(THEMES)))
        )
        share = 0.5 + 0.4 * self.plan.strength.get("text", 0.0)
        words = []
        for _ in range(int(random.integers(2, 5))):
            theme = style if random.random() < share else int(random.integers(0, len(THEMES)))
            words.append(str(random.choice(THEMES[theme].split())))
        words.insert(int(random.integers(0, len(words))), str(random.choice(COMMON)))
        return " ".join(words).title()

    def _users(self) -> Columns:
        world, random, num = self.world, self.random, self.plan.num_users
        is_true = self.plan.has("attributes")
        ages = world.ages if is_true else random.permutation(world.ages)
        regions = world.regions if is_true else random.permutation(world.regions)
        age, region = self._one_of((("age", "region"), ("Age", "State"), ("age_years", "city")))
        self.shop.columns["users"] = {"user_id": self.user, "age": age, "region": region}
        table: Columns = {
            self.user: self.shop.users,
            age: ages.tolist(),
            region: [REGIONS[number] for number in regions.tolist()],
        }
        if random.random() < 0.5:
            table["newsletter"] = [bool(n) for n in random.integers(0, 2, num)]
        return table

    def _friends(self) -> Columns:
        one, two = self._one_of(FRIEND_NAMES)
        self.shop.columns["social"] = {"src_user_id": one, "dst_user_id": two}
        pairs = self.world.friends.tolist()
        return {
            one: [self.shop.users[a] for a, _ in pairs],
            two: [self.shop.users[b] for _, b in pairs],
        }

    def _write(self, role: str, table: Columns) -> None:
        form = self._one_of(FORMATS) if self.is_mixed else self.format
        name = f"{self._one_of(FILES[role])}.{'csv' if form == 'semicolon' else form}"
        path = self.folder / name
        path.write_bytes(_bytes(table, form))
        self.shop.files.append(path)
        self.shop.roles[role], self.shop.forms[role] = name, form


def _plain(number: int) -> str:
    return str(number)


def _offset(number: int) -> str:
    return str(10_007 + 3 * number)


def _letter(prefix: str) -> Callable[[int], str]:
    return lambda number: f"{prefix}{number:05d}"


def _mail(number: int) -> str:
    return f"person{number}@example.org"


def _hexadecimal(number: int) -> str:
    return f"{(number + 1) * 0x9E3779B97F4A7C15 % 2**64:016x}"


def _ean(number: int) -> str:
    return str(4_000_000_000_000 + 7919 * number)


def _brand(number: int) -> str:
    return (
        BRANDS[number]
        if number < len(BRANDS)
        else f"{BRANDS[number % len(BRANDS)]} {number // len(BRANDS)}"
    )


def _bytes(table: Columns, form: str) -> bytes:
    """A table in a format of :data:`FORMATS`."""
    packed = form.removesuffix(".gz")
    if packed == "parquet":
        sink = io.BytesIO()
        pq.write_table(pa.table({name: _typed(cells) for name, cells in table.items()}), sink)
        return sink.getvalue()
    rows = list(zip(*table.values(), strict=True))
    if packed == "jsonl":
        lines = (dict(zip(table, row, strict=True)) for row in rows)
        text = "".join(json.dumps(line, default=str) + "\n" for line in lines)
    else:
        stream = io.StringIO()
        mark = {"csv": ",", "semicolon": ";", "tsv": "\t"}[packed]
        writer = csv.writer(stream, delimiter=mark, lineterminator="\n")
        writer.writerow(table)
        writer.writerows([_cell(cell, mark) for cell in row] for row in rows)
        text = stream.getvalue()
    raw = text.encode()
    return gzip.compress(raw, 6) if form.endswith(".gz") else raw


def _typed(cells: list[Any]) -> pa.Array:
    """Write whole numbers without decimals, as a database export does."""
    if (
        cells
        and isinstance(cells[0], str)
        and all(cell.isdigit() and str(int(cell)) == cell for cell in cells)
    ):
        return pa.array([int(cell) for cell in cells])
    return pa.array(cells)


def _cell(cell: Any, mark: str) -> Any:
    """Use decimal commas if cells are separated by semicolons, except for coordinates, which
    programs write."""
    if isinstance(cell, float) and mark == ";" and round(cell, 2) == cell:
        return f"{cell:.2f}".replace(".", ",")
    return cell

"""Generated data with planted signals, of any size: the world of :mod:`recsys.sources.world` as
canonical tables.

Why: with one signal strong and the others at zero, only the granularity for that signal can
predict. So CI tests that each granularity uses its signal. The generative model and its formulas
are in :mod:`recsys.sources.world`, its side signals in :mod:`recsys.sources.side_signals`.

Each task makes the tables of a range of user or item bundles from the seed alone. No process builds
a whole table, and the rows are the same for all ``num_partitions``. Tables: ``events`` (view,
click, purchase; values 1, 2, 5; within one year), ``items`` (text: title, tags, category;
attributes: price and labels, which are numbers so that text does not contain them; image),
``users`` (age, gender, country; device, which is noise), ``social`` and ``knowledge`` (made by,
owned by; features and based in, which are noise).

Broken rows are added to the good ones (share ``bad_rows`` of each table): missing ids, NaN values,
bad times, bad weights, self-loops, exact duplicates, and unknown friends (``ghost-…``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from recsys import schema
from recsys.config import SyntheticSource
from recsys.sources.base import FILE_STRIDE, Piece, SourceAdapter
from recsys.sources.column_names import topic_words
from recsys.sources.files import InputFile
from recsys.sources.side_signals import (
    IMAGE,
    friends,
    images,
    item_attributes,
    item_studios,
    studio_owners,
    user_attributes,
    word_topics,
)
from recsys.sources.validate import Layout, check_rows, finish, raw_text
from recsys.sources.walks import walk
from recsys.sources.world import MECHANISMS, Array, World, world_of

START: Final = 1_704_067_200  # 2024-01-01T00:00:00Z
YEAR: Final = 365 * 86_400  # seconds
EVENT_TYPES: Final = ("view", "click", "purchase")
VALUES: Final = (1.0, 2.0, 5.0)
# shares of the types: of events by a signal, of noise events
_TYPE_SHARES: Final = ((0.60, 0.25, 0.15), (0.90, 0.08, 0.02))
ITEM_BUNDLE: Final = 250  # items that are generated together
_BLOCK_ROWS: Final = 200_000
_EVENT_BYTES: Final = 32  # approximate size of an event as a line of text
_TITLE_WORDS: Final = 3
_TAG_WORDS: Final = 5
_GENDERS: Final = ("female", "male", "other")  # the last is noise
# The first four are signals.
_COUNTRIES: Final = ("DE", "FR", "IN", "JP", "AT", "BR", "CL", "EE", "GH", "KE", "NZ", "UY")
_DEVICES: Final = ("desktop", "phone", "tablet")
_PEOPLE: Final = 200  # persons that items feature
_CITIES: Final = 12
_LAYOUTS: Final = {
    "events": Layout(schema.EVENTS),
    "items": Layout(
        schema.ITEMS,
        (
            ("title", pa.string()),
            ("tags", pa.string()),
            ("category", pa.string()),
            ("price", pa.float64()),
            ("labels", pa.list_(pa.int32())),
            ("image", pa.list_(pa.float32(), IMAGE)),
        ),
    ),
    "users": Layout(
        schema.USERS,
        (
            ("age", pa.float64()),
            ("gender", pa.string()),
            ("country", pa.string()),
            ("device", pa.string()),
        ),
    ),
    "social": Layout(schema.SOCIAL),
    "knowledge": Layout(schema.KNOWLEDGE),
}
_DAMAGE: Final[dict[str, tuple[dict[str, str], ...]]] = {
    "events": (
        {schema.USER_ID: ""},
        {schema.ITEM_ID: ""},
        {schema.VALUE: "inf"},
        {schema.TIMESTAMP: "not a time"},
        {},  # a duplicate
    ),
    "items": ({schema.ITEM_ID: ""}, {}),
    "users": ({schema.USER_ID: ""}, {}),
    "social": (
        {schema.DST_USER_ID: ""},
        {schema.DST_USER_ID: "@self"},
        {schema.DST_USER_ID: "@ghost"},
        {schema.WEIGHT: "inf"},
        {},
    ),
    "knowledge": ({schema.HEAD: ""}, {schema.RELATION: ""}, {schema.TAIL: ""}, {}),
}
# random streams in addition to those of the world
_STREAM: Final = {"events": 10, "items": 11, "users": 12, "social": 13, "knowledge": 14}


class SyntheticAdapter(SourceAdapter):
    """Generated data, which depend only on the configuration and its seed."""

    config: SyntheticSource

    @property
    def name(self) -> str:
        """The short name of the data set."""
        return "synthetic"

    def files(self) -> list[InputFile]:
        """All input files."""
        return []

    def size(self) -> int:
        """The approximate size of the events as text, in bytes."""
        return round(self.config.num_users * self.config.events_per_user) * _EVENT_BYTES

    def pieces(self) -> dict[str, list[Piece]]:
        """The pieces of all tables."""
        items, users = _num_item_bundles(self.config), world_of(self.config).num_bundles
        bundles = {table: items if table in ("items", "knowledge") else users for table in _LAYOUTS}
        return {table: _partitions(self.config, table, bundles[table]) for table in _LAYOUTS}


@dataclass(frozen=True)
class Partition:
    """A range of bundles of one table."""

    config: SyntheticSource
    table: str
    first: int
    stop: int

    def read(self) -> Iterator[pa.Table]:
        """Yield finished blocks."""
        world = world_of(self.config)
        make = _MAKERS[self.table]
        blocks: list[pa.Table] = []
        for bundle in range(self.first, self.stop):
            blocks.append(_block(world, self.table, bundle, make(world, bundle)))
            if bundle == self.stop - 1 or sum(block.num_rows for block in blocks) >= _BLOCK_ROWS:
                yield pa.concat_tables(blocks).combine_chunks()
                blocks = []


def item_id(number: Array) -> pa.Array:
    """The external id of item numbers."""
    return _names("i", number)


def user_id(number: Array) -> pa.Array:
    """The external id of user numbers."""
    return _names("u", number)


def entity_id(kind: str, number: Array) -> pa.Array:
    """The names of entities of a kind; items are ``work-…``."""
    return _names(f"{kind}-", number)


def _num_item_bundles(config: SyntheticSource) -> int:
    return -(-config.num_items // ITEM_BUNDLE)


def _partitions(config: SyntheticSource, table: str, num_bundles: int) -> list[Piece]:
    cuts = (
        np.linspace(0, num_bundles, min(config.num_partitions, num_bundles) + 1).round().astype(int)
    )
    return [
        Partition(config, table, int(a), int(b))
        for a, b in zip(cuts[:-1], cuts[1:], strict=True)
        if b > a
    ]


def _events(world: World, bundle: int) -> pa.Table:
    events = walk(world, bundle)
    rng = world.stream(_STREAM["events"], bundle)
    is_noise = (events.mechanism_E == MECHANISMS.index("noise")).astype(int)
    kind = (
        rng.random(len(is_noise))[:, None] > np.cumsum(_TYPE_SHARES, axis=1)[is_noise][:, :2]
    ).sum(axis=1)
    seconds = START + (events.times_E * YEAR).astype(np.int64)
    return pa.table(
        {
            schema.USER_ID: user_id(events.users_E),
            schema.ITEM_ID: item_id(events.items_E),
            schema.TIMESTAMP: pa.array(seconds),
            schema.EVENT_TYPE: pa.array(EVENT_TYPES).take(pa.array(kind)),
            schema.VALUE: pa.array(np.array(VALUES)[kind]),
        }
    )


def _items(world: World, bundle: int) -> pa.Table:
    first, stop = bundle * ITEM_BUNDLE, min((bundle + 1) * ITEM_BUNDLE, world.config.num_items)
    names, words = topic_words(world.config.num_topics)
    num_words = _TITLE_WORDS + _TAG_WORDS
    topics = word_topics(world, first, stop, num_words + 1)
    rng = world.stream(_STREAM["items"], bundle)
    numbers = rng.integers(1 << 30, size=topics.shape)
    texts = [
        [words[topic][number % len(words[topic])] for topic, number in zip(row, at, strict=True)]
        for row, at in zip(
            topics[:, :num_words].tolist(), numbers[:, :num_words].tolist(), strict=True
        )
    ]
    price, labels = item_attributes(world, first, stop)
    image = pa.array(images(world, first, stop).ravel())
    return pa.table(
        {
            schema.ITEM_ID: item_id(np.arange(first, stop)),
            schema.ENTITY_ID: entity_id("work", np.arange(first, stop)),
            "title": pa.array([" ".join(row[:_TITLE_WORDS]).capitalize() for row in texts]),
            "tags": pa.array([", ".join(dict.fromkeys(row[_TITLE_WORDS:])) for row in texts]),
            "category": pa.array([names[topic] for topic in topics[:, num_words].tolist()]),
            "price": pa.array(price),
            "labels": pa.array(labels.tolist(), pa.list_(pa.int32())),
            "image": pa.FixedSizeListArray.from_arrays(image, IMAGE),
        }
    )


def _users(world: World, bundle: int) -> pa.Table:
    users = world.bundle_users(bundle)
    rng = world.stream(_STREAM["users"], bundle)
    age, gender, country = user_attributes(world, bundle)
    return pa.table(
        {
            schema.USER_ID: user_id(users),
            "age": pa.array(age, from_pandas=True),
            "gender": pa.array(_GENDERS).take(pa.array(gender, mask=gender < 0)),
            "country": pa.array(_COUNTRIES).take(pa.array(country, mask=country < 0)),
            "device": (
                pa.array(_DEVICES).take(pa.array(rng.integers(len(_DEVICES), size=len(users))))
            ),
        }
    )


def _social(world: World, bundle: int) -> pa.Table:
    source, target = friends(world, bundle)
    return pa.table(
        {
            schema.SRC_USER_ID: user_id(source),
            schema.DST_USER_ID: user_id(target),
            schema.WEIGHT: pa.array(np.ones(len(source))),
        }
    )


def _knowledge(world: World, bundle: int) -> pa.Table:
    """The triples of a bundle's items, and of its share of the studios."""
    first, stop = bundle * ITEM_BUNDLE, min((bundle + 1) * ITEM_BUNDLE, world.config.num_items)
    num_studios, num_bundles = len(world.owner_S), _num_item_bundles(world.config)
    start, end = (number * num_studios // num_bundles for number in (bundle, bundle + 1))
    rng = world.stream(_STREAM["knowledge"], bundle)
    works, studios = np.arange(first, stop), np.arange(start, end)
    people = rng.integers(_PEOPLE, size=len(works))
    cities = rng.integers(_CITIES, size=len(studios))
    triples = (
        (("work", works), "made by", ("studio", item_studios(world, first, stop))),
        (("work", works), "features", ("person", people)),
        (("studio", studios), "owned by", ("group", studio_owners(world, start, end))),
        (("studio", studios), "based in", ("city", cities)),
    )
    return pa.concat_tables(
        pa.table(
            {
                schema.HEAD: entity_id(*head),
                schema.RELATION: pa.repeat(pa.scalar(relation), len(head[1])),
                schema.TAIL: entity_id(*tail),
            }
        )
        for head, relation, tail in triples
    ).combine_chunks()


_MAKERS: Final = {
    "events": _events,
    "items": _items,
    "users": _users,
    "social": _social,
    "knowledge": _knowledge,
}


def _block(world: World, table: str, bundle: int, good: pa.Table) -> pa.Table:
    """Good rows, then broken ones, checked with the same rules as all sources."""
    layout, base = _LAYOUTS[table], bundle * FILE_STRIDE
    file = f"{table}-{bundle:05d}"
    raws = [good, _broken(world, table, bundle, good)]
    blocks: list[pa.Table] = []
    first = 1
    for raw in raws:
        if raw.num_rows == 0 and blocks:
            continue
        checked = check_rows(raw, layout)
        rows = np.arange(first, first + raw.num_rows, dtype=np.int64)
        provenance: dict[str, Any] = {
            schema.FILE: pa.repeat(pa.scalar(file), raw.num_rows),
            schema.ROW: pa.array(rows),
            schema.ORDER: pa.array(rows + base),
            schema.RAW: raw_text(raw, checked.column(schema.REASON), ","),
        }
        blocks.append(finish(checked, layout, provenance))
        first += raw.num_rows
    return pa.concat_tables(blocks).combine_chunks()


def _broken(world: World, table: str, bundle: int, good: pa.Table) -> pa.Table:
    """Copies of good rows, each with one kind of damage of its table; all columns except lists are
    text.
    """
    rng = world.stream(_STREAM[table], (1 << 40) + bundle)
    count = int(rng.binomial(good.num_rows, world.config.bad_rows))
    copies = good.take(pa.array(rng.integers(good.num_rows, size=count)))
    lists = [name for name in good.column_names if pa.types.is_nested(good.schema.field(name).type)]
    rows = copies.drop_columns(lists).to_pylist()
    for number, row in enumerate(rows):
        damage = _DAMAGE[table][number % len(_DAMAGE[table])]
        for column, value in damage.items():
            special = {"@self": row.get(schema.SRC_USER_ID), "@ghost": f"ghost-{bundle}-{number}"}
            row[column] = special.get(value, value)

    def text(name: str) -> pa.Array:
        return pa.array(
            [None if row[name] is None else str(row[name]) for row in rows], pa.string()
        )

    return pa.table(
        {name: copies.column(name) if name in lists else text(name) for name in good.column_names}
    )


def _names(prefix: str, number: Array) -> pa.Array:
    digits = np.char.zfill(number.astype(str), 6) if len(number) else np.array([], dtype=str)
    return pa.array(np.char.add(prefix, digits) if len(number) else digits, pa.string())

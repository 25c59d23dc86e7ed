"""A generated dataset as ``recsys prepare`` writes it, with every signal that a trained granularity
reads; and the same in memory, for many events.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Histories, Split
from recsys.data.history_table import history_schema
from recsys.data.manifest import Manifest

DAY = 86_400
TEXT_WIDTH, MEDIA_WIDTH, ENTITIES, RELATIONS = 16, 8, 40, 3


def generated(
    random: np.random.Generator, users: int, items: int, longest: int, first: int = 0
) -> Histories:
    """Histories of skewed lengths over popular and rare items, from dense user ``first`` on.

    Parameters
    ----------
    random : np.random.Generator
        Draws lengths and items.
    users, items : int
        How many there are.
    longest : int
        Most events of a user; the least is 4, the median about a third.
    first : int
        Dense id of the first user.
    """
    lengths = np.clip(random.lognormal(np.log(longest / 3), 0.7, users), 4, longest).astype(int)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    number = int(offsets[-1])
    splits = np.full(number, Split.TRAIN, dtype=np.uint8)
    splits[offsets[1:] - 2], splits[offsets[1:] - 1] = Split.VALID, Split.TEST
    place_E = np.arange(number) - np.repeat(offsets[:-1], lengths)
    return Histories(
        np.arange(first, first + users, dtype=np.int32),
        offsets.astype(np.int64),
        (items * random.random(number) ** 2).astype(np.int32),
        random.integers(2, size=number).astype(np.uint8),
        ((place_E + 1) * DAY + random.integers(DAY, size=number)).astype(np.int64),
        random.integers(1, 6, size=number).astype(np.float32),
        splits,
    )


def manifest(users: int, items: int, counts_SN: Array, shards: list[str], **rest: Any) -> Manifest:
    """The manifest of a generated dataset, whose events have an order and times."""
    known = {
        "text": {},
        **rest,
        "counts": {
            "users": users,
            "items": items,
            "events": int(counts_SN.sum()),
            **{split.name.lower(): int(counts_SN[split].sum()) for split in Split},
            **rest.get("counts", {}),
        },
    }
    return Manifest(
        content_hash="0123456789abcdef" * 4,
        name="generated",
        event_types=["view", "buy"],
        ordered=True,
        timed=True,
        split={"kind": "leave-last"},
        quarantined={},
        read={},
        shards=shards,
        timing={},
        **known,
    )


def counts(histories: Histories, items: int) -> Array:
    """Events of every split and item: [3, N]."""
    return np.stack(
        [np.bincount(histories.items_E[histories.splits_E == s], minlength=items) for s in Split]
    )


def write_dataset(
    folder: Path, users: int, items: int, longest: int, shards: int = 2
) -> PreparedDataset:
    """Write a dataset with texts, media, attributes, friends and triples."""
    random = np.random.default_rng(0)
    histories = generated(random, users, items, longest)
    counts_SN = counts(histories, items)
    names = []
    for number in range(shards):
        names.append(f"part-{number:05d}.parquet")
        _write_shard(
            folder / "histories" / names[-1], histories.take(np.arange(number, users, shards))
        )
    split_names = [split.name.lower() for split in Split]
    _write(folder / "items/counts.parquet", dict(zip(split_names, counts_SN, strict=True)))
    user_ids, item_ids = [f"u{i}" for i in range(users)], [f"i{i}" for i in range(items)]
    _write(folder / "vocab/users.parquet", {"user_id": user_ids})
    _write(folder / "vocab/items.parquet", {"item_id": item_ids})
    cities = [("rome", "oslo", "lima", None)[i] for i in random.integers(4, size=users)]
    ages = random.integers(18, 80, size=users).astype(float)
    _write(folder / "users/features.parquet", {"user_id": user_ids, "city": cities, "age": ages})
    genres = [("drama", "crime", "jazz")[i] for i in random.integers(3, size=items)]
    features = {"item_id": item_ids, "genre": genres, "title": item_ids, "text": item_ids}
    _write(folder / "items/features.parquet", features)
    _write(
        folder / "items/text_vectors.parquet",
        {"vector": _vectors(random, items, TEXT_WIDTH), "has_text": np.ones(items, dtype=bool)},
    )
    _write(folder / "items/media.parquet", {"image": _vectors(random, items, MEDIA_WIDTH)})
    extra = {**_write_friends(folder, random, users), **_write_triples(folder, random, items)}
    found = manifest(
        users,
        items,
        counts_SN,
        names,
        text={"model": "generated", "dimension": TEXT_WIDTH},
        media={"image": {"dimension": MEDIA_WIDTH}},
        counts={**extra, "items_with_text": items},
    )
    (folder / "manifest.json").write_text(found.dump())
    return PreparedDataset(str(folder))


class InMemory(PreparedDataset):
    """A dataset with histories only, which are not on disk."""

    def __init__(self, shards: Mapping[str, Histories], users: int, items: int) -> None:
        self.root, self._shards, self._counts_SN = "memory", shards, np.zeros((3, items), dtype=int)
        self.filesystem, self._base = pyarrow.fs.LocalFileSystem(), "/nonexistent"
        for shard in shards.values():
            self._counts_SN += counts(shard, items)
        self.manifest = manifest(users, items, self._counts_SN, list(shards))

    def shard(self, name: str) -> Histories:
        """The histories of one shard."""
        return self._shards[name]

    def item_counts_N(self, through: Split) -> Array:
        """Number of interactions of each item: [N] int64."""
        return np.asarray(self._counts_SN[: through + 1].sum(0))

    @staticmethod
    def of_size(events: int, items: int, longest: int, shards: int) -> InMemory:
        """A dataset of about this many events."""
        random, made, users = np.random.default_rng(0), {}, 0
        a_shard = max(1, int(events / shards / (longest * 0.42)))
        for number in range(shards):
            made[f"shard {number}"] = generated(random, a_shard, items, longest, users)
            users += a_shard
        return InMemory(made, users, items)


def _vectors(random: np.random.Generator, number: int, width: int) -> pa.Array:
    values = random.normal(size=number * width).astype(np.float16)
    return pa.FixedSizeListArray.from_arrays(pa.array(values, pa.float16()), width)


def _write(path: Path, columns: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)), path)


def _write_shard(path: Path, histories: Histories) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    offsets = pa.array(histories.offsets_U1)
    lists = {
        name: pa.LargeListArray.from_arrays(offsets, pa.array(values))
        for name, values in {
            "items": histories.items_E,
            "types": histories.types_E,
            "times": histories.times_E,
            "values": histories.values_E,
            "splits": histories.splits_E,
        }.items()
    }
    table = pa.table({"user": histories.users_U, **lists}, schema=history_schema(0))
    pq.write_table(table, path)


def _write_friends(folder: Path, random: np.random.Generator, users: int) -> dict[str, int]:
    ends = random.integers(users, size=(3 * users, 2))
    ends = ends[ends[:, 0] != ends[:, 1]]
    pairs = np.unique(np.concatenate([ends, ends[:, ::-1]]), axis=0).astype(np.int32)
    weight = np.ones(len(pairs), dtype=np.float32)
    columns = {"src": pairs[:, 0], "dst": pairs[:, 1], "weight": weight}
    _write(folder / "graphs/social.parquet", columns)
    return {"social_edges": len(pairs)}


def _write_triples(folder: Path, random: np.random.Generator, items: int) -> dict[str, int]:
    """Every item is an entity and has three triples with one of :data:`ENTITIES` other entities."""
    head = np.repeat(np.arange(items), 3).astype(np.int32)
    tail = (items + random.integers(ENTITIES, size=len(head))).astype(np.int32)
    relation = random.integers(RELATIONS, size=len(head)).astype(np.int32)
    columns = {"head": head, "relation": relation, "tail": tail}
    _write(folder / "graphs/knowledge.parquet", columns)
    _write(folder / "items/entities.parquet", {"entity": np.arange(items)})
    return {"triples": len(head), "entities": items + ENTITIES, "relations": RELATIONS}

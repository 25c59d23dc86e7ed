"""Hand-made prepared datasets, in the form of ``recsys prepare``, written with pyarrow alone; small
models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from recsys.config import build_config
from recsys.data.context_columns import ContextColumn
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.data.history_table import history_schema
from recsys.data.manifest import Manifest
from recsys.model import FrozenModel
from recsys.training.fresh_model import build_graphs, build_model

DAY = 86_400
Event = tuple[int, int, int, Split]  # item, event type, time in seconds, split


def write_dataset(
    folder: Path,
    histories: Sequence[Sequence[Event]],
    num_items: int,
    *,
    event_types: Sequence[str] = ("interact",),
    friends: Sequence[tuple[int, int]] = (),
    text_width: int = 0,
    ordered: bool = True,
    num_shards: int = 2,
    user_columns: Mapping[str, pa.Array] | None = None,
    item_columns: Mapping[str, pa.Array] | None = None,
    context: Sequence[ContextColumn] = (),
    codes: Sequence[Sequence[Sequence[int]]] = (),
    targets: Sequence[str] = (),
) -> PreparedDataset:
    """Write a dataset whose users are ``u0, u1, …`` and whose items are ``i0, i1, …``; user ``u``
    has ``histories[u]``.

    Users are distributed to the shards in turns, like buckets of a hash; users without events are
    in the vocabulary only. Text vectors are drawn from a fixed seed; the last item has none.
    ``codes[u]`` are the codes of the context columns of every event of user ``u``.
    """
    num_users = len(histories)
    users, items = [f"u{u}" for u in range(num_users)], [f"i{i}" for i in range(num_items)]
    _write(folder / "vocab/users.parquet", {"user_id": pa.array(users, pa.string())})
    _write(
        folder / "users/features.parquet",
        {"user_id": pa.array(users, pa.string()), **(user_columns or {})},
    )
    _write(folder / "vocab/items.parquet", {"item_id": pa.array(items, pa.string())})
    titles = pa.array([f"Title of {item}" for item in items])
    texts = pa.array([f"text about {item}" for item in items])
    features = {"item_id": pa.array(items), "text": texts, "title": titles, **(item_columns or {})}
    _write(folder / "items/features.parquet", features)
    counts = np.zeros((3, num_items), dtype=np.int64)
    for events in histories:
        for item, _, _, split in events:
            counts[split, item] += 1
    _write(
        folder / "items/counts.parquet",
        dict(zip(("train", "valid", "test"), map(pa.array, counts), strict=True)),
    )
    if text_width:
        _write_text(folder, num_items, text_width)
    if friends:
        pairs = sorted({*friends, *((b, a) for a, b in friends)})
        src, dst = (pa.array(column, pa.int32()) for column in zip(*pairs, strict=True))
        weight = pa.array(np.ones(len(pairs), dtype=np.float32))
        _write(folder / "graphs/social.parquet", {"src": src, "dst": dst, "weight": weight})
    shards = _write_histories(folder, histories, num_shards, codes if context else ())
    if context:
        (folder / "vocab/context.json").write_text(
            json.dumps([column.to_json() for column in context])
        )
    manifest = Manifest(
        content_hash="0123456789abcdef" * 4,
        name="handmade",
        counts={
            "users": num_users,
            "items": num_items,
            "events": int(counts.sum()),
            **{split.name.lower(): int(counts[split].sum()) for split in Split},
            "social_edges": len({*friends, *((b, a) for a, b in friends)}),
            "items_with_text": max(num_items - 1, 0) if text_width else 0,
        },
        event_types=list(event_types),
        ordered=ordered,
        timed=ordered,
        split={"kind": "leave-last"},
        quarantined={},
        read={"events": int(counts.sum())},
        shards=shards,
        text={"model": "handmade-lm", "dimension": text_width} if text_width else {},
        timing={},
        context=[column.name for column in context],
        targets=list(targets),
    )
    (folder / "manifest.json").write_text(manifest.dump())
    return PreparedDataset(str(folder))


def train_events(*items: int, kind: int = 0) -> list[Event]:
    """Training events a day apart."""
    return [(item, kind, (day + 1) * DAY, Split.TRAIN) for day, item in enumerate(items)]


def leave_last(*items: int, kind: int = 0) -> list[Event]:
    """Events a day apart: the last is test, the one before it validation."""
    events = train_events(*items, kind=kind)
    parts = [Split.TRAIN] * (len(items) - 2) + [Split.VALID, Split.TEST]
    return [
        (item, kind, time, part) for (item, kind, time, _), part in zip(events, parts, strict=True)
    ]


def leave_last_without_validation(*items: int) -> list[Event]:
    """Events a day apart: the last is test, all before it are training."""
    *earlier, last = train_events(*items)
    return [*earlier, (*last[:3], Split.TEST)]


def _write(path: Path, columns: dict[str, pa.Array]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def _write_text(folder: Path, num_items: int, width: int) -> None:
    vectors = np.random.default_rng(7).normal(size=(num_items, width)).astype(np.float16)
    vectors[-1] = 0
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float16()), width)
    has_text = pa.array(np.arange(num_items) < num_items - 1)
    _write(folder / "items/text_vectors.parquet", {"vector": column, "has_text": has_text})


def _write_histories(
    folder: Path,
    histories: Sequence[Sequence[Event]],
    num_shards: int,
    codes: Sequence[Sequence[Sequence[int]]],
) -> list[str]:
    (folder / "histories").mkdir(parents=True, exist_ok=True)
    names = []
    for shard in range(num_shards):
        rows = [user for user in range(shard, len(histories), num_shards) if histories[user]]
        if not rows:
            continue
        columns: dict[str, list[Any]] = {
            "user": rows,
            "items": [[item for item, *_ in histories[user]] for user in rows],
            "types": [[kind for _, kind, _, _ in histories[user]] for user in rows],
            "times": [[time for _, _, time, _ in histories[user]] for user in rows],
            "values": [[1.0] * len(histories[user]) for user in rows],
            "splits": [[int(event[3]) for event in histories[user]] for user in rows],
        }
        if codes:
            columns["context"] = [
                [code for event in codes[user] for code in event] for user in rows
            ]
        names.append(f"part-{shard:05d}.parquet")
        pq.write_table(
            pa.table(columns, schema=history_schema(int(bool(codes)))),
            folder / "histories" / names[-1],
        )
    return names


ITEMS = 12
HISTORIES = [
    leave_last(0, 1, 2, 3, 4),
    leave_last(2, 3, 5, 6, kind=1),
    train_events(1, 3, 7),
    [],  # in the vocabulary only; a friend of u0
    leave_last(8, 9, 0),
    [],  # no data at all
]


def small_world(folder: Path, ordered: bool = True) -> PreparedDataset:
    """Six users, twelve items, two event types, friends u0–u3 and u1–u2; i10 and i11 have no
    training events."""
    return write_dataset(
        folder,
        HISTORIES,
        ITEMS,
        event_types=("view", "buy"),
        friends=((0, 3), (1, 2)),
        text_width=6,
        ordered=ordered,
    )


def small_model(
    dataset: PreparedDataset, *, through: Split = Split.VALID, fusion: str = "gated"
) -> FrozenModel:
    """A frozen model with random weights and every granularity that the dataset supports."""
    torch.manual_seed(0)
    enabled = {"enabled": True}
    granularities = {name: dict(enabled) for name in ("behaviour", "collaborative", "social")}
    granularities["stratum"] = {**enabled, "num_strata": 2}
    granularities["collaborative"]["user_embedding"] = not dataset.manifest.ordered
    if dataset.manifest.ordered:
        granularities["evolution"] = dict(enabled)
    config = build_config(
        {
            "data": {"dir": dataset.root},
            "model": {
                "width": 8,
                "max_history": 4,
                "item": {"init_std": 0.5},
                "granularities": granularities,
                "fusion": {"kind": fusion},
            },
        }
    )
    model = build_model(config.model, config.train, dataset, through)
    with torch.no_grad():  # some tables start at zero, which would hide their effect
        for parameter in model.encoders.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        graphs = build_graphs(dataset, through, model)
        items, _ = model.view(graphs)
        for _, module in model.encoders.each():
            if module.refit_due(0):
                module.refit(graphs, items, 0)
    return model.freeze(graphs)

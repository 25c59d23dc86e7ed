"""Compare what ``recsys init`` found in a generated shop with the truth of the generator."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.shop_files import Shop
from recsys import schema
from recsys.config import DataConfig, EvaluateConfig, load_config
from recsys.sources import open_source
from recsys.sources.base import read_all

_TABLES: Final = ("items", "users", "social")
_FEW_REPEATS, _MANY_REPEATS = 0.08, 0.15  # shares of the targets; between them either is right


def misread(configuration: Path, shop: Shop) -> list[str]:
    """One line for each mistake of ``init``; empty if there is none."""
    config = load_config(configuration)
    tables = {
        name: read_all(pieces) for name, pieces in open_source(config.data.source).pieces().items()
    }
    tables = {
        name: table.filter(pc.is_null(table.column(schema.REASON)))
        for name, table in tables.items()
    }
    return [
        *_of_events(tables["events"], config.data, config.evaluate, shop),
        *_of_tables(tables, shop),
        *_of_columns(tables, config.data, shop),
    ]


def _of_events(
    events: pa.Table, data: DataConfig, evaluate: EvaluateConfig, shop: Shop
) -> list[str]:
    world, wrong = shop.world, []
    found = {key: _cells(events, key) for key in (schema.USER_ID, schema.ITEM_ID)}
    meant = {
        schema.USER_ID: [shop.users[user] for user in world.users.tolist()],
        schema.ITEM_ID: [shop.items[item] for item in world.items.tolist()],
    }
    times = events.column(schema.TIMESTAMP).cast(pa.timestamp("us")).cast(pa.int64())
    if times.null_count or sorted(time // 1_000_000 for time in times.to_pylist()) != sorted(
        shop.times
    ):
        wrong.append(f"times of the events ({shop.forms['times']})")
    for key, cells in meant.items():
        if Counter(cells) != Counter(found[key]):
            wrong.append(f"{key} of the events: {found[key][:3]} for {cells[:3]}")
    targets = list(data.targets)
    if shop.types and targets != [shop.types[-1]]:
        wrong.append(f"targets {targets} of types {list(shop.types)}")
    if data.split.kind != "temporal":
        wrong.append(f"split {data.split.kind} of real times over {world.plan.days} days")
    repeats = _repeats(data, shop)
    if not _FEW_REPEATS < repeats < _MANY_REPEATS and evaluate.exclude_seen == (
        repeats >= _MANY_REPEATS
    ):
        wrong.append(
            f"exclude_seen {evaluate.exclude_seen}, {repeats:.1%} of the targets were had before"
        )
    return wrong


def _repeats(data: DataConfig, shop: Shop) -> float:
    """Share of the test targets whose item the user had by such an event before the cut in time."""
    world = shop.world
    is_asked_E = world.kinds == (len(shop.types) - 1 if data.targets and shop.types else 0)
    cut = np.quantile(world.times[is_asked_E], 1 - float(data.split.test or 0.1), method="higher")
    pairs_E = world.users * world.plan.num_items + world.items
    asked_E = (
        is_asked_E & (world.times >= cut) & np.isin(world.users, world.users[world.times < cut])
    )
    return (
        float(np.isin(pairs_E[asked_E], pairs_E[is_asked_E & (world.times < cut)]).mean())
        if asked_E.any()
        else 0.0
    )


def _of_tables(tables: dict[str, pa.Table], shop: Shop) -> list[str]:
    """Check which tables were found, and their ids."""
    wrong = []
    wanted = {name for name in _TABLES if name in shop.columns}
    if lacking := wanted - set(tables):
        wrong.append(f"no table of {', '.join(sorted(lacking))}")
    if further := {name for name in tables if name in _TABLES} - wanted:
        wrong.append(f"a table of {', '.join(sorted(further))} that is not there")
    keys = {"items": (schema.ITEM_ID, shop.items), "users": (schema.USER_ID, shop.users)}
    for name, (key, ids) in keys.items():
        if name in wanted & set(tables):
            cells = set(_cells(tables[name], key))
            if not cells <= set(ids) or len(cells) < 0.5 * len(ids):
                wrong.append(f"{key} of {name}: {sorted(cells)[:3]}")
    if "social" in wanted & set(tables):
        people = {
            cell for key in ("src_user_id", "dst_user_id") for cell in _cells(tables["social"], key)
        }
        if not people <= set(shop.users):
            wrong.append(f"ids of friends: {sorted(people)[:3]}")
    return wrong


def _of_columns(tables: dict[str, pa.Table], data: DataConfig, shop: Shop) -> list[str]:
    """Check texts, triples, numbers and coordinates."""
    wrong = []
    items, meant = tables.get("items"), shop.columns["items"]
    text = list(data.text.fields or []) if data.text.enabled else []
    facts = set(data.knowledge.item_columns or [])
    if "text" in meant and meant["text"] not in text:
        wrong.append(f"{meant['text']} is no text")
    for name in ("category", "brand"):
        if name in meant and meant[name] not in facts:
            wrong.append(f"{meant[name]} is no fact")
    idle = {"image_url", "listed_on", "channel", "order_no"} & {*text, *facts}
    if idle:
        wrong.append(f"{', '.join(sorted(idle))} is read as text or fact")
    if items is not None:
        wrong += [
            f"{meant[name]} is no number"
            for name in ("price",)
            if name in meant and not _is(items, meant[name])
        ]
        places = [name for name in ("latitude", "longitude") if name in meant]
        wrong += [
            f"no {name}" for name in places if not (_is(items, name) or _is(items, meant[name]))
        ]
    if "users" in shop.columns and "users" in tables:
        age, region = shop.columns["users"]["age"], shop.columns["users"]["region"]
        wrong += [] if _is(tables["users"], age) else [f"{age} is no number"]
        wrong += (
            [] if region in tables["users"].column_names else [f"{region} of users is left out"]
        )
    return wrong


def _is(table: pa.Table, name: str) -> bool:
    """Whether a column of numbers exists."""
    if name not in table.column_names:
        return False
    kind = table.schema.field(name).type
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _cells(table: pa.Table, key: str) -> list[Any]:
    return [str(cell) for cell in table.column(key).to_pylist()]

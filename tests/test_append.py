"""Events appended day by day give the dataset that all of them at once give; nothing old is read again or forgotten."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.config import Config, build_config
from recsys.data.append import Least
from recsys.data.audit import audit
from recsys.data.content_hash import settings_of
from recsys.data.dataset import PreparedDataset
from recsys.data.prepare import prepare
from recsys.errors import ConfigError, DataError

DAY = 86_400
NUM_DAYS = 6
pytestmark = pytest.mark.usefixtures("ray_local")


def write_days(folder: Path, seed: int = 0) -> list[Path]:
    """Six days of a shop with new users and items every day, events that come late, and files that overlap."""
    random = np.random.default_rng(seed)
    rows: list[list[str]] = [[] for _ in range(NUM_DAYS)]
    for day in range(NUM_DAYS):
        for _ in range(160):
            user, item = int(random.integers(0, 30 + 4 * day)), int(random.integers(0, 20 + 2 * day))
            time = 1_600_000_000 + day * DAY + int(random.integers(0, DAY))
            kind, weather = ("buy", "rain") if random.random() < 0.4 else ("view", "sun")
            value = int(random.integers(1, 6))
            row = f"u{user},i{item},{time}.25,{kind},{value},{weather if random.random() < 0.9 else ''}"
            rows[day if random.random() > 0.05 else NUM_DAYS - 1].append(row)  # late: with the last file
        rows[day] += rows[day - 1][:10] if day else []  # overlap
        rows[day].append(f",i1,{1_600_000_000 + day * DAY},view,1,sun")  # without a user
    head = "user_id,item_id,timestamp,event_type,value,weather\n"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"day-{day}.csv" for day in range(NUM_DAYS)]
    for path, lines in zip(paths, rows, strict=True):
        path.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    return paths


def config_of(files: list[Path], place: Path, **data: Any) -> Config:
    source = {"kind": "canonical", "events": [str(path) for path in files], **data.pop("source", {})}
    settings = {"text": {"enabled": False}, "quarantine": {"max_share": 0.05}, "num_shards": 3, **data}
    return build_config({"data": {"dir": str(place), "source": source, **settings}})


def quietly(config: Config, **how: Any) -> PreparedDataset:
    return prepare(config, progress=lambda line: None, **how)


def day_by_day(files: list[Path], folder: Path, **data: Any) -> PreparedDataset:
    """The first two files at once, then one a day."""
    dataset = quietly(config_of(files[:2], folder / "0", **data))
    for number, file in enumerate(files[2:], 1):
        dataset = quietly(config_of([file], folder / str(number), **data), earlier=dataset)
    return dataset


def content(dataset: PreparedDataset) -> dict[str, Any]:
    """All that a dataset says, by external ids."""
    users, items = dataset.user_ids.to_pylist(), dataset.item_ids.to_pylist()
    types = dataset.manifest.event_types
    histories = {}
    for shard in dataset.shards():
        for row, user in enumerate(shard.users_U.tolist()):
            span = slice(shard.offsets_U1[row], shard.offsets_U1[row + 1])
            columns = (shard.times_E, shard.values_E, shard.splits_E)
            codes = [
                tuple(column.values[code - 2] if code > 1 else code for column, code in zip(dataset.context, row_codes))
                for row_codes in shard.context_EC[span].tolist()
            ]
            named = ([items[i] for i in shard.items_E[span]], [types[t] for t in shard.types_E[span]])
            histories[users[user]] = list(
                zip(*named, *(column[span].tolist() for column in columns), codes, strict=True)
            )
    counts = dataset.table("items/counts.parquet").to_pylist()
    features = {row["item_id"]: row for row in dataset.features.to_pylist()}
    manifest = dataset.manifest
    return {
        "histories": histories,
        "counts": dict(zip(items, counts, strict=True)),
        "features": features,
        "users": sorted(users),
        "said": {key: value for key, value in manifest.counts.items() if value},
        "split": manifest.split,
        "quarantined": manifest.quarantined,
        "dropped": manifest.dropped,
        "read": manifest.read,
        "types": sorted(types),
        "ordered": (manifest.ordered, manifest.timed),
    }


CASES: dict[str, dict[str, Any]] = {
    "leave-last": {},
    "temporal": {"split": {"kind": "temporal", "valid": 0.15, "test": 0.15}},
    "ratio": {"split": {"kind": "ratio"}},
    "without an order": {"order": "none", "split": {"kind": "ratio"}},
    "targets": {"targets": ["buy"]},
    "targets in time": {"targets": ["buy"], "split": {"kind": "temporal"}},
    "cold users": {"split": {"kind": "leave-last", "cold_users": 0.3, "cold_keep": 2}},
    "a smallest value": {"min_value": 2},
    "k-core": {"min_user_events": 3, "min_item_events": 3},
    "duplicates kept": {"duplicates": "keep"},
}


@pytest.mark.parametrize("name", CASES)
def test_day_by_day_is_all_at_once(name: str, tmp_path: Path) -> None:
    files = write_days(tmp_path / "days")
    once = quietly(config_of(files, tmp_path / "once", **CASES[name]))
    appended = day_by_day(files, tmp_path / "apart", **CASES[name])
    expected, found = content(once), content(appended)
    for part in expected:
        assert found[part] == expected[part], part
    audit(appended)
    assert len(appended.manifest.store["readings"]) == 5 and len(appended.manifest.ancestors) == 4

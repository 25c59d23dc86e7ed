"""Appending events day by day gives the same dataset as all events at once; no old file is read
again or lost.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.shop_month import days_of, plan, write_export, write_items
from benchmarks.shop_world import world_of
from recsys.config import Config, build_config
from recsys.data.dataset import PreparedDataset
from recsys.data.forgotten import Forgotten
from recsys.data.histories import Array, Split
from recsys.data.leak_audit import audit
from recsys.errors import ConfigError, DataError
from recsys.evaluation.baselines import Popularity
from recsys.evaluation.bootstrap import intervals
from recsys.evaluation.validation import Validator
from recsys.preparation.appendable import Least
from recsys.preparation.content_hash import settings_of
from recsys.preparation.dataset_writer import folder_of
from recsys.preparation.event_store import StoredEvents
from recsys.preparation.forget import forget_users
from recsys.preparation.prepare import prepare
from recsys.training.context import TrainContext
from recsys.training.phases import fit

DAY = 86_400
NUM_DAYS = 6
pytestmark = pytest.mark.usefixtures("ray_local")


def write_days(folder: Path, seed: int = 0) -> list[Path]:
    """Six days of a shop with new users and items every day, late events, and overlapping files."""
    random = np.random.default_rng(seed)
    rows: list[list[str]] = [[] for _ in range(NUM_DAYS)]
    for day in range(NUM_DAYS):
        for _ in range(160):
            user = int(random.integers(0, 30 + 4 * day))
            item = int(random.integers(0, 20 + 2 * day))
            time = 1_600_000_000 + day * DAY + int(random.integers(0, DAY))
            kind, weather = ("buy", "rain") if random.random() < 0.4 else ("view", "sun")
            value = int(random.integers(1, 6))
            known = weather if random.random() < 0.9 else ""
            row = f"u{user},i{item},{time}.25,{kind},{value},{known}"
            # late: in the last file
            rows[day if random.random() > 0.05 else NUM_DAYS - 1].append(row)
        rows[day] += rows[day - 1][:10] if day else []  # overlap
        rows[day].append(f",i1,{1_600_000_000 + day * DAY},view,1,sun")  # without a user
    head = "user_id,item_id,timestamp,event_type,value,weather\n"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"day-{day}.csv" for day in range(NUM_DAYS)]
    for path, lines in zip(paths, rows, strict=True):
        path.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    return paths


def config_of(files: list[Path], place: Path, **data: Any) -> Config:
    source = {
        "kind": "canonical",
        "events": [str(path) for path in files],
        **data.pop("source", {}),
    }
    settings = {
        "text": {"enabled": False},
        "quarantine": {"max_share": 0.05},
        "num_shards": 3,
        **data,
    }
    return build_config({"data": {"dir": str(place), "source": source, **settings}})


def quietly(config: Config, **how: Any) -> PreparedDataset:
    return prepare(config, progress=lambda line: None, **how)


def day_by_day(files: list[Path], folder: Path, **data: Any) -> PreparedDataset:
    """Prepare the first two files together, then append one file per day."""
    dataset = quietly(config_of(files[:2], folder / "0", **data))
    for number, file in enumerate(files[2:], 1):
        dataset = quietly(config_of([file], folder / str(number), **data), earlier=dataset)
    return dataset


def named_codes(dataset: PreparedDataset, codes: list[int]) -> tuple[Any, ...]:
    """Context codes as values."""
    pairs = zip(dataset.context, codes, strict=True)
    return tuple(
        column.values[code - 2] if column.values and code > 1 else code for column, code in pairs
    )


def content(dataset: PreparedDataset) -> dict[str, Any]:
    """The content of a dataset by external ids."""
    users, items = dataset.user_ids.to_pylist(), dataset.item_ids.to_pylist()
    types = dataset.manifest.event_types
    histories = {}
    for shard in dataset.shards():
        for row, user in enumerate(shard.users_U.tolist()):
            span = slice(shard.offsets_U1[row], shard.offsets_U1[row + 1])
            columns = (shard.times_E, shard.values_E, shard.splits_E)
            codes = [
                named_codes(dataset, row_codes) for row_codes in shard.context_EC[span].tolist()
            ]
            named = (
                [items[i] for i in shard.items_E[span]],
                [types[t] for t in shard.types_E[span]],
            )
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
        "totals": {key: value for key, value in manifest.counts.items() if value},
        "split": manifest.split,
        "quarantined": manifest.quarantined,
        "dropped": manifest.dropped,
        "read": manifest.read,
        "types": sorted(types),
        "ordered": (manifest.ordered, manifest.timed),
    }


CASES: dict[str, dict[str, Any]] = {
    "leave-last": {},
    "leave-last-basket": {"split": {"kind": "leave-last-basket"}},
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
def test_appending_day_by_day_equals_all_events_at_once(name: str, tmp_path: Path) -> None:
    files = write_days(tmp_path / "days")
    once = quietly(config_of(files, tmp_path / "once", **CASES[name]))
    appended = day_by_day(files, tmp_path / "apart", **CASES[name])
    expected, found = content(once), content(appended)
    for part in expected:
        assert found[part] == expected[part], part
    audit(appended)
    assert len(appended.manifest.store["readings"]) == 5 and len(appended.manifest.ancestors) == 4


def ndcg_by_query(dataset: PreparedDataset) -> tuple[Array, Array]:
    """ndcg@10 of every validation query, for a model trained on a dataset and for popularity."""
    config = build_config(
        {
            "model": {
                "width": 32,
                "max_history": 20,
                "item": {"text": False},
                "granularities": {"evolution": {"enabled": True}},
            },
            "train": {
                "epochs": 8,
                "batch_size": 64,
                "lr": 0.01,
                "metric": "ndcg@10",
                "refit": False,
                "threads": 1,
            },
            "evaluate": {"ks": [10]},
        }
    )
    validator, queries = (
        Validator.of(config.train, config.evaluate),
        dataset.histories().queries(Split.VALID),
    )
    trained = fit(config, dataset, validator, TrainContext())
    popularity = Popularity(config)
    popularity.fit(dataset.histories().through(Split.TRAIN), dataset.num_items)
    return validator(trained.frozen, queries), validator(popularity, queries)


@pytest.mark.slow
def test_model_after_daily_appends_is_as_good_as_after_one_prepare(
    tmp_path: Path, one_thread: None
) -> None:
    """The dense ids differ, so the models differ by chance, but by less than the interval of
    either.
    """
    world = world_of(plan())
    write_items(world, tmp_path)
    files = write_export(days_of(world)[:18], tmp_path / "days")
    settings: dict[str, Any] = {
        "split": {"kind": "temporal"},
        "source": {"items": [str(tmp_path / "items.csv")]},
    }
    once = quietly(config_of(files, tmp_path / "once", **copy.deepcopy(settings)))
    daily = quietly(config_of(files[:14], tmp_path / "0", **copy.deepcopy(settings)))
    for number, file in enumerate(files[14:], 1):
        daily = quietly(
            config_of([file], tmp_path / str(number), **copy.deepcopy(settings)), earlier=daily
        )
    assert content(daily)["histories"] == content(once)["histories"]
    assert daily.user_ids.to_pylist() != once.user_ids.to_pylist()
    (whole, popular), (appended, _) = (ndcg_by_query(dataset) for dataset in (once, daily))
    low, high = intervals({"ndcg@10": whole}, 1000, 0)["ndcg@10"]
    assert low > popular.mean() + 0.03, "the model has learned something"
    assert len(appended) == len(whole) and low < appended.mean() < high


def test_only_touched_users_are_written_again(tmp_path: Path) -> None:
    files = write_days(tmp_path / "days")
    before = quietly(config_of(files[:5], tmp_path / "before"))
    head, row = files[5].read_text().splitlines()[:2]
    (tmp_path / "one.csv").write_text(f"{head}\n{row}\n")
    after = quietly(config_of([tmp_path / "one.csv"], tmp_path / "after"), earlier=before)
    ((base, newer),) = after.manifest.renewed.items()
    assert len(newer) == 1 and len(after.history_file(newer[0])) == 1
    assert len(after.shard(base)) - len(before.shard(base)) in (0, 1)
    old, linked = (
        folder / "histories" / base for folder in (tmp_path / "before", tmp_path / "after")
    )
    assert os.path.samefile(old, linked), "the other histories are the same file"


def test_shard_with_many_touched_users_is_written_again(tmp_path: Path) -> None:
    files = write_days(tmp_path / "days")
    appended = day_by_day(files, tmp_path / "apart")
    assert not any(appended.manifest.renewed.values()), (
        "each day touches more than half of the users"
    )
    audit(appended)


def test_shard_with_many_newer_files_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.preparation.append._MOST_FILES", 2)
    files = write_days(tmp_path / "days")
    dataset = quietly(config_of(files[:5], tmp_path / "before"))
    head, numbers = files[5].read_text().splitlines()[0], []
    for second in range(3):
        file = tmp_path / f"second-{second}.csv"
        file.write_text(f"{head}\nu1,i1,{1_600_900_000 + second},view,1,sun\n")
        dataset = quietly(config_of([file], tmp_path / str(second)), earlier=dataset)
        numbers.append(sum(len(newer) for newer in dataset.manifest.renewed.values()))
        audit(dataset)
    assert numbers == [1, 2, 0]


def test_old_files_are_not_read_again(tmp_path: Path) -> None:
    """Old files may be deleted; a file with another name or next to new ones is recognised by its
    content.
    """
    files = write_days(tmp_path / "days")
    before = quietly(config_of(files[:5], tmp_path / "before"))
    copy = tmp_path / "days/copy.csv"
    shutil.copyfile(files[4], copy)
    for file in files[:5]:
        file.unlink()
    after = quietly(config_of([copy, files[5]], tmp_path / "after"), earlier=before)
    assert (
        after.manifest.read["events"] - before.manifest.read["events"]
        == len(files[5].read_text().splitlines()) - 1
    )
    with pytest.raises(DataError, match=r"no new events: .*after has read all named"):
        quietly(config_of([copy, files[5]], tmp_path / "again"), earlier=after)


def test_files_that_arrive_or_grow_during_a_prepare_are_read_by_the_next_one(
    tmp_path: Path,
) -> None:
    """The manifest records the files as they were when they were read, not when the dataset was
    complete.
    """
    files, folder = write_days(tmp_path / "days"), tmp_path / "arrived"
    folder.mkdir()
    for file in files[:4]:
        shutil.copyfile(file, folder / file.name)
    grown, line = folder / files[3].name, "u1,i1,1600900000,view,1,sun\n"

    def arrive(printed: str) -> None:
        if printed.startswith("histories:"):
            shutil.copyfile(files[4], folder / files[4].name)
            grown.write_text(grown.read_text() + line)

    before = prepare(config_of([folder], tmp_path / "before"), progress=arrive)
    (reading,) = before.manifest.store["readings"]
    assert [file["name"] for file in reading["files"]] == [file.name for file in files[:4]]
    after = quietly(config_of([folder], tmp_path / "after"), earlier=before)
    once = quietly(config_of([folder], tmp_path / "once"))
    assert content(after)["histories"] == content(once)["histories"]


@pytest.mark.parametrize("name", ["leave-last", "temporal"])
def test_file_of_an_earlier_day_is_appended(name: str, tmp_path: Path) -> None:
    """A missing day is appended last, and its events are sorted by time; cut-offs may move back."""
    files = write_days(tmp_path / "days")
    late = [*files[:2], *files[3:], files[2]]
    found = day_by_day(late, tmp_path / "apart", **CASES[name])
    expected = quietly(config_of(files, tmp_path / "once", **CASES[name]))
    assert content(found)["totals"] == content(expected)["totals"]
    assert content(found)["histories"] == content(expected)["histories"]
    assert found.manifest.split == expected.manifest.split


def test_ids_keep_their_numbers_when_items_and_values_disappear(tmp_path: Path) -> None:
    """The window moves, the catalogue lists only current items, and the newest file lacks a context
    column.
    """
    files = write_days(tmp_path / "days")
    for name, kept in (("all", range(40)), ("today", range(3, 40))):
        rows = [f"i{item},title {item}" for item in kept]
        (tmp_path / f"{name}.csv").write_text("item_id,title\n" + "\n".join(rows) + "\n")
    lines = [",".join(line.split(",")[:5]) for line in files[5].read_text().splitlines()]
    files[5].write_text("\n".join(lines) + "\n")
    settings: dict[str, Any] = {"context": ["weather"], "quarantine": {"max_share": 1.0}}
    items = {"items": [str(tmp_path / "all.csv")]}
    before = quietly(config_of(files[:5], tmp_path / "before", source=items, **settings))
    items = {"items": [str(tmp_path / "today.csv")]}
    window: dict[str, Any] = {"from": "2020-09-15T00:00:00"}  # after the second day
    after = quietly(
        config_of([files[5]], tmp_path / "after", source=items, **settings, **window),
        earlier=before,
    )
    assert after.item_ids.to_pylist()[: before.num_items] == before.item_ids.to_pylist()
    assert after.user_ids.to_pylist()[: before.num_users] == before.user_ids.to_pylist()
    titles = dict(
        zip(after.item_ids.to_pylist(), after.features.column("title").to_pylist(), strict=True)
    )
    assert titles["i1"] == "title 1", "known attributes of an item stay"
    assert [column.values for column in after.context] == [
        column.values for column in before.context
    ]
    assert after.manifest.dropped["events"]["before data.from"] > 0
    audit(after)


def test_item_added_to_the_catalogue_later_keeps_its_events(tmp_path: Path) -> None:
    files = write_days(tmp_path / "days")
    for name, number in (("early", 25), ("late", 40)):
        rows = "\n".join(f"i{item},title {item}" for item in range(number))
        (tmp_path / f"{name}.csv").write_text(f"item_id,title\n{rows}\n")
    settings = {"quarantine": {"max_share": 1.0}}
    sources = [{"items": [str(tmp_path / f"{name}.csv")]} for name in ("early", "late")]
    before = quietly(config_of(files[:5], tmp_path / "before", source=sources[0], **settings))
    assert before.manifest.quarantined["events"]["unknown item"] > 0
    after = quietly(
        config_of(files[5:], tmp_path / "after", source=sources[1], **settings), earlier=before
    )
    once = quietly(config_of(files, tmp_path / "once", source=sources[1], **settings))
    assert content(after) == content(once)


def test_fewer_events_than_before_are_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    files = write_days(tmp_path / "days")
    before = quietly(config_of(files[:5], tmp_path / "data"))
    config = config_of(files[5:], tmp_path / "data")
    events = before.manifest.counts["events"]
    user_rows = "\n".join(
        f"{user},i1,1600900000,view,1,sun" for user in before.user_ids.to_pylist()
    )
    item_rows = "\n".join(
        f"u1,{item},1600900001,view,1,sun" for item in before.item_ids.to_pylist()
    )
    files[5].write_text(f"{files[4].read_text().splitlines()[0]}\n{user_rows}\n{item_rows}\n")
    with pytest.raises(
        DataError, match=rf"the parent model has {events:,}: .*--events FILE.*--replace"
    ):
        quietly(config, base=before.vocabulary(), least=Least(events))
    assert PreparedDataset(str(tmp_path / "data")).manifest == before.manifest
    replaced = quietly(config, base=before.vocabulary(), least=Least(events, replace=True))
    assert replaced.manifest.counts["events"] < events and replaced.num_users == before.num_users


def test_prepare_that_would_lose_appended_files_is_refused(tmp_path: Path) -> None:
    files = write_days(tmp_path / "days")
    dataset = quietly(config_of(files[:2], tmp_path / "data"))
    dataset = quietly(config_of(files[2:], tmp_path / "data"), earlier=dataset)
    assert len(dataset.manifest.store["readings"]) == 2
    with pytest.raises(
        DataError,
        match=r"data has 4 appended files of events that data.source does not name, .*day-2.csv",
    ):
        quietly(config_of(files[:2], tmp_path / "data"))
    assert (
        quietly(config_of(files, tmp_path / "data")).manifest.counts["events"]
        == dataset.manifest.counts["events"]
    )


def test_differing_settings_are_named(tmp_path: Path) -> None:
    files = write_days(tmp_path / "days")
    before = quietly(config_of(files[:5], tmp_path / "before"))
    with pytest.raises(ConfigError, match=r"data\.context was \[\], is now \['weather'\]"):
        quietly(config_of(files[5:], tmp_path / "after", context=["weather"]), earlier=before)
    kept = quietly(config_of(files[:5], tmp_path / "without", keep_events=False))
    assert not kept.manifest.store and not (tmp_path / "without/events").exists()
    temporal = {"split": {"kind": "temporal"}}
    first = quietly(config_of(files[:5], tmp_path / "first", **temporal))
    last = quietly(
        config_of(files[5:], tmp_path / "last", keep_events=False, **temporal), earlier=first
    )
    assert not last.manifest.store and not (tmp_path / "last/events").exists()
    with pytest.raises(ConfigError, match="keeps no events"):
        quietly(config_of(files[5:], tmp_path / "after"), earlier=kept)


@pytest.mark.parametrize(
    "spelling", ["relative", "absolute", "slash", "link", "file", "glob", "moved"]
)
def test_dataset_is_recognised_by_any_spelling_of_its_path(
    spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "days"
    write_days(folder)
    place = tmp_path / "data"
    first = quietly(config_of([folder], place))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(folder)
    if spelling == "moved":
        shutil.copytree(folder, tmp_path / "elsewhere")
    spelled = {
        "relative": "days",
        "absolute": f"{folder}/../days",
        "slash": f"{folder}/",
        "link": "link",
        "file": f"file://{folder}",
        "glob": "./days/day-*.csv",
        "moved": "elsewhere",
    }[spelling]
    config = config_of([Path(spelled)], place)
    config.data.source.events = [spelled]  # type: ignore[union-attr]
    lines: list[str] = []
    again = prepare(config, progress=lines.append)
    assert again.manifest.content_hash == first.manifest.content_hash and "up to date" in lines[0]
    assert json.loads(json.dumps(settings_of(config.data, config.seed))) == first.manifest.settings


@pytest.mark.parametrize("name", ["leave-last", "temporal", "k-core"])
def test_forgotten_users_in_newer_files_are_left_out(name: str, tmp_path: Path) -> None:
    files, gone = write_days(tmp_path / "days"), ["u1", "u7"]
    forgotten, place = Forgotten().having(gone), str(tmp_path / "list.json")
    before = quietly(config_of(files[:3], tmp_path / "before", **CASES[name]))
    forgotten.write(place)
    expected = content(quietly(config_of(files, tmp_path / "once", forgotten=place, **CASES[name])))
    numbers = [before.user_ids.to_pylist().index(user) for user in gone]
    rest = forget_users(
        before, numbers, forgotten, config_of(files[:3], tmp_path / "before").data
    ).dataset
    settings = config_of(files[3:], tmp_path / "after", forgotten=place, **CASES[name])
    lines: list[str] = []
    after = prepare(settings, progress=lines.append, earlier=rest)
    rows = [row for file in files[3:] for row in file.read_text().splitlines()[1:]]
    number = sum(row.split(",")[0] in gone for row in rows)
    assert number and f"left out {number:,} rows of events of forgotten users" in lines
    found = content(after)
    for part in ("histories", "counts", "users", "totals", "split", "types", "ordered"):
        assert found[part] == expected[part], part
    assert after.manifest.forgotten["users"] == forgotten.to_json()
    audit(after)
    kept = [StoredEvents(folder_of(after), bucket, (0, 1)).rows() for bucket in range(3)]
    assert not {*gone} & {
        user for rows in kept if rows for user in rows.column("user_id").to_pylist()
    }


def test_newer_files_need_the_key_of_the_earlier_dataset(tmp_path: Path) -> None:
    files, key = write_days(tmp_path / "days"), tmp_path / "key"
    hidden = {"pseudonymise": {"key_file": str(key)}}
    key.write_text("a secret that is long enough to be one")
    expected = content(quietly(config_of(files, tmp_path / "once", **hidden)))
    before = quietly(config_of(files[:5], tmp_path / "before", **hidden))
    found = content(quietly(config_of(files[5:], tmp_path / "after", **hidden), earlier=before))
    assert found["histories"] == expected["histories"] and "u1" not in found["histories"]
    key.write_text("another secret that is long enough")
    for settings in (hidden, {}):
        with pytest.raises(ConfigError, match="pseudonyms of another key"):
            quietly(config_of(files[5:], tmp_path / "other", **settings), earlier=before)

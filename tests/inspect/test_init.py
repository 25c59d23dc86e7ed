"""`recsys init`: files in the form of well-known exports give a configuration that reads them,
without questions.
"""

from __future__ import annotations

import random
import shutil
import string
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml

from pipelines.cli import main
from recsys import schema
from recsys.config import Config, build_config
from recsys.config.yaml_reader import parse_yaml
from recsys.errors import UserError
from recsys.inspect import samples
from recsys.inspect.look import Look, look
from recsys.inspect.terminal_summary import summary_of
from recsys.sources import open_source
from recsys.sources.base import read_all
from recsys.sources.files import input_file
from tests import own_data as own

Captured = pytest.CaptureFixture[str]


def proposed(*files: Path | str) -> tuple[Look, Config, dict[str, pa.Table]]:
    """The inspected files, the configuration written for them, and the tables that its source
    reads.
    """
    found = look([str(file) for file in files])
    config = build_config(parse_yaml(found.draft.text(), "draft"), "draft")
    source = open_source(config.data.source)
    source.check()
    return found, config, {name: read_all(pieces) for name, pieces in source.pieces().items()}


def good(table: pa.Table) -> pa.Table:
    return table.filter(pc.is_null(table.column(schema.REASON)))


def share_known(table: pa.Table, key: str, events: pa.Table, of: str) -> float:
    ids = pc.unique(good(events).column(of))
    return float(pc.mean(pc.is_in(good(table).column(key), value_set=ids).cast(pa.int8())).as_py())


# ------------------------------------------------------------------------------------------- shapes


def test_movielens_100k_is_recognised(tmp_path: Path) -> None:
    files = own.movielens_100k(tmp_path)
    _, config, tables = proposed(*files)
    assert good(tables["events"]).num_rows == tables["events"].num_rows
    assert set(tables) == {"events", "items", "users"}
    assert share_known(tables["items"], "item_id", tables["events"], "item_id") == 1.0
    assert share_known(tables["users"], "user_id", tables["events"], "user_id") == 1.0
    assert config.data.text.fields == ["title"]
    assert tables["items"].column("title")[0].as_py().endswith("café (1995)")
    assert pa.types.is_floating(tables["users"].schema.field("number_2").type), "an age is a number"
    assert tables["events"].column("value").to_pylist()[:1][0] in range(1, 6)
    assert tables["events"].column("timestamp").null_count == 0


def test_extracts_of_the_main_file_are_left_out(tmp_path: Path) -> None:
    own.movielens_100k(tmp_path / "ml")
    found, config, tables = proposed(tmp_path / "ml")
    assert [Path(path).name for path in config.data.source.events] == ["u.data"]  # type: ignore[union-attr]
    assert set(tables) == {"events", "items", "users"}
    ignored = {Path(path).name: why for path, why in found.found.ignored.items()}
    assert {"u1.base", "u1.test", "README", "u.genre"} <= set(ignored)
    assert "100% of its events are in u.data" in ignored["u1.base"]


def test_movielens_1m_is_recognised(tmp_path: Path) -> None:
    _, config, tables = proposed(*own.movielens_1m(tmp_path))
    assert set(tables) == {"events", "items", "users"}
    assert config.data.source.separator == "::"  # type: ignore[union-attr]
    assert config.data.text.fields == ["title", "categories"]
    assert config.data.knowledge.separators == {"categories": "|"}


def test_movielens_latest_is_recognised(tmp_path: Path) -> None:
    found, config, tables = proposed(*own.movielens_latest(tmp_path))
    assert set(tables) == {"events", "items"}
    assert config.data.text.fields == ["title", "genres"]
    assert {Path(path).name for path in found.found.ignored} == {"links.csv", "tags.csv"}
    assert config.data.split.kind == "temporal"
    assert config.data.min_value is None


def test_amazon_reviews_with_meta_are_recognised(tmp_path: Path) -> None:
    _, config, tables = proposed(*own.amazon(tmp_path))
    assert set(tables) >= {"events", "items"}
    data = config.data
    assert data.text.fields == [
        "title",
        "description",
        "brand",
        "categories",
    ], "no web address, no price"
    assert data.text.html == ["description"]
    assert set(data.knowledge.item_columns) == {"brand", "categories"}
    assert tables["items"].column("price").to_pylist()[0] > 1
    assert "Skin Care" in tables["items"].column("categories")[0].as_py()
    renamed = data.source.rename["events"]  # type: ignore[union-attr]
    assert renamed["unixReviewTime"] == "timestamp"
    assert renamed["overall"] == "value"


def test_retail_invoices_are_recognised(tmp_path: Path) -> None:
    """One file with everything; it provides the tables of items and users too."""
    _, config, tables = proposed(*own.invoices(tmp_path))
    source: Any = config.data.source
    assert source.item_columns == ["Description", "UnitPrice"]
    assert source.user_columns == ["Country"]
    assert source.time_format == "%d/%m/%Y %H:%M"
    assert source.decimal == ","
    assert config.data.min_value == 1.0, "cancellations do not count"
    assert not config.evaluate.exclude_seen
    assert 0.16 < config.data.quarantine.limit("events") < 0.4, "rows without a customer"
    assert good(tables["items"]).num_rows == 60
    assert all(2 <= price <= 300 for price in tables["items"].column("UnitPrice").to_pylist())
    assert good(tables["users"]).num_rows == 120
    assert config.data.split.kind == "temporal"


def test_check_ins_with_running_counts_as_ids_are_recognised(tmp_path: Path) -> None:
    """Users, places and categories are all 0, 1, 2, …: common ids distinguish them."""
    files = own.check_ins(tmp_path)
    _, config, tables = proposed(*random.Random(1).sample(files, 4))
    source: Any = config.data.source
    assert [Path(path).name for path in source.events] == ["a.txt"]
    assert source.columns == {
        "events": ["user_id", "item_id", "timestamp"],
        "items": ["item_id", "latitude", "longitude"],
        "social": ["src_user_id", "dst_user_id"],
        "knowledge": ["head", "tail"],
    }
    assert pa.types.is_floating(tables["items"].schema.field("latitude").type)
    assert not config.data.text.enabled, "a latitude is not text"


def test_shop_with_four_files_and_unusual_names_is_recognised(tmp_path: Path) -> None:
    _, config, tables = proposed(*own.shop(tmp_path))
    source: Any = config.data.source
    assert source.rename["events"] == {
        "customer_email": "user_id",
        "article_sku": "item_id",
        "ts": "timestamp",
        "what_type": "event_type",
    }
    assert source.rename["users"] == {"email": "user_id"}, "not the customer number"
    assert source.rename["social"] == {"follower": "src_user_id", "followee": "dst_user_id"}
    assert source.rename["items"] == {"sku": "item_id"}
    assert config.data.text.fields == ["label", "body", "breadcrumb"]
    assert config.data.targets == ["purchase"], "views and carts are input only"
    assert config.data.text.html == ["body"]
    assert tables["items"].column("price").null_count == 0, "12.5 EUR is a number"
    assert share_known(tables["social"], "dst_user_id", tables["events"], "user_id") > 0.9


def test_hive_folders_are_recognised(tmp_path: Path) -> None:
    _, config, tables = proposed(own.hive(tmp_path / "lake"))
    source: Any = config.data.source
    assert source.events == [str(tmp_path / "lake")], "one folder, not a list of its files"
    assert source.rename["events"]["action"] == "event_type"
    assert set(tables["events"].column("event_type").to_pylist()) == {"view", "purchase"}


def test_sequences_with_items_are_recognised(tmp_path: Path) -> None:
    _, config, tables = proposed(*own.sequences(tmp_path))
    assert config.data.source.kind == "sequences"
    assert (config.data.order, config.data.split.kind) == ("file", "leave-last")
    assert config.data.text.fields == ["title"]
    assert pa.types.is_floating(tables["items"].schema.field("price").type)


def test_recbole_is_recognised(tmp_path: Path) -> None:
    _, config, tables = proposed(own.recbole(tmp_path / "small"))
    assert config.data.source.kind == "recbole"
    assert set(tables) == {"events", "items", "users"}
    assert "genre" in (config.data.text.fields or [])


def test_hetrec_with_held_out_pairs_is_recognised(tmp_path: Path) -> None:
    folder = own.hetrec(tmp_path / "lastfm")
    pairs = folder / "splits" / "held-out.tsv"
    _, config, _ = proposed(folder, pairs)
    source: Any = config.data.source
    assert (source.kind, source.test_pairs) == ("hetrec-lastfm", str(pairs))
    assert config.data.split.kind == "given"
    assert config.data.text.event_types == ["tag"]
    _, without, _ = proposed(folder)
    assert without.data.split.kind == "ratio"


def test_json_arrays_are_recognised(tmp_path: Path) -> None:
    _, config, tables = proposed(*own.arrays(tmp_path))
    assert config.data.text.fields == ["name", "genres"]
    assert good(tables["events"]).num_rows == tables["events"].num_rows


def test_single_file_of_pairs_is_recognised(tmp_path: Path) -> None:
    _, config, tables = proposed(own.one_file(tmp_path))
    assert good(tables["events"]).num_rows > 1000
    assert (config.data.order, config.data.split.kind) == ("none", "ratio")


# ----------------------------------------------------------------------------------- open questions


def events_csv(tmp_path: Path, times: Callable[[own.Event], object], **world: Any) -> Path:
    rows = [(f"u{e.user}", f"i{e.item}", times(e)) for e in own.World(**world).events]
    return own.write(tmp_path / "events.csv", [("user", "item", "date"), *rows])


def test_month_before_day_is_inferred_from_the_numbers(tmp_path: Path) -> None:
    _, config, tables = proposed(events_csv(tmp_path, lambda e: f"{e.time:%m/%d/%Y}"))
    assert config.data.source.time_format == "%m/%d/%Y"  # type: ignore[union-attr]
    assert good(tables["events"]).num_rows == tables["events"].num_rows


@pytest.mark.parametrize(
    "form",
    [
        "%d %b %Y %H:%M",
        "%b %d, %Y %I:%M %p",
        "%d-%b-%y",
        "%B %d, %Y, %I:%M:%S %p",
        "%d %b %Y %H:%M:%S",
    ],
)
def test_dates_with_the_name_of_the_month_are_times(form: str, tmp_path: Path) -> None:
    world = own.World(seed=15)
    rows = [(f"u{e.user}", f"i{e.item}", e.time.strftime(form)) for e in world.events]
    _, config, tables = proposed(
        own.write(tmp_path / "sales.csv", [("shopper", "article", "sold"), *rows])
    )
    events = good(tables["events"])
    assert events.num_rows == len(rows) and events.column("timestamp").null_count == 0
    assert min(events.column("timestamp").to_pylist()).date() == world.events[0].time.date()
    assert config.data.order == "time"


def test_item_code_is_preferred_over_item_name(tmp_path: Path) -> None:
    world = own.World(seed=16, per_user=20)
    # two items with the same name
    names = ["Red Garden Lamp", "Red Garden Lamp", *world.titles[2:]]
    rows = [
        (e.time.isoformat(), f"h{e.user}", 500 + 3 * e.item, names[e.item]) for e in world.events
    ]
    header = ("occurred", "hh_key", "model_no", "product_name")
    found, config, tables = proposed(own.write(tmp_path / "data.csv", [header, *rows]))
    assert set(good(tables["events"]).column("item_id").to_pylist()) == {
        str(500 + 3 * i) for i in range(60)
    }
    assert config.data.text.fields == ["product_name"]


def test_ambiguous_order_of_day_and_month_is_a_commented_alternative(tmp_path: Path) -> None:
    path = events_csv(tmp_path, lambda e: f"{1 + e.time.day % 12:02d}.{e.time:%m}.{e.time:%Y}")
    found, config, _ = proposed(path)
    assert config.data.source.time_format == "%d.%m.%Y"  # type: ignore[union-attr]
    assert "# time_format: '%m.%d.%Y'" in found.draft.text()


def test_split_is_leave_last_if_users_leave_before_the_end(tmp_path: Path) -> None:
    """All users are active on different days: a cut in time leaves test users without history."""
    path = events_csv(
        tmp_path, lambda e: own.epoch(own.START + timedelta(days=3 * e.user, minutes=e.item))
    )
    found, config, _ = proposed(path)
    assert config.data.split.kind == "leave-last"
    assert "one cut in time leaves few users" in found.draft.text()


def test_split_is_leave_last_if_items_are_new_after_every_cut(tmp_path: Path) -> None:
    """Articles are only read in the week in which they appear."""
    random = np.random.default_rng(0)
    rows: list[tuple[str, str, object]] = [("user", "item", "date")]
    for week in range(40):
        reads = [(user, int(day)) for user in range(60) for day in random.integers(0, 7, 2)]
        for user, day in reads:
            at = own.START + timedelta(weeks=week, days=day, minutes=user)
            rows.append((f"u{user}", f"w{week}a{random.integers(0, 8)}", own.epoch(at)))
    found, config, _ = proposed(own.write(tmp_path / "events.csv", rows))
    assert config.data.split.kind == "leave-last"
    assert "are on items with earlier events" in found.draft.text()


def test_ten_digit_ids_are_not_times(tmp_path: Path) -> None:
    rows = [
        (1_400_000_000 + e.user * 7919, 1_500_000_000 + e.item * 104_729)
        for e in own.World().events
    ]
    path = own.write(tmp_path / "log.csv", [("user_id", "item_id"), *rows])
    _, config, _ = proposed(path)
    assert config.data.order == "none"


def test_split_column_is_used(tmp_path: Path) -> None:
    parts = ["Training", "training", "Training", "Test", "validation"]
    rows = [(f"u{e.user}", f"i{e.item}", parts[n % 5]) for n, e in enumerate(own.World().events)]
    path = own.write(tmp_path / "log.csv", [("user", "item", "subset"), *rows])
    _, config, tables = proposed(path)
    assert config.data.split.kind == "given"
    assert set(tables["events"].column("split").to_pylist()) == {"train", "valid", "test"}


@pytest.mark.parametrize("user_first", [True, False])
def test_unnamed_users_and_items_are_inferred_from_the_form_of_ids(
    user_first: bool, tmp_path: Path
) -> None:
    """Amazon publishes its ratings in both orders, without a header."""
    rows = [
        (f"A{e.user:013d}", f"B{e.item:09d}", e.value, own.epoch(e.time))
        for e in own.World().events
    ]
    rows = rows if user_first else [(item, user, *rest) for user, item, *rest in rows]
    _, config, _ = proposed(own.write(tmp_path / "ratings_Beauty.csv", rows))
    ids = ["user_id", "item_id"]
    expected = [*(ids if user_first else ids[::-1]), "value", "timestamp"]
    assert config.data.source.columns == {"events": expected}  # type: ignore[union-attr]


def test_numbered_folds_in_a_column_named_split_are_ignored(tmp_path: Path) -> None:
    rows = [(f"u{e.user}", f"i{e.item}", n % 5) for n, e in enumerate(own.World().events)]
    path = own.write(tmp_path / "log.csv", [("user_id", "item_id", "split"), *rows])
    _, config, tables = proposed(path)
    assert config.data.split.kind == "ratio"
    assert good(tables["events"]).num_rows == tables["events"].num_rows


def test_split_files_are_used(tmp_path: Path) -> None:
    rows = [(f"u{e.user}", f"i{e.item}") for e in own.World().events]
    cut = int(0.8 * len(rows))
    files = [
        own.write(tmp_path / f"{part}.csv", [("user", "item"), *some])
        for part, some in (("train", rows[:cut]), ("test", rows[cut:]))
    ]
    _, config, tables = proposed(*files)
    assert config.data.split.kind == "given"
    assert tables["events"].column("split").to_pylist().count("test") == len(rows) - cut


def test_one_file_per_event_type_is_read(tmp_path: Path) -> None:
    events = own.World().events
    files = []
    for name, some in (("views", events[::2]), ("purchases", events[1::2])):
        rows = [(f"u{e.user}", f"i{e.item}", own.epoch(e.time)) for e in some]
        files.append(own.write(tmp_path / f"{name}_2024.csv", [("user", "item", "ts"), *rows]))
    found, _, tables = proposed(*files)
    assert set(tables["events"].column("event_type").to_pylist()) == {"view", "purchase"}
    assert found.found.meaning.targets == ("purchase",)


def test_share_of_repeats_is_stated(tmp_path: Path) -> None:
    path = events_csv(tmp_path, lambda e: own.epoch(e.time), repeats=0.6)
    found, config, _ = proposed(path)
    assert config.evaluate.exclude_seen is False
    line = next(line for line in found.draft.text().splitlines() if "exclude_seen" in line)
    assert "so lists include such items" in line and "%" in line


def test_purchase_after_a_view_is_not_a_repeat(tmp_path: Path) -> None:
    """Lists exclude items that were bought before, not items that were viewed."""
    world = own.World(seed=17, users=300, items=400)
    rows = [(f"u{e.user}", f"i{e.item}", own.epoch(e.time), "view") for e in world.events]
    rows += [(user, item, time + 300, "purchase") for user, item, time, _ in rows[::3]]
    header = ("user_id", "item_id", "timestamp", "event_type")
    found, config, _ = proposed(own.write(tmp_path / "events.csv", [header, *rows]))
    assert config.data.targets == ["purchase"] and config.data.split.kind == "temporal"
    assert config.evaluate.exclude_seen, "no user buys an item twice"


def echoing(tmp_path: Path, likes: float) -> Path:
    """Users who leave after three days and, with probability ``likes``, like an article right after
    reading it.
    """
    draw, rows = random.Random(5), list[tuple[object, ...]]()
    for user in range(80):
        for step in range(12):
            article = draw.randrange(12)
            at = own.epoch(own.START + timedelta(days=3 * user, hours=step))
            rows.append((f"u{user}", f"a{article}", at, "read"))
            rows += [(f"u{user}", f"a{article}", at + 20, "like")] if draw.random() < likes else []
    header = ("user_id", "item_id", "timestamp", "event_type")
    return own.write(tmp_path / "events.csv", [header, *rows])


def test_likes_right_after_reading_are_reported_with_alternatives(tmp_path: Path) -> None:
    found, config, _ = proposed(echoing(tmp_path, likes=0.5))
    assert config.data.split.kind == "leave-last" and not config.evaluate.exclude_seen
    statistics = found.found.statistics
    assert 0.35 < statistics.echoes < 0.75 and statistics.echo_types == ("like",)
    lines = found.draft.text().splitlines()
    (line,) = [line for line in lines if line.strip().startswith("# interactions: [read]")]
    assert (
        f"{statistics.echoes:.1%} of the last events directly follow one of the same user" in line
    )
    assert any(line.strip().startswith("# exclude_seen: true") for line in lines)
    assert "echoes: " in summary_of(found.found)
    taken = "\n".join(line.replace("# interactions", "interactions") for line in lines)
    assert build_config(parse_yaml(taken, "draft"), "draft").data.interactions == ["read"], (
        "the comment can be activated"
    )


def test_echoes_are_not_mentioned_if_there_are_none(tmp_path: Path) -> None:
    found, config, _ = proposed(echoing(tmp_path, likes=0.0))
    assert config.data.split.kind == "leave-last"
    assert "# interactions" not in found.draft.text() and "echoes: " not in summary_of(found.found)


def test_every_line_has_its_reason_and_no_model_is_written(tmp_path: Path) -> None:
    found, _, _ = proposed(*own.shop(tmp_path))
    lines = [
        line
        for line in found.draft.text().splitlines()
        if line.strip() and not line.startswith("#")
    ]
    without = [line for line in lines if "#" not in line and not line.rstrip().endswith(":")]
    assert without == []
    assert "model" not in yaml.safe_load(found.draft.text())


def test_terminal_output_names_used_and_ignored_data(tmp_path: Path) -> None:
    files = own.shop(tmp_path)
    junk = tmp_path / "notes.txt"
    junk.write_text("Dear all,\nplease find the files\nof the shop below, and call me.\n")
    binary = tmp_path / "logo.dat"
    binary.write_bytes(bytes(range(256)) * 20)
    found = look([str(path) for path in (*files, junk, binary)])
    shown = summary_of(found.found)
    for word in (
        "events",
        "items",
        "users",
        "social",
        "customer_email",
        "what_type",
        "label (text)",
        "body (HTML)",
    ):
        assert word in shown
    ignored = [line for line in shown.splitlines() if line.startswith("ignored")]
    assert (
        len(ignored) == 2
        and "notes.txt" in ignored[0] + ignored[1]
        and "logo.dat" in ignored[0] + ignored[1]
    )


def test_friends_with_unknown_ids_are_left_out(tmp_path: Path) -> None:
    files = own.shop(tmp_path)
    links = [(f"x{a}", f"x{b}") for a, b in own.World().friends()]
    other = own.write(tmp_path / "friends.csv", [("follower", "followee"), *links])
    found, _, tables = proposed(*files[:3], other)
    assert "social" not in tables
    assert any("no ids in common" in why for why in found.found.ignored.values())


def test_ids_in_another_form_are_reported(tmp_path: Path) -> None:
    world = own.World()
    events = [(f"{e.user}.0", f"i{e.item}") for e in world.events]
    files = [
        own.write(tmp_path / "events.csv", [("user_id", "item_id"), *events]),
        own.write(
            tmp_path / "users.csv",
            [("user_id", "age"), *[(u, 20 + u % 9) for u in range(world.users)]],
        ),
    ]
    found, _, tables = proposed(*files)
    assert set(tables) == {"events"}
    (why,) = found.found.ignored.values()
    assert "likely cause" in why and "'7.0'" in why or "'0.0'" in why


def test_large_files_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head and pieces up to the end: the whole period is seen, the number of rows is an
    estimate.
    """
    path = events_csv(tmp_path, lambda e: own.epoch(e.time), users=400, per_user=30)
    whole, _, _ = proposed(path)
    monkeypatch.setattr(samples, "WHOLE_BYTES", 10_000)
    monkeypatch.setattr(samples, "_BLOCK", 4_000)
    monkeypatch.setattr(samples, "_PIECE_BYTES", 2_000)
    found, config, _ = proposed(path)
    sample = samples.sample_of(input_file(str(path)))
    assert not sample.is_whole
    true = whole.found.statistics
    assert abs(sample.num_rows - true.num_rows) < 0.05 * true.num_rows
    assert 0.1 < sample.rows.num_rows / true.num_rows < 0.5
    assert found.found.statistics.last == true.last
    assert config.data.source.rename == {
        "events": {"user": "user_id", "item": "item_id", "date": "timestamp"}
    }  # type: ignore[union-attr]
    assert "about" in found.draft.text()
    assert "in a sample of the files" in summary_of(found.found)
    assert "in a sample of the files" not in summary_of(whole.found)


def test_bucket_is_read_like_a_folder(tmp_path: Path, bucket: str) -> None:
    from recsys.storage.mirror import upload

    own.shop(tmp_path / "shop")
    upload(tmp_path / "shop", f"{bucket}/shop")
    _, config, tables = proposed(f"{bucket}/shop")
    assert set(tables) == {"events", "items", "users", "social"}
    assert config.data.source.events == [f"{bucket}/shop/tracking_2023.csv"]  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------- command line


def test_command_writes_a_file_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    own.shop(Path("shop"))
    assert main(["init", "shop/*.csv", "shop/catalog.tsv", "--out", "mine.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "recsys run --config mine.yaml" in shown
    config = yaml.safe_load(Path("mine.yaml").read_text())
    assert config["data"]["source"]["events"] == ["shop/tracking_2023.csv"], (
        "relative paths stay relative"
    )
    assert config["run"]["name"] == "mine"
    assert main(["prepare", "--config", "mine.yaml", "--dry-run"]) == 0
    capsys.readouterr()
    assert main(["init", "shop/*.csv", "--out", "mine.yaml"]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["init", "shop/*.csv", "--out", "mine.yaml", "--force"]) == 0
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], (
        "no temporary file is left"
    )


def test_home_folders_and_dollars_in_paths_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (file,) = own.invoices(tmp_path / "in $HOME")
    assert main(["init", f"~/in $HOME/{file.name}"]) == 0
    assert main(["prepare", "--config", "recsys.yaml", "--dry-run"]) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no file is given"),
        (["nowhere.csv"], "nowhere.csv does not exist in {folder}; expected a file"),
        (["one.csv", "nowhere.csv"], "nowhere.csv does not exist in {folder}; expected a file"),
        (["/no/where.csv"], "/no/where.csv does not exist; expected a file"),
        (
            ["order*.csv"],
            "order*.csv matches no file with content; correct the path or glob in the argument",
        ),
        (["--out"], "--out needs a value"),
        (["--what", "x"], "unknown option"),
        (["prose.txt"], "no file can be read as a table"),
        (["one.csv"], "no table has events"),
        (["items.csv"], "no table has events"),
        (["one.csv", "--out", "folder"], "is a folder"),
        (["one.csv", "--out", "no/where.yaml"], "does not exist"),
        (["one.csv", "--out", "s3://bucket/mine.yaml"], "a local file"),
    ],
)
def test_user_errors_end_with_one_message_and_exit_code_2(
    words: Sequence[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("prose.txt").write_text("It was a dark night,\nand nobody knew.\n")
    own.write(Path("one.csv"), [("age", "city"), (30, "Rome"), (40, "Oslo"), (30, "Bern")])
    rows = [(f"s{i}", f"The lamp {i}", 1990 + i % 20) for i in range(99)]
    own.write(Path("items.csv"), [("sku", "title", "year"), *rows])
    assert main(["init", *words]) == 2
    printed = capsys.readouterr().err
    assert message.format(folder=Path.cwd()) in printed
    assert "Traceback" not in printed
    assert "correct data.source" not in printed and "glob in data.source" not in printed
    starting, message_line = printed.count("  starting; "), printed.strip().splitlines()[-1]
    assert message_line.startswith("recsys: ") and len(printed.strip().splitlines()) == 1 + starting
    assert not Path("recsys.yaml").exists()


# --------------------------------------------------------------------------------------------- fuzz


def odd_table(draw: random.Random, folder: Path) -> Path:
    """A table with random columns, separators, encodings, headers and damages."""
    kinds: list[Callable[[int], str]] = [
        lambda n: str(draw.randint(0, 30)),
        lambda n: str(draw.randint(-(2**63), 2**63)),
        lambda n: f"u{draw.randint(0, 40)}",
        lambda n: draw.choice(["", "nan", "NULL", "x"]),
        lambda n: f"{draw.random() * 200 - 100:.{draw.randint(0, 7)}f}",
        lambda n: f"{draw.randint(1, 31)}/{draw.randint(1, 12)}/{draw.randint(1990, 2024)}",
        lambda n: str(draw.randint(1_300_000_000, 1_700_000_000)),
        lambda n: draw.choice(["view", "buy", "cart"]),
        lambda n: "".join(
            draw.choice(string.printable) for _ in range(draw.randint(0, 30))
        ).replace("\n", " "),
        lambda n: draw.choice(
            ["<b>fat</b> text", "a > b > c", "x|y|z", "http://a.b/c", "$3.99", "Ümläut", "[1, 2]"]
        ),
        lambda n: str(n),
        lambda n: draw.choice(["train", "test"]),
        lambda n: "",
    ]
    width, count = draw.randint(1, 7), draw.choice([0, 1, 2, 5, 60, 300])
    columns = [draw.choice(kinds) for _ in range(width)]
    names = [
        "user_id",
        "Item Id",
        "split",
        "value",
        "timestamp",
        "event",
        "x",
        "title",
        "",
        "lat",
        "lon",
        "0",
        "user",
    ]
    rows = [[kind(n) for kind in columns] for n in range(count)]
    if draw.random() < 0.7:
        rows.insert(0, [draw.choice(names) for _ in range(width)])
    if draw.random() < 0.3 and rows:
        rows[draw.randrange(len(rows))] = ["torn"]
    separator = draw.choice([",", ";", "\t", "|", "::", " "])
    if draw.random() < 0.15:
        keys = [f"k{i}" for i in range(width)]
        values: list[Any] = [dict(zip(keys, row, strict=False)) for row in rows]
        return own.write_json(
            folder / f"t{draw.randint(0, 9**9)}.json", values, draw.random() < 0.5
        )
    suffix = draw.choice([".csv", ".csv", ".tsv", ".txt", ".dat", "", ".data"])
    path = folder / f"t{draw.randint(0, 9**9)}{suffix}"
    text = draw.choice(["", "", "# a comment\n", "\ufeff", "sep=;\n"]) + "".join(
        separator.join(row) + draw.choice(["\n", "\n", "\r\n"]) for row in rows
    )
    path.write_bytes(
        text.encode(draw.choice(["utf-8", "utf-8", "latin-1", "utf-16"]), errors="replace")
    )
    return path


@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 8))]
)
def test_odd_tables_never_end_in_a_traceback(seed: int, tmp_path: Path) -> None:
    """Each of 25 generated sets of odd tables gives a configuration that reads them, or one
    message.
    """
    draw, outcomes = random.Random(seed), {"read": 0, "refused": 0}
    for number in range(25):
        folder = tmp_path / str(number)
        folder.mkdir()
        files = [odd_table(draw, folder) for _ in range(draw.randint(1, 4))]
        try:
            found = look([str(path) for path in files])
        except UserError as error:
            assert str(error)
            outcomes["refused"] += 1
        else:
            assert summary_of(found.found)
            config = build_config(parse_yaml(found.draft.text(), "draft"), "draft")
            for pieces in open_source(config.data.source).pieces().values():
                read_all(pieces)
            outcomes["read"] += 1
        shutil.rmtree(folder)
    assert min(outcomes.values()) > 0, "some tables are valid and some are broken"


# ------------------------------------------------------------------------------ agreeing with a run


def _shop(folder: Path, users: int = 40) -> dict[str, Path]:
    """Events with a price per row, a date and author of the item; a table of users in different
    cities.
    """
    draws = random.Random(0)
    authors = [f"author {n % 4}" for n in range(20)]
    dates = [1_500_000_000 + 86_400 * n for n in range(20)]
    lines = ["user_id,article_id,timestamp,unit_price,published,author,session_id"]
    for user in range(users):
        for step in range(8):
            item = draws.randrange(20)
            price = draws.randrange(100, 9999) / 100
            time = 1_600_000_000 + 86_400 * (10 * user + step)
            lines.append(
                f"u{user},a{item},{time},{price},{dates[item]},{authors[item]},s{user}-{step // 3}"
            )
    tables = {
        "events.csv": lines,
        "users.csv": ["user_id,city", *(f"u{user},city number {user}" for user in range(users))],
        "items.csv": [],
        "more.csv": ["user_id,friend_id"],
    }
    for name, rows in tables.items():
        (folder / name).write_text("".join(f"{row}\n" for row in rows))
    return {name: folder / name for name in tables}


def test_empty_file_gives_a_warning_with_its_name(tmp_path: Path) -> None:
    shown = summary_of(look([str(path) for path in _shop(tmp_path).values()]).found).splitlines()
    warnings = [line for line in shown if line.startswith("warning")]
    assert len(warnings) == 2 and "items.csv is empty (0 bytes)" in warnings[0]
    assert (
        "more.csv has only a header" in warnings[1]
        and "the configuration does not use it" in warnings[1]
    )


@pytest.mark.parametrize("others", [(), ("users.csv",)])
def test_empty_files_without_events_are_refused_by_name(
    tmp_path: Path, others: tuple[str, ...]
) -> None:
    files = _shop(tmp_path)
    files["events.csv"].write_text("")
    with pytest.raises(UserError, match=r"events.csv is empty \(0 bytes\)"):
        look([str(files[name]) for name in ("events.csv", *others)])


def test_every_column_of_the_events_is_used_or_has_a_reason(tmp_path: Path) -> None:
    found = look([str(_shop(tmp_path)["events.csv"])]).found
    assert set(found.idle) == {"unit_price", "published", "session_id"} and found.items is not None
    assert found.items.used == ["author"]
    shown = summary_of(found)
    for name, why in {
        "unit_price": "nearly all values are different",
        "published": "a second time",
        "session_id": "visit",
    }.items():
        assert why in found.idle[name] and f"not used: {name} (" in shown


def test_init_lists_the_members_that_a_run_uses(tmp_path: Path) -> None:
    """Distinct values per user give no profile; a number of rows, or a count of sales, is not a
    quantity of items.
    """
    files = _shop(tmp_path)
    (signals,) = [
        line
        for line in summary_of(_seen(files, "events.csv", "users.csv")).splitlines()
        if "can use" in line
    ]
    assert "profile" not in signals and "place" not in signals
    files["items.csv"].write_text(
        "article_id,price,sold\n" + "".join(f"a{n},{n + 0.5},{n * n}\n" for n in range(20))
    )
    files["users.csv"].write_text(
        "user_id,city\n" + "".join(f"u{n},city {n % 3}\n" for n in range(40))
    )
    (signals,) = [
        line
        for line in summary_of(_seen(files, "events.csv", "users.csv", "items.csv")).splitlines()
        if "can use" in line
    ]
    assert "profile (user attributes)" in signals and "place (price)" in signals


def _seen(files: dict[str, Path], *names: str) -> Any:
    return look([str(files[name]) for name in names]).found


def test_init_and_run_print_the_same_note_on_leave_last(
    tmp_path: Path, ray_local: None, capsys: Captured
) -> None:
    """All users are active within one week of a year: no cut in time has users on both sides."""
    out = tmp_path / "mine.yaml"
    assert main(["init", str(_shop(tmp_path)["events.csv"]), "--out", str(out)]) == 0
    (note,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert (
        "kind: leave-last" in out.read_text()
        and "no alternative here: a cut in time leaves few users" in note
    )
    assert (
        main(
            [
                "prepare",
                "--config",
                str(out),
                "--run.dir",
                str(tmp_path / "run"),
                "--data.num_shards",
                "1",
            ]
        )
        == 0
    )
    assert note.removeprefix("note").strip() in capsys.readouterr().out

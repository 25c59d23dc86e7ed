"""An update keeps the attributes of items and users that today's tables no longer list."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys import schema
from recsys.config import Config, ImagesConfig, build_config
from recsys.data.dataset import PreparedDataset
from recsys.data.forgotten import Forgotten
from recsys.encoders.images import image_model_identity
from recsys.errors import DataError
from recsys.preparation.blocks import in_this_process
from recsys.preparation.forget import forget_users
from recsys.preparation.image_vectors import kept_vectors
from recsys.preparation.items import items_table
from recsys.preparation.prepare import prepare

KINDS = ("items", "users")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    def start_ray() -> None:
        raise AssertionError("nothing here needs Ray")

    with in_this_process(start_ray, num_threads=2):
        yield


class Shop:
    """Two days of a shop with eight items and users; the second day's tables have the last four."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.day, self.dataset = folder, 0, cast("PreparedDataset | None", None)

    def add(
        self, tables: dict[str, Any], events_from: int | None = None, **data: Any
    ) -> PreparedDataset:
        """Prepare the next day with the columns of ``tables``, or append it."""
        start = 4 if self.day else 0
        events = self._events(start if events_from is None else events_from)
        source: dict[str, Any] = {"kind": "canonical", "events": [str(events)]}
        for name, columns in tables.items():
            ids = [f"{name[0]}{number}" for number in range(start, 8)]
            path = self.folder / f"{name}-{self.day}.parquet"
            pq.write_table(pa.table({f"{name[:-1]}_id": ids, **columns}), path)
            source[name] = [str(path)]
        self.dataset = prepare(self.config(source, data), lambda line: None, earlier=self.dataset)
        self.day += 1
        return self.dataset

    def _events(self, start: int) -> Path:
        rows = [
            f"u{user},i{item},{1_600_000_000 + 100_000 * self.day + 100 * item + user}"
            for user in range(start, 8)
            for item in range(start, 8)
        ]
        path = self.folder / f"events-{self.day}.csv"
        path.write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
        return path

    def config(self, source: dict[str, Any], data: dict[str, Any]) -> Config:
        section = {"text": {"enabled": False}, "num_shards": 2, **data}
        place = str(self.folder / f"dataset-{self.day}")
        return build_config({"data": {"dir": place, "source": source, **section}})


def attributes(dataset: PreparedDataset, name: str) -> pa.Table:
    return dataset.features if name == "items" else dataset.user_features


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("before", "today", "found"), [
    ([9.5] * 8, [42] * 4, [9.5] * 4 + [42.0] * 4),
    ([2**60] * 8, pa.array([7] * 4, pa.int32()), [2**60] * 4 + [7] * 4),
    ([1e300] * 8, pa.array([1.0] * 4, pa.float32()), [1e300] * 4 + [1.0] * 4),
    (["M"] * 8, [42] * 4, ["M"] * 4 + ["42"] * 4),
    ([True] * 8, ["yes"] * 4, ["true"] * 4 + ["yes"] * 4),
    ([[1.5]] * 8, [[1]] * 4, [[1.5]] * 4 + [[1.0]] * 4),
    (
        pa.array([[1.0, 2.0]] * 8, pa.list_(pa.float32(), 2)),
        pa.array([[3.0]] * 4, pa.list_(pa.float32(), 1)),
        [[1.0, 2.0]] * 4 + [[3.0]] * 4,
    ),
])  # fmt: skip
def test_column_of_another_type_gets_a_type_for_both_days(
    name: str, before: Any, today: Any, found: list[Any], tmp_path: Path
) -> None:
    shop = Shop(tmp_path)
    shop.add({name: {"size": before}})
    after = shop.add({name: {"size": today}})
    assert attributes(after, name).column("size").to_pylist() == found


@pytest.mark.parametrize(("before", "today"), [
    ([["a", "b"]] * 8, ["a"] * 4),
    ([2**40] * 8, pa.array([b"x"] * 4)),
    (pa.array([2**63] * 8, pa.uint64()), [-1] * 4),
])  # fmt: skip
def test_types_without_a_common_one_are_refused(before: Any, today: Any, tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.add({"items": {"size": before}})
    with pytest.raises(DataError, match=r"the column size of items has the type .*, and .* in the"):
        shop.add({"items": {"size": today}})


@pytest.mark.parametrize("name", KINDS)
def test_column_that_todays_table_lacks_stays(name: str, tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.add({name: {"size": [5] * 8, "colour": list("abcdefgh")}})
    after = shop.add({name: {"size": [6] * 4}})
    found = attributes(after, name)
    assert found.column("colour").to_pylist() == [*"abcd", None, None, None, None]
    assert found.column("size").to_pylist() == [5] * 4 + [6] * 4
    assert any(
        f"the table of {name} lacks colour, which the earlier dataset has" in note
        for note in after.manifest.notes
    )


def test_items_keep_their_own_text(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    titles, texts = [f"title {n}" for n in range(8)], [f"words {n}" for n in range(8)]
    before = shop.add({"items": {"title": titles, "text": texts}})
    after = shop.add({"items": {"title": titles[4:], "text": texts[4:]}})
    last = shop.add({"items": {"title": titles[4:], "text": texts[4:]}})
    expected = [f"title {n}. words {n}" for n in range(8)]
    for dataset in (before, after, last):
        assert dataset.features.column("text").to_pylist() == expected
        assert items_table(dataset).column("text").to_pylist() == texts


@pytest.mark.parametrize("name", KINDS)
def test_only_text_is_kept(name: str, tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    texts = [f"words {number}" for number in range(8)]
    shop.add({name: {"text": texts}})
    after = shop.add({name: {"text": texts[4:]}})
    assert attributes(after, name).column("text").to_pylist() == texts
    assert not (Path(after.root) / "items/own_text.parquet").exists(), "the features have it"


def test_items_of_a_table_of_ids_stay_known(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    before = shop.add({"items": {}}, unknown_items="quarantine")
    after = shop.add({"items": {}}, events_from=0, unknown_items="quarantine")
    assert after.manifest.counts["events"] == 2 * before.manifest.counts["events"] == 128


def test_plain_text_is_not_cleaned_again(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    titles, html = ["The &lt;br&gt; element <b>&amp;lt;i&gt;</b>"] * 8, {"html": ["title"]}
    before = shop.add({"items": {"title": titles}}, text={"enabled": False, **html})
    after = shop.add({"items": {"title": titles[4:]}}, text={"enabled": False, **html})
    assert after.features.column("title").to_pylist() == before.features["title"].to_pylist()
    assert "<" in str(after.features["title"][0]) or "&" in str(after.features["title"][0])


def test_own_text_survives_forgotten_users(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    texts = [f"words {number}" for number in range(8)]
    before = shop.add({"items": {"title": ["a"] * 8, "text": texts}})
    rest = forget_users(before, [3], Forgotten(()), shop.config({"kind": "synthetic"}, {}).data)
    assert items_table(rest.dataset).column("text").to_pylist() == texts


def test_images_of_absent_items_keep_their_vectors(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    config = ImagesConfig(column="picture", model=str(tmp_path))
    described = {"identity": image_model_identity(config), "dimension": 2}
    vectors_NM = np.arange(6, dtype=np.float16).reshape(3, 2) + 1
    earlier: Any = SimpleNamespace(
        manifest=SimpleNamespace(media={"image": described}),
        item_ids=pa.array(["i0", "i1", "i2"]),
        media_vectors=lambda name: vectors_NM,
    )
    items = pa.table({schema.ITEM_ID: ["i9", "i2", "i0"]})
    old_R = np.array([False, True, True])
    found = kept_vectors(items, old_R, config, earlier)
    assert found is not None and found.tolist() == [[0, 0], [5, 6], [1, 2]]
    (tmp_path / "config.json").write_text('{"another": "model"}')
    assert kept_vectors(items, old_R, config, earlier) is None

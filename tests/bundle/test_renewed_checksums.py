"""Changed bundles with renewed, valid checksums: each raises one clear message."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from recsys.bundle.description import BundleInfo
from recsys.bundle.writing import write_description
from recsys.errors import ArtifactError
from recsys.registry.followed_model import FollowedModel
from recsys.serving.bundles import read_bundle, write_bundle
from tests.handmade import small_model, small_world


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("renewed")
    dataset = small_world(folder / "dataset")
    write_bundle(
        folder / "bundle",
        small_model(dataset),
        dataset,
        {"metrics": {}},
        card="# Model card: pocket\n",
    )
    return folder / "bundle"


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        found = load_file(folder / "weights.safetensors")
        change(found)
        save_file(
            {name: tensor.contiguous() for name, tensor in found.items()},
            folder / "weights.safetensors",
        )

    return apply


def column(
    file: str, name: str, change: Callable[[list[Any]], list[Any]]
) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        table = pq.read_table(folder / file)
        index, kind = table.column_names.index(name), table.schema.field(name).type
        values = change(table.column(name).to_pylist())
        try:
            new = pa.array(values, kind)
        except (pa.ArrowException, TypeError):
            new = pa.array(values)
        pq.write_table(table.set_column(index, name, new), folder / file)

    return apply


def described(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / "bundle.json").read_text())
        change(content)
        (folder / "bundle.json").write_text(json.dumps(content))

    return apply


def text(file: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(content) and None


def of_each(values: list[Any], value: Any) -> list[Any]:
    return [[value for _ in inner] for inner in values]


CHANGES: dict[str, Callable[[Path], None]] = {
    "fewer item vectors": tensors(lambda t: t.update({"items.vectors": t["items.vectors"][:-1]})),
    "narrower item vectors": tensors(
        lambda t: t.update({"items.vectors": t["items.vectors"][:, :-1]})
    ),
    "flat item vectors": tensors(
        lambda t: t.update({"items.vectors": t["items.vectors"].flatten()})
    ),
    "no item vectors": tensors(lambda t: t.pop("items.vectors")),
    "no popularity": tensors(lambda t: t.pop("items.popularity")),
    "short popularity": tensors(
        lambda t: t.update({"items.popularity": t["items.popularity"][:1]})
    ),
    "short text": tensors(lambda t: t.update({"items.text": t["items.text"][:2]})),
    "an unknown state": tensors(lambda t: t.update({"state.nothing.part": torch.zeros(2)})),
    "a state without a part": tensors(lambda t: t.update({"state.x": torch.zeros(2)})),
    "short states": tensors(
        lambda t: t.update({k: v[:1] for k, v in t.items() if k.startswith("state.") and v.ndim})
    ),
    "no states": tensors(lambda t: [t.pop(k) for k in list(t) if k.startswith("state.")]),
    "flat encoders": tensors(
        lambda t: t.update({k: v.flatten() for k, v in t.items() if k.startswith("encoders.")})
    ),
    "no encoders": tensors(lambda t: [t.pop(k) for k in list(t) if k.startswith("encoders.")]),
    "vectors of whole numbers": tensors(
        lambda t: t.update({"items.vectors": t["items.vectors"].to(torch.int64)})
    ),
    "no tensors": tensors(lambda t: t.clear()),
    "an endless header": text("weights.safetensors", b"\xff\xff\xff\xff\xff\xff\xff\x7f{}"),
    "empty weights": text("weights.safetensors", b""),
    "repeated item ids": column("items.parquet", "item_id", lambda ids: ["same"] * len(ids)),
    "an item without id": column("items.parquet", "item_id", lambda ids: [None, *ids[1:]]),
    "item ids of numbers": column("items.parquet", "item_id", lambda ids: list(range(len(ids)))),
    "an item without title": column("items.parquet", "title", lambda titles: [None, *titles[1:]]),
    "popularity of text": column(
        "items.parquet", "popularity", lambda counts: ["many"] * len(counts)
    ),
    "popularity below zero": column(
        "items.parquet", "popularity", lambda counts: [-1] * len(counts)
    ),
    "popularity with a hole": column(
        "items.parquet", "popularity", lambda counts: [None, *counts[1:]]
    ),
    "other item ids": column("items.parquet", "item_id", lambda ids: [*ids[1:], ids[0]]),
    "repeated user ids": column("users.parquet", "user_id", lambda ids: ["same"] * len(ids)),
    "events on unknown items": column(
        "users.parquet", "items", lambda items: of_each(items, 10_000)
    ),
    "events of unknown types": column("users.parquet", "types", lambda types: of_each(types, 77)),
    "events of unknown splits": column(
        "users.parquet", "splits", lambda splits: of_each(splits, 9)
    ),
    "histories of text": column("users.parquet", "items", lambda items: of_each(items, "i1")),
    "a user without a list": column("users.parquet", "items", lambda items: [None, *items[1:]]),
    "types of other lengths": column("users.parquet", "types", lambda types: [[0], *types[1:]]),
    "users that are no table": text("users.parquet", b"PAR1 nothing PAR1"),
    "items of another table": lambda folder: (
        shutil.copyfile(folder / "users.parquet", folder / "items.parquet") and None
    ),
    "sizes of another model": described(lambda d: d["sizes"].update({"num_items": 10**12})),
    "sizes of text": described(lambda d: d["sizes"].update({"num_users": "many"})),
    "a wide model": described(lambda d: d["sizes"].update({"width": 999})),
    "unknown sizes": described(lambda d: d["sizes"].update({"colour": 1})),
    "no sizes": described(lambda d: d["sizes"].clear()),
    "fewer event types": described(lambda d: d.update({"event_types": []})),
    "other granularities": described(lambda d: d.update({"granularities": ["social"]})),
    "context of a wrong form": described(lambda d: d.update({"context": [{"colour": "red"}]})),
    "an index of nothing": text("index.faiss", b"IxF2nothing"),
    "a self test of text": text("self_test.json", b'"nothing"'),
    "a self test of wrong forms": text(
        "self_test.json", b'{"release": 1, "torch": 2, "tests": [{"request": 3}]}'
    ),
    "a deep self test": text("self_test.json", b"[" * 100_000),
    "scores of text": lambda folder: (
        (folder / "self_test.json").write_text(
            (folder / "self_test.json").read_text().replace('"scores": [', '"scores": ["x", ')
        )
        and None
    ),
    "a card that is no text": text("MODEL_CARD.md", b"\xff\xfe\xfa"),
}


def with_renewed_checksums(bundle: Path, folder: Path, change: Callable[[Path], None]) -> Path:
    """A copy with a change and renewed checksums."""
    shutil.copytree(bundle, folder)
    change(folder)
    content = json.loads((folder / "bundle.json").read_text())
    write_description(folder, BundleInfo.model_validate(content))
    return folder


@pytest.mark.parametrize("what", CHANGES)
def test_changed_bundle_with_renewed_checksums_raises_one_message(
    bundle: Path, tmp_path: Path, what: str
) -> None:
    folder = with_renewed_checksums(bundle, tmp_path / "bundle", CHANGES[what])
    with pytest.raises(ArtifactError) as error:
        read_bundle(folder)
    message = str(error.value)
    assert str(folder) in message and "\n" not in message and len(message) < 900, message


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "..", "", "a/b"])
def test_file_names_outside_the_bundle_are_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    described(lambda d: d["files"].update({name: {"size": 1, "sha256": "0"}}))(tmp_path / "bundle")
    with pytest.raises(ArtifactError, match="a plain file name"):
        read_bundle(tmp_path / "bundle")


def test_deeply_nested_description_is_damaged(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    (tmp_path / "bundle/bundle.json").write_text("[" * 100_000)
    with pytest.raises(ArtifactError, match=r"damaged: bundle.json: RecursionError"):
        read_bundle(tmp_path / "bundle")


def test_card_without_checksum_is_not_shown(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    described(lambda d: d["files"].pop("MODEL_CARD.md"))(tmp_path / "bundle")
    followed = FollowedModel(str(tmp_path / "bundle"), "")
    assert followed.load(followed.version())[1]["card"] is None

"""Media in ``prepare``: vectors from columns, images through a vision model, and refused or
quarantined cells.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_prepare import MemorySource, config, event, rows_of, silent

from recsys import schema
from recsys.config import ImagesConfig, ItemMediaConfig, build_config
from recsys.data.dataset import PreparedDataset
from recsys.encoders.images import ImageEncoder, ImageSettings, open_image
from recsys.errors import ConfigError, DataError
from recsys.preparation.image_vectors import encode_images
from recsys.preparation.media import (
    NOT_FINITE,
    TOO_LARGE,
    WRONG_WIDTH,
    read_media,
    vector_medium,
)
from recsys.preparation.prepare import prepare

Image = pytest.importorskip("PIL.Image")
VECTOR = pa.list_(pa.float64())


def items_of(cells: list[Any], kind: pa.DataType = VECTOR) -> pa.Table:
    rows = [{schema.ITEM_ID: f"i{row}", "vector": cell} for row, cell in enumerate(cells)]
    return rows_of("items", rows, vector=kind)


@pytest.mark.parametrize(
    "kind",
    [
        VECTOR,
        pa.large_list(pa.float32()),
        pa.list_(pa.float16()),
        pa.list_(pa.string()),
        pa.string(),
    ],
    ids=str,
)
def test_vectors_of_any_list_type_are_read(kind: pa.DataType) -> None:
    cells: list[Any] = [[1.0, 2.5], None, [0.0, -3.0], [0.0, 0.0]]
    if kind == pa.string():
        cells = ["1.0 2.5", None, "[0, -3]", "0.0,0.0"]
    elif kind.value_type == pa.string():
        cells = [cell and [str(number) for number in cell] for cell in cells]
    elif kind.value_type == pa.float16():
        cells = [cell and [np.float16(number) for number in cell] for cell in cells]
    medium = vector_medium(items_of(cells, kind), "image", "vector")
    assert medium.vectors_RM.dtype == np.float16 and medium.bad.num_rows == 0 and medium.read == 3
    np.testing.assert_array_equal(medium.vectors_RM, [[1, 2.5], [0, 0], [0, -3], [0, 0]])
    assert medium.has_R.tolist() == [True, False, True, False], "zeros contain no information"
    assert medium.described == {"column": "vector", "dimension": 2, "items": 2}


def test_fixed_size_lists_with_nulls_are_read() -> None:
    cells = pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2))
    items = items_of([None] * 3).drop_columns("vector").append_column("vector", cells)
    np.testing.assert_array_equal(
        vector_medium(items, "audio", "vector").vectors_RM, [[1, 2], [0, 0], [3, 4]]
    )


def test_bad_vectors_are_quarantined_by_reason() -> None:
    cells = [[1.0, 2.0], [float("nan"), 1.0], [1.0, 2.0, 3.0], [1e6, 0.0], [None, 1.0], [3.0, 4.0]]
    medium = vector_medium(items_of(cells), "image", "vector")
    bad = medium.bad.to_pylist()
    assert [(row["row"], row["reason"]) for row in bad] == [
        (2, f"image: {NOT_FINITE}"),
        (3, f"image: {WRONG_WIDTH}"),
        (4, f"image: {TOO_LARGE}"),
        (5, f"image: {NOT_FINITE}"),
    ]
    assert bad[1]["file"] == "items.csv" and bad[1]["raw"] == "item_id=i2, vector=[1.0, 2.0, 3.0]"
    assert medium.has_R.tolist() == [True, False, False, False, False, True]


@pytest.mark.parametrize(("cells", "kind", "message"), [
    ([1, 2], pa.int64(), "has the type int64, expected lists of numbers"),
    ([None, []], VECTOR, "no item has a vector"),
])  # fmt: skip
def test_columns_without_vectors_are_refused(
    cells: list[Any], kind: pa.DataType, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        vector_medium(items_of(cells, kind), "image", "vector")


EVENTS = [event("u", item, second) for second, item in enumerate(["i0", "i1", "i2", "new"])]


def test_dataset_has_media_in_dense_order(both_ways: None, tmp_path: Path) -> None:
    items = items_of([[1.0, 2.0], None, [float("inf"), 0.0]])
    settings = config(tmp_path, media={"columns": {"image": "vector"}})
    dataset = prepare(
        settings, silent, MemorySource(events=rows_of("events", EVENTS[:3]), items=items)
    )
    assert dataset.media_names == ["image"]
    np.testing.assert_array_equal(dataset.media_vectors("image"), [[1, 2], [0, 0], [0, 0]])
    table = pq.read_table(Path(dataset.root) / "items/media.parquet")
    assert table.column("has_image").to_pylist() == [True, False, False]
    assert dataset.manifest.quarantined["media"] == {f"image: {NOT_FINITE}": 1}
    assert dataset.manifest.counts["events"] == 3, "an item with a bad vector keeps its events"
    with pytest.raises(ConfigError, match="no medium 'audio'; media: image"):
        dataset.media_vectors("audio")


def test_too_many_bad_vectors_stop_the_run(both_ways: None, tmp_path: Path) -> None:
    items = items_of([[1.0, 2.0], [float("inf"), 0.0], [1.0, 3.0]])
    settings = config(
        tmp_path, media={"columns": {"image": "vector"}}, quarantine={"max_share": 0.1}
    )
    with pytest.raises(DataError, match="1 of 3 rows of media are bad"):
        prepare(settings, silent, MemorySource(events=rows_of("events", EVENTS[:3]), items=items))


def test_dataset_without_media_has_no_vectors(both_ways: None, tmp_path: Path) -> None:
    dataset = prepare(config(tmp_path), silent, MemorySource(events=rows_of("events", EVENTS)))
    assert dataset.media_names == []
    with pytest.raises(ConfigError, match="the column 'vector', which items lack"):
        settings = config(tmp_path, media={"columns": {"image": "vector"}})
        prepare(settings, silent, MemorySource(events=rows_of("events", EVENTS)))


# ------------------------------------------------------------------------------------------- images


@pytest.fixture(scope="module")
def vision_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random vision transformer with two layers, saved by transformers."""
    import torch
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    folder = tmp_path_factory.mktemp("vision")
    torch.manual_seed(0)
    shape = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    ViTModel(ViTConfig(image_size=32, patch_size=8, **shape)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(noise.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(
            folder / f"{name}.png"
        )
    Image.new("L", (9, 7), 100).save(folder / "grey.png")
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:300])
    (folder / "words.png").write_text("no picture")
    return folder


def encoder(model: Path, pooling: str = "auto") -> ImageEncoder:
    return ImageEncoder(
        ImageSettings(str(model), pooling, 2, "float32", allow_download=False, threads=1)
    )


def test_vectors_equal_the_output_of_the_model(vision_model: Path, pictures: Path) -> None:
    import torch
    from transformers import AutoImageProcessor, AutoModel

    images = [open_image(str(pictures / name)) for name in ("a.png", "b.png", "grey.png")]
    pixels = AutoImageProcessor.from_pretrained(vision_model)(images=images, return_tensors="pt")
    with torch.inference_mode():
        output = AutoModel.from_pretrained(vision_model)(**pixels)
    # 0 is the class token
    expected = {"auto": output.pooler_output, "mean": output.last_hidden_state[:, 1:].mean(1)}
    for pooling, vectors in expected.items():
        found = encoder(vision_model, pooling).encode(images)
        assert found.dtype == np.float16
        np.testing.assert_allclose(
            found, torch.nn.functional.normalize(vectors, dim=-1).numpy(), atol=2e-3
        )


def test_pooling_layer_that_was_not_saved_is_not_used(
    vision_model: Path, pictures: Path, tmp_path: Path
) -> None:
    """transformers initialises its weights at random, so vectors would differ between processes."""
    from safetensors.torch import load_file, save_file

    for file in vision_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(vision_model / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    image = [open_image(str(pictures / "a.png"))]
    np.testing.assert_array_equal(
        encoder(tmp_path).encode(image), encoder(vision_model, "mean").encode(image)
    )
    with pytest.raises(ConfigError, match="saved without a pooling layer"):
        encoder(tmp_path, "pooled")


def test_images_are_encoded_once_by_content(
    both_ways: None, vision_model: Path, pictures: Path, tmp_path: Path
) -> None:
    settings = ImagesConfig(
        column="picture", model=str(vision_model), dtype="float32", cache_dir=str(tmp_path)
    )
    names = ["a.png", "broken.png", "copy.png", "none.png", "b.png", "words.png"]
    vectors, problems, numbers = encode_images([str(pictures / name) for name in names], settings)
    assert problems == [None, "unreadable", None, "missing", None, "unreadable"]
    assert numbers == {"encoded": 2, "cached": 0}
    assert (
        (vectors[0] == vectors[2]).all()
        and (vectors[0] != vectors[4]).any()
        and not vectors[[1, 3, 5]].any()
    )
    moved = pictures / "moved.png"
    moved.write_bytes((pictures / "b.png").read_bytes())
    again, _, numbers = encode_images([str(moved), (pictures / "grey.png").as_uri()], settings)
    assert numbers == {"encoded": 1, "cached": 1} and (again[0] == vectors[4]).all()


def prepared(
    folder: Path, vision_model: Path, paths: list[str | None], **images: Any
) -> PreparedDataset:
    rows = [{schema.ITEM_ID: f"i{row}", "picture": path} for row, path in enumerate(paths)]
    source = MemorySource(
        events=rows_of("events", EVENTS[:3]), items=rows_of("items", rows, picture=pa.string())
    )
    section = {
        "column": "picture",
        "model": str(vision_model),
        "dtype": "float32",
        "cache_dir": str(folder / "cache"),
    }
    return prepare(config(folder, media={"images": section | images}), silent, source)


def test_prepare_encodes_the_images_of_items(
    both_ways: None, vision_model: Path, pictures: Path, tmp_path: Path
) -> None:
    paths = ["a.png", "words.png", str(pictures / "b.png"), None, "gone.png"]
    dataset = prepared(tmp_path, vision_model, paths, root=str(pictures))
    vectors = dataset.media_vectors("image")
    assert vectors.shape == (5, 16) and vectors.any(axis=1).tolist() == [
        True,
        False,
        True,
        False,
        False,
    ]
    assert dataset.manifest.quarantined["media"] == {"image: image that cannot be read": 1}
    described = dataset.manifest.media["image"]
    assert (described["items"], described["missing_files"], described["encoded"]) == (2, 1, 2)
    assert any(
        "1 files of the medium image do not exist" in note for note in dataset.manifest.notes
    )
    assert dataset.features.column("text").null_count == 5, "a path is not a text"
    first = dataset.manifest.content_hash
    assert (
        prepared(tmp_path, vision_model, paths, root=str(pictures)).manifest.content_hash == first
    )
    Image.new("RGB", (8, 8), (1, 2, 3)).save(pictures / "gone.png")
    again = prepared(tmp_path, vision_model, paths, root=str(pictures))
    (pictures / "gone.png").unlink()
    assert again.manifest.content_hash != first and again.media_vectors("image")[4].any(), (
        "a new image is detected"
    )
    assert again.manifest.media["image"]["encoded"] == 1


def test_relative_paths_of_an_earlier_file_are_not_looked_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []

    def encode(paths: list[str], config: ImagesConfig) -> Any:
        seen.extend(paths)
        return np.ones((len(paths), 2), np.float16), [None] * len(paths), {}

    monkeypatch.setattr("recsys.preparation.media.encode_images", encode)
    monkeypatch.setattr("recsys.preparation.media.image_model_identity", lambda config: "model")
    rows = {
        schema.ITEM_ID: ["new", "old", "far"],
        "picture": ["a.png", "b.png", "/c.png"],
        schema.FILE: ["items.csv", None, None],
        schema.ROW: [1, None, None],
    }
    images = ItemMediaConfig(images=ImagesConfig(column="picture", model="m"))
    found = read_media(pa.table(rows), images, {"items.csv": "/today"})["image"]
    assert seen == ["/today/a.png", "/c.png"]
    assert found.has_R.tolist() == [True, False, True] and found.described["lost_images"] == 1


def test_images_that_cannot_be_encoded_are_refused(
    both_ways: None, vision_model: Path, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"none of the 1 images of the column 'picture' exists; .*images\.root"
    ):
        prepared(tmp_path, vision_model, ["a.png", None, None], root=str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"data\.media\.images\.model: 'nobody/none' is neither a folder"
    ):
        prepared(tmp_path, Path("nobody/none"), ["a.png", None, None], root=str(pictures))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be loaded as a vision model"):
        prepared(tmp_path, tmp_path / "empty", ["a.png", None, None], root=str(pictures))


@pytest.mark.slow
def test_relative_paths_start_at_the_file_of_items(
    both_ways: None, vision_model: Path, pictures: Path, tmp_path: Path
) -> None:
    lines = ["user_id,item_id,timestamp", *(f"u,i{item},{item + 1}" for item in range(3))]
    (tmp_path / "events.csv").write_text("\n".join(lines) + "\n")
    (pictures / "items.csv").write_text("item_id,picture\ni0,a.png\ni1,\ni2,b.png\n")
    section = {
        "column": "picture",
        "model": str(vision_model),
        "cache_dir": str(tmp_path / "cache"),
    }
    tables = {
        "kind": "canonical",
        "events": [str(tmp_path / "events.csv")],
        "items": [str(pictures / "items.csv")],
    }
    dataset = prepare(config(tmp_path, source=tables, media={"images": section}), silent)
    assert dataset.media_vectors("image").any(axis=1).tolist() == [True, False, True]


def test_two_media_of_one_name_are_refused() -> None:
    media = {"columns": {"image": "vector"}, "images": {"column": "picture", "model": "m"}}
    with pytest.raises(ConfigError, match="two media are called 'image'"):
        build_config(
            {"data": {"media": media}, "model": {"granularities": {"behaviour": {"enabled": True}}}}
        )
    with pytest.raises(ConfigError, match=r"images.column needs images\.model"):
        media = {"images": {"column": "picture"}}
        build_config(
            {"data": {"media": media}, "model": {"granularities": {"behaviour": {"enabled": True}}}}
        )

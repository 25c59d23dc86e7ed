"""A bundle holds everything that a recommender needs, reads back what was written, and detects
damage.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from recsys.bundle.checksums import recover, writing_aside
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Histories, Queries, Split
from recsys.errors import ArtifactError
from recsys.model import FrozenModel
from recsys.serving.bundles import read_bundle, write_bundle
from tests.handmade import HISTORIES, ITEMS, small_model, small_world, write_dataset


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    return small_world(tmp_path / "dataset")


@pytest.fixture
def frozen(dataset: PreparedDataset) -> FrozenModel:
    return small_model(dataset)


@pytest.fixture
def folder(tmp_path: Path, dataset: PreparedDataset, frozen: FrozenModel) -> Path:
    metrics = {"ndcg@20": 0.25, "diverged": float("nan"), "recall@20": np.float64(0.5)}
    write_bundle(tmp_path / "bundle", frozen, dataset, {"metrics": metrics, "run_id": "abc"})
    return tmp_path / "bundle"


def ask(items: list[list[int]], users: list[int]) -> Queries:
    histories = Histories.of_items(items, users)
    return Queries(histories, np.zeros(len(items) + 1, dtype=np.int64), np.zeros(0, dtype=np.int32))


def test_round_trip_of_the_model(folder: Path, frozen: FrozenModel) -> None:
    read = read_bundle(folder).model
    before, after = frozen.tensors(), read.tensors()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    queries = ask([[0, 1, 2], [5], []], [0, -1, 3])
    # text vectors are stored as float16
    assert torch.allclose(read.scores(queries), frozen.scores(queries), atol=1e-3)


def test_round_trip_of_vocabularies_and_histories(folder: Path) -> None:
    bundle = read_bundle(folder)
    assert bundle.user_ids == [f"u{u}" for u in range(len(HISTORIES))]
    assert bundle.item_ids == [f"i{i}" for i in range(ITEMS)]
    assert bundle.titles[3] == "Title of i3"
    # fitted on training and validation: u0 0 1 2 3, u1 2 3 5, u2 1 3 7, u4 8 9
    assert bundle.popularity_N.tolist() == [1, 2, 2, 3, 0, 1, 0, 1, 1, 1, 0, 0]
    assert bundle.histories.lengths_U.tolist() == [len(events) for events in HISTORIES]
    flat = [event for events in HISTORIES for event in events]
    assert bundle.histories.items_E.tolist() == [item for item, *_ in flat]
    assert bundle.histories.types_E.tolist() == [kind for _, kind, _, _ in flat]
    assert bundle.histories.times_E.tolist() == [time for _, _, time, _ in flat]
    assert bundle.histories.splits_E.tolist() == [int(split) for *_, split in flat]
    assert bundle.histories.through(Split.VALID).lengths_U.tolist() == [4, 3, 3, 0, 2, 0]


def test_description_has_the_origin_of_the_model(folder: Path, dataset: PreparedDataset) -> None:
    info = read_bundle(folder).info
    assert info.dataset["content_hash"] == dataset.manifest.content_hash
    assert info.dataset["counts"]["users"] == 6
    assert info.metrics == {"ndcg@20": 0.25, "diverged": None, "recall@20": 0.5}
    assert info.extra == {"run_id": "abc"}
    assert info.text_model == "handmade-lm"
    assert info.granularities == ["behaviour", "evolution", "collaborative", "social", "stratum"]
    assert (info.event_types, info.default_event_type) == (["view", "buy"], "view")


def test_bundle_has_no_pickle_and_no_temporary_file(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "attributes.parquet",
        "bundle.json",
        "friends.parquet",
        "items.parquet",
        "self_test.json",
        "users.parquet",
        "weights.safetensors",
    ]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["bundle", "dataset"]


def test_frozen_model_drops_training_only_tensors(frozen: FrozenModel) -> None:
    names = frozen.tensors()
    assert not [name for name in names if "convs" in name or "granularities.collaborative" in name]
    assert {"state.social.users_VD", "state.collaborative.fold_ND"} <= names.keys()


def test_reading_tensor_names_draws_no_random_number(frozen: FrozenModel) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    frozen.tensors()
    assert torch.equal(torch.rand(4), expected)


def test_writing_again_replaces_the_bundle(
    folder: Path, dataset: PreparedDataset, frozen: FrozenModel
) -> None:
    write_bundle(folder, frozen, dataset, {"metrics": {"ndcg@20": 0.5}})
    assert read_bundle(folder).info.metrics == {"ndcg@20": 0.5}
    assert sorted(path.name for path in folder.parent.iterdir()) == ["bundle", "dataset"]


def test_folder_without_a_bundle_is_not_replaced(
    tmp_path: Path, dataset: PreparedDataset, frozen: FrozenModel
) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="not a bundle"):
        write_bundle(tmp_path / "precious", frozen, dataset, {})
    assert (tmp_path / "precious/thesis.txt").read_text() == "years of work"


def test_title_falls_back_to_text_then_to_the_id(tmp_path: Path) -> None:
    dataset = write_dataset(
        tmp_path / "dataset", HISTORIES, ITEMS, event_types=("view", "buy"), text_width=6
    )
    features = pq.read_table(tmp_path / "dataset/items/features.parquet").drop_columns(["title"])
    texts = ["  a  long\ntext " + "word " * 40, "", *["short"] * (ITEMS - 2)]
    features = features.set_column(1, "text", [texts])
    pq.write_table(features, tmp_path / "dataset/items/features.parquet")
    write_bundle(tmp_path / "bundle", small_model(dataset), dataset, {})
    titles = read_bundle(tmp_path / "bundle").titles
    assert (
        titles[0].startswith("a long text word")
        and titles[0].endswith("…")
        and len(titles[0]) <= 80
    )
    assert titles[1:3] == ["i1", "short"]


def test_model_of_another_dataset_is_refused(tmp_path: Path, frozen: FrozenModel) -> None:
    other = write_dataset(tmp_path / "other", HISTORIES[:3], ITEMS)
    with pytest.raises(ArtifactError, match="6 users and 12 items.*3 and 12"):
        write_bundle(tmp_path / "bundle", frozen, other, {})


def test_diverged_model_is_refused(
    tmp_path: Path, dataset: PreparedDataset, frozen: FrozenModel
) -> None:
    with torch.no_grad():
        frozen.item_vectors_ND[0, 0] = float("nan")
    with pytest.raises(ArtifactError, match=r"items\.vectors.*diverged"):
        write_bundle(tmp_path / "bundle", frozen, dataset, {})
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "items.parquet", "users.parquet"])
def test_damaged_files_are_detected(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    middle = len(whole) // 2
    (folder / name).write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(ArtifactError, match=rf"damaged.*{name}.*SHA-256"):
        read_bundle(folder)
    (folder / name).write_bytes(whole[:-1])
    with pytest.raises(ArtifactError, match=f"damaged.*{name}.*bytes"):
        read_bundle(folder)
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        read_bundle(folder)


def test_invalid_descriptions_are_refused(folder: Path, tmp_path: Path) -> None:
    description = folder / "bundle.json"
    content = json.loads(description.read_text())
    for text, message in [
        ("{", "damaged"),
        ("[]", "bundle format None"),
        (json.dumps(content | {"format_version": 99}), "bundle format 99.*reads 3"),
        (json.dumps(content | {"surprise": 1}), "damaged.*surprise"),
        (json.dumps(content | {"sizes": {"width": 8}}), "damaged"),
    ]:
        description.write_text(text)
        with pytest.raises(ArtifactError, match=f"(?s){message}"):
            read_bundle(folder)
    with pytest.raises(ArtifactError, match="has no model bundle"):
        read_bundle(tmp_path / "nowhere")


def killed_in(write: Callable[[], None]) -> None:
    """Run this in a fork, which has to be killed in it."""
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            write()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def put(folder: Path, content: str, killed: bool = False) -> None:
    """Write a bundle of one file; killed before it gets its place."""
    with writing_aside(folder, "bundle.json") as aside:
        (aside / "bundle.json").write_text(content)
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_writer_left_is_removed_and_a_living_one_continues(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    with writing_aside(folder, "bundle.json") as living:
        (living / "bundle.json").write_text("slow")
        killed_in(lambda: put(folder, "never", killed=True))
        assert len(list(tmp_path.iterdir())) == 2
        put(folder, "fast")
        assert sorted(tmp_path.iterdir()) == [living, folder]
    assert (folder / "bundle.json").read_text() == "slow"
    assert list(tmp_path.iterdir()) == [folder]


def test_bundle_survives_a_kill_between_the_two_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rename = tmp_path / "bundle", Path.rename
    put(folder, "old")

    def killed(path: Path, target: Path) -> Path:
        if ".writing-" in path.name:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        killed_in(lambda: put(folder, "new"))
    assert not folder.exists()
    recover(folder)
    assert (folder / "bundle.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("name", ["file/bundle", "x" * 300, "x" * 250])
def test_folder_that_cannot_be_created_gives_one_message(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    message = r"cannot create the folder .* \((Not a directory|File name too long)\); give another"
    with pytest.raises(ArtifactError, match=message):
        put(tmp_path / name, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_bundle_stays_where_its_successor_cannot_be_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rename = tmp_path / "bundle", Path.rename
    with writing_aside(folder, "bundle.json") as aside:
        (aside / "bundle.json").write_text("old")

    def refused(path: Path, target: Path) -> Path:
        if ".writing-" in path.name:
            raise PermissionError("refused")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match="refused"), writing_aside(folder, "bundle.json") as aside:
        (aside / "bundle.json").write_text("new")
    assert (folder / "bundle.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]

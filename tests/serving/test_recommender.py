"""The recommender answers as the model scores, explains exactly, and refuses invalid requests."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys.bundle.layout import Bundle
from recsys.config import build_config
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.errors import RequestError
from recsys.evaluation.ranking import rank
from recsys.serving.answer_rows import BatchRecommender, Defaults, output_schema
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_requests
from recsys.serving.requests import Answer
from recsys.training.fresh_model import build_graphs, build_model
from tests.handmade import HISTORIES, ITEMS, small_model, small_world


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return small_world(tmp_path_factory.mktemp("world") / "dataset")


@pytest.fixture(scope="module")
def bundle(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("model") / "bundle"
    write_bundle(folder, small_model(dataset), dataset, {})
    return read_bundle(folder)


@pytest.fixture(scope="module")
def recommender(bundle: Bundle) -> Recommender:
    return Recommender(bundle)


def ask(recommender: Recommender, **request: Any) -> Answer:
    return recommender.recommend(parse_requests([request]))[0]


def test_answers_equal_the_ranking_of_evaluation(dataset: PreparedDataset, bundle: Bundle) -> None:
    """With events up to validation, the recommender gives the lists of the evaluation on the test
    split.
    """
    queries = dataset.histories().queries(Split.TEST)
    ranking = rank(bundle.model, queries, 5)
    users = [f"u{user}" for user in ranking.queries.histories.users_U]
    answers = Recommender(bundle, through=Split.VALID).recommend(
        parse_requests([{"user_id": user, "k": 5} for user in users])
    )
    assert len(answers) == 3
    for row, answer in enumerate(answers):
        assert answer.item_ids == [f"i{item}" for item in ranking.items_BK[row]]
        assert answer.scores == pytest.approx(ranking.scores_BK[row], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("fusion", ["weighted", "learned", "gated"])
def test_shares_sum_exactly_to_the_score(
    dataset: PreparedDataset, tmp_path: Path, fusion: str
) -> None:
    write_bundle(tmp_path / "bundle", small_model(dataset, fusion=fusion), dataset, {})
    recommender = Recommender(read_bundle(tmp_path / "bundle"))
    rows = [{"user_id": "u0"}, {"user_id": "u3"}, {"history": ["i5", "i1"]}]
    for answer in recommender.recommend(parse_requests(rows)):
        assert list(answer.shares) == recommender.names
        for place, score in enumerate(answer.scores):
            shares = [answer.shares[name][place] for name in answer.shares]
            assert sum(shares) == sum(reversed(shares)) == score
        assert answer.scores == sorted(answer.scores, reverse=True)


def test_share_equals_the_score_lost_without_the_granularity(
    bundle: Bundle, recommender: Recommender
) -> None:
    answer = ask(recommender, user_id="u2", k=ITEMS)
    queries = replace_targets(bundle, 2)
    items = [bundle.item_ids.index(item) for item in answer.item_ids]
    whole = bundle.model.scores(queries)[0, items]
    for name, shares in answer.shares.items():
        without = bundle.model.scores_without(queries, name)[0, items]
        assert shares == pytest.approx((whole - without).numpy(), abs=1e-5)


def replace_targets(bundle: Bundle, user: int) -> Any:
    histories = bundle.histories.take(np.array([user]))
    everything = replace(histories, splits_E=np.zeros_like(histories.splits_E))
    queries = everything.queries(Split.TRAIN)
    return replace(queries, histories=everything)


def test_seen_items_are_excluded_unless_requested(recommender: Recommender) -> None:
    seen = {f"i{item}" for item, *_ in HISTORIES[0]} | {"i7"}
    hidden = ask(recommender, user_id="u0", history=["i7"], k=100)
    assert set(hidden.item_ids) == {f"i{i}" for i in range(ITEMS)} - seen
    shown = ask(recommender, user_id="u0", history=["i7"], k=100, exclude_seen=False)
    assert len(shown.item_ids) == ITEMS and set(shown.item_ids) >= seen


def test_unknown_user_with_a_history_goes_through_the_model(recommender: Recommender) -> None:
    answer = ask(recommender, user_id="nobody", history=["i0", "mystery", "i1"], k=4)
    assert answer.source == "model" and answer.user_id == "nobody" and len(answer.item_ids) == 4
    assert answer.unknown_items == ["mystery"]
    assert answer.shares["social"] == [0.0] * 4
    same = ask(recommender, history=["i0", "i1"], k=4)
    assert (same.item_ids, same.scores) == (answer.item_ids, answer.scores)


def test_user_with_friends_but_no_history_goes_through_the_model(recommender: Recommender) -> None:
    answer = ask(recommender, user_id="u3", k=3)
    assert answer.source == "model"
    assert answer.shares["social"] == answer.scores
    assert all(set(answer.shares[name]) == {0.0} for name in answer.shares if name != "social")


@pytest.mark.parametrize(
    "request_row",
    [{"user_id": "nobody"}, {"user_id": "u5"}, {"history": []}, {"history": ["mystery"]}],
)
def test_request_without_signal_gets_the_popular_items(
    recommender: Recommender, request_row: dict[str, Any]
) -> None:
    answer = ask(recommender, **request_row, k=6)
    assert answer.source == "popularity" and answer.shares == {}
    assert answer.item_ids[0] == "i3"  # chosen by three users in training and validation
    assert set(answer.item_ids[1:3]) == {"i1", "i2"}  # by two
    assert set(answer.item_ids[3:]) < {"i0", "i5", "i7", "i8", "i9"}  # by one
    assert answer.scores == [3.0, 2.0, 2.0, 1.0, 1.0, 1.0]


@pytest.fixture(scope="module")
def stacked(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    """A model with ``item_knn`` and ``popularity``, whose members ``behaviour`` and ``als`` were
    pruned.
    """
    enabled = ("behaviour", "item_knn", "als", "popularity")
    sections = {name: {"enabled": True} for name in enabled}
    tree = {"width": 8, "granularities": sections, "fusion": {"stack": True}}
    config = build_config({"data": {"dir": dataset.root}, "model": tree})
    model = build_model(config.model, config.train, dataset, Split.VALID)
    for place, member in enumerate(model.encoders.members):
        assert model.encoders.stack is not None
        model.encoders.stack.weights_GM[:, place] = float(member in ("item_knn", "popularity"))
    folder = tmp_path_factory.mktemp("stacked") / "bundle"
    write_bundle(folder, model.freeze(build_graphs(dataset, Split.VALID, model)), dataset, {})
    return Recommender(read_bundle(folder))


def test_pruned_members_are_in_no_answer(stacked: Recommender) -> None:
    assert set(stacked.names) == {"behaviour", "item_knn", "als", "popularity"}
    answer = ask(stacked, user_id="u0", k=4)
    assert set(answer.shares) == {"item_knn", "popularity"} and answer.source == "model"
    assert [sum(shares) for shares in zip(*answer.shares.values(), strict=True)] == answer.scores
    asked = Defaults(4, None, None)
    for table in (
        BatchRecommender(stacked, asked)(pa.table({"user_id": ["u0"]})),
        BatchRecommender(stacked, asked).rows([{"user_id": "u0"}]),
    ):
        shares = [name for name in table.column_names if name.startswith("share_")]
        assert sorted(shares) == ["share_item_knn", "share_popularity"]
        assert table.schema == output_schema(stacked.speaking)


@pytest.mark.parametrize(
    "request_row",
    [{"user_id": "nobody"}, {"user_id": "u5"}, {"history": []}, {"history": ["mystery"]}],
)
def test_answer_from_the_popularity_member_alone_is_marked(
    stacked: Recommender, request_row: dict[str, Any]
) -> None:
    answer = ask(stacked, **request_row, k=3)
    assert answer.source == "popularity"
    assert answer.shares["popularity"] == answer.scores and set(answer.shares["item_knn"]) == {0.0}
    assert ask(stacked, history=["i0"], k=3).source == "model"


def test_batch_marks_popular_answers_like_requests(stacked: Recommender) -> None:
    table = BatchRecommender(stacked, Defaults(3, None, None))(
        pa.table({"user_id": ["nobody", "u0"]})
    )
    assert table.column("source").to_pylist() == ["popularity"] * 3 + ["model"] * 3
    assert table.column("share_popularity").null_count == 0
    assert table.column("share_popularity").to_pylist()[:3] == pytest.approx(
        table.column("score").to_pylist()[:3]
    )


def test_new_events_with_time_and_type_change_the_answer(recommender: Recommender) -> None:
    plain = ask(recommender, user_id="u0", k=ITEMS)
    newer = ask(recommender, user_id="u0", history=["i9"], k=ITEMS)
    assert "i9" in plain.item_ids and "i9" not in newer.item_ids and newer.scores != plain.scores
    bought = ask(
        recommender, user_id="u0", history=[{"item_id": "i9", "event_type": "buy"}], k=ITEMS
    )
    assert bought.scores != newer.scores
    late = ask(
        recommender, user_id="u0", history=[{"item_id": "i9", "timestamp": "2031-05-01"}], k=ITEMS
    )
    assert late.scores != newer.scores
    number = ask(
        recommender, user_id="u0", history=[{"item_id": "i9", "timestamp": 1_935_360_000}], k=ITEMS
    )
    assert number.scores == late.scores  # the same time


def test_request_equals_the_same_events_stored(bundle: Bundle, recommender: Recommender) -> None:
    """u2's own events as an anonymous history: the same except for parts that use the user id."""
    events = [
        {"item_id": f"i{i}", "event_type": "view", "timestamp": time}
        for i, _, time, _ in HISTORIES[2]
    ]
    anonymous = ask(recommender, history=events, k=3)
    stored = ask(recommender, user_id="u2", k=ITEMS)
    for place, item in enumerate(anonymous.item_ids):
        there = stored.item_ids.index(item)
        gate = anonymous.shares["evolution"][place] / stored.shares["evolution"][there]
        behaviour = anonymous.shares["behaviour"][place] / stored.shares["behaviour"][there]
        assert gate == pytest.approx(behaviour, rel=1e-3)  # only the gate's weights differ


def test_requests_in_one_call_equal_single_requests(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"user_id": f"u{n % 6}", "k": 1 + n % 5, "exclude_seen": n % 3 > 0} for n in range(20)]
    monkeypatch.setattr("recsys.serving.scorer.MAX_CHUNK", 7)
    together = recommender.recommend(parse_requests(rows))
    for row, answer in zip(rows, together, strict=True):
        alone = ask(recommender, **row)
        assert alone.item_ids == answer.item_ids and alone.source == answer.source
        assert alone.scores == pytest.approx(answer.scores, rel=1e-4, abs=1e-5)


def test_unordered_histories_count_as_sets(tmp_path: Path) -> None:
    dataset = small_world(tmp_path / "dataset", ordered=False)
    write_bundle(tmp_path / "bundle", small_model(dataset), dataset, {})
    recommender = Recommender(read_bundle(tmp_path / "bundle"))
    twice = ask(recommender, history=["i1", "i2", "i1"])
    once = ask(recommender, history=["i1", "i2"])
    assert twice.scores == once.scores
    assert (
        ask(recommender, user_id="u2", history=["i7"]).scores
        == ask(recommender, user_id="u2").scores
    )


def test_no_requests_give_no_answers(recommender: Recommender) -> None:
    assert recommender.recommend([]) == []


def test_user_who_has_all_items_gets_an_empty_list(recommender: Recommender) -> None:
    answer = ask(recommender, history=[f"i{i}" for i in range(ITEMS)])
    assert (answer.item_ids, answer.scores, answer.source) == ([], [], "model")


def test_answers_are_plain_json(recommender: Recommender) -> None:
    answer = ask(recommender, user_id="u0", k=2)
    assert json.loads(json.dumps(answer.to_dict(), allow_nan=False))["titles"][0].startswith(
        "Title of i"
    )


def test_answers_are_finite_when_a_vector_is_not(bundle: Bundle) -> None:
    """A user vector that is not finite falls back to popularity; other rows are not affected."""
    states = {
        name: {key: tensor.clone() for key, tensor in state.items()}
        for name, state in bundle.model.states.items()
    }
    states["social"]["users_VD"][0] = torch.tensor([math.nan, math.inf, *[1e38] * 6])
    broken = type(bundle.model)(
        bundle.model.config,
        bundle.model.sizes,
        bundle.model.encoders,
        bundle.model.items,
        states,
        bundle.model.popularity_N,
    )
    answers = Recommender(replace(bundle, model=broken)).recommend(
        parse_requests([{"user_id": "u0"}, {"user_id": "u1"}, {"user_id": "u4"}])
    )
    assert [answer.source for answer in answers] == ["popularity", "model", "model"]
    assert all(math.isfinite(score) for answer in answers for score in answer.scores)


MALFORMED = [
    ("text", r"request 1: expected an object"),
    ({}, r"request 1: needs at least one of user_id, history"),
    ({"k": 3}, r"request 1: needs at least one of user_id, history"),
    (
        {"user": "u0"},
        r"request 1: user: unknown field; did you mean user_id\? Expected one of: at, attributes,"
        r" boost, candidates,"
        r" context, diversify, "
        r"exclude, exclude_seen, explain, filters, friends, history, horizon, k, offset, "
        r"per_user_limit, user_id",
    ),
    ({"friends": "u1"}, r"request 1: friends: got 'u1' \(str\); input should be a valid list"),
    ({"friends": ["u1", 2]}, r"request 1: friends\[1\]: got 2 \(int\), expected a string"),
    ({"friends": ["u1"] * 10_001}, r"request 1: friends: got .*at most 10000 items"),
    (
        {"attributes": "old"},
        r"request 1: attributes: got 'old' \(str\); input should be a valid dictionary",
    ),
    (
        {"attributes": {"age": 3}},
        r"request 1: attributes.age: unknown field; the model knows: none",
    ),
    ({"user_id": 7}, r"request 1: user_id: got 7 \(int\), expected a string"),
    ({"user_id": ""}, r"request 1: user_id: got ''.*at least 1 character"),
    ({"user_id": "u0", "k": 0}, r"request 1: k: got 0.*greater than or equal to 1"),
    ({"user_id": "u0", "k": 1001}, r"request 1: k: got 1001.*less than or equal to 1000"),
    ({"user_id": "u0", "k": 2.5}, r"request 1: k: got 2.5"),
    ({"user_id": "u0", "k": "ten"}, r"request 1: k: got 'ten'"),
    ({"user_id": "u0", "k": True}, r"request 1: k: got True"),
    ({"user_id": "u0", "exclude_seen": "yes"}, r"request 1: exclude_seen: got 'yes'"),
    ({"history": "i1"}, r"request 1: history: got 'i1' \(str\); input should be a valid list"),
    ({"history": ["i1", 2]}, r"request 1: history\[1\]: got 2 \(int\), expected an item id"),
    ({"history": [{"event_type": "buy"}]}, r"request 1: history\[0\]\.item_id: missing"),
    (
        {"history": [{"item_id": "i1", "time": 3}]},
        r"history\[0\]\.time: unknown field; expected one of: context, event_type, item_id",
    ),
    ({"history": [{"item_id": "i1", "timestamp": "soon"}]}, r"history\[0\]\.timestamp: got 'soon'"),
    ({"history": [{"item_id": "i1", "timestamp": math.nan}]}, r"history\[0\]\.timestamp: got nan"),
    ({"history": [{"item_id": "i1", "timestamp": True}]}, r"history\[0\]\.timestamp: got True"),
    (
        {"history": [{"item_id": "i1", "event_type": "stolen"}]},
        r"\.event_type: got 'stolen'; expected one of: buy, view",
    ),
    ({"history": ["i1"] * 10_001}, r"request 1: history: got .*at most 10000 items"),
]


@pytest.mark.parametrize(("row", "message"), MALFORMED, ids=[str(row)[:40] for row, _ in MALFORMED])
def test_malformed_requests_name_row_and_field(
    recommender: Recommender, row: Any, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        recommender.recommend(parse_requests([{"user_id": "u0"}, row]))


def test_serving_imports_no_heavy_package() -> None:
    """Answering imports no Ray, MLflow, transformers or torch-geometric."""
    import subprocess
    import sys

    code = (
        "import sys, recsys.serving.recommender\n"
        "import recsys.granularities.social.model, recsys.granularities.collaborative.model\n"
        "heavy = ('ray', 'mlflow', 'transformers', 'torch_geometric', 'scipy', 'pandas')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"

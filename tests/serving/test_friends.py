"""New events and friends of a request change the answer without retraining."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from recsys.config import build_config
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Histories, Queries, Split
from recsys.errors import RequestError
from recsys.model import FrozenModel
from recsys.serving.batch import recommend_all
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_files import read_requests
from recsys.serving.request_parsing import parse_requests
from recsys.serving.requests import Answer
from recsys.training.fresh_model import build_graphs, build_model
from tests.handmade import DAY, ITEMS, small_model, small_world, train_events, write_dataset

FRIENDS = ((0, 1), (0, 2), (0, 3), (1, 2), (2, 4))
READERS = {
    "behaviour": {"input": "text"},
    "evolution attention": {"cell": "attention"},
    "evolution hstu": {"cell": "hstu"},
    "evolution gru": {"cell": "gru"},
    "evolution lstm": {"cell": "lstm"},
    "collaborative": {},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return small_world(tmp_path_factory.mktemp("world") / "dataset")


@pytest.fixture(scope="module")
def folder(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle_folder = tmp_path_factory.mktemp("model") / "bundle"
    write_bundle(bundle_folder, small_model(dataset, fusion="learned"), dataset, {})
    return bundle_folder


@pytest.fixture(scope="module")
def recommender(folder: Path) -> Recommender:
    return Recommender(read_bundle(folder))


def ask(recommender: Recommender, **request: Any) -> Answer:
    return recommender.recommend(parse_requests([request]))[0]


def frozen(dataset: PreparedDataset, name: str, **options: Any) -> FrozenModel:
    """A model with random weights and one granularity."""
    torch.manual_seed(0)
    granularities = {name: {"enabled": True, **options}}
    config = build_config(
        {"model": {"width": 8, "item": {"init_std": 0.5}, "granularities": granularities}}
    )
    model = build_model(config.model, config.train, dataset, Split.VALID)
    with torch.no_grad():
        for parameter in model.encoders.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.freeze(build_graphs(dataset, Split.VALID, model))


@pytest.mark.parametrize("reader", READERS)
def test_events_of_a_request_count_like_stored_events(
    dataset: PreparedDataset, tmp_path: Path, reader: str
) -> None:
    write_bundle(
        tmp_path / "bundle", frozen(dataset, reader.split()[0], **READERS[reader]), dataset, {}
    )
    bundle = read_bundle(tmp_path / "bundle")
    newest = {"item_id": "i9", "event_type": "buy", "timestamp": 9 * DAY}
    recommender = Recommender(bundle)
    before = ask(recommender, user_id="u0", k=ITEMS)
    after = ask(recommender, user_id="u0", history=[newest], k=ITEMS)
    assert "i9" in before.item_ids and "i9" not in after.item_ids
    gained = dict(zip(after.item_ids, after.scores, strict=True))
    moved = [
        abs(gained[item] - score)
        for item, score in zip(before.item_ids, before.scores, strict=True)
        if item in gained
    ]
    assert max(moved) > 1e-3, "every score would be as before"

    old = bundle.histories.take(np.array([0]))
    stored = Histories(
        old.users_U,
        old.offsets_U1 + np.array([0, 1]),
        np.append(old.items_E, 9).astype(np.int32),
        np.append(old.types_E, 1).astype(np.uint8),
        np.append(old.times_E, 9 * DAY),
        np.append(old.values_E, 1.0).astype(np.float32),
        np.append(old.splits_E, 0).astype(np.uint8),
    )
    rest = bundle.histories.take(np.arange(1, len(bundle.histories)))
    kept = Recommender(replace(bundle, histories=Histories.concat([stored, rest])))
    again = ask(kept, user_id="u0", k=ITEMS)
    assert again.item_ids == after.item_ids and again.scores == pytest.approx(
        after.scores, abs=1e-6
    )


@pytest.mark.parametrize(
    ("conv", "layers"),
    [("light", 1), ("light", 2), ("sage", 1), ("sage", 2), ("gat", 1), ("gat", 2)],
)
def test_friends_of_a_request_act_like_friends_of_the_graph(
    tmp_path: Path, conv: str, layers: int
) -> None:
    """Naming the friends of training changes nothing for a known user; an unknown user gets the
    same, except with gat, whose attention uses the user's own vector.
    """
    histories = [
        train_events(0, 1),
        train_events(2, 3, 4),
        train_events(5),
        [],
        train_events(6, 7),
        [],
        [],
    ]
    dataset = write_dataset(tmp_path / "dataset", histories, ITEMS, friends=FRIENDS, text_width=6)
    model = frozen(dataset, "social", conv=conv, layers=layers)
    model = FrozenModel.from_tensors(model.config, model.sizes, model.tensors())
    friends_of = {0: [1, 2, 3], 1: [0, 2], 3: [0], 4: [2], 5: []}
    width = max(map(len, friends_of.values()))
    named_BF = torch.tensor(
        [friends + [-1] * (width - len(friends)) for friends in friends_of.values()]
    )
    users = list(friends_of)
    known = Queries.without_targets(Histories.of_items([[] for _ in users], users))
    stored, present = model.encode(known)
    assert present[:, 0].tolist() == [True, True, True, True, False]
    named, named_present = model.encode(known, {"friends": named_BF})
    torch.testing.assert_close(named, stored, rtol=1e-4, atol=1e-5)
    assert torch.equal(named_present, present)
    strangers, _ = model.encode(
        Queries.without_targets(Histories.of_items([[] for _ in users], [-1] * len(users))),
        {"friends": named_BF},
    )
    if conv != "gat":
        torch.testing.assert_close(strangers, stored, rtol=1e-4, atol=1e-5)
    else:  # with one friend, attention has nothing to weight
        torch.testing.assert_close(strangers[2:], stored[2:], rtol=1e-4, atol=1e-5)
    silent, silent_present = model.encode(known, {"friends": torch.tensor([[3]] * len(users))})
    assert not silent_present.any() and not silent.any(), "u3 has no event, so nothing to say"


def test_mean_of_friends_by_hand(tmp_path: Path) -> None:
    """The light encoder: the mean over friends of the mean of their items, through the output
    layer.
    """
    dataset = write_dataset(
        tmp_path / "d",
        [train_events(0, 1), train_events(2), train_events(4, 5)],
        6,
        friends=((0, 1),),
    )
    model = frozen(dataset, "social", conv="light")
    items_ND = model.item_vectors_ND
    taste = torch.stack([items_ND[[0, 1]].mean(0), items_ND[2]]).mean(0)
    output = model.encoders.granularities["social"].output
    found, _ = model.encode(
        Queries.without_targets(Histories.of_items([[]])), {"friends": torch.tensor([[0, 1, -1]])}
    )
    with torch.no_grad():
        torch.testing.assert_close(found[0, 0], output(taste), rtol=1e-4, atol=1e-5)


def test_new_user_with_friends_is_answered_by_the_model(recommender: Recommender) -> None:
    answer = ask(recommender, user_id="newcomer", friends=["u0", "zoe", "u1", "u0"], k=4)
    assert (answer.source, answer.unknown_friends) == ("model", ["zoe"])
    assert answer.shares["social"] == answer.scores
    nameless = ask(recommender, friends=["u1", "u0"], k=4)
    assert nameless.item_ids == answer.item_ids and nameless.scores == pytest.approx(
        answer.scores, rel=1e-5
    )
    both = ask(recommender, friends=["u1", "u0"], history=["i9"], k=4)
    assert {name for name, shares in both.shares.items() if any(shares)} == set(recommender.names)
    alone = ask(recommender, history=["i9"], k=4)
    assert not any(alone.shares["social"])
    for nobody in (["zoe"], ["u3"], []):  # an unknown friend, a friend without events, no friends
        assert ask(recommender, friends=nobody).source == "popularity"


def test_friends_of_a_request_replace_the_stored_ones(recommender: Recommender) -> None:
    """In the graph, u3 is a friend of u0, and u2 of u1."""
    stored = ask(recommender, user_id="u1", k=ITEMS)
    same, other = (ask(recommender, user_id="u1", friends=[name], k=ITEMS) for name in ("u2", "u0"))
    assert same.item_ids == stored.item_ids and same.scores == pytest.approx(
        stored.scores, rel=1e-4, abs=1e-5
    )
    assert other.scores != stored.scores
    # an unknown friend, and the user's own id
    unknown = ask(recommender, user_id="u1", friends=["zoe", "u1"], k=ITEMS)
    assert unknown.scores == stored.scores and unknown.unknown_friends == ["zoe"]


def test_requests_with_and_without_friends_are_independent(recommender: Recommender) -> None:
    rows: list[dict[str, Any]] = [
        {"user_id": "u0"},
        {"friends": ["u0", "u1", "u2"]},
        {"user_id": "u2", "friends": ["u4"]},
        {"history": ["i1"]},
    ]
    together = recommender.recommend(parse_requests(rows))
    for row, answer in zip(rows, together, strict=True):
        alone = ask(recommender, **row)
        assert alone.item_ids == answer.item_ids
        assert alone.scores == pytest.approx(answer.scores, rel=1e-4, abs=1e-5)


def test_batch_answers_requests_with_friends(
    answering_here: None, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "requests.jsonl"
    rows = [
        {"user_id": "newcomer", "friends": ["u0", "u1"], "k": 2},
        {"user_id": "u0", "history": ["i9"]},
        {"user_id": "reader", "history": [{"item_id": "i1", "event_type": "buy"}]},
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    summary = recommend_all(
        folder, tmp_path / "out.parquet", k=3, requests=read_requests(str(path))
    )
    found = pq.read_table(summary.path).to_pylist()
    assert [row["user_id"] for row in found] == ["newcomer"] * 2 + ["u0"] * 3 + ["reader"] * 3
    recommender = Recommender(read_bundle(folder))
    direct = [
        answer.item_ids
        for answer in recommender.recommend(parse_requests([{"k": 3} | row for row in rows]))
    ]
    assert [row["item_id"] for row in found] == sum(direct, [])
    assert summary.num_fallback == 0


def test_bad_requests_of_a_batch_are_refused(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    for rows, message in [
        ([{"history": ["i1"]}], "request 0: user_id: missing"),
        ([{"user_id": "a"}, {"user_id": "a"}], "'a' appears more than once"),
        ([{"user_id": "a", "friend": []}], "request 0: friend: unknown field"),
        ([{"user_id": "a"}, {"user_id": "b", "horizon": 5}], "^request 1: horizon: a horizon of 5"),
    ]:
        with pytest.raises(RequestError, match=message):
            recommend_all(folder, output, requests=rows)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"user_id": "a"}\n{')
    with pytest.raises(RequestError, match="line 2 is not valid JSON"):
        read_requests(str(bad))
    with pytest.raises(RequestError, match="cannot be read"):
        read_requests(str(tmp_path / "nowhere"))
    assert not output.exists()


@contextmanager
def _not_entered() -> Iterator[None]:
    pytest.fail("Ray starts although a request is wrong")
    yield


def test_request_that_does_not_fit_the_model_is_named_by_its_line(
    folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "requests.jsonl"
    for line, message in [
        (
            '"history": [{"item_id": "i1", "event_type": "sold"}]',
            r"history\[0\]\.event_type: got 's",
        ),
        ('"attributes": {"age": 3}', r"attributes\.age: unknown field"),
        ('"context": {"weather": "rain"}', r"context: 'weather' is not a context column"),
        ('"horizon": 5', r"horizon: a horizon of 5 exceeds model\.max_history 4"),
        ('"filters": {"color": "red"}', r"filters\.color: unknown attribute"),
        ('"user_id": "u0"', "user_id: 'u0' appears more than once, before in .*, line 1;"),
    ]:
        user = "" if "user_id" in line else '"user_id": "u9", '
        path.write_text(f'{{"user_id": "u0"}}\n{{"user_id": "u1"}}\n\n{{{user}{line}}}\n')
        requests = read_requests(str(path))
        with pytest.raises(RequestError, match=rf"^recommend\.requests: {path}, line 4: {message}"):
            recommend_all(
                folder,
                tmp_path / "out.parquet",
                batch_size=1,
                requests=requests,
                session=_not_entered(),
            )

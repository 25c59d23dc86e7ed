"""Profile: crosses by hand, presence of users, and attributes of a request in every way of
serving.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from recsys.bundle.layout import Bundle
from recsys.config import Config, build_config
from recsys.data.attributes import AttributeRows, Field
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.errors import ConfigError, RequestError
from recsys.granularities.profile.model import CrossLayer, FieldCross
from recsys.granularities.profile.section import ProfileConfig
from recsys.model import FrozenModel
from recsys.serving.answer_rows import answer_table
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_requests
from recsys.serving.requests import Answer, Request
from recsys.training.fresh_model import build_graphs, build_model, model_sizes
from tests.handmade import HISTORIES, ITEMS, write_dataset

USER_COLUMNS = {
    "age": pa.array([20.0, 30.0, 40.0, 50.0, None, None]),
    "gender": pa.array(["f", "m", "f", "m", None, None]),
    "likes": pa.array([["jazz", "rock"], ["rock"], ["jazz"], None, None, None]),
}
ITEM_COLUMNS = {
    "price": pa.array(np.arange(ITEMS) ** 2.0),
    "kind": pa.array(["cd", "lp"] * (ITEMS // 2)),
}


def make_dataset(folder: Path, **columns: Any) -> PreparedDataset:
    columns = {"user_columns": USER_COLUMNS, "item_columns": ITEM_COLUMNS, **columns}
    return write_dataset(
        folder, HISTORIES, ITEMS, event_types=("view", "buy"), text_width=6, **columns
    )


def make_config(**profile: Any) -> Config:
    section = {"enabled": True, "min_frequency": 1, "field_width": 4, **profile}
    granularities = {"behaviour": {"enabled": True}, "profile": section}
    model = {
        "width": 8,
        "max_history": 4,
        "item": {"init_std": 0.5},
        "granularities": granularities,
    }
    return build_config({"model": model})


def make_model(dataset: PreparedDataset, **profile: Any) -> FrozenModel:
    torch.manual_seed(0)
    config = make_config(**profile)
    model = build_model(config.model, config.train, dataset, Split.VALID)
    with torch.no_grad():  # some tables start at zero, which would hide their effect
        for parameter in model.encoders.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.freeze(build_graphs(dataset, Split.VALID, model))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_dataset(tmp_path_factory.mktemp("profile") / "dataset")


@pytest.fixture(scope="module")
def folder(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("profile-model") / "bundle"
    write_bundle(place, make_model(dataset), dataset, {})
    return place


@pytest.fixture(scope="module")
def recommender(folder: Path) -> Recommender:
    return Recommender(read_bundle(folder))


def ask(recommender: Recommender, **request: Any) -> Answer:
    return recommender.recommend(parse_requests([{"k": ITEMS, "exclude_seen": False, **request}]))[
        0
    ]


def scores(answer: Answer, part: str | None = None) -> list[float]:
    """Scores by item, of the whole answer or of one share."""
    values = answer.shares[part] if part else answer.scores
    return [value for _, value in sorted(zip(answer.item_ids, values, strict=True))]


# ------------------------------------------------------------------------------------------ crosses


@pytest.mark.parametrize("rank", [0, 1])
def test_cross_layer_equals_the_result_by_hand(rank: int) -> None:
    """x_0 = (1, 2), x = (3, 5), W = (1, 2)ᵀ (1, 1), b = (1, −1): W x + b = (9, 15), times x_0 plus
    x = (12, 35).
    """
    layer = CrossLayer(2, rank)
    left, right = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 1.0]])
    with torch.no_grad():
        if rank:
            down, up = layer.weight
            down.weight.copy_(right)
            up.weight.copy_(left)
            up.bias.copy_(torch.tensor([1.0, -1.0]))
        else:
            layer.weight.weight.copy_(left @ right)
            layer.weight.bias.copy_(torch.tensor([1.0, -1.0]))
    found = layer(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 5.0]]))
    assert found.tolist() == [[12.0, 35.0]]


def test_rows_equal_those_by_hand() -> None:
    """Embedding of the bin plus value × direction; the mean of a list's members; zero for a row
    without values.
    """
    fields = (Field("age", "number", edges=(30.0,)), Field("likes", "list", 2, ("jazz", "rock")))
    net = FieldCross(fields, ProfileConfig(layers=0, field_width=2), 4).eval()
    with torch.no_grad():
        net.output.weight.copy_(torch.eye(4))
        net.output.bias.zero_()
        for table in net.tables:
            table.weight.copy_(torch.arange(len(table.weight))[:, None] * torch.tensor([1.0, 10.0]))
        net.directions.copy_(torch.tensor([[0.5, -1.0]]))
    rows = AttributeRows(
        torch.tensor(
            [[3, 2, 3], [2, 3, -1], [0, 2, -1], [0, 1, -1], [0, 0, -1]], dtype=torch.int32
        ),
        torch.tensor([[2.0], [0.0], [0.0], [0.0], [0.0]]),
    )
    z, present = net(rows)
    # row of a code: code + 1; members 3 and 4 in the mean
    assert z[0].tolist() == [4 + 1.0, 40 - 2.0, 3.5, 35.0]
    assert z[1].tolist() == [3.0, 30.0, 4.0, 40.0]
    assert z[2].tolist() == [1.0, 10.0, 3.0, 30.0]  # the row of "missing"
    assert z[3:].tolist() == [[0.0] * 4] * 2 and present.tolist() == [
        True,
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(("layers", "learns"), [(1, True), (0, False)])
def test_only_crosses_learn_an_exclusive_or(layers: int, learns: bool) -> None:
    """Old men and young women like one item, the others another: no sum over fields can express
    it.
    """
    torch.manual_seed(0)
    fields = (
        Field("band", "category", 1, ("young", "old")),
        Field("gender", "category", 1, ("f", "m")),
    )
    net = FieldCross(fields, ProfileConfig(layers=layers, field_width=4, dropout=0.0), 1)
    rows = AttributeRows(
        torch.tensor([[2, 2], [2, 3], [3, 2], [3, 3]], dtype=torch.int32), torch.zeros(4, 0)
    )
    wanted = torch.tensor([1.0, -1.0, -1.0, 1.0])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(100):
        loss = (net(rows)[0][:, 0] - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    error = loss.item()
    assert error < 0.01 if learns else error > 0.99, (
        "the best sum is zero everywhere, with an error of one"
    )


def test_hidden_fields_are_missing_ones() -> None:
    fields = (Field("age", "number"), Field("likes", "list", 2, ("jazz", "rock")))
    net = FieldCross(fields, ProfileConfig(dropout=0.5), 4).train()
    rows = AttributeRows(torch.tensor([[2, 2, 3]] * 400, dtype=torch.int32), torch.ones(400, 1))
    hidden = net._hidden(rows)
    kinds, counts = np.unique(
        np.concatenate([hidden.codes_XS.numpy(), hidden.values_XM.numpy()], axis=1),
        axis=0,
        return_counts=True,
    )
    assert kinds.tolist() == [[0, 0, -1, 0], [0, 2, 3, 0], [2, 0, -1, 1], [2, 2, 3, 1]]
    assert (abs(counts - 100) < 45).all(), "one quarter each, within five standard deviations"
    assert rows.codes_XS.tolist() == [[2, 2, 3]] * 400


# ---------------------------------------------------------------------------------------- the model


def test_new_item_has_a_vector_from_its_attributes(dataset: PreparedDataset) -> None:
    """i10 and i11 have no events; the two twins of i10 differ in attributes only."""
    torch.manual_seed(0)
    config = make_config(user_fields=[], item_fields=["price", "kind"])
    model = build_model(config.model, config.train, dataset, Split.TRAIN)
    graphs = build_graphs(dataset, Split.TRAIN, model)
    plain = model.tower().detach()
    # untrained, attributes add nothing
    torch.testing.assert_close(model.freeze(graphs).item_vectors_ND, plain)
    net = model.encoders.granularities["profile"].items
    with torch.no_grad():
        net.output.weight.normal_()
    added = model.freeze(graphs).item_vectors_ND - plain
    assert (added.abs().sum(1) > 0).all()
    assert not torch.allclose(added[10], added[11])


def test_users_of_the_test_split_do_not_change_the_encoding(tmp_path: Path) -> None:
    """u3 and u5 have no events in training: their values are unknown to the encoding, and their
    ages change nothing.
    """
    strange = {**USER_COLUMNS, "gender": pa.array(["f", "m", "f", "x", None, "x"])}
    strange["age"] = pa.array([20.0, 30.0, 40.0, 5000.0, None, 7000.0])
    one = make_dataset(tmp_path / "one")
    other = make_dataset(tmp_path / "other", user_columns=strange)
    assert one.active_users_V(Split.TRAIN).tolist() == [True, True, True, False, True, False]
    sizes = [model_sizes(make_config().model, each, Split.TRAIN) for each in (one, other)]
    assert sizes[0] == sizes[1]
    assert [field["name"] for field in sizes[0].inputs["profile"]["users"]] == [
        "age",
        "gender",
        "likes",
    ]


def test_user_without_attributes_is_served_without_profile(dataset: PreparedDataset) -> None:
    """The list of u4 is that of the same model with the granularity's weight at zero."""
    model = make_model(dataset, item_fields=[])
    queries = dataset.histories().queries(Split.TEST)
    row = queries.histories.users_U.tolist().index(4)
    whole, without = model.scores(queries), model.scores_without(queries, "profile")
    torch.testing.assert_close(whole[row], without[row])
    assert not torch.allclose(whole[0], without[0])


@pytest.mark.parametrize(
    ("profile", "columns", "message"),
    [
        (
            {},
            {"user_columns": {}, "item_columns": {}},
            r"profile needs attributes, but neither users nor items",
        ),
        (
            {"user_fields": ["height"]},
            {},
            r"user_fields: height not among the columns; columns: age, gender, likes",
        ),
        (
            {"item_fields": ["weight"]},
            {},
            r"item_fields: weight not among the columns; columns: kind, price",
        ),
        (
            {"numeric": ["agee"]},
            {},
            r"numeric and categorical name agee; columns of users: age, gender, likes; of item",
        ),
    ],
)
def test_missing_columns_are_reported(
    profile: dict[str, Any], columns: dict[str, Any], message: str, tmp_path: Path
) -> None:
    dataset = make_dataset(tmp_path / "dataset", **columns)
    fields = {"item_fields": []} if columns else {}
    with pytest.raises(ConfigError, match=message):
        config = make_config(**fields, **profile)
        build_model(config.model, config.train, dataset, Split.TRAIN)


# ------------------------------------------------------------------------------------------ serving


def test_bundle_keeps_the_encoding_and_leaves_out_the_items_network(
    folder: Path, dataset: PreparedDataset
) -> None:
    bundle: Bundle = read_bundle(folder)
    frozen = make_model(dataset)
    assert bundle.model.sizes == frozen.sizes
    assert {name for name in frozen.tensors() if "profile.items" in name} == set()
    queries = dataset.histories().queries(Split.TEST)
    torch.testing.assert_close(
        bundle.model.scores(queries), frozen.scores(queries), rtol=1e-3, atol=1e-3
    )


def test_new_user_with_attributes_only_is_served_by_the_model(recommender: Recommender) -> None:
    woman = ask(recommender, attributes={"age": 30, "gender": "f"})
    man = ask(recommender, user_id="newcomer", attributes={"age": 30, "gender": "m"})
    assert (woman.source, man.source) == ("model", "model")
    assert scores(woman) != scores(man)
    assert woman.shares["profile"] == woman.scores and set(woman.shares["behaviour"]) == {0.0}


def test_attributes_of_a_request_equal_stored_ones(recommender: Recommender) -> None:
    """Attributes of a request that equal those of u0 in the table give u0's share; also for u4, who
    has none stored.
    """
    known = scores(ask(recommender, user_id="u0"), "profile")
    same = {"age": 20.0, "gender": "f", "likes": ["rock", "jazz"]}
    assert scores(ask(recommender, attributes=same), "profile") == pytest.approx(known, abs=1e-5)
    assert scores(ask(recommender, user_id="u4", attributes=same), "profile") == pytest.approx(
        known, abs=1e-5
    )


def test_attributes_of_a_request_replace_stored_ones(recommender: Recommender) -> None:
    """u0 as a man is a man with u0's age and taste; null keeps the stored value."""
    as_man = ask(recommender, user_id="u0", attributes={"gender": "m", "age": None})
    twin = ask(recommender, attributes={"age": 20.0, "gender": "m", "likes": ["jazz", "rock"]})
    assert scores(as_man, "profile") == pytest.approx(scores(twin, "profile"), abs=1e-5)
    assert scores(as_man, "behaviour") == pytest.approx(
        scores(ask(recommender, user_id="u0"), "behaviour"), abs=1e-5
    )


def test_unknown_categories_are_unknown(recommender: Recommender) -> None:
    """Two categories without training users are the same; alone they do not make a user present."""
    first, second = (
        ask(recommender, attributes={"age": 40, "gender": name}) for name in ("x", "y")
    )
    assert scores(first) == scores(second)
    assert ask(recommender, attributes={"gender": "x"}).source == "popularity"
    assert ask(recommender, attributes={}).source == "popularity"


def test_bad_attributes_are_refused_with_row_and_field(recommender: Recommender) -> None:
    for attributes, message in [
        (
            {"heigth": 3},
            r"request 1: attributes.heigth: unknown field; the model knows: age, gender, likes",
        ),
        (
            {"age": "thirty"},
            r"request 1: attributes.age: got 'thirty' \(str\), expected a finite number",
        ),
    ]:
        with pytest.raises(RequestError, match=message):
            recommender.recommend(parse_requests([{"user_id": "u0"}, {"attributes": attributes}]))


def test_every_way_gives_the_same_answers(recommender: Recommender) -> None:
    """Directly, through MLflow, and as in the actors of batch recommendation (test_batch runs these
    on Ray).
    """
    from mlflow import MlflowException

    from recsys.registry.pyfunc_model import RecommenderModel

    rows = [
        {"user_id": "u0", "k": 4},
        {"user_id": "u1", "attributes": {"age": 33, "likes": np.array(["rock"])}, "k": 4},
        {"attributes": {"gender": "f", "age": float("nan")}, "k": 4},
    ]
    plain = [rows[0], {**rows[1], "attributes": {"age": 33, "likes": ["rock"]}}, {**rows[2]}]
    plain[2]["attributes"] = {"gender": "f"}
    expected = [answer.to_dict() for answer in recommender.recommend(parse_requests(plain))]
    model = RecommenderModel()
    model.recommender = recommender
    found = model.predict(None, pd.DataFrame(rows)).to_dict(orient="records")
    assert [row["item_ids"] for row in found] == [row["item_ids"] for row in expected]
    assert [row["scores"] for row in found] == [row["scores"] for row in expected]
    with pytest.raises(MlflowException, match="attributes.height: unknown field"):
        model.predict(None, pd.DataFrame([{"user_id": "u0", "attributes": {"height": 2}}]))

    shipped = Recommender(pickle.loads(pickle.dumps(recommender.bundle)))
    batch = answer_table(shipped.recommend([Request(user_id="u0", k=4)]), shipped.names)
    assert batch.column("item_id").to_pylist() == expected[0]["item_ids"]
    assert batch.column("share_profile").to_pylist() == pytest.approx(
        expected[0]["shares"]["profile"]
    )


def test_input_example_has_a_new_user_with_attributes(
    folder: Path, recommender: Recommender
) -> None:
    from recsys.registry.logged_model import input_example
    from recsys.registry.pyfunc_model import RecommenderModel

    example = input_example(read_bundle(folder))
    assert example["attributes"].tolist() == [
        {},
        {},
        {},
        {"age": 30.0, "gender": "f", "likes": ["jazz"]},
    ]
    model = RecommenderModel()
    model.recommender = recommender
    assert model.predict(None, example)["source"].tolist() == [
        "model",
        "model",
        "popularity",
        "model",
    ]

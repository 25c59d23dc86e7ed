"""Requests to the registered model: as data frames, as lists, and through MLflow's own server;
without a registry.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowException
from mlflow.pyfunc.scoring_server import invocations

from recsys.registry.pyfunc_model import BUNDLE, RecommenderModel, request_schema, signature
from recsys.serving.bundles import write_bundle
from tests.handmade import small_model, small_world


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RecommenderModel:
    world = tmp_path_factory.mktemp("pyfunc")
    dataset = small_world(world / "dataset")
    write_bundle(world / "bundle", small_model(dataset), dataset, {})
    loaded = RecommenderModel()
    loaded.load_context(
        SimpleNamespace(artifacts={BUNDLE: str(world / "bundle")}, model_config=None)
    )
    return loaded


def test_mlflow_drops_no_field_before_the_model_sees_it() -> None:
    found = signature()
    assert found.inputs is None and found.outputs is not None
    assert [param.name for param in found.params.params] == ["k", "exclude_seen"]
    schema = request_schema()
    assert schema["additionalProperties"] is False and "horizon" in schema["properties"]
    json.dumps(schema)


def test_frame_with_empty_cells_equals_a_list_of_requests(model: RecommenderModel) -> None:
    rows: list[dict[str, Any]] = [
        {"user_id": "u0", "k": 2},
        {"history": ["i1", {"item_id": "i2", "event_type": "buy"}], "exclude_seen": False},
        {"user_id": "new", "friends": ["u0"]},
    ]
    expected = model.predict(None, rows)
    for frame in (
        pd.DataFrame(rows),  # NaN where a field is absent, and k is a float
        pd.DataFrame(rows).convert_dtypes(),
        pd.DataFrame(rows, index=[7, 7, 7]),
        pd.DataFrame([{**row, "context": None, "horizon": np.nan} for row in rows]),
    ):
        pd.testing.assert_frame_equal(model.predict(None, frame), expected)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            pd.DataFrame({"user_id": [7, 8]}),
            r'holds numbers \(int64\), expected strings.*astype\("string"\)',
        ),
        (
            pd.DataFrame({"user_id": [7, None]}),
            r'holds numbers \(float64\).*astype\("Int64"\)\.astype\("string"\)',
        ),
        (
            pd.DataFrame({"user_id": pd.array([7, None], "Int64")}),
            r"holds numbers \(Int64\), expected strings",
        ),
        (
            pd.DataFrame({"user_id": ["a", 8]}, dtype=object),
            r"request 1: user_id: got 8 \(int\).*ids are strings",
        ),
        (
            pd.DataFrame({"user_id": ["a"], "exclude_sen": [True]}),
            r"exclude_sen: unknown field; did you mean exclude_seen\? Expected one of: at",
        ),
        (pd.DataFrame({"USER": ["a"]}), "USER: unknown field"),
        (
            pd.DataFrame({"k": [3]}),
            "expected a column user_id, history, friends, attributes or item_id",
        ),
        (pd.DataFrame([["a", "b"]], columns=["user_id", "user_id"]), "have the same name"),
        (pd.DataFrame([["a"]]), "0: unknown field"),
        ([{"user_id": "u0", "exclude_sen": False}], "request 0: exclude_sen: unknown field"),
        ({"user_id": "u0", "exclude_sen": False}, "request 0: exclude_sen: unknown field"),
        ([{"user_id": 7}], r"user_id: got 7 \(int\)"),
        ({"user_id": ["a"], "k": [1, 2]}, "the columns differ in length"),
        ("u0", "got str, expected a data frame or a list"),
        ([{"history": np.array(["i1", 5])}], "mixes strings and numbers"),
        ([{"history": np.array(["i1", 2**63])}], "mixes strings and numbers"),
        ([{"history": np.array(["i1", -2.5e-20])}], "mixes strings and numbers"),
        ([{"history": np.array(["i1", True])}], "mixes strings and numbers"),
        ([{"user_id": "u0", "k": 10**5000}], "k: got a value .int. with thousands of digits"),
    ],
)
def test_refusals_name_the_reason(model: RecommenderModel, asked: Any, message: str) -> None:
    with pytest.raises(MlflowException, match=message) as found:
        model.predict(None, asked)
    assert found.value.error_code == "INVALID_PARAMETER_VALUE" and "\n" not in str(found.value)


def test_part_of_an_array_of_strings_is_a_list(model: RecommenderModel) -> None:
    """It has room for the longest string of the whole array, as a list with numbers would have."""
    for longest in ("30000", "i" * 21, "i" * 32, "i" * 40):
        ids = np.array(["i1", "i2", longest])
        expected = model.predict(None, [{"history": ["i1", "i2"], "k": 3}])
        for history in (ids[:2], ids[ids != longest]):
            found = model.predict(None, [{"history": history, "k": 3}])
            assert found.to_dict() == expected.to_dict()


def test_deeply_nested_value_is_refused(model: RecommenderModel) -> None:
    deep: Any = "a"
    for _ in range(100_000):
        deep = [deep]
    for row in ({"user_id": deep}, {"user_id": "u0", "context": {"a": deep}}, {"history": deep}):
        with pytest.raises(MlflowException, match="nested too deeply"):
            model.predict(None, [row])
    while isinstance(
        deep, list
    ):  # free it from the outside in: freeing it at once would recurse too deeply
        [deep] = deep


def served(model: RecommenderModel, body: Any) -> tuple[int, Any]:
    """The status and content of the reply of MLflow's server; the model has no input schema."""

    class Loaded:
        metadata = SimpleNamespace(get_params_schema=lambda: signature().params)

        def predict(self, data: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
            return model.predict(None, data, params)

    try:
        reply = invocations(json.dumps(body).encode(), "application/json", Loaded(), None)
    except MlflowException as error:
        return error.get_http_status_code(), error.message
    return reply.status, json.loads(reply.response)


def test_all_body_formats_of_mlflow_reach_the_model(model: RecommenderModel) -> None:
    rows = [{"user_id": "u0", "k": 2}, {"user_id": "new", "history": ["i1", "x"], "k": 3}]
    expected = json.loads(model.predict(None, rows).to_json(orient="records"))
    split = {
        "columns": ["user_id", "history", "k"],
        "data": [["u0", None, 2], ["new", ["i1", "x"], 3]],
    }
    for body in ({"dataframe_records": rows}, {"dataframe_split": split}, {"inputs": rows}):
        status, found = served(model, body)
        assert status == 200
        for answer, wanted in zip(found["predictions"], expected, strict=True):
            assert (
                answer["item_ids"] == wanted["item_ids"]
                and answer["unknown_items"] == wanted["unknown_items"]
            )
    status, found = served(model, {"inputs": {"user_id": "u0", "history": ["i1", "i2"]}})
    assert status == 200 and len(found["predictions"]) == 1
    status, found = served(model, {"inputs": {"user_id": ["u0", "u1"], "k": [1, 2]}})
    assert status == 200 and [len(answer["item_ids"]) for answer in found["predictions"]] == [1, 2]
    status, found = served(model, {"inputs": [{"user_id": "u0"}], "params": {"k": 4}})
    assert status == 200 and len(found["predictions"][0]["item_ids"]) == 4


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"dataframe_records": [{"user_id": "u0", "exclude_sen": False}]},
            "exclude_sen: unknown field",
        ),
        ({"inputs": [{"user_id": "u0", "exclude_sen": False}]}, "exclude_sen: unknown field"),
        ({"instances": [{"user_id": "u0", "exclude_sen": False}]}, "exclude_sen: unknown field"),
        (
            {"dataframe_split": {"columns": ["user_id", "q"], "data": [["u0", 1]]}},
            "q: unknown field",
        ),
        ({"dataframe_records": [{"user_id": 7}]}, "user_id: the column holds numbers"),
        ({"inputs": [{"user_id": 7}]}, "user_id: got 7"),
        ({"inputs": [{"history": ["i1", 5]}]}, "mixes strings and numbers"),
        ({"inputs": [{"user_id": "u0", "k": 0}]}, "k: got 0"),
    ],
)
def test_mlflow_server_refuses_the_same_as_ours(
    model: RecommenderModel, body: Any, message: str
) -> None:
    status, text = served(model, body)
    assert status == 400 and message in text

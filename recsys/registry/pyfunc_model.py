"""The model as MLflow serves it: models-from-code, so this file itself goes into the registered model.

Why: loading it runs this source against the carried ``recsys`` package and the bundle artifact; nothing is unpickled,
and no Ray, no language model and no graph library is needed where it is served.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from mlflow import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from recsys.errors import RequestError, choices
from recsys.registry.sealed import check_description
from recsys.serving.recommender import Recommender
from recsys.serving.requests import SUBJECTS, Request, filled, one_of, parse_requests

BUNDLE = "bundle"  # name of the artifact
BUNDLE_SHA256 = "bundle_sha256"  # key of the model's configuration: the checksum of the bundle's description


class RecommenderModel(PythonModel):
    """Rows of requests → rows of answers.

    Input columns, all optional, a row needs one of the first four: ``user_id`` (string), ``history`` (list of item
    ids, oldest first, or of objects with item_id, event_type, timestamp, context), ``friends`` (list of user ids),
    ``attributes`` (object: field of a user → value, list or null), ``k`` (1 … 1000), ``exclude_seen`` (bool),
    ``context`` (object: context column → value at the moment of asking), ``horizon`` (1 … 10 events ahead).
    Empty cells count as not given; the parameters ``k`` and ``exclude_seen`` hold for rows that do not say.
    """

    def load_context(self, context: Any) -> None:
        """Load the bundle, once.

        Raises:
            ArtifactError: it is damaged, or another bundle than the one that was registered.
        """
        check_description(context.artifacts[BUNDLE], (context.model_config or {}).get(BUNDLE_SHA256))
        self.recommender = Recommender.load(context.artifacts[BUNDLE])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One row an answer: user_id, item_ids, scores, shares (granularity → list), source, titles, unknown_items,
        unknown_friends.

        Raises:
            MlflowException: a malformed request (INVALID_PARAMETER_VALUE: HTTP 400), with its row and field.
        """
        try:
            requests = parse_requests(_rows(model_input, params or {}))
            answers = [answer.to_dict() for answer in self.recommender.recommend(requests)]
        except RequestError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        columns = ["user_id", "item_ids", "scores", "shares", "source", "titles", "unknown_items", "unknown_friends"]
        return pd.DataFrame({name: pd.Series([a[name] for a in answers], dtype=object) for name in columns})


def _rows(model_input: Any, params: dict[str, Any]) -> list[Any]:
    """Requests as plain dictionaries without empty cells, defaults filled in."""
    if isinstance(model_input, pd.DataFrame):
        if not {*SUBJECTS} & set(model_input.columns):  # MLflow has dropped other columns
            raise RequestError(f"found no column {one_of(SUBJECTS)}; there are: {choices(Request.model_fields)}")
        model_input = model_input.astype(object).to_dict(orient="records")
    if isinstance(model_input, dict):
        model_input = [model_input]
    if not isinstance(model_input, (list, tuple)):
        raise RequestError(
            f"got {type(model_input).__name__}, expected a data frame or a list of requests with {one_of(SUBJECTS)}"
        )
    defaults = {name: _plain(value) for name, value in params.items() if value is not None}
    return filled((_plain(row) for row in model_input), {"k": 20} | defaults)


def _plain(value: Any) -> Any:
    """Plain Python values of a cell; NaN, NA and NaT, which data frames put where a cell is empty, become None."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, np.ndarray):
        return [_plain(inner) for inner in value.tolist()]
    if isinstance(value, np.generic):
        value = value.item()
    if value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return None
    return value


def signature() -> Any:
    """What goes in and what comes out, for MLflow."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Map, ParamSchema, ParamSpec, Schema

    # MLflow cannot say "list or nothing" or "integer or nothing" of a column: a batch in which one row has no history
    # would be refused. So these columns are any, and the request parser, which names row and field, checks them.
    anything = AnyType()  # type: ignore[no-untyped-call]
    kinds = {name: DataType.string if name == "user_id" else anything for name in Request.model_fields}
    inputs = Schema([ColSpec(kind, name, required=False) for name, kind in kinds.items()])
    outputs = Schema(
        [
            ColSpec(DataType.string, "user_id", required=False),
            ColSpec(Array(DataType.string), "item_ids"),
            ColSpec(Array(DataType.double), "scores"),
            ColSpec(Map(Array(DataType.double)), "shares"),
            ColSpec(DataType.string, "source"),
            ColSpec(Array(DataType.string), "titles"),
            ColSpec(Array(DataType.string), "unknown_items"),
            ColSpec(Array(DataType.string), "unknown_friends"),
        ]
    )
    params = ParamSchema([ParamSpec("k", DataType.long, 20), ParamSpec("exclude_seen", DataType.boolean, True)])
    return ModelSignature(inputs, outputs, params)


set_model(RecommenderModel())

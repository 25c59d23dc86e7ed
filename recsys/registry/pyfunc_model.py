"""The model as MLflow serves it ("models from code"): this file itself is part of the registered
model.

Why: loading runs this source with the ``recsys`` package and the bundle stored in the model.
Nothing is unpickled, and serving needs no Ray, no language model and no graph library.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

import numpy as np
import pandas as pd
from mlflow import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from recsys.bundle.checksums import check_description
from recsys.errors import RequestError, choices, valid_instead
from recsys.serving.bundles import read_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import filled, one_of, parse_any, rows_of_columns
from recsys.serving.requests import SIMILAR_TO, SUBJECTS, Request, SimilarRequest

BUNDLE = "bundle"  # name of the MLflow artifact
BUNDLE_SHA256 = (  # key of the model's configuration: the checksum of the bundle's description
    "bundle_sha256"
)
_COLUMNS = (
    "user_id",
    "item_ids",
    "scores",
    "shares",
    "source",
    "titles",
    "unknown_items",
    "unknown_friends",
)
# only where a request asks for them
_MORE = ("boosts", "explanations", "unknown_in_rules", "item_id", "by", "why")
_INTEGER: Final = re.compile(r"-?\d+")
# width of an array in which NumPy turned values into strings → the form of these strings
_WRITTEN_NUMBERS: Final = {
    5: re.compile("True|False"),
    20: _INTEGER,  # unsigned
    21: _INTEGER,
    32: re.compile(r"-?(\d+(\.\d+)?(e[+-]?\d+)?|inf)|nan"),
}


class RecommenderModel(PythonModel):
    """Rows of requests → rows of answers.

    All input columns are optional, but a row needs one of the first four:

    - ``user_id``: string;
    - ``history``: list of item ids, oldest first, or of objects with item_id, event_type,
      timestamp, context;
    - ``friends``: list of user ids;
    - ``attributes``: object, attribute of a user → value, list or null;
    - ``k``: 1 to 1000 items;
    - ``exclude_seen``: bool; by default as the model was evaluated;
    - ``context``: object, context column → value at the time of the request;
    - ``horizon``: 1 to 10 events ahead;
    - ``at``: time of the request, in any format that times of events may have; by default now;
    - rules of the list: ``candidates`` and ``exclude`` (lists of item ids), ``filters`` (object,
      attribute → condition), ``boost`` and ``diversify`` (objects), ``offset``;
    - ``per_user_limit``: largest number of items of a user over all pages;
    - ``explain``: bool.

    A row with ``item_id``, and optionally ``by`` (auto, vectors, use or text), asks for similar
    items with the same rules instead. Empty cells count as missing. The parameters ``k`` and
    ``exclude_seen`` apply to rows that do not set them.
    """

    def load_context(self, context: Any) -> None:
        """Load the bundle once.

        Raises
        ------
        ArtifactError
            The bundle is damaged, or is not the one that was registered.
        """
        # before anything in the folder is read
        check_description(
            context.artifacts[BUNDLE], (context.model_config or {}).get(BUNDLE_SHA256)
        )
        self.recommender = Recommender(read_bundle(context.artifacts[BUNDLE]))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row per answer.

        The columns are user_id, item_ids, scores, shares (granularity → list), source, titles,
        unknown_items and unknown_friends; where any request asks for them, also boosts,
        explanations, unknown_in_rules, and item_id, by and why of similar items.

        Parameters
        ----------
        context : Any
            MLflow's context; not read.
        model_input : pd.DataFrame
            One request per row.
        params : dict[str, Any] | None
            Values for rows that do not set the field; None: the defaults of the model.

        Returns
        -------
        pd.DataFrame
            The answers, in the order of the requests.

        Raises
        ------
        MlflowException
            A request is malformed (INVALID_PARAMETER_VALUE: HTTP 400); names the row and field.
        """  # noqa: DOC501
        try:
            requests = parse_any(_rows(model_input, params or {}))
            answers = [answer.to_dict() for answer in self.recommender.answer(requests)]
        except RequestError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        except RecursionError:
            raise MlflowException.invalid_parameter_value(
                "a request is nested too deeply"
            ) from None
        columns = [
            *_COLUMNS,
            *(name for name in _MORE if any(name in answer for answer in answers)),
        ]
        return pd.DataFrame(
            # as objects: pandas would turn a column of numbers and None into floats
            {name: pd.Series([a.get(name) for a in answers], dtype=object) for name in columns}
        )


def _rows(model_input: Any, params: dict[str, Any]) -> list[Any]:
    """Requests as plain dictionaries, without empty cells and with default values."""
    if isinstance(model_input, pd.DataFrame):
        _check_columns(model_input)
        # as objects first, or an integer column with an empty cell gives floats
        model_input = model_input.astype(object).to_dict(orient="records")
    if isinstance(model_input, dict):
        model_input = rows_of_columns(_plain(model_input), "the input")
    if not isinstance(model_input, (list, tuple)):
        raise RequestError(
            f"got {type(model_input).__name__}, expected a data frame or a list of requests with"
            f" {one_of(SUBJECTS)}"
        )
    defaults = {name: _plain(value) for name, value in params.items() if value is not None}
    return filled((_plain(row) for row in model_input), {"k": 20} | defaults)


def _check_columns(frame: pd.DataFrame) -> None:
    """Refuse unknown or repeated columns, and ids that are numbers.

    Why numbers are refused: the ids of a model are strings, and a number no longer shows how it was
    written (``007``, ``1e5``, ``7.0`` in a column with an empty cell).

    Raises
    ------
    RequestError
        There is such a column, or none that names a user, items or an item.
    """
    names = [str(name) for name in frame.columns]
    fields = {*Request.model_fields, *SimilarRequest.model_fields}
    unknown = [name for name in names if name not in fields]
    if unknown:
        raise RequestError(
            f"{choices(unknown)}: unknown field; {valid_instead(unknown[0], fields)}"
        )
    if len(set(names)) != len(names):
        raise RequestError(
            f"some of the columns {', '.join(names)} have the same name; give every column once"
        )
    if not {*SUBJECTS, SIMILAR_TO} & set(names):
        raise RequestError(
            f"expected a column {one_of([*SUBJECTS, SIMILAR_TO])}, got none of them; possible"
            f" columns: {choices(fields)}"
        )
    for name in ("user_id", SIMILAR_TO):
        kind = frame[name].dtype if name in names else None
        if kind is not None and pd.api.types.is_numeric_dtype(kind) and frame[name].notna().any():
            cure = (
                'astype("string")'
                if pd.api.types.is_integer_dtype(kind)
                else 'astype("Int64").astype("string")'
            )
            raise RequestError(
                f"{name}: the column holds numbers ({kind}), expected strings: read it as text"
                " (dtype=str), or convert "
                f'it with frame["{name}"].{cure}, which cannot restore leading zeros of the file'
            )


def _plain(value: Any) -> Any:
    """A cell as plain Python values; NaN, NA and NaT, which mark empty cells of a data frame,
    become None.
    """
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "U":
            _check_unmixed(value)
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return None
    return value


def _check_unmixed(texts: np.ndarray[Any, Any]) -> None:
    """Refuse lists that mix strings and numbers.

    Why this way: MLflow's server turns a list into a NumPy array, in which numbers become strings
    when the list also has strings. The array then has room for the longest possible number, which
    is more than its longest string needs. A part of an array of strings may have more room than it
    needs too, so both the width and a text must be those of a number.

    Raises
    ------
    RequestError
        The list mixes them.
    """
    width, members = texts.dtype.itemsize // 4, texts.ravel().tolist()
    written = _WRITTEN_NUMBERS.get(width)
    longest = max((len(text) for text in members), default=0)
    if written is not None and width > longest and any(map(written.fullmatch, members)):
        raise RequestError(
            f"got a list that mixes strings and numbers ({str(texts.tolist())[:60]}); ids are"
            " strings: put numbers in quotes"
        )


def signature(exclude_seen: bool = True) -> Any:
    """MLflow's signature with the parameters and outputs; :func:`request_schema` describes the
    inputs.

    ``exclude_seen`` is the default of the bundle, for rows that do not set it.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Map, ParamSchema, ParamSpec, Schema

    # With an input schema, MLflow would drop columns that are not in it before the model sees them,
    # so a mistyped field would be ignored. Without one, all fields reach the request parser, which
    # reports unknown ones.
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
            ColSpec(Array(DataType.double), "boosts", required=False),
            ColSpec(DataType.string, "item_id", required=False),
            ColSpec(DataType.string, "by", required=False),
            ColSpec(DataType.string, "why", required=False),
        ]
    )
    params = ParamSchema(
        [
            ParamSpec("k", DataType.long, 20),
            ParamSpec("exclude_seen", DataType.boolean, exclude_seen),
        ]
    )
    return ModelSignature(None, outputs, params)


def request_schema(exclude_seen: bool = True) -> dict[str, Any]:
    """The JSON schema of a request, which is stored in the metadata of the registered model.

    ``exclude_seen`` is as in :func:`signature`.
    """
    schema = Request.model_json_schema()
    schema["properties"]["exclude_seen"]["default"] = exclude_seen
    return schema


set_model(RecommenderModel())

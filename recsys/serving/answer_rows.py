"""Requests → rows of recommendations, in this process and without Ray.

Batch recommendation uses this for each batch, the Python API for each call.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from recsys.bundle.layout import Bundle
from recsys.errors import RequestError
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import one_request, parse_request
from recsys.serving.request_scores import BOOST
from recsys.serving.requests import Answer, Request


def output_schema(
    granularities: Sequence[str], boosted: bool = False, explained: bool = False
) -> pa.Schema:
    """Columns of the file; ``granularities`` are those that contribute to the model's scores.

    Parameters
    ----------
    granularities : Sequence[str]
        Names; each has a column with its part of the score.
    boosted : bool
        Whether the requests boost items; then the file has the boost and its part of the score.
    explained : bool
        Whether the file has the explanations as text.

    Returns
    -------
    pa.Schema
        The schema of the rows.
    """
    return pa.schema(
        [
            ("user_id", pa.string()),
            ("rank", pa.int32()),
            ("item_id", pa.string()),
            ("score", pa.float64()),
            *((f"share_{name}", pa.float32()) for name in granularities),
            *([(f"share_{BOOST}", pa.float32()), (BOOST, pa.float64())] if boosted else []),
            ("source", pa.string()),
            *([("explanation", pa.string())] if explained else []),
        ]
    )


@dataclass(frozen=True)
class Defaults:
    """Values for fields that a request leaves out."""

    k: int
    exclude_seen: bool | None  # None: as the model was evaluated
    at: int | None  # seconds since the epoch; None: the time of the newest event
    rules: Mapping[str, Any] = field(default_factory=dict)
    out_of_stock: tuple[str, ...] = ()


class BatchRecommender:
    """A recommender with default request fields: a batch of user ids or requests → rows of
    recommendations.
    """

    def __init__(self, recommender: Recommender, defaults: Defaults) -> None:
        self.recommender, self.defaults = recommender, defaults
        self.recommender.catalogue.set_stock(defaults.out_of_stock)
        self.at = self.recommender.newest if defaults.at is None else defaults.at

    @cached_property
    def _fields(self) -> dict[str, Any]:
        """The fields of a request that sets none of them."""
        return {
            "k": self.defaults.k,
            "exclude_seen": self.defaults.exclude_seen,
            "at": datetime.fromtimestamp(self.at, UTC),
            **self.defaults.rules,
        }

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Rows for a table with ``user_id`` and, where requests are given, the
        ``request`` as JSON.
        """
        if "request" in batch.column_names:
            return self.rows([json.loads(text) for text in batch.column("request").to_pylist()])
        defaults = self.defaults
        if not (defaults.rules or defaults.out_of_stock):
            users = batch.column("user_id").combine_chunks()
            return user_table(self.recommender, users, defaults.k, defaults.exclude_seen, self.at)
        return self.rows([{"user_id": user} for user in batch.column("user_id").to_pylist()])

    def rows(self, requests: Sequence[Mapping[str, Any]]) -> pa.Table:
        """Rows for requests; a request without ``user_id`` gets its position ("0", "1", …) as its
        id.
        """
        answers = self.recommender.recommend(
            [self._parsed(row, f"request {number}") for number, row in enumerate(requests)]
        )
        named = [
            replace(answer, user_id=answer.user_id or str(n)) for n, answer in enumerate(answers)
        ]
        return answer_table(named, self.recommender.speaking)

    def checked(self, requests: Mapping[str, Mapping[str, Any]]) -> pa.Table:
        """Requests as a table of ``user_id`` and ``request`` (JSON).

        Why here: a request that cannot be answered is refused before Ray or any actor starts, with
        the place that its key names.

        Raises
        ------
        RequestError
            A request is malformed, does not fit the model, has no user id, or repeats the user id
            of another one.
        """
        places: dict[str, str] = {}  # user id → the place of its request
        for place, row in requests.items():
            request = self._parsed(row, place)
            if request.user_id is None:
                raise RequestError(
                    f"{place}: user_id: missing; it identifies the rows of the output"
                )
            first = places.setdefault(request.user_id, place)
            if first != place:
                raise RequestError(
                    f"{place}: user_id: {request.user_id!r} appears more than once, before in"
                    f" {first}; list every user once"
                )
            self._check(request, place)
        texts = [json.dumps(dict(row)) for row in requests.values()]
        columns = {"user_id": list(places), "request": texts}
        return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})

    def _parsed(self, row: Mapping[str, Any], place: str) -> Request:
        """A request with the default fields."""
        return parse_request({**self._fields, **row} if isinstance(row, Mapping) else row, place)

    def _check(self, request: Request, place: str) -> None:
        try:
            with one_request():
                self.recommender.check(request)
        except RequestError as error:
            raise RequestError(f"{place}: {error}") from None


def user_table(
    recommender: Recommender,
    user_ids: pa.Array,
    k: int,
    exclude_seen: bool | None,
    at: int | None = None,
) -> pa.Table:
    """The lists of users as rows of :func:`output_schema`.

    Parameters
    ----------
    recommender : Recommender
        Answers the users.
    user_ids : pa.Array
        Ids of the users, strings.
    k : int
        Items per list.
    exclude_seen : bool | None
        Whether to leave out items that the user already had; None: as the model was evaluated.
    at : int | None
        Time of the requests in seconds since the epoch; None: the time of the newest event.
    """
    found = recommender.recommend_users(user_ids.to_pylist(), k, exclude_seen, at)
    rows_X, ranks_X = np.nonzero(found.items_BR >= 0)
    of_model_X = found.of_model_B[rows_X]
    shares_KX = found.shares_BKR[rows_X, :, ranks_X].astype(np.float32).T
    columns = {
        "user_id": user_ids.take(pa.array(rows_X)),
        "rank": pa.array((ranks_X + 1).astype(np.int32)),
        "item_id": recommender.item_names.take(pa.array(found.items_BR[rows_X, ranks_X])),
        "score": pa.array(found.scores_BR[rows_X, ranks_X]),
        **{
            f"share_{name}": pa.array(share_X, mask=~of_model_X)
            for name, share_X in zip(recommender.speaking, shares_KX, strict=True)
        },
        "source": (
            pa.array(["popularity", "model"]).take(
                pa.array(found.personal_B[rows_X].astype(np.int8))
            )
        ),
    }
    return pa.table(columns, schema=output_schema(recommender.speaking))


def answer_table(answers: Sequence[Answer], granularities: Sequence[str]) -> pa.Table:
    """Answers as rows of :func:`output_schema`; ranks count within a page."""
    boosted = any(answer.boosts is not None for answer in answers)
    explained = any(answer.explanations is not None for answer in answers)
    lengths = [len(answer.item_ids) for answer in answers]
    columns: dict[str, Any] = {
        "user_id": [answer.user_id for answer in answers for _ in answer.item_ids],
        "rank": np.concatenate(
            [np.arange(1, n + 1, dtype=np.int32) for n in lengths] or [np.zeros(0, np.int32)]
        ),
        "item_id": [item for answer in answers for item in answer.item_ids],
        "score": [score for answer in answers for score in answer.scores],
    }
    for name in granularities:
        nothing = [[None] * n for n in lengths]
        columns[f"share_{name}"] = [
            share
            for answer, none in zip(answers, nothing, strict=True)
            for share in answer.shares.get(name, none)
        ]
    if boosted:
        columns[f"share_{BOOST}"] = [
            share
            for answer, n in zip(answers, lengths, strict=True)
            for share in answer.shares.get(BOOST, [None] * n)
        ]
        columns[BOOST] = [
            factor
            for answer, n in zip(answers, lengths, strict=True)
            for factor in _or_none(answer.boosts, n)
        ]
    if explained:
        columns["explanation"] = [
            None if explanation is None else json.dumps(explanation, ensure_ascii=False)
            for answer, n in zip(answers, lengths, strict=True)
            for explanation in _or_none(answer.explanations, n)
        ]
    columns["source"] = [answer.source for answer in answers for _ in answer.item_ids]
    schema = output_schema(granularities, boosted, explained)
    return pa.table(
        {name: pa.array(columns[name], schema.field(name).type) for name in schema.names}
    )


def _or_none(values: Sequence[Any] | None, number: int) -> Sequence[Any]:
    return [None] * number if values is None else values


def filled_up(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with the columns of ``schema``; columns that it lacks are filled with nulls."""
    for column in schema:
        if column.name not in table.column_names:
            table = table.append_column(column, pa.nulls(len(table), column.type))
    return table.select(schema.names).cast(schema)


def named_users(bundle: Bundle, users: Sequence[str]) -> pa.Table:
    """The given users in the order of the bundle; unknown users come last, in the given order.

    Raises
    ------
    RequestError
        An id is not a non-empty string, or appears twice.
    """
    for user in users:
        if not isinstance(user, str) or not user:
            raise RequestError(f"users: got {user!r}, expected user ids (strings)")
    _check_once(users)
    rows = {user: row for row, user in enumerate(bundle.user_ids)}
    # stable: keeps the order of unknown users
    ordered = sorted(users, key=lambda user: rows.get(user, len(rows)))
    return pa.table({"user_id": pa.array(ordered, pa.string())})


def _check_once(users: Sequence[str]) -> None:
    if len(set(users)) != len(users):
        twice = next(user for user, times in Counter(users).items() if times > 1)
        raise RequestError(f"users: {twice!r} appears more than once; list every user once")

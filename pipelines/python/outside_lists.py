"""Measure the recommendations of any other library on our test split, as our own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import EvaluateConfig, TrainConfig
from recsys.data.bounded import evaluated_queries
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Queries, Split
from recsys.errors import DataError
from recsys.evaluation.bootstrap import intervals
from recsys.evaluation.metrics import main_first, outside_kinds, query_metrics
from recsys.evaluation.ranking import countable, mark_hits, mark_seen

if TYPE_CHECKING:
    import pandas as pd


def measured(
    dataset: PreparedDataset,
    train: TrainConfig,
    evaluate: EvaluateConfig,
    seed: int,
    lists: pd.DataFrame,
    ks: Sequence[int] | None,
) -> pd.DataFrame:
    """Every accuracy metric of ``lists`` at every cut-off, with its interval; see
    :meth:`Dataset.evaluate`.

    Parameters
    ----------
    dataset : PreparedDataset
        The prepared dataset; its test split is measured.
    train : TrainConfig
        Main metric.
    evaluate : EvaluateConfig
        Default cut-offs, metrics and rules of the evaluation.
    seed : int
        Seed of the sample of users and of the bootstrap.
    lists : pd.DataFrame
        Columns ``user_id``, ``item_id``, and ``rank`` or ``score``.
    ks : Sequence[int] | None
        Cut-offs; None: ``evaluate.ks``.

    Returns
    -------
    pd.DataFrame
        One row per metric, with the columns ``value``, ``low`` and ``high``.

    Raises
    ------
    DataError
        A cut-off is below 1, no query has a target that counts, or the lists break a rule.
    """
    import pandas as pd

    cutoffs = sorted({int(k) for k in ks or evaluate.ks})
    if not cutoffs or cutoffs[0] < 1:
        raise DataError(f"ks: got {list(ks or [])}, expected whole numbers from 1")
    queries, _, _ = countable(
        evaluated_queries(dataset, Split.TEST, evaluate, seed),
        evaluate.exclude_seen,
    )
    if not len(queries):
        raise DataError("the test split has no query with a target that counts; check data.split")
    items_BK = _lists_of(dataset, queries, lists, cutoffs[-1])
    if evaluate.exclude_seen:
        _check_unseen(dataset, queries, items_BK)
    more = outside_kinds(train.metric, evaluate.metrics)
    values = query_metrics(mark_hits(items_BK, queries), queries.num_targets_B, cutoffs, more)
    found = intervals(values, evaluate.bootstrap, seed)
    rows = {name: (float(value.mean()), *found[name]) for name, value in values.items()}
    rows = main_first(rows, train.metric)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"])


def _lists_of(dataset: PreparedDataset, queries: Queries, lists: pd.DataFrame, k: int) -> Array:
    """The first k items of every query's user: int32 [B, k], −1 after the end and for unknown
    items.

    Raises
    ------
    DataError
        A column or a rank is missing, a user has an item twice, or no user is known.
    """
    order = next((name for name in ("rank", "score") if name in lists.columns), None)
    missing = [name for name in ("user_id", "item_id") if name not in lists.columns]
    if missing or order is None:
        need = ", ".join([*missing, *([] if order else ["rank or score"])])
        raise DataError(
            f"lists: no column {need}; expected user_id, item_id, and rank or score; got"
            f" {list(lists.columns)}"
        )
    if lists[order].isna().any():
        raise DataError(
            f"lists: {order} is missing in {int(lists[order].isna().sum())} rows; expected a number"
            " in every row"
        )
    text = lists[["user_id", "item_id"]].astype(str)
    if (twice := text.duplicated()).any():
        user, item = text[twice].iloc[0]
        raise DataError(
            f"lists: user {user!r} has item {item!r} twice; list every item once per user"
        )
    ordered = lists.assign(user_id=text.user_id, item_id=text.item_id).sort_values(
        order, ascending=order == "rank", kind="stable"
    )
    users = _rows_of(ordered.user_id, dataset.user_ids)
    if len(ordered) and (users < 0).all():
        raise DataError(
            f"lists: no user is in the dataset, e.g. {ordered.user_id.iloc[0]!r}; use the ids of"
            " the dataset"
        )
    items = _rows_of(ordered.item_id, dataset.item_ids)
    row_of_user = np.full(dataset.num_users + 1, -1, dtype=np.int64)
    row_of_user[queries.histories.users_U] = np.arange(len(queries))
    rows = row_of_user[users]  # user −1 reads the last element, which is −1
    kept = np.flatnonzero(rows >= 0)
    by_row = kept[np.argsort(rows[kept], kind="stable")]
    starts = np.searchsorted(rows[by_row], rows[by_row], side="left")
    ranks = np.arange(len(by_row)) - starts
    found = np.full((len(queries), k), -1, dtype=np.int32)
    is_in = ranks < k
    found[rows[by_row][is_in], ranks[is_in]] = items[by_row][is_in]
    return found


def _rows_of(ids: pd.Series, known: pa.Array) -> Array:
    """The dense ids, −1 for unknown ones."""
    found = pc.index_in(pa.array(ids, pa.string()), value_set=known.cast(pa.string()))
    return np.asarray(pc.fill_null(found, -1)).astype(np.int64)


def _check_unseen(dataset: PreparedDataset, queries: Queries, items_BK: Array) -> None:
    """Check that no list contains an item that its user had before."""
    is_seen = mark_seen(items_BK, queries)
    if is_seen.any():
        row, rank = np.argwhere(is_seen)[0]
        user = dataset.user_ids[int(queries.histories.users_U[row])].as_py()
        item = dataset.item_ids[int(items_BK[row, rank])].as_py()
        raise DataError(
            f"lists: the lists of {int(is_seen.any(axis=1).sum())} users contain items that they"
            f" had before, e.g. user {user!r} item {item!r}; evaluate.exclude_seen is true, so such"
            " targets do not count: leave out these items, or make the dataset with"
            " settings={'evaluate.exclude_seen': False}"
        )

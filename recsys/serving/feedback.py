"""Feedback on shown items (clicks, purchases, skips) as evidence for the fusion: the score of every
granularity.

A row has the user, the shown item and the reaction in the canonical columns ``user_id``,
``item_id`` and ``event_type``. A ``history`` column (list of item ids) adds what the user did after
the model was trained; for users that the model does not know, it is their whole history.

Legend: B queries, R rows, K granularities, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from recsys import schema
from recsys.config import CanonicalSource
from recsys.contributions import Contributions
from recsys.data.histories import Array, Queries
from recsys.errors import ConfigError, DataError, choices
from recsys.fusion import GatedFusion
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_requests
from recsys.training.refit_fusion import Evidence
from recsys.values.arrow_types import is_variable_list

HISTORY: Final = "history"
LEAST_ROWS: Final = 50
_CHUNK: Final = 1024


@dataclass(frozen=True)
class Feedback:
    """Rows of feedback with a reward each."""

    users: list[str]
    items: list[str]
    histories: list[list[str] | None]
    rewards_R: Array
    num_bad: int  # rows that the reader rejected

    def __len__(self) -> int:
        return len(self.users)


def read_feedback(files: Sequence[str], rewards: Mapping[str, float], max_bad: float) -> Feedback:
    """Read feedback files: Parquet, CSV, TSV or JSON lines with the canonical column names.

    Parameters
    ----------
    files : Sequence[str]
        Paths of files and folders, and globs.
    rewards : Mapping[str, float]
        Event type → reward; the sign is the label, the size the weight.
    max_bad : float
        Largest share of bad rows, 0 to 1.

    Returns
    -------
    Feedback
        The good rows.

    Raises
    ------
    ConfigError
        No file is given, a reward is zero, or an event type has no reward.
    SourceError
        A file is missing or unreadable, or lacks a column.
    DataError
        There are no rows, or the share of bad rows is above ``max_bad``.
    """
    # the sign of a reward is the label of the row, and its size the weight; 0 has neither
    nothing = [name for name, reward in rewards.items() if reward == 0 or not np.isfinite(reward)]
    if nothing:
        raise ConfigError(
            f"update.rewards: the reward of {', '.join(nothing)} must be a finite number other than"
            " 0; remove the event type from the list, or give it a reward"
        )
    good, num_bad = read_rows(files, max_bad, "update.feedback")
    return Feedback(
        good.column(schema.USER_ID).to_pylist(),
        good.column(schema.ITEM_ID).to_pylist(),
        _histories(good),
        rewards_of(
            good, rewards, "update.rewards", "a reward above 0 means liked, below 0 disliked"
        ),
        num_bad,
    )


def rewards_of(rows: pa.Table, rewards: Mapping[str, float], key: str, cure: str) -> Array:
    """The reward of every row by its event type: float64.

    Parameters
    ----------
    rows : pa.Table
        Rows with a column ``event_type``.
    rewards : Mapping[str, float]
        Event type → reward.
    key : str
        Configuration key of the rewards, for the message.
    cure : str
        What to do about a missing reward, for the message.

    Raises
    ------
    ConfigError
        An event type has no reward.
    """
    types = rows.column(schema.EVENT_TYPE).to_pylist()
    unknown = sorted(set(types) - set(rewards))
    if unknown:
        raise ConfigError(
            f"{key}: no reward for the event type {', '.join(map(repr, unknown))}; there are"
            f" rewards for {choices(rewards)}; {cure}"
        )
    return np.array([rewards[name] for name in types], dtype=np.float64)


def read_rows(files: Sequence[str], max_bad: float, key: str) -> tuple[pa.Table, int]:
    """The good rows of feedback files, and the number of bad rows.

    ``key`` is the configuration key that names the files, for messages.

    Parameters
    ----------
    files : Sequence[str]
        Paths of files and folders, and globs.
    max_bad : float
        Largest share of bad rows, 0 to 1.
    key : str
        The configuration key that names the files, for messages.

    Returns
    -------
    tuple of (pa.Table, int)
        The good rows, and the number of bad rows.

    Raises
    ------
    ConfigError
        No file is given.
    SourceError
        A file is missing or unreadable, or lacks a column.
    DataError
        There are no rows, or the share of bad rows is above ``max_bad``.
    """
    if not files:
        raise ConfigError(f"{key}: expected files, folders or globs of feedback events, got none")
    from recsys.sources.base import read_all
    from recsys.sources.canonical import CanonicalAdapter

    table = read_all(CanonicalAdapter(CanonicalSource(events=list(files))).pieces()["events"])
    good = table.filter(pc.is_null(table.column(schema.REASON)))
    num_bad = table.num_rows - good.num_rows
    if num_bad > max_bad * table.num_rows:
        reasons = pc.value_counts(table.column(schema.REASON).drop_null()).to_pylist()
        worst = max(reasons, key=lambda entry: entry["counts"])
        raise DataError(
            f"{key}: {num_bad:,} of {table.num_rows:,} rows are bad, most often because:"
            f" {worst['values']}; fix the files, or raise data.quarantine.max_share"
        )
    if good.num_rows == 0:
        raise DataError(f"{key}: {', '.join(files)} has no rows of feedback")
    return good, num_bad


def _histories(table: pa.Table) -> list[list[str] | None]:
    if HISTORY not in table.column_names:
        return [None] * table.num_rows
    column = table.column(HISTORY)
    if not is_variable_list(column.type):
        raise DataError(
            f"update.feedback: the column {HISTORY} has the type {column.type}, expected lists of"
            " item ids; use Parquet or JSON lines, which can hold lists"
        )
    return [
        None if items is None else [str(item) for item in items]
        for item_list in column.chunks
        for items in item_list.to_pylist()
    ]


@dataclass(frozen=True)
class Gathered:
    """Feedback as evidence for the fusion, and the number of rows that could not be used."""

    evidence: Evidence
    num_unknown_items: int
    num_unknown_users: int  # users without a history, in the model and in the row


def gather(recommender: Recommender, feedback: Feedback) -> Gathered:
    """Score every row once with the frozen model.

    Raises
    ------
    DataError
        Too few rows can be used, or all of them have the same sign of reward.
    """
    items_R = np.array([recommender.item_row(item) for item in feedback.items], dtype=np.int64)
    queries, queries_R = _queries(recommender, feedback)
    chunks = [_encode(recommender, queries, start) for start in range(0, len(queries), _CHUNK)]
    encoded, gates = zip(*chunks, strict=True)
    starts = range(0, len(queries), _CHUNK)
    rows = [torch.arange(start, min(start + _CHUNK, len(queries))) for start in starts]
    parts, gate_BK = Contributions.gathered(list(zip(rows, encoded, strict=True))), torch.cat(gates)
    present_BK = parts.weights_BK > 0
    usable_R = (items_R >= 0) & present_BK.any(1).numpy()[queries_R]
    num_unknown_items = int((items_R < 0).sum())
    _check(feedback.rewards_R[usable_R], len(feedback))
    rows_R, chosen_R = torch.as_tensor(queries_R[usable_R]), torch.as_tensor(items_R[usable_R])
    vectors_ND = recommender.model.item_vectors_ND
    shares = [
        parts.take(rows).shares(vectors_ND, items[:, None])[:, :, 0]
        for rows, items in zip(
            torch.split(rows_R, _CHUNK), torch.split(chosen_R, _CHUNK), strict=True
        )
    ]
    rewards_R = torch.as_tensor(feedback.rewards_R[usable_R])
    evidence = Evidence(
        torch.cat(shares).double(),
        present_BK[rows_R],
        gate_BK[rows_R].double(),
        (rewards_R > 0).double(),
        rewards_R.abs(),
    )
    return Gathered(evidence, num_unknown_items, int((~usable_R).sum()) - num_unknown_items)


def _check(rewards_R: Array, num_rows: int) -> None:
    liked = int((rewards_R > 0).sum())
    if len(rewards_R) < LEAST_ROWS:
        raise DataError(
            f"update.feedback: {len(rewards_R):,} of {num_rows:,} rows have a user and an item that"
            f" the model knows; expected at least {LEAST_ROWS}; add more feedback"
        )
    if liked in (0, len(rewards_R)):
        kind, other = ("liked", "disliked") if liked else ("disliked", "liked")
        raise DataError(
            f"update.feedback: every row has an event type that means {kind}; to fit weights, add"
            f" rows with an event type that means {other} (update.rewards)"
        )


def _queries(recommender: Recommender, feedback: Feedback) -> tuple[Queries, Array]:
    """The queries to encode, one per distinct user and history, and the query number of
    every row.
    """
    # feedback has many rows of one user, and encoding is the expensive part
    numbers: dict[tuple[str, tuple[str, ...] | None], int] = {}
    keys = [
        (user, None if history is None else tuple(history))
        for user, history in zip(feedback.users, feedback.histories, strict=True)
    ]
    queries_R = np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
    rows: list[dict[str, Any]] = [
        {"user_id": user} if history is None else {"user_id": user, "history": list(history)}
        for user, history in numbers
    ]
    return recommender.queries(parse_requests(rows)), queries_R


def _encode(
    recommender: Recommender, queries: Queries, start: int
) -> tuple[Contributions, torch.Tensor]:
    """The unweighted contributions and the gate logits for one chunk of queries that begins at
    ``start``.
    """
    model = recommender.model
    chunk = queries.take(np.arange(start, min(start + _CHUNK, len(queries))))
    parts = model.unit_contributions(chunk)
    fusion = model.encoders.fusion
    with torch.inference_mode():
        # the gate was trained without members that were added in closed form
        trained_BKD = parts.vectors_BKD[:, : fusion.names_K, : model.config.width]
        gate_BK = (
            fusion.gate_logits(trained_BKD)
            if isinstance(fusion, GatedFusion)
            else torch.zeros(len(chunk), 0)
        )
    return parts, gate_BK

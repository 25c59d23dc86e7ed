"""Evaluate a bundle on a dataset other than its own, by the ids of users and items that both know.

Why: the current champion was trained on older events. It must be evaluated as it would serve
traffic: a user that it does not know is a new user with a history, events on unknown items are
skipped, unknown items are never recommended, and a user without any known event gets its popular
items.

Legend: B queries, E events, N items of the dataset, M items of the bundle, V users of the dataset,
C context columns.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from recsys.bundle.layout import Bundle
from recsys.data.context_columns import MISSING, UNKNOWN, ContextColumn, number_codes
from recsys.data.context_columns import STEPS as CONTEXT_STEPS
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Histories, Queries, Split, event_keys


class CrossDatasetScorer:
    """Scores the items of a dataset for queries of the dataset, with the model of a bundle."""

    def __init__(self, bundle: Bundle, dataset: PreparedDataset) -> None:
        self.model = bundle.model
        self.user_of_V = _index_in(dataset.user_ids, bundle.user_ids)
        self.item_of_N = _index_in(dataset.item_ids, bundle.item_ids)
        self._known_N = torch.from_numpy(np.flatnonzero(self.item_of_N >= 0))
        self._columns_N = torch.from_numpy(self.item_of_N[self.item_of_N >= 0])
        kinds = {name: number for number, name in enumerate(bundle.info.event_types)}
        # an event type that the bundle does not know still says that the user chose the item
        default = kinds.get(bundle.info.default_event_type, 0)
        self._types = np.array(
            [kinds.get(name, default) for name in dataset.manifest.event_types] or [0], np.uint8
        )
        self._context = [_Recoded.of(column, dataset.context) for column in bundle.context]

    @property
    def num_unknown(self) -> tuple[int, int]:
        """The number of users and of items of the dataset that the bundle does not know."""
        return int((self.user_of_V < 0).sum()), int((self.item_of_N < 0).sum())

    def scores(self, queries: Queries) -> Tensor:
        """[B, N] float32, -inf for items that the bundle does not know."""
        found_BM = self.model.scores(self.queries(queries))
        scores_BN = torch.full((len(queries), len(self.item_of_N)), -torch.inf)
        scores_BN[:, self._known_N] = found_BM[:, self._columns_N].float()
        return scores_BN

    def queries(self, queries: Queries) -> Queries:
        """The same queries with the dense ids of the bundle, without targets, which scoring must
        not read.
        """
        histories = self.histories(queries.histories)
        asked_BC = self._recoded(queries.context_BC)
        return Queries.without_targets(
            histories, context_BC=asked_BC, asked_at_B=queries.asked_at_B
        )

    def histories(self, histories: Histories) -> Histories:
        """The same events with the dense ids of the bundle, without those on unknown items."""
        kept = histories.where(self.item_of_N[histories.items_E] >= 0)
        users_U = np.where(kept.users_U >= 0, self.user_of_V[kept.users_U], -1).astype(np.int32)
        return Histories(
            users_U,
            kept.offsets_U1,
            self.item_of_N[kept.items_E].astype(np.int32),
            self._types[kept.types_E],
            kept.times_E,
            kept.values_E,
            kept.splits_E,
            self._recoded(kept.context_EC),
        )

    def _recoded(self, codes_EC: Array) -> Array:
        columns = [column.codes(codes_EC) for column in self._context]
        return (
            np.stack(columns, axis=1) if columns else np.zeros((len(codes_EC), 0), dtype=np.int16)
        )


class _Recoded:
    """A context column of the bundle, read from the dataset's codes."""

    def __init__(
        self, index: int, table: Array | None, theirs: ContextColumn, ours: ContextColumn | None
    ) -> None:
        self._index, self._table, self._theirs, self._ours = index, table, theirs, ours

    @staticmethod
    def of(column: ContextColumn, known: tuple[ContextColumn, ...]) -> _Recoded:
        index = next((p for p, k in enumerate(known) if k.name == column.name), -1)
        ours = known[index] if index >= 0 else None
        if ours is None or (ours.values is None) != (column.values is None):
            return _Recoded(-1, None, column, None)  # the dataset does not have it: missing
        table = None
        if ours.values is not None:
            codes = [MISSING, UNKNOWN, *(column.code(value, column.name) for value in ours.values)]
            table = np.array(codes, dtype=np.int16)
        return _Recoded(index, table, column, ours)

    def codes(self, codes_EC: Array) -> Array:
        """The codes of the column in the bundle: [E] int16."""
        if self._index < 0 or self._ours is None:
            return np.zeros(len(codes_EC), dtype=np.int16)
        codes_E = codes_EC[:, self._index]
        if self._table is not None:
            return np.asarray(self._table[codes_E])
        steps_E = np.where(codes_E > 0, codes_E - 1, codes_E).astype(np.float64) / CONTEXT_STEPS
        # back to the number, because each side scales by its own mean
        values_E = np.where(codes_E == MISSING, np.nan, self._ours.mean + self._ours.std * steps_E)
        return number_codes(values_E, self._theirs.mean, self._theirs.std)


def _index_in(ids: pa.Array, known: list[str]) -> Array:
    """The position of each id in ``known``, -1 if it is not there: int64."""
    found = pc.index_in(ids.cast(pa.string()), value_set=pa.array(known, pa.string()))
    return np.asarray(found.fill_null(-1)).astype(np.int64)


# ------------------------------------------------------------------------------ leaks into training


def fitted_through(bundle: Bundle) -> Split:
    """The last split on which the bundle's model was fitted; the later one if the bundle does not
    say.
    """
    return Split.VALID if bundle.info.extra.get("refit", True) else Split.TRAIN


def leak_of(bundle: Bundle, dataset: PreparedDataset) -> str:
    """A sentence on how the model's training saw the test split of the dataset; empty if it did
    not.

    Test events are matched by user, item and, if both have it, time. If the split is one cut in
    time, every later training event of any user is a leak.

    Parameters
    ----------
    bundle : Bundle
        The bundle with the histories of its training.
    dataset : PreparedDataset
        The dataset whose test split is checked.

    Returns
    -------
    str
        The sentence, or "".
    """
    through = fitted_through(bundle)
    trained = bundle.histories.through(through)
    timed = bool(bundle.info.dataset.get("timed", True)) and dataset.manifest.timed
    test_from = str(dataset.manifest.split.get("test_from", "")) if dataset.manifest.timed else ""
    known = np.unique(_keys_of(_in_numbers_of(dataset, trained, bundle), timed))
    num_test = num_seen = 0
    for shard in dataset.shards():
        keys_E, is_test_E = _keys_of(shard, timed), shard.splits_E == Split.TEST
        own = np.unique(keys_E[~is_test_E])  # a repeated pair is not a leak
        seen_E = is_test_E & np.isin(keys_E, known) & ~np.isin(keys_E, own)
        num_test, num_seen = num_test + int(is_test_E.sum()), num_seen + int(seen_E.sum())
    if num_seen:
        return f"{num_seen:,} of the {num_test:,} test events were training events of the model"
    # events of users or items that the dataset lacks match no key, but their times tell
    if test_from and timed and len(trained.times_E):
        num_late = int(
            (
                trained.times_E >= datetime.fromisoformat(test_from).replace(tzinfo=UTC).timestamp()
            ).sum()
        )
        if num_late:
            return (
                f"{num_late:,} of its training events are later than {test_from}, where the test"
                " split begins"
            )
    return ""


def _in_numbers_of(dataset: PreparedDataset, histories: Histories, bundle: Bundle) -> Histories:
    """The events of the bundle with the dense ids of the dataset, without users and items that the
    dataset lacks.
    """
    user_of = _index_in(pa.array(bundle.user_ids, pa.string()), dataset.user_ids.to_pylist())
    item_of = _index_in(pa.array(bundle.item_ids, pa.string()), dataset.item_ids.to_pylist())
    rows = np.flatnonzero(user_of[: len(histories)] >= 0)
    kept = histories.take(rows)
    kept = kept.where(item_of[kept.items_E] >= 0)
    events: tuple[Any, ...] = (
        kept.types_E,
        kept.times_E,
        kept.values_E,
        kept.splits_E,
        kept.context_EC,
    )
    return Histories(
        user_of[rows].astype(np.int32),
        kept.offsets_U1,
        item_of[kept.items_E].astype(np.int32),
        *events,
    )


def _keys_of(histories: Histories, timed: bool) -> Array:
    """A hash of user, item and, if ``timed``, time of every event."""
    if timed:
        return event_keys(histories)
    columns = (
        histories.types_E,
        np.zeros_like(histories.times_E),
        histories.values_E,
        histories.splits_E,
    )
    timeless = Histories(
        histories.users_U, histories.offsets_U1, histories.items_E, *columns, histories.context_EC
    )
    return event_keys(timeless)

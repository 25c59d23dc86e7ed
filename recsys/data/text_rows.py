"""Compose and look up the texts of users, without Ray, for training and serving.
:mod:`recsys.preparation.user_text` says which texts exist and why no text contains events that its
query must not see.

Legend: R distinct texts, X entries (user, place), T width of the language model, Q look-ups.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from recsys.data.histories import Array, Split

# user, through, place, text (row of the vectors, -1: nothing), hash
ENTRIES: Final = "users/texts.parquet"
VECTORS: Final = "users/text_vectors.parquet"
WHOLE: Final = 2**31 - 1  # the place of the text of a user's whole split
_TOLERANCE: Final = 0.01


@dataclass(frozen=True)
class TextRules:
    """How texts are composed from events."""

    event_types: tuple[str, ...]
    ordered: bool
    max_items: int  # newest items in a text
    first: int  # number of events before the first text
    folds: int  # data without order: number of texts, each without one fold of the events


def compose(
    items: Sequence[int], types: Sequence[int], titles: Sequence[str], rules: TextRules
) -> str:
    """Compose one text, newest event first, from a user's events, oldest first. The text names
    event types if there are several.

    >>> rules = TextRules(("buy", "view"), True, 3, 4, 1)
    >>> compose([0, 1, 2, 3], [1, 1, 1, 0], ["tea", "cup", "pot", "jug"], rules)
    'buy: jug; view: pot, cup'

    Parameters
    ----------
    items : Sequence[int]
        Dense ids of the items, oldest event first.
    types : Sequence[int]
        The event type of each item.
    titles : Sequence[str]
        The title of every item, in dense order.
    rules : TextRules
        Names of the event types, and the largest number of items.

    Returns
    -------
    str
        The text; "" without events.
    """
    newest = list(zip(items, types, strict=True))[: -rules.max_items - 1 : -1]
    runs = []
    for kind, run in itertools.groupby(newest, key=lambda event: event[1]):
        names = ", ".join(titles[item] for item, _ in run)
        runs.append(f"{rules.event_types[kind]}: {names}" if len(rules.event_types) > 1 else names)
    return "; ".join(runs)


@dataclass(frozen=True)
class UserTexts:
    """The texts of the events through one split."""

    keys_X: Array  # int64, sorted: user in the high, place in the low 32 bits
    rows_X: Array  # int64, -1 for an empty text
    vectors_RT: Array  # float16
    folds: int

    @staticmethod
    def of(entries: pa.Table, vectors: pa.Table, through: Split, folds: int) -> UserTexts:
        """The texts from the two tables of a prepared dataset.

        Parameters
        ----------
        entries : pa.Table
            Columns ``user``, ``through``, ``place`` and ``text``: one row per user and place.
        vectors : pa.Table
            Column ``vector``: one row per distinct text, [R, T] float16.
        through : Split
            The last split whose events the texts contain; test counts as validation.
        folds : int
            Number of folds in data without order.

        Returns
        -------
        UserTexts
            The texts through this split, sorted for look-ups.
        """
        part = np.asarray(entries.column("through")) == min(through, Split.VALID)
        keys = _keys(
            np.asarray(entries.column("user"))[part], np.asarray(entries.column("place"))[part]
        )
        order = np.argsort(keys, kind="stable")
        column = vectors.column("vector").combine_chunks()
        vectors_RT = np.asarray(column.flatten()).reshape(len(column), column.type.list_size)
        return UserTexts(
            keys[order],
            np.asarray(entries.column("text")).astype(np.int64)[part][order],
            vectors_RT,
            folds,
        )

    def at(self, users_Q: Array, places_Q: Array) -> Array:
        """The row of each user's newest text at or before a place, -1 without one: [Q] int64."""
        found = np.searchsorted(self.keys_X, _keys(users_Q, places_Q), side="right") - 1
        known = (
            (found >= 0) & (self.keys_X[found.clip(0)] >> 32 == users_Q)
            if len(self.keys_X)
            else found >= 0
        )
        rows = np.full(len(found), -1, dtype=np.int64)
        rows[known] = self.rows_X[found[known]]
        return rows

    def whole(self, users_Q: Array) -> Array:
        """The row of the text of each user's whole split, -1 without one: [Q] int64."""
        return self.at(users_Q, np.full(len(users_Q), WHOLE))

    @property
    def hidden_share(self) -> float:
        """The share of events that every training text leaves out (data without order)."""
        return 1 / self.folds if self.folds > 1 else 0.0

    def fits(self, history_mask_rate: float) -> bool:
        """Whether training hides the same share of events (``train.history_mask_rate``)."""
        return abs(history_mask_rate - self.hidden_share) <= _TOLERANCE


def _keys(users: Array, positions: Array) -> Array:
    return np.asarray((users.astype(np.int64) << 32) + positions.astype(np.int64))

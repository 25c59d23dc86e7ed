"""The ranking of a chunk of requests: scores of the catalogue under the rules of each request.

Legend: B requests, K granularities, R list length, D width, N items, E hidden items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
import torch
from torch import Tensor

from recsys.bundle.layout import Bundle
from recsys.contributions import Contributions
from recsys.data.histories import Array
from recsys.evaluation.top_items import tie_order, top_items
from recsys.retrieval.exact import best_positions
from recsys.retrieval.search import find_top
from recsys.retrieval.selection import Plan, Selection, by_selection
from recsys.stack import sparse_spread

BOOST: Final = "boost"  # its name among the shares of a score
_SAMPLE: Final = 4096  # items on which the standard deviation of a user's scores is measured


class RankedCatalogue:
    """The catalogue of a bundle: its vectors, its popularity ranking, and a sample of it."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.vectors_ND = bundle, bundle.model.item_vectors_ND

    @cached_property
    def by_popularity(self) -> Array:
        """All items, most popular first."""
        popularity_1N = torch.from_numpy(self.bundle.popularity_N.astype(np.float64))[None]
        ranked_1N, _ = top_items(popularity_1N, self.bundle.num_items)
        return np.asarray(ranked_1N[0])

    @cached_property
    def popularity_spread(self) -> float:
        """Standard deviation of popularity over the catalogue; 1 where it is 0."""
        return float(self.bundle.popularity_N.std()) or 1.0

    @cached_property
    def sample_SD(self) -> Tensor:
        """Vectors of an even sample of the items."""
        num_items = len(self.vectors_ND)
        items = np.unique(
            np.linspace(0, max(num_items - 1, 0), min(_SAMPLE, num_items)).round().astype(np.int64)
        )
        return self.vectors_ND[torch.from_numpy(items)]

    def popular(self, k: int, hidden_E: Array, selection: Selection | None) -> Array:
        """The k most popular items after boosts; −1 after the end.

        Parameters
        ----------
        k : int
            Items per list.
        hidden_E : Array
            Items to leave out.
        selection : Selection | None
            Allowed items and boosts; None: all items, no boost.
        """
        if selection is None or selection.log_N is None:
            ranked_R = self.by_popularity
            if selection is None:
                # at most so many of the first are hidden, so the rest of the catalogue is not
                # needed
                ranked_R = ranked_R[: k + len(hidden_E)]
            else:
                ranked_R = ranked_R[selection.allowed.among(ranked_R)][: k + len(hidden_E)]
            ranked_R = ranked_R[~np.isin(ranked_R, hidden_E)][:k]
        else:
            scores_N = (
                self.bundle.popularity_N
                + selection.log_N.astype(np.float64) * self.popularity_spread
            )
            scores_N[~selection.allowed.among(np.arange(len(scores_N)))] = -np.inf
            scores_N[hidden_E] = -np.inf
            ranked_R = best_positions(scores_N, tie_order(len(scores_N)), k)
        return np.pad(ranked_R, (0, k - len(ranked_R)), constant_values=-1)


@dataclass(frozen=True)
class RequestScores:
    """Requests with their contributions, ready to be ranked."""

    shelf: RankedCatalogue
    parts: Contributions
    usable_B: Array  # bool; False: no member contributes, so the all-time most popular items answer
    personal_B: Array  # bool; False: nothing is known about the user, so popular items answer
    hidden: tuple[Array, Array]  # rows (ascending) and items to leave out
    plans: Sequence[Plan] = ()  # one per row; empty: no rules

    @cached_property
    def spread_B(self) -> Tensor:
        """Standard deviation of each user's scores over the catalogue, 1 where all scores are
        equal: float32.
        """
        users_BD, sample_SD = self.parts.users_BD, self.shelf.sample_SD
        dense_B = (
            (users_BD @ sample_SD.T).var(dim=1, correction=0)
            if len(sample_SD)
            else users_BD.new_zeros(1)
        )
        sparse_B = sparse_spread(self.parts.added, len(users_BD), len(self.shelf.vectors_ND))
        spread_B = (dense_B + sparse_B.square()).sqrt()
        return torch.where(spread_B > 0, spread_B, 1.0)

    def top(self, k: int) -> Array:
        """The k best items of every request: [B, R] int32, −1 after the end.

        Requests that are not usable get the most popular items. The rank of an item does not
        depend on k.
        """
        users_BD, added = self.parts.users_BD, self.parts.added
        rows_E, hidden_E = self.hidden
        top_BR = np.full((len(users_BD), k), -1, dtype=np.int32)
        index = self.shelf.bundle.index
        for selection, rows in (
            by_selection(self.plans) if self.plans else [(None, list(range(len(users_BD))))]
        ):
            has_boost = selection is not None and selection.log_N is not None
            if len(rows) == len(users_BD):
                spread_B = self.spread_B if has_boost else None
                vectors_ND = self.shelf.vectors_ND
                top_BR[:] = find_top(
                    index, users_BD, vectors_ND, k, rows_E, hidden_E, added, selection, spread_B
                )
                continue
            chosen, kept_E = torch.tensor(rows), np.isin(rows_E, rows)
            top_BR[rows] = find_top(
                index,
                users_BD[chosen],
                self.shelf.vectors_ND,
                k,
                np.searchsorted(rows, rows_E[kept_E]),
                hidden_E[kept_E],
                added.take(chosen),
                selection,
                self.spread_B[chosen] if has_boost else None,
            )
        for row in np.flatnonzero(~self.usable_B).tolist():
            top_BR[row] = self.shelf.popular(k, hidden_E[rows_E == row], self._selection(row))
        return top_BR

    def of_row(self, row: int) -> RequestScores:
        """The same object for one request alone."""
        rows_E, hidden_E = self.hidden
        mine_E = hidden_E[rows_E == row]
        one = torch.tensor([row])
        return replace(
            self,
            parts=self.parts.take(one),
            usable_B=self.usable_B[[row]],
            personal_B=self.personal_B[[row]],
            hidden=(np.zeros(len(mine_E), dtype=np.int64), mine_E),
            plans=self.plans[row : row + 1],
        )

    def shares(self, items_BR: Array) -> Array:
        """The share of every granularity in the scores of listed items: float64 [B, K, R]."""
        return np.asarray(
            self.parts.shares(self.shelf.vectors_ND, torch.from_numpy(items_BR).long()).numpy()
        )

    def raised(self, row: int, items_R: Array) -> Array | None:
        """What a boost adds to the scores of one request's items: float32 values as float64; None
        without a boost.
        """
        selection = self._selection(row)
        if selection is None or selection.log_N is None:
            return None
        logs_R = selection.log_N[items_R]
        if not self.usable_B[row]:
            return np.asarray(logs_R.astype(np.float64) * self.shelf.popularity_spread)
        # multiplied in float32, as the ranking does, so that both have the same digits
        return np.asarray((logs_R * self.spread_B[row].numpy()).astype(np.float64))

    def scores(self, row: int, items_R: Array) -> Array:
        """Scores of one request's items, with boosts: float64 [R]."""
        if self.usable_B[row]:
            mine = self.parts.take(torch.tensor([row]))
            scores_R = (
                mine.shares(self.shelf.vectors_ND, torch.from_numpy(items_R).long()[None])[0]
                .sum(0)
                .numpy()
            )
        else:
            scores_R = self.shelf.bundle.popularity_N[items_R].astype(np.float64)
        raised_R = self.raised(row, items_R)
        return np.asarray(scores_R if raised_R is None else scores_R + raised_R)

    def _selection(self, row: int) -> Selection | None:
        return self.plans[row].selection if self.plans else None

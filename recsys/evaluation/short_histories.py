"""Weights of their own for groups of history length, also for short histories that validation does
not have.

The weights that are best for most histories are not best for the short ones: friends, attributes
and popularity tell little next to fifty events, and much next to one. A member without any weight
in the whole may be the best one there. So the weights of a group are chosen on its queries alone,
and kept if weights that are chosen on four fifths of them are better on the rest, beyond noise.

Many data sets have no users with one or two events in validation, but a service has them every day.
For such a group, queries are made: those of other validation users, cut to the newest events, or in
data without order to random ones. Where lists leave out seen items, those that are cut away are no
candidates, because the user has them.

Legend: B queries, E events, Q queries of a group, M members, G groups of history length.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from recsys.data.hidden import hash_unit
from recsys.data.histories import Queries
from recsys.evaluation.candidate_scores import MemberScorer, gather
from recsys.evaluation.ranking import countable
from recsys.evaluation.stacking import (
    GROUP_NOISE,
    LEAST_QUERIES,
    Blend,
    Candidates,
    Folds,
    OwnWeights,
    Stacked,
    gains,
    metric_of,
    values_without,
)
from recsys.pace import Deadline
from recsys.stack import BOUNDS, NUM_GROUPS

_MADE: Final = 400  # queries that are made for a group
_MOST: Final = 0.5  # share of the queries; the weights of a larger group are those of all


def shortened(queries: Queries, low: int, high: int, ordered: bool) -> Queries:
    """The queries with histories of ``low`` to ``high`` events, the number by a hash of the user.

    Parameters
    ----------
    queries : Queries
        Queries with at least ``high`` events.
    low, high : int
        Fewest and most events.
    ordered : bool
        Whether the newest events are kept, or events chosen by a hash.

    Returns
    -------
    Queries
        The same users and targets.
    """
    histories = queries.histories
    users_B = histories.users_U.astype(np.int64)
    kept_B = low + (hash_unit(users_B, users_B, low) * (high - low + 1)).astype(np.int64)
    rows_E = np.repeat(np.arange(len(histories)), histories.lengths_U)
    place_E = np.arange(len(rows_E)) - histories.offsets_U1[rows_E]
    if ordered:
        behind_E = histories.lengths_U[rows_E] - 1 - place_E
    else:  # the place of an event in an order by hash
        drawn_E = hash_unit(users_B[rows_E], place_E, low)
        behind_E = np.empty_like(place_E)
        behind_E[np.lexsort((drawn_E, rows_E))] = place_E
    return replace(queries, histories=histories.where(behind_E < kept_B[rows_E]))


@dataclass(frozen=True)
class ShortHistories:
    """Makes queries with short histories from the validation queries of a model."""

    model: MemberScorer
    queries: Queries
    exclude_seen: bool
    num_items: int
    ordered: bool

    def candidates(self, group: int) -> Candidates | None:
        """The candidates of made queries of a group; None if too few longer histories count."""
        if group >= len(BOUNDS):
            return None
        low, high = _lengths(group)
        counted, _, _ = countable(self.queries, self.exclude_seen)
        longer = np.flatnonzero(counted.histories.lengths_U > high)
        if len(longer) < LEAST_QUERIES:
            return None
        some = longer[np.linspace(0, len(longer) - 1, min(len(longer), _MADE)).astype(np.int64)]
        return gather(
            self.model,
            counted.take(some),
            self.exclude_seen,
            self.num_items,
            lambda whole: shortened(whole, low, high, self.ordered),
        )


def with_own_weights(
    found: Stacked,
    candidates: Candidates,
    short: ShortHistories,
    names: Sequence[str],
    metric: str,
    seed: int,
    deadline: Deadline | None = None,
) -> Stacked:
    """Choose weights for each group of history length that needs others than most queries.

    Parameters
    ----------
    found : Stacked
        The weights chosen on all validation queries.
    candidates : Candidates
        The candidates of these queries.
    short : ShortHistories
        Makes queries for groups that have too few.
    names : Sequence[str]
        The members, in the order of M.
    metric : str
        The metric, such as ``ndcg@20``.
    seed : int
        Seed of the folds.
    deadline : Deadline or None
        No group is begun that would not end before it.

    Returns
    -------
    Stacked
        With the weights of these groups, and in ``own`` what they gain.
    """
    measure, blend = metric_of(metric), Blend(metric, NUM_GROUPS, seed)
    weights_GM, own, gained = found.weights_GM.copy(), [], 0.0
    deadline, longest = deadline or Deadline(), 0.0
    for group in range(NUM_GROUPS):
        if deadline.left < longest:
            break
        begun = time.monotonic()
        rows = np.flatnonzero(candidates.groups_Q == group)
        is_made = len(rows) < LEAST_QUERIES
        if len(rows) > _MOST * len(candidates):
            continue
        asked = short.candidates(group) if is_made else candidates.take(rows)
        if asked is None or len(asked) < LEAST_QUERIES:
            continue
        folds = Folds(asked, measure, seed)
        before_Q, after_Q = measure(asked, weights_GM), folds.measured(folds.fitted(blend))
        if gains(after_Q, before_Q, GROUP_NOISE):
            own_M = blend(asked)[group]
            weights_GM[group] = own_M / own_M.max()
            before, after = float(before_Q.mean()), float(after_Q.mean())
            own.append(OwnWeights(_words(group), before, after, is_made))
            gained += 0.0 if is_made else (after - before) * len(rows) / len(candidates)
        longest = max(longest, time.monotonic() - begun)
    if not own:
        return found
    without = values_without(candidates, weights_GM, names, measure)
    return replace(
        found,
        weights_GM=weights_GM,
        own=own,
        is_single=False,
        value=float(measure(candidates, weights_GM).mean()),
        cross_fitted=found.cross_fitted + gained,
        without=without,
        dropped=[name for name in names if name not in without],
    )


def _lengths(group: int) -> tuple[int, int]:
    """Fewest and most events of a group that is not the last.

    >>> _lengths(0), _lengths(1), _lengths(2)
    ((0, 0), (1, 2), (3, 5))
    """
    return (BOUNDS[group - 1] if group else 0), BOUNDS[group] - 1


def _words(group: int) -> str:
    """The lengths of a group in words.

    >>> _words(0), _words(1), _words(6)
    ('0', '1 to 2', '51 or more')
    """
    if group == len(BOUNDS):
        return f"{BOUNDS[-1]} or more"
    low, high = _lengths(group)
    return f"{low} to {high}" if high else "0"

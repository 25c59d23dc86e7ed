"""Ensemble selection: member weights that maximise a ranking metric directly, stabilised by
bagging.

Start with no member. In each step, add the member that improves the metric most; a member may be
added many times. The number of times is its weight (Caruana et al. 2004, *Ensemble selection from
libraries of models*). One such search overfits the noise of its queries. So it runs on many random
halves of the queries, and the weights are averaged.

Legend: Q queries, P candidates of a query, M members, K list length, T targets among the
candidates, F targets found in a list, R a query for every member.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from recsys.data.histories import Array
from recsys.evaluation.metrics import QUERY_METRICS

if TYPE_CHECKING:
    from recsys.evaluation.stacking import Candidates

_BAGS: Final = 20
_STEPS: Final = 20  # members added in a bag
_SHARE: Final = 0.5  # share of the queries in a bag, …
_MOST_PAIRS: Final = 1_000_000  # … with at most so many pairs of a target and a candidate, …
_FEWEST_QUERIES: Final = 50  # … but at least so many queries
_MOST_COUNTED: Final = 10  # targets of a query that count for this
FEW_TARGETS: Final = 3  # mean targets of a query up to which ranks are faster than lists
_HIDDEN: Final = -1e9  # score of a place without a candidate


def select(candidates: Candidates, kind: str, k: int, seed: int) -> Array:
    """The mean weight of every member over the bags: float64 [M], sum 1.

    Parameters
    ----------
    candidates : Candidates
        Candidates of at least one query.
    kind : str
        A metric of :data:`~recsys.evaluation.metrics.QUERY_METRICS`.
    k : int
        Length of the lists.
    seed : int
        Seed of the bags.
    """
    random = np.random.default_rng(seed)
    size = _queries_in_a_bag(candidates)
    weights_M = np.zeros(candidates.scores_QPM.shape[2])
    for _ in range(_BAGS):
        rows = np.sort(random.choice(len(candidates), size, replace=False))
        weights_M += _Bag(candidates.take(rows), kind, k).weights()
    return weights_M / _BAGS


def _queries_in_a_bag(candidates: Candidates) -> int:
    num_queries = len(candidates)
    per_query = min(max(_mean_targets(candidates), 1.0), _MOST_COUNTED)
    pairs = per_query * candidates.hits_QP.shape[1]
    return min(
        num_queries,
        max(min(round(_SHARE * num_queries), int(_MOST_PAIRS / pairs)), _FEWEST_QUERIES),
    )


def _mean_targets(candidates: Candidates) -> float:
    return len(candidates.targets[0]) / len(candidates)


class _Bag:
    """A random part of the queries."""

    def __init__(self, candidates: Candidates, kind: str, k: int) -> None:
        self._kind, self._k = kind, k
        self._num_targets_Q = candidates.num_targets_Q
        has_many = _mean_targets(candidates) > FEW_TARGETS
        self._sums = _Lists(candidates, k) if has_many else _Ranks(candidates, k)

    def weights(self) -> Array:
        """The share of each member in the additions up to the best sum: [M]."""
        counts_M = np.zeros(self._sums.num_members)
        best, best_M = -1.0, counts_M
        for _ in range(_STEPS):
            values_M = self._values()
            added = int(np.argmax(values_M))
            self._sums.add(added)
            counts_M[added] += 1
            if values_M[added] > best:
                best, best_M = values_M[added], counts_M.copy()
        shares_M: Array = best_M / best_M.sum()
        return shares_M

    def _values(self) -> Array:
        """The mean metric after adding each member to the sum: [M]."""
        num_members = self._sums.num_members
        hits_RK = self._sums.hits_MQK().reshape(-1, self._k)
        num_targets_R = np.tile(self._num_targets_Q, num_members)
        values_R = QUERY_METRICS[self._kind](hits_RK, num_targets_R, self._k)
        means_M: Array = values_R.reshape(num_members, -1).mean(axis=1)
        return means_M


class _Ranks:
    """A sum of members for queries with few targets: the rank of a target is the number of
    candidates with a higher score.
    """

    def __init__(self, candidates: Candidates, k: int) -> None:
        self._k, self._num_queries = k, len(candidates)
        rows_T, positions_T = candidates.targets
        self._rows_T = rows_T.numpy()
        above_TPM = (
            candidates.scores_QPM[rows_T] - candidates.scores_QPM[rows_T, positions_T][:, None, :]
        )
        above_TPM.masked_fill_(~candidates.listed_QP[rows_T][:, :, None], _HIDDEN)
        # above the target, by a member
        self._above_MTP = np.ascontiguousarray(above_TPM.permute(2, 0, 1).numpy())
        self._below_TP = np.zeros(self._above_MTP.shape[1:], dtype=np.float32)
        self.num_members = len(self._above_MTP)

    def add(self, member: int) -> None:
        """Add a member to the sum."""
        self._below_TP -= self._above_MTP[member]

    def hits_MQK(self) -> Array:
        """Where the lists have targets after adding each member."""
        ranks_MT = np.stack(
            [(above_TP > self._below_TP).sum(axis=1) for above_TP in self._above_MTP]
        )
        members_F, targets_F = np.nonzero(ranks_MT < self._k)
        hits_MQK = np.zeros((self.num_members, self._num_queries, self._k), dtype=bool)
        hits_MQK[members_F, self._rows_T[targets_F], ranks_MT[members_F, targets_F]] = True
        return hits_MQK


class _Lists:
    """The same for queries with many targets: the best candidates are found, which costs as much as
    the ranks of three targets.
    """

    def __init__(self, candidates: Candidates, k: int) -> None:
        self._k, self._hits_QP = k, candidates.hits_QP.numpy()
        scores_QPM = candidates.scores_QPM.masked_fill(~candidates.listed_QP[:, :, None], _HIDDEN)
        self._scores_MQP = np.ascontiguousarray(scores_QPM.permute(2, 0, 1).numpy())
        self._sum_QP = np.zeros(self._hits_QP.shape, dtype=np.float32)
        self.num_members = len(self._scores_MQP)

    def add(self, member: int) -> None:
        """Add a member to the sum."""
        self._sum_QP += self._scores_MQP[member]

    def hits_MQK(self) -> Array:
        """Where the lists have targets after adding each member."""
        return np.stack(
            [
                hits_of_lists(self._sum_QP + scores_QP, self._hits_QP, self._k)
                for scores_QP in self._scores_MQP
            ]
        )


def hits_of_lists(scores_QP: Array, hits_QP: Array, k: int) -> Array:
    """Where the lists of the k best candidates have targets: bool [Q, k], best place first.

    Several times as fast as finding the places of the best candidates: the last bit of a score says
    whether the candidate is a target, and only the scores are sorted.

    Parameters
    ----------
    scores_QP : array, [Q, P] float32
        Score of each candidate; overwritten. −∞ where there is none.
    hits_QP : array, [Q, P] bool
        Whether a candidate is a target; False where there is none.
    k : int
        Length of the lists; with fewer candidates, the last places are False.
    """
    bits_QP = scores_QP.view(np.int32)
    bits_QP &= -2
    bits_QP |= hits_QP
    length = min(k, scores_QP.shape[1])
    best_QK = np.partition(scores_QP, -length, axis=1)[:, -length:]
    best_QK.sort(axis=1)
    found_QK = np.zeros((len(scores_QP), k), dtype=bool)
    found_QK[:, :length] = best_QK[:, ::-1].view(np.int32) & 1
    return found_QK

"""Stacking: choose the weights of a model's members on validation, so that the sum is never below
its best member.

Why not by gradient in training: closed-form members have seen every training event, so training
would give them too much weight. Why not one search on all validation users: weights that are chosen
and measured on the same users look better than they are. So the weights are the mean of two
methods, both without negative weights, and cross-fitting over the users measures the result:

* the likelihood of the targets under a softmax of the weighted sum, a convex fit with a small
  ridge.
  It has hardly any noise, but it rewards members that separate likely from unlikely items, even if
  that does not help the first places;
* bagged ensemble selection for the metric (:mod:`recsys.evaluation.ensemble_selection`). It
  optimises the metric itself, but has more noise.

The mean is better than either method, and better than choosing one of them by cross-fitting:
docs/dead-ends.md has the figures. Members with almost no share of the sum are dropped, and so are
members with a small share that one of the methods gives no weight. Weights differ by length of
history if that improves the metric beyond noise.

If the cross-fitted stack is below the best single member by more than a standard error of the
difference, its weights are moved towards that member until it is not; at the end of the way the
stack *is* that member. This is tested against the single member that each fold chooses for itself
and against the one that is best on all users. Why a standard error: the best single member is the
best of several on the same users, so its figure is too high, and within noise a sum of members is
the safer choice (docs/dead-ends.md has the figures).

An update has the weights of its parent, which were chosen on other events. It keeps them unless the
new ones are better by more than a standard error of the difference. Why: an update often validates
on a few users.

Scores of a member are divided by their standard deviation over the catalogue, query by query (see
:class:`recsys.stack.Stack`), so a weight means the same for short and long histories. Everything is
computed on the candidates of each query, the best items of every member; a target outside them is a
miss.

Legend: Q queries, P candidates of a query, M members, G groups of history length, K list length, T
targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data.histories import Array
from recsys.evaluation.ensemble_selection import FEW_TARGETS, hits_of_lists, select
from recsys.evaluation.metrics import QUERY_METRICS, parse_metric

FOLDS: Final = 5
_SELECTED: Final = 0.7  # share of ensemble selection in the weights; the softmax fit has the rest
# tried steps towards the best single member; 1 is that member
_PULLS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
_NOTHING: Final = 0.01  # share of the sum of weights below which a member is dropped
_LITTLE: Final = 0.02  # the same if one of the two methods gives it no weight …
_NONE: Final = 0.001  # … or less than this share
# group weights must gain this many standard errors of the paired difference
GROUP_NOISE: Final = 1.5
# the best single member must be better by this many standard errors
_SINGLE_NOISE: Final = 1.0
# new weights must be better than the parent's by this many standard errors
_EARLIER_NOISE: Final = 1.0
LEAST_QUERIES: Final = 100  # a smaller group has no weights of its own
_GROUP: Final = (0.0, 0.5, 2.0)  # tried factors on the weights of a group
_RIDGE: Final = 10.0  # ridge of the softmax fit, divided by the number of queries
_FIT_STEPS: Final = 40
_LEAST: Final = 1e-12  # least sum of weights


@dataclass(frozen=True)
class Candidates:
    """The scores and targets of the validation queries, as stacking reads them."""

    scores_QPM: Tensor  # float32, normalised
    hits_QP: Tensor  # bool, whether a candidate is a target
    listed_QP: Tensor  # bool, False after the last candidate of a query
    num_targets_Q: Array  # int64, in the whole catalogue
    groups_Q: Array  # int64, group by length of history

    @cached_property
    def targets(self) -> tuple[Tensor, Tensor]:
        """Query and place of every target among the candidates."""
        rows_T, positions_T = torch.nonzero(self.hits_QP, as_tuple=True)
        return rows_T, positions_T

    def take(self, rows_Q: Array) -> Candidates:
        """Some of the queries."""
        at = torch.from_numpy(rows_Q)
        scores_QPM, hits_QP, listed_QP = self.scores_QPM[at], self.hits_QP[at], self.listed_QP[at]
        return Candidates(
            scores_QPM, hits_QP, listed_QP, self.num_targets_Q[rows_Q], self.groups_Q[rows_Q]
        )

    def __len__(self) -> int:
        return len(self.num_targets_Q)


@dataclass(frozen=True)
class OwnWeights:
    """What weights of its own gain for a group of history length: cross-fitted means of the metric,
    see :mod:`recsys.evaluation.short_histories`.
    """

    events: str  # the lengths, such as "1 to 2"
    before: float  # with the weights of most queries
    after: float
    is_made: bool  # whether measured on longer histories that were cut


@dataclass(frozen=True)
class Stacked:
    """The chosen weights and the figures behind them; all values are means of the metric over
    validation queries.
    """

    weights_GM: Array  # float64, one row per group
    single: str  # the best single member
    is_single: bool  # whether the model is that member
    value: float  # of the stack, on the queries on which it was chosen
    cross_fitted: float  # of stacks chosen without the fold on which they are measured
    single_cross_fitted: float  # of the best single member, chosen in the same way
    alone: dict[str, float] = field(default_factory=dict)
    # of the stack with one weight set to zero
    without: dict[str, float] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)  # members without any weight
    is_earlier: bool = False  # whether the weights are those of the parent
    # groups of history length with weights of their own
    own: list[OwnWeights] = field(default_factory=list)

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """Plain values for ``metrics.json`` and the training's choices."""
        return {
            "single": self.single,
            "is_single": self.is_single,
            "is_earlier": self.is_earlier,
            "validation": self.value,
            "cross_fitted": self.cross_fitted,
            "single_cross_fitted": self.single_cross_fitted,
            "dropped": [*self.dropped],
            "own_weights": [asdict(group) for group in self.own],
            "members": {
                name: {
                    "alone": self.alone[name],
                    "without": self.without.get(name, self.value),
                    "weights": [float(weight) for weight in self.weights_GM[:, m]],
                }
                for m, name in enumerate(names)
            },
        }


def choose_stack(
    candidates: Candidates,
    names: Sequence[str],
    num_groups: int,
    metric: str,
    seed: int,
    earlier_GM: Array | None = None,
) -> Stacked:
    """Choose the weights as the module describes.

    Parameters
    ----------
    candidates : Candidates
        Candidates of at least one query.
    names : Sequence[str]
        The members, in the order of M.
    num_groups : int
        Number of groups G.
    metric : str
        The metric, such as ``ndcg@20``.
    seed : int
        Seed of the folds.
    earlier_GM : Array | None, [G, M] float64
        The parent's weights, if this is an update; they were not chosen on these queries.
    """
    measure = metric_of(metric)
    alone_QM = np.stack(
        [measure(candidates, _one(m, len(names), num_groups)) for m in range(len(names))], axis=1
    )
    best = int(np.argmax(alone_QM.mean(axis=0)))
    folds = Folds(candidates, measure, seed)
    singles = [
        _one(int(np.argmax(alone_QM[rest].mean(axis=0))), len(names), num_groups)
        for rest, _ in folds.pairs
    ]
    single_Q = folds.measured(singles)
    blend = Blend(metric, num_groups, seed)
    # each fold is measured with weights that were chosen without it
    crossed = folds.fitted(blend)
    for pull in _PULLS:
        crossed_Q = folds.measured(
            [_pulled(*pair, pull) for pair in zip(crossed, singles, strict=True)]
        )
        if not any(
            gains(member_Q, crossed_Q, _SINGLE_NOISE) for member_Q in (single_Q, alone_QM[:, best])
        ):
            break
    chosen_GM = _pulled(blend(candidates), _one(best, len(names), num_groups), pull)
    is_earlier = False
    if earlier_GM is not None and earlier_GM.any():
        earlier_Q = measure(candidates, earlier_GM)
        is_earlier = not gains(crossed_Q, earlier_Q, _EARLIER_NOISE)
        if is_earlier:
            chosen_GM, crossed_Q = earlier_GM, earlier_Q
    # a common factor changes no ranking; the largest weight 1 makes weights readable
    chosen_GM = chosen_GM / chosen_GM.max()
    is_single = bool(np.count_nonzero(chosen_GM.any(axis=0)) == 1)
    if is_single:
        best = int(np.argmax(chosen_GM[0]))
    without = {} if is_single else values_without(candidates, chosen_GM, names, measure)
    return Stacked(
        weights_GM=chosen_GM,
        single=names[best],
        is_single=is_single,
        value=float(measure(candidates, chosen_GM).mean()),
        cross_fitted=float(crossed_Q.mean()),
        single_cross_fitted=float(single_Q.mean()),
        alone={name: float(alone_QM[:, m].mean()) for m, name in enumerate(names)},
        without=without,
        dropped=[name for m, name in enumerate(names) if not chosen_GM[:, m].any()],
        is_earlier=is_earlier,
    )


Measure = Callable[[Candidates, Array], Array]
Fit = Callable[[Candidates], Array]


def metric_of(metric: str) -> Measure:
    """The function that gives the metric of every query [Q] for weights [G, M]."""
    kind, k = parse_metric(metric, tuple(QUERY_METRICS))

    def measure(candidates: Candidates, weights_GM: Array) -> Array:
        weights_QM = torch.from_numpy(weights_GM[candidates.groups_Q]).float()
        used = np.flatnonzero(weights_GM.any(axis=0))
        scores_QP = torch.zeros(candidates.listed_QP.shape)
        for member in used.tolist():
            scores_QP += candidates.scores_QPM[:, :, member] * weights_QM[:, member, None]
        return values_of(scores_QP, candidates, kind, k)

    return measure


def values_of(scores_QP: Tensor, candidates: Candidates, kind: str, k: int) -> Array:
    """The metric of every query [Q] when candidates are ranked by these scores.

    For queries with few targets the ranks of the targets are counted, which is several times faster
    than finding the k best.

    Parameters
    ----------
    scores_QP : Tensor, [Q, P] float
        Score of each candidate.
    candidates : Candidates
        Which candidates are listed and which are targets.
    kind : str
        Kind of accuracy metric, such as ``ndcg``.
    k : int
        Cut-off.

    Returns
    -------
    array, [Q] float64
        One value per query.
    """
    rows_T, positions_T = candidates.targets
    scores_QP = scores_QP.masked_fill(~candidates.listed_QP, -torch.inf)
    if len(rows_T) <= FEW_TARGETS * len(candidates):
        hits_QK = np.zeros((len(candidates), k), dtype=bool)
        own_T = scores_QP[rows_T, positions_T]
        # only larger scores count: among equal ones the target is first, for all weights alike
        ranks_T = (scores_QP[rows_T] > own_T[:, None]).sum(dim=1).numpy()
        listed = ranks_T < k
        hits_QK[rows_T.numpy()[listed], ranks_T[listed]] = True
    else:
        hits_QK = hits_of_lists(scores_QP.numpy(), candidates.hits_QP.numpy(), k)
    return QUERY_METRICS[kind](hits_QK, candidates.num_targets_Q, k)


def _one(member: int, num_members: int, num_groups: int) -> Array:
    weights_GM = np.zeros((num_groups, num_members))
    weights_GM[:, member] = 1.0
    return weights_GM


@dataclass(frozen=True)
class Blend:
    """The mean of the weights of both methods, which sum to 1, then changed by group: [G, M]."""

    metric: str
    num_groups: int
    seed: int

    def __call__(self, candidates: Candidates) -> Array:
        """The weights for these queries: float64 [G, M], none negative."""
        kind, k = parse_metric(self.metric, tuple(QUERY_METRICS))
        selected_M = select(candidates, kind, k, self.seed)
        likely_M = fit_softmax(candidates)
        likely_M = likely_M / max(likely_M.sum(), _LEAST)
        weights_M = _SELECTED * selected_M + (1 - _SELECTED) * likely_M
        is_little_M = (weights_M < _LITTLE) & (np.minimum(selected_M, likely_M) < _NONE)
        is_dropped_M = ((weights_M < _NOTHING) | is_little_M) & (weights_M < weights_M.max())
        weights_M = np.where(is_dropped_M, 0.0, weights_M)
        weights_GM = np.tile(weights_M / weights_M.sum(), (self.num_groups, 1))
        return _by_group(candidates, metric_of(self.metric), weights_GM)


@dataclass(frozen=True)
class Folds:
    """Folds of the queries: weights are fitted without each fold and measured on it."""

    candidates: Candidates
    measure: Measure
    seed: int

    @cached_property
    def pairs(self) -> list[tuple[Array, Array]]:
        """The rows of the other folds and of the fold, for every fold
        for which neither is empty.
        """
        fold_Q = np.random.default_rng(self.seed).permutation(len(self.candidates)) % FOLDS
        found = [
            (np.flatnonzero(fold_Q != fold), np.flatnonzero(fold_Q == fold))
            for fold in range(FOLDS)
        ]
        return [(rest, held) for rest, held in found if len(rest) and len(held)]

    @cached_property
    def held(self) -> list[Candidates]:
        """The queries of every fold."""
        return [self.candidates.take(held) for _, held in self.pairs]

    def fitted(self, fit: Fit) -> list[Array]:
        """The weights [G, M] fitted without each fold."""
        return [fit(self.candidates.take(rest)) for rest, _ in self.pairs]

    def measured(self, weights: list[Array]) -> Array:
        """The metric of every query [Q] with the weights fitted without its fold."""
        found_Q = np.zeros(len(self.candidates))
        for (_, held), own, weights_GM in zip(self.pairs, self.held, weights, strict=True):
            found_Q[held] = self.measure(own, weights_GM)
        return found_Q


def _pulled(weights_GM: Array, single_GM: Array, pull: float) -> Array:
    """The weights, moved by the share ``pull`` towards the best single member."""
    pulled_GM: Array = (1 - pull) * weights_GM + pull * single_GM
    return pulled_GM


def fit_softmax(candidates: Candidates) -> Array:
    """The weights under which the targets among the candidates are most likely: float64 [M], none
    negative.

    Minimises the mean of −log softmax(Σ_m w_m score_m)[target] and a ridge on w, by L-BFGS.
    """
    num_members = candidates.scores_QPM.shape[2]
    counts_Q1 = candidates.hits_QP.sum(dim=1, keepdim=True)
    reached_Q = (counts_Q1[:, 0] > 0).nonzero()[:, 0]
    even_M = np.ones(num_members)
    if not len(reached_Q):
        return even_M
    scores_QPM = candidates.scores_QPM[reached_Q]
    wanted_QP = (candidates.hits_QP / counts_Q1.clamp(min=1))[reached_Q]
    out_QP = torch.where(candidates.listed_QP[reached_Q], 0.0, -1e9)
    raw_M = torch.full((num_members,), -2.0, requires_grad=True)
    optimizer = torch.optim.LBFGS([raw_M], max_iter=_FIT_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        weights_M = nn.functional.softplus(raw_M)
        logits_QP = scores_QPM @ weights_M + out_QP
        fitted = -(wanted_QP * logits_QP.log_softmax(dim=1)).sum(dim=1).mean()
        whole: Tensor = fitted + _RIDGE / len(reached_Q) * weights_M.square().sum()
        whole.backward()  # type: ignore[no-untyped-call]
        return whole

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    weights_M = nn.functional.softplus(raw_M).detach().double().numpy()
    return weights_M if np.isfinite(weights_M).all() else even_M


def values_without(
    candidates: Candidates, weights_GM: Array, names: Sequence[str], measure: Measure
) -> dict[str, float]:
    """The metric of the stack with the weight of one member set to zero, for each that has one.

    Parameters
    ----------
    candidates : Candidates
        The queries.
    weights_GM : array, [G, M] float64
        The weights of the stack.
    names : Sequence[str]
        The members, in the order of M.
    measure : Measure
        Result of :func:`metric_of`.

    Returns
    -------
    dict of str to float
        The mean over the queries; that of the whole stack if no other member has a weight.
    """
    found = {}
    for m, name in enumerate(names):
        if weights_GM[:, m].any():
            rest_GM = weights_GM * (np.arange(len(names)) != m)
            used_GM = rest_GM if rest_GM.any() else weights_GM
            found[name] = float(measure(candidates, used_GM).mean())
    return found


def _by_group(candidates: Candidates, measure: Measure, weights_GM: Array) -> Array:
    """The weights, changed for groups of history length in which that improves the metric."""
    value_Q = measure(candidates, weights_GM)
    for group in range(len(weights_GM)):
        weights_GM, value_Q = _move_group(candidates, measure, weights_GM, value_Q, group)
    return weights_GM


def _move_group(
    candidates: Candidates, measure: Measure, weights_GM: Array, value_Q: Array, group: int
) -> tuple[Array, Array]:
    """The weights, changed for one group if that improves its metric beyond noise."""
    rows_q = np.flatnonzero(candidates.groups_Q == group)
    if len(rows_q) < LEAST_QUERIES:
        return weights_GM, value_Q
    own = candidates.take(rows_q)
    value_q = value_Q[rows_q]
    for member in np.flatnonzero(weights_GM.any(axis=0)).tolist():
        before = weights_GM[group, member]
        for factor in _GROUP:
            proposed_GM = weights_GM.copy()
            proposed_GM[group, member] = before * factor
            if not proposed_GM[group].any():
                continue
            found_q = measure(own, proposed_GM)
            if gains(found_q, value_q, GROUP_NOISE):
                weights_GM, value_q = proposed_GM, found_q
    value_Q = value_Q.copy()
    value_Q[rows_q] = value_q
    return weights_GM, value_Q


def gains(values_Q: Array, than_Q: Array, noise: float) -> bool:
    """Whether the values are better by this many standard errors of the paired difference.

    Parameters
    ----------
    values_Q, than_Q : array, [Q] float64
        The metric of the same queries with two settings.
    noise : float
        Number of standard errors.
    """
    gain_Q = values_Q - than_Q
    return bool(gain_Q.mean() > noise * gain_Q.std() / np.sqrt(max(len(gain_Q), 1)))

"""Stacking: the weights of a model's members, chosen on validation so that the sum is never below its best member.

Why not by gradient in training: fitted members have seen every training event, so training would trust them too much.
Why not one search on all validation users: weights that are chosen and measured on the same users flatter themselves.
So there are two ways to weights, none of which may be negative, and cross-fitting over the users says which holds:

* ``softmax``: the likelihood of the targets under a softmax of the weighted sum, a convex fit with a small ridge; the
  steadier one where users are few;
* ``greedy``: beginning with the best member, one joins when the paired gain of the metric is above its noise, and the
  weights of those before it are adjusted (Caruana et al. 2004); then weights by length of history in the same way. It
  is taken where it is better than the softmax beyond noise.

Each is fitted without every fold of the users and measured on it. Members that add nothing to the folds are dropped,
one after the other, and the rest is fitted again. Where the way that is taken is below the best single member,
cross-fitted as well, the stack *is* that member.

Scores of a member are divided by their spread over the catalogue, query by query (see :class:`recsys.stack.Stack`), so
a weight means the same for a short and a long history. Everything is computed on the candidates of each query, the best
items of every member; a target outside them is a miss.

Legend: Q queries, P candidates of a query, M members, G groups of history length, K list length, T targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data.histories import Array
from recsys.evaluation.metrics import QUERY_METRICS, parse_metric

FOLDS: Final = 5
_NOISE: Final = 1.0  # standard errors of the paired gain that a new member must bring
_LOSS: Final = 0.25  # standard errors that leaving members out may cost
_GROUP_NOISE: Final = 1.5  # the same for weights of a group, of which more are tried
_LEAST_QUERIES: Final = 100  # of a group that may have weights of its own
_START: Final = (0.01, 0.03, 0.1, 0.3, 1.0)  # weights at which a member is tried, the best one has 1
_ADJUST: Final = (0.5, 0.75, 1.33, 2.0)  # factors at which the weights of members are tried again
_GROUP: Final = (0.0, 0.5, 2.0)
_ROUNDS: Final = 2
_RIDGE: Final = 10.0  # of the softmax fit, over the number of queries
_FIT_STEPS: Final = 40
_FEW_TARGETS: Final = 3  # a query, up to which ranks are counted


@dataclass(frozen=True)
class Candidates:
    """What stacking sees of the validation queries."""

    scores_QPM: Tensor  # float32, scale-free
    hits_QP: Tensor  # bool, whether a candidate is a target
    listed_QP: Tensor  # bool, False behind a query's last candidate
    num_targets_Q: Array  # int64, in the whole catalogue
    groups_Q: Array  # int64, group of the length of the history

    @cached_property
    def targets(self) -> tuple[Tensor, Tensor]:
        """Query and place of every target among the candidates."""
        rows_T, places_T = torch.nonzero(self.hits_QP, as_tuple=True)
        return rows_T, places_T

    def take(self, rows_Q: Array) -> Candidates:
        """Some of the queries."""
        at = torch.from_numpy(rows_Q)
        scores_QPM, hits_QP, listed_QP = self.scores_QPM[at], self.hits_QP[at], self.listed_QP[at]
        return Candidates(scores_QPM, hits_QP, listed_QP, self.num_targets_Q[rows_Q], self.groups_Q[rows_Q])

    def __len__(self) -> int:
        return len(self.num_targets_Q)


@dataclass(frozen=True)
class Stacked:
    """The chosen weights and what they rest on; all values are means of the metric over validation queries."""

    weights_GM: Array  # float64, one row a group
    single: str  # the best single member
    is_single: bool  # whether the model is that member
    way: str  # to the weights: softmax, greedy or single
    value: float  # of the stack, on the queries that chose it
    cross_fitted: float  # of stacks chosen without the fold that they are measured on
    single_cross_fitted: float  # of the best single member, chosen in the same way
    alone: dict[str, float] = field(default_factory=dict)
    without: dict[str, float] = field(default_factory=dict)  # of the stack with one weight set to zero
    dropped: list[str] = field(default_factory=list)  # members without any weight

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """Plain values for ``metrics.json`` and the training's choices."""
        return {
            "single": self.single,
            "is_single": self.is_single,
            "way": self.way,
            "validation": self.value,
            "cross_fitted": self.cross_fitted,
            "single_cross_fitted": self.single_cross_fitted,
            "dropped": self.dropped,
            "members": {
                name: {
                    "alone": self.alone[name],
                    "without": self.without.get(name, self.value),
                    "weights": [float(weight) for weight in self.weights_GM[:, place]],
                }
                for place, name in enumerate(names)
            },
        }


def choose_stack(candidates: Candidates, names: Sequence[str], num_groups: int, metric: str, seed: int) -> Stacked:
    """Choose the weights as the module says.

    Args:
        candidates: of at least one query.
        names: the members, in the order of M.
        num_groups: G.
        metric: such as ``ndcg@20``.
        seed: of the folds.
    """
    measure = _measure(metric)
    alone_QM = np.stack([measure(candidates, _one(m, len(names), num_groups)) for m in range(len(names))], axis=1)
    best = int(np.argmax(alone_QM.mean(axis=0)))
    folds = _Folds(candidates, measure, seed)
    single_Q = folds.measured(folds.fitted(lambda rest: _best_of(rest, measure, len(names), num_groups)))
    found = {way: _pruned(folds, fit) for way, fit in _ways(measure, num_groups).items()}
    way = "greedy" if _gains(found["greedy"][1], found["softmax"][1], _NOISE) else "softmax"
    fit, crossed_Q = found[way]
    chosen_GM = fit(candidates)
    is_single = bool(crossed_Q.mean() < single_Q.mean() or np.count_nonzero(chosen_GM.any(axis=0)) == 1)
    if is_single:
        chosen_GM, way = _one(best, len(names), num_groups), "single"
    chosen_GM = chosen_GM / chosen_GM.max()
    without = {}
    for place, name in enumerate(names):
        if chosen_GM[:, place].any() and not is_single:
            without[name] = float(measure(candidates, _without(chosen_GM, place)).mean())
    return Stacked(
        weights_GM=chosen_GM,
        single=names[best],
        is_single=is_single,
        way=way,
        value=float(measure(candidates, chosen_GM).mean()),
        cross_fitted=float((single_Q if is_single else crossed_Q).mean()),
        single_cross_fitted=float(single_Q.mean()),
        alone={name: float(alone_QM[:, place].mean()) for place, name in enumerate(names)},
        without=without,
        dropped=[name for place, name in enumerate(names) if not chosen_GM[:, place].any()],
    )


Measure = Callable[[Candidates, Array], Array]
Fit = Callable[[Candidates], Array]


def _measure(metric: str) -> Measure:
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

    Where queries have few targets their ranks are counted, several times faster than the k best are found.
    """
    rows_T, places_T = candidates.targets
    hits_QK = np.zeros((len(candidates), k), dtype=bool)
    scores_QP = scores_QP.masked_fill(~candidates.listed_QP, -torch.inf)
    if len(rows_T) <= _FEW_TARGETS * len(candidates):
        own_T = scores_QP[rows_T, places_T]
        ranks_T = (scores_QP[rows_T] > own_T[:, None]).sum(dim=1).numpy()
        listed = ranks_T < k
        hits_QK[rows_T.numpy()[listed], ranks_T[listed]] = True
    else:
        top_QK = scores_QP.topk(min(k, scores_QP.shape[1]), dim=1).indices
        hits_QK[:, : top_QK.shape[1]] = torch.gather(candidates.hits_QP, 1, top_QK).numpy()
    return QUERY_METRICS[kind](hits_QK, candidates.num_targets_Q, k)


def _one(member: int, num_members: int, num_groups: int) -> Array:
    weights_GM = np.zeros((num_groups, num_members))
    weights_GM[:, member] = 1.0
    return weights_GM


def _ways(measure: Measure, num_groups: int) -> dict[str, Fit]:
    """The ways to weights, by name."""
    return {
        "greedy": lambda rest: _choose(rest, measure, num_groups),
        "softmax": lambda rest: fit_softmax(rest, num_groups),
    }


@dataclass(frozen=True)
class _Folds:
    """Queries in folds: weights are fitted without each of them and measured on it."""

    candidates: Candidates
    measure: Measure
    seed: int

    @cached_property
    def pairs(self) -> list[tuple[Array, Array]]:
        """The rows of the other folds, and of the fold; of folds where neither is empty."""
        fold_Q = np.random.default_rng(self.seed).permutation(len(self.candidates)) % FOLDS
        found = [(np.flatnonzero(fold_Q != fold), np.flatnonzero(fold_Q == fold)) for fold in range(FOLDS)]
        return [(rest, held) for rest, held in found if len(rest) and len(held)]

    @cached_property
    def held(self) -> list[Candidates]:
        return [self.candidates.take(held) for _, held in self.pairs]

    def fitted(self, fit: Fit) -> list[Array]:
        """The weights [G, M] that are fitted without each fold."""
        return [fit(self.candidates.take(rest)) for rest, _ in self.pairs]

    def measured(self, weights: list[Array]) -> Array:
        """The metric of every query [Q] with the weights that were fitted without its fold."""
        found_Q = np.zeros(len(self.candidates))
        for (_, held), own, weights_GM in zip(self.pairs, self.held, weights, strict=True):
            found_Q[held] = self.measure(own, weights_GM)
        return found_Q


def _pruned(folds: _Folds, fit: Fit) -> tuple[Fit, Array]:
    """A way to weights without the members that add nothing to the folds, and its metric of every query [Q].

    The rest is fitted again, since it must take over what the others did; where that loses, the weights stay, but for
    those of members that only do harm.
    """
    weights = folds.fitted(fit)
    whole_Q = folds.measured(weights)
    narrow = _of_members(fit, _useful(folds, weights, whole_Q, _LOSS))
    narrow_Q = folds.measured(folds.fitted(narrow))
    if _gains(whole_Q, narrow_Q, _LOSS):
        narrow = _silencing(fit, _useful(folds, weights, whole_Q, 0.0))
        narrow_Q = folds.measured(folds.fitted(narrow))
    return narrow, narrow_Q


def _useful(folds: _Folds, weights: list[Array], value_Q: Array, noise: float) -> list[int]:
    """The members without which these weights lose more than so many standard errors.

    One member leaves at a time, the most useless first: two that tell the same each add nothing beside the other, and
    together much.
    """
    kept = [place for place in range(weights[0].shape[1]) if any(found[:, place].any() for found in weights)]
    while len(kept) > 1:
        left_out = {place: [_without(found, place) for found in weights] for place in kept}
        values = {place: folds.measured(fewer) for place, fewer in left_out.items()}
        place = max(values, key=lambda each: values[each].mean())
        if _gains(value_Q, values[place], noise):
            break
        weights, value_Q = left_out[place], values[place]
        kept.remove(place)
    return kept


def _silencing(fit: Fit, kept: list[int]) -> Fit:
    """The same way, after which all other members have no weight."""

    def quiet(candidates: Candidates) -> Array:
        found_GM = fit(candidates)
        weights_GM = np.zeros_like(found_GM)
        weights_GM[:, kept] = found_GM[:, kept]
        return weights_GM

    return quiet


def _of_members(fit: Fit, kept: list[int]) -> Fit:
    """The same way with some members alone; the others have no weight."""

    def narrow(candidates: Candidates) -> Array:
        found_GK = fit(replace(candidates, scores_QPM=candidates.scores_QPM[:, :, kept]))
        weights_GM = np.zeros((len(found_GK), candidates.scores_QPM.shape[2]))
        weights_GM[:, kept] = found_GK
        return weights_GM

    return narrow


def _best_of(candidates: Candidates, measure: Measure, num_members: int, num_groups: int) -> Array:
    values = [measure(candidates, _one(place, num_members, num_groups)).mean() for place in range(num_members)]
    return _one(int(np.argmax(values)), num_members, num_groups)


def fit_softmax(candidates: Candidates, num_groups: int) -> Array:
    """The weights under which the targets among the candidates are most likely: [G, M], none negative.

    Minimises the mean of −log softmax(Σ_m w_m score_m)[target] and a ridge on w, by L-BFGS.
    """
    num_members = candidates.scores_QPM.shape[2]
    counts_Q1 = candidates.hits_QP.sum(dim=1, keepdim=True)
    told_Q = (counts_Q1[:, 0] > 0).nonzero()[:, 0]
    even_GM = np.ones((num_groups, num_members))
    if not len(told_Q):
        return even_GM
    scores_QPM = candidates.scores_QPM[told_Q]
    wanted_QP = (candidates.hits_QP / counts_Q1.clamp(min=1))[told_Q]
    out_QP = torch.where(candidates.listed_QP[told_Q], 0.0, -1e9)
    raw_M = torch.full((num_members,), -2.0, requires_grad=True)
    optimizer = torch.optim.LBFGS([raw_M], max_iter=_FIT_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        weights_M = nn.functional.softplus(raw_M)
        logits_QP = scores_QPM @ weights_M + out_QP
        fitted = -(wanted_QP * logits_QP.log_softmax(dim=1)).sum(dim=1).mean()
        whole: Tensor = fitted + _RIDGE / len(told_Q) * weights_M.square().sum()
        whole.backward()  # type: ignore[no-untyped-call]
        return whole

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    weights_M = nn.functional.softplus(raw_M).detach().double().numpy()
    return np.tile(weights_M, (num_groups, 1)) if np.isfinite(weights_M).all() else even_GM


def _without(weights_GM: Array, member: int) -> Array:
    """The weights without one member; unchanged where nothing would be left."""
    rest_GM = weights_GM.copy()
    rest_GM[:, member] = 0.0
    return rest_GM if rest_GM.any() else weights_GM


def _choose(candidates: Candidates, measure: Measure, num_groups: int) -> Array:
    """Greedy weights, the same for every group, then moved by group: [G, M]."""
    num_members = candidates.scores_QPM.shape[2]
    alone_MQ = [measure(candidates, _one(member, num_members, num_groups)) for member in range(num_members)]
    best = int(np.argmax([values_Q.mean() for values_Q in alone_MQ]))
    weights_GM, value_Q = _one(best, num_members, num_groups), alone_MQ[best]
    left = set(range(num_members)) - {best}
    while left:
        tried = []
        for member in sorted(left):
            for start in _START:
                proposed_GM = weights_GM.copy()
                proposed_GM[:, member] = start
                found_Q = measure(candidates, proposed_GM)
                tried.append((found_Q.mean(), member, proposed_GM, found_Q))
        _, member, proposed_GM, found_Q = max(tried, key=lambda each: each[0])
        if not _gains(found_Q, value_Q, _NOISE):
            break
        left.discard(member)
        weights_GM, value_Q = _adjust(candidates, measure, proposed_GM, found_Q)
    for group in range(num_groups):
        weights_GM, value_Q = _move_group(candidates, measure, weights_GM, value_Q, group)
    return weights_GM


def _adjust(candidates: Candidates, measure: Measure, weights_GM: Array, value_Q: Array) -> tuple[Array, Array]:
    """Coordinate search around weights that are the same for every group."""
    for _ in range(_ROUNDS):
        moved = False
        for member in np.flatnonzero(weights_GM.any(axis=0)).tolist():
            for factor in _ADJUST:
                proposed_GM = weights_GM.copy()
                proposed_GM[:, member] *= factor
                found_Q = measure(candidates, proposed_GM)
                if found_Q.mean() > value_Q.mean():
                    weights_GM, value_Q, moved = proposed_GM, found_Q, True
        if not moved:
            break
    return weights_GM, value_Q


def _move_group(
    candidates: Candidates, measure: Measure, weights_GM: Array, value_Q: Array, group: int
) -> tuple[Array, Array]:
    """Other weights for the queries of one group, where they gain beyond noise there."""
    rows_q = np.flatnonzero(candidates.groups_Q == group)
    if len(rows_q) < _LEAST_QUERIES:
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
            if _gains(found_q, value_q, _GROUP_NOISE):
                weights_GM, value_q = proposed_GM, found_q
    value_Q = value_Q.copy()
    value_Q[rows_q] = value_q
    return weights_GM, value_Q


def _gains(values_Q: Array, than_Q: Array, noise: float) -> bool:
    gain_Q = values_Q - than_Q
    return bool(gain_Q.mean() > noise * gain_Q.std() / np.sqrt(max(len(gain_Q), 1)))

"""Members of a model: the metric of every granularity alone and of the model without it, and of the
baselines.

Why: the metric of a sum says nothing about its parts. The table shows which signals the model
depends on, which ones add nothing, and whether one method alone would have been enough. Validation
figures are those with which stacking chose the weights; test figures are those of the final model,
with paired intervals.

A member that stacking dropped is not part of the model: it has a figure on validation only.

Legend: B queries, b queries of a chunk, K granularities, N items, D width, G groups of history
length.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import torch

from recsys.config import Config, EvaluateConfig, TrainConfig
from recsys.contributions import Contributions
from recsys.data.histories import Array, Queries
from recsys.evaluation.bootstrap import compare, intervals, outcome
from recsys.evaluation.metrics import QUERY_METRICS, Metric, parse_metric
from recsys.evaluation.ranking import VectorScorer, mark_hits, mask_seen
from recsys.evaluation.top_items import top_items
from recsys.granularities.apart.section import KIND, ApartConfig
from recsys.stack import TRAINED

# scores of one member in memory at a time; there are a few matrices of this size
_MAX_SCORES: Final = 2**23


class SummedModel(Protocol):
    """A model that is a sum over granularities."""

    @property
    def item_vectors_ND(self) -> torch.Tensor:
        """The item vectors; the diversity of all recommenders is measured in their space."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """The granularities, in the order of K."""
        ...

    @property
    def trained_names(self) -> Sequence[str]:
        """The trained granularities, in the order of their λ."""
        ...

    def contributions(self, queries: Queries) -> Contributions:
        """The output of every granularity for every query, and λ [b, K], zero where its signal is
        missing.
        """
        ...

    @property
    def is_uneven(self) -> bool:
        """Whether a member has no weight for some lengths of history, but for others."""
        ...

    def even_contributions(self, queries: Queries) -> Contributions:
        """The contributions, with one weight of a member for all queries: it can rank alone."""
        ...


@dataclass(frozen=True)
class Shares:
    """By member: the main metric of every query [B] with the member alone, and without it; by
    granularity: the mean λ over the queries, zero where its signal is missing.
    """

    alone: dict[str, Array]
    without: dict[str, Array]
    weights: dict[str, float]


def shares(
    model: SummedModel, queries: Queries, train: TrainConfig, evaluate: EvaluateConfig
) -> Shares:
    """Rank the queries with every granularity alone and with all others, in one pass over the
    users.

    Every contribution to a score is computed once and summed for each variant. If no granularity is
    present, the query is ranked by popularity, as in the model. The trained granularities together
    are ``trained`` if there are closed-form ones as well. A granularity without any weight has no
    entry in ``alone``.

    Parameters
    ----------
    model : SummedModel
        The model, which gives the contributions of its granularities.
    queries : Queries
        Queries, each with a target that counts.
    train : TrainConfig
        Main metric.
    evaluate : EvaluateConfig
        Whether seen items are left out, and the chunk size.

    Returns
    -------
    Shares
        Granularity → main metric per query [B], alone and left out.
    """
    names, trained = list(model.names), list(model.trained_names)
    members = {name: range(k, k + 1) for k, name in enumerate(names)}
    if trained and len(trained) < len(names):
        members = {TRAINED: range(len(trained)), **members}
    num_items = len(model.item_vectors_ND)
    chunk = min(evaluate.chunk_users, max(1, _MAX_SCORES // max(num_items, 1)), len(queries))
    metric = parse_metric(train.metric)
    sums = _Sums(len(names), chunk, num_items)
    alone: dict[str, list[Array]] = {name: [] for name in members}
    without: dict[str, list[Array]] = {name: [] for name in members}
    weights: list[torch.Tensor] = []
    with torch.inference_mode():
        for piece in queries.chunks(chunk):
            scores = _Scores(model, piece, evaluate.exclude_seen, metric, sums)
            weights.append(scores.weights_bK)
            # each before all of them get their weights
            for name, indices in members.items():
                alone[name].append(scores.alone(indices))
            scores.weigh()
            for name, indices in members.items():
                without[name].append(scores.without(indices))
    weights_BK = torch.cat(weights)
    weighing = {name for name, indices in members.items() if weights_BK[:, list(indices)].any()}
    return Shares(
        {name: np.concatenate(values) for name, values in alone.items() if name in weighing},
        {name: np.concatenate(values) for name, values in without.items()},
        _mean_weights(names, weights_BK),
    )


def weights_alone(model: SummedModel, queries: Queries, chunk: int) -> Shares:
    """The weights of :func:`shares` without any ranking.

    Parameters
    ----------
    model : SummedModel
        The model, which gives the weights of its granularities.
    queries : Queries
        Queries, at least one.
    chunk : int
        Queries at a time.
    """
    with torch.inference_mode():
        weights = [model.contributions(piece).weights_BK.cpu() for piece in queries.chunks(chunk)]
    return Shares({}, {}, _mean_weights(model.names, torch.cat(weights)))


def _mean_weights(names: Sequence[str], weights_BK: torch.Tensor) -> dict[str, float]:
    return dict(zip(names, weights_BK.double().mean(0).tolist(), strict=True))


class _Sums:
    """Memory for the scores of a chunk, used again by the next one.

    Why: with a large catalogue, new memory for every matrix took more time than its content.
    """

    def __init__(self, num_members: int, chunk: int, num_items: int) -> None:
        self.each_KbN = torch.zeros(num_members, chunk, num_items)
        self.first_bN = torch.zeros(chunk, num_items)  # sum of the first members
        self.last_KbN = torch.zeros(num_members + 1, chunk, num_items)  # of all from each one on
        self.asked_bN = torch.zeros(chunk, num_items)


class _Scores:
    """The scores of one chunk, separate for each granularity.

    ``weights_bK`` are those of the model. A member whose weight is zero for some queries ranks
    these, too, when it is alone: with ``even_bK``.
    """

    def __init__(
        self,
        model: SummedModel,
        queries: Queries,
        exclude_seen: bool,
        metric: Metric,
        sums: _Sums,
    ) -> None:
        self.queries, self.exclude_seen, self.metric = queries, exclude_seen, metric
        n = len(queries)
        self._sums, self._each_KbN = sums, sums.each_KbN[:, :n]
        self._first_bN, self._asked_bN, self._summed = sums.first_bN[:n], sums.asked_bN[:n], 0
        self.weights_bK = model.contributions(queries).weights_BK.cpu()
        even = model.even_contributions if model.is_uneven else model.contributions
        contributions = even(queries).cpu()
        self.even_bK = contributions.weights_BK
        items_ND = model.item_vectors_ND.detach().cpu()
        self.popularity_N = torch.zeros(len(items_ND))
        if isinstance(model, VectorScorer):
            self.popularity_N += model.popularity_N.cpu()
        for k, scores_bN in enumerate(self._each_KbN):
            # from the first to the last direction that it uses: a view, not a copy of the items
            used_d = contributions.vectors_BKD[:, k].any(0).nonzero()[:, 0].tolist() or [0]
            used = slice(used_d[0], used_d[-1] + 1)
            torch.mm(contributions.vectors_BKD[:, k, used], items_ND[:, used].T, out=scores_bN)
            if k in contributions.sparse:
                contributions.sparse[k].add_to(scores_bN)

    def weigh(self) -> None:
        """Multiply the scores with the weights of the model, and sum them."""
        share_bK = torch.where(self.even_bK == 0, 0, self.weights_bK / self.even_bK)
        each_KbN, last_KbN = self._each_KbN, self._sums.last_KbN[:, : len(self.queries)]
        self._first_bN.zero_()
        for k in reversed(range(len(each_KbN))):
            each_KbN[k] *= share_bK[:, k, None]
            torch.add(last_KbN[k + 1], each_KbN[k], out=last_KbN[k])

    def alone(self, indices: range) -> Array:
        """The metric of every query for the sum of these granularities only."""
        torch.sum(self._each_KbN[indices.start : indices.stop], 0, out=self._asked_bN)
        return self._values(self.even_bK[:, indices.start : indices.stop].any(1))

    def without(self, indices: range) -> Array:
        """The metric of every query for the sum of the others, after :meth:`weigh`; in ascending
        order.
        """
        while self._summed < indices.start:
            self._first_bN += self._each_KbN[self._summed]
            self._summed += 1
        last_bN = self._sums.last_KbN[indices.stop, : len(self.queries)]
        torch.add(self._first_bN, last_bN, out=self._asked_bN)
        others = [k for k in range(len(self._each_KbN)) if k not in indices]
        return self._values(self.weights_bK[:, others].any(1))

    def _values(self, present_b: torch.Tensor) -> Array:
        scores_bN = self._asked_bN
        scores_bN[~present_b] = self.popularity_N
        if self.exclude_seen:
            mask_seen(scores_bN, self.queries)
        hits_bK = mark_hits(top_items(scores_bN, self.metric.k)[0], self.queries)
        return QUERY_METRICS[self.metric.kind](hits_bK, self.queries.num_targets_B, self.metric.k)


# ------------------------------------------------------------------------------------------- report


def member_report(
    together_B: Array,
    found: Shares,
    model: SummedModel,
    weights: Mapping[str, float],
    choices: Mapping[str, Any],
    baselines: Mapping[str, tuple[float | None, Array]],
    config: Config,
) -> dict[str, Any]:
    """The content of ``metrics.json``'s ``members``.

    Parameters
    ----------
    together_B : Array
        The main metric of the whole model, per query.
    found : Shares
        The same for its members, alone and left out.
    model : SummedModel
        The model.
    weights : Mapping[str, float]
        The mean weight of every granularity over the queries.
    choices : Mapping[str, Any]
        What stacking chose (``TrainResult.choices["stack"]``); empty for a model without stacking.
    baselines : Mapping[str, tuple[float | None, Array]]
        Name → the metric on validation, and on test [B].
    config : Config
        Main metric and bootstrap.
    """
    stacked = choices.get("members", {})
    order = _order(model, [*stacked, *found.without])
    interval_of = _intervals(
        {"": together_B, **found.alone, **{f"baseline {n}": v for n, (_, v) in baselines.items()}},
        config.evaluate,
        config.seed,
    )
    return {
        "metric": config.train.metric,
        "single": choices.get("single"),
        "is_single": bool(choices.get("is_single", False)),
        "is_earlier": bool(choices.get("is_earlier", False)),
        "own_weights": list(choices.get("own_weights", [])),
        "together": {
            "validation": choices.get("validation"),
            "cross_fitted": choices.get("cross_fitted"),
            "test": float(together_B.mean()),
            "interval": interval_of[""],
        },
        "each": {
            name: _member(name, together_B, found, interval_of, model, weights, choices, config)
            for name in order
        },
        "baselines": {
            name: _baseline(validation, values_B, interval_of[f"baseline {name}"])
            for name, (validation, values_B) in baselines.items()
        },
    }


def _baseline(validation: float | None, values_B: Array, interval: list[float]) -> dict[str, Any]:
    return {
        "alone": {
            "validation": validation,
            "test": float(values_B.mean()),
            "interval": interval,
        },
        "why": "a baseline, not part of the sum",
    }


def _order(model: SummedModel, names: Sequence[str]) -> list[str]:
    """The trained granularities together, each of them, then the closed-form ones."""
    trained = [TRAINED, *model.trained_names]
    return sorted(
        dict.fromkeys(names),
        key=lambda name: trained.index(name) if name in trained else len(trained),
    )


def _intervals(
    values: Mapping[str, Array], evaluate: EvaluateConfig, seed: int
) -> dict[str, list[float]]:
    return intervals(values, evaluate.bootstrap, seed)


def _member(
    name: str,
    together_B: Array,
    found: Shares,
    interval_of: Mapping[str, list[float]],
    model: SummedModel,
    weights: Mapping[str, float],
    choices: Mapping[str, Any],
    config: Config,
) -> dict[str, Any]:
    """One member: ``alone`` and ``without`` (None if not measured), ``weight``, ``kept`` and
    ``why``.
    """
    chosen = choices.get("members", {}).get(name)
    section = config.model.granularities.enabled().get(name)
    of_one = (
        "trained"
        if name in model.trained_names
        else KIND
        if isinstance(section, ApartConfig)
        else "fitted"
    )
    kind = "together" if name == TRAINED else of_one
    is_part = kind == "trained" and bool(choices)
    # stacking keeps or drops the trained granularities together
    dropped = (TRAINED if is_part else name) in choices.get("dropped", ())
    if not choices:
        dropped = name not in found.alone
    alone = found.alone.get(name)
    entry: dict[str, Any] = {
        "kind": kind,
        "alone": {
            "validation": chosen["alone"] if chosen else None,
            "test": float(alone.mean()) if alone is not None else None,
            "interval": interval_of.get(name),
        },
        "without": {"validation": chosen["without"] if chosen else None, "test": None},
        "weight": _weight(chosen, weights.get(name)),
        "kept": not dropped,
        "why": _why(name, kind, dropped, choices, config.train.metric),
    }
    if alone is not None and name in found.without:
        without_B = found.without[name]
        entry["without"]["test"] = float(without_B.mean())
        entry["without"] |= compare(
            together_B, without_B, config.evaluate.bootstrap, config.seed
        ).to_json()
    return entry


def _weight(chosen: Mapping[str, Any] | None, mean: float | None) -> list[float] | None:
    """Least and largest weight over groups of history length; without stacking, twice the mean of
    λ.
    """
    if chosen:
        return [min(chosen["weights"]), max(chosen["weights"])]
    return None if mean is None else [mean, mean]


def _why(name: str, kind: str, dropped: bool, choices: Mapping[str, Any], metric: str) -> str:
    if not choices:
        return (
            "its weight is zero for every test user"
            if dropped
            else "weighted by the fusion, as trained"
        )
    single = choices["single"]
    if kind == "trained":
        return f"part of {TRAINED}, which is dropped" if dropped else f"part of {TRAINED}"
    if name in choices.get("left_out", {}):
        return f"left out: {choices['left_out'][name]}"
    if choices.get("is_earlier"):
        return f"{'dropped' if dropped else 'kept'} as in the parent"
    if choices["is_single"]:
        no_sum = f"no sum of members is better than {single} on validation"
        return f"the model is this member: {no_sum}" if name == single else f"dropped: {no_sum}"
    if dropped:
        return "dropped: adding it gains nothing on validation beyond chance"
    weights = choices["members"][name]["weights"]
    if 0 < np.count_nonzero(weights) <= len(choices.get("own_weights", [])):
        return "kept for some lengths of history, which have weights of their own"
    lost = choices["validation"] - choices["members"][name]["without"]
    return (
        f"kept: without it {metric} {'falls' if lost > 0 else 'does not fall'} on validation"
        f" ({-lost:+.4f})"
    )


def kept_names(members: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The granularities that are part of the model: those that were not dropped.

    >>> kept_names({"each": {"als": {"kept": True}, "place": {"kept": False}}}, ["als", "place"])
    ['als']
    """
    each = members.get("each", {})
    return [name for name in names if each.get(name, {}).get("kept", True)]


def single_line(members: Mapping[str, Any]) -> str:
    """A sentence if the model is a single member or has the weights of its parent; empty otherwise.

    >>> chosen = {"is_single": True, "single": "item_cf", "metric": "ndcg@10"}
    >>> print(single_line(chosen))  # doctest: +NORMALIZE_WHITESPACE
    the model is its best single member, item_cf: no sum of members is better by ndcg@10 on
    validation
    """
    if members.get("is_earlier"):
        return (
            "the weights of the members are those of the parent: new ones are not better by"
            f" {members['metric']} on validation beyond a standard error"
        )
    if not members.get("is_single"):
        return ""
    return (
        f"the model is its best single member, {members['single']}: no sum of members is better by "
        f"{members['metric']} on validation"
    )


def own_weights_line(members: Mapping[str, Any]) -> str:
    """A sentence on the lengths of history that have weights of their own; empty if there are none.

    >>> group = {"events": "1 to 2", "before": 0.09, "after": 0.12, "is_made": False}
    >>> none = {"events": "0", "before": 0.1, "after": 0.11, "is_made": True}
    >>> print(own_weights_line({"own_weights": [none, group], "metric": "ndcg@10"}))
    ... # doctest: +NORMALIZE_WHITESPACE
    some lengths of history have weights of their own (ndcg@10 on validation, cross-fitted): 0
    events 0.1000 to 0.1100, on longer histories that were cut; 1 to 2 events 0.0900 to 0.1200
    """
    found = [
        f"{group['events']} events {group['before']:.4f} to {group['after']:.4f}"
        + ", on longer histories that were cut" * group["is_made"]
        for group in members.get("own_weights", [])
    ]
    if not found:
        return ""
    return (
        f"some lengths of history have weights of their own ({members['metric']} on validation,"
        f" cross-fitted): {'; '.join(found)}"
    )


def better_without(members: Mapping[str, Any]) -> str:
    """A sentence on the kept members without which the model is better on test beyond chance; empty
    if there are none.

    >>> entry = {"kept": True, "without": {"difference": -0.0048, "low": -0.009, "high": -0.001}}
    >>> each = {"collaborative": entry, "als": {"kept": True, "without": {"test": None}}}
    >>> print(better_without({"each": each, "metric": "ndcg@10"}))
    ... # doctest: +NORMALIZE_WHITESPACE
    on test the model is better without collaborative (ndcg@10 +0.0048, 95 % interval +0.0010 to
    +0.0090); members are never chosen on test, so it stays
    """
    found = [
        f"{name} ({members['metric']} {-entry['without']['difference']:+.4f}, 95 % interval"
        f" {-entry['without']['high']:+.4f} to {-entry['without']['low']:+.4f})"
        for name, entry in members["each"].items()
        if entry["kept"]
        and entry["without"].get("difference") is not None
        and outcome(entry["without"]) == "worse"
    ]
    if not found:
        return ""
    stays = "it stays" if len(found) == 1 else "they stay"
    return (
        f"on test the model is better without {', and without '.join(found)}; members are never"
        f" chosen on test, so {stays}"
    )


def same_names(members: Mapping[str, Any]) -> str:
    """A sentence if members and baselines have a name in common; empty otherwise.

    >>> kept = {"kept": True}
    >>> each, baselines = {"als": kept, "place": kept}, {"als": {}, "ease": {}}
    >>> print(same_names({"each": each, "baselines": baselines}))
    ... # doctest: +NORMALIZE_WHITESPACE
    a baseline is the published method; the member of the same name (als) may also weight events
    by type, order and time
    """
    both = [name for name in members["baselines"] if members["each"].get(name, {}).get("kept")]
    if not both:
        return ""
    return (
        f"a baseline is the published method; the member of the same name ({', '.join(both)}) may"
        " also weight events by type, order and time"
    )

"""The search for fusion weights: known points, then the main metric, the Pareto front, and a local
search.

Legend: Q queries, K granularities, T settings tried.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from recsys.config import FusionSearchConfig
from recsys.data.histories import Array
from recsys.errors import ConfigError
from recsys.evaluation.bootstrap import Comparison, compare
from recsys.evaluation.metrics import QUERY_METRICS, Metric
from tune.pareto import BEST, choose, front
from tune.score_cache import ListMeter, ScoreCache
from tune.weights import WeightSpace

if TYPE_CHECKING:
    from optuna.study import Study

LISTS: Final = ("coverage", "novelty", "diversity")
_REFINE: Final = 0.2  # share of the settings for the local search
_STEPS: Final = (0.0, 0.5, 0.75, 0.9, 1.1, 1.33, 2.0)  # factors for one share
_POPULATION: Final = 20


@dataclass(frozen=True)
class Setting:
    """One setting: its shares (None: the current weights), its main metric and properties of its
    lists.
    """

    shares_K: Array | None
    values_Q: Array
    lists: dict[str, float]

    @property
    def metric(self) -> float:
        """Mean of the main metric."""
        return float(self.values_Q.mean())


@dataclass
class Trials:
    """Measures settings on some queries, each once, and keeps them in order; the first is the
    current one.
    """

    cache: ScoreCache
    space: WeightSpace
    meter: ListMeter
    metric: Metric
    tried: list[Setting] = field(default_factory=list)
    whole: int = 0  # number of queries that were ranked over the whole catalogue
    _known: dict[bytes, Setting] = field(default_factory=dict)

    def measure(self, shares_K: Array | None) -> Setting:
        """Measure a point; None means the current weights."""
        # rounded, so that the same point is not measured again because of its last digits
        key = b"" if shares_K is None else np.round(shares_K / shares_K.sum(), 6).tobytes()
        if key not in self._known:
            values_K = self.space.today_K if shares_K is None else self.space.values(shares_K)
            weights_QK = self.space.weights(values_K, self.cache.present_QK)
            lists, whole = self.cache.lists(weights_QK, self.metric.k)
            at_Q = QUERY_METRICS[self.metric.kind](
                lists.hits_QL, self.cache.queries.num_targets_B, self.metric.k
            )
            point_K = None if shares_K is None else shares_K / shares_K.sum()
            self._known[key] = Setting(point_K, at_Q, self.meter(lists.items_QL))
            self.tried.append(self._known[key])
            self.whole += whole
        return self._known[key]

    def take(self, rows: Array) -> Trials:
        """A new object for some of the queries, without any settings measured."""
        return Trials(self.cache.take(rows), self.space.take(rows), self.meter, self.metric)

    @property
    def today(self) -> Setting:
        """The current weights."""
        return self.tried[0]

    def picked(self, settings: FusionSearchConfig) -> Setting:
        """What ``tune.fusion.pick`` says."""
        metric_T = np.array([setting.metric for setting in self.tried])
        zeros_T = np.array(
            [
                0 if found.shares_K is None else int((found.shares_K == 0).sum())
                for found in self.tried
            ]
        )
        other_T = (
            None
            if settings.pick == BEST
            else np.array([found.lists[settings.pick] for found in self.tried])
        )
        return self.tried[choose(metric_T, zeros_T, other_T, settings.within)]

    def front(self) -> list[Setting]:
        """The Pareto front over the main metric and list properties, the best metric first."""
        is_front_T = front(
            np.array(
                [[found.metric, *(found.lists[name] for name in LISTS)] for found in self.tried]
            )
        )
        return sorted(
            (self.tried[index] for index in np.flatnonzero(is_front_T)),
            key=lambda found: -found.metric,
        )


def search(trials: Trials, settings: FusionSearchConfig, seed: int) -> None:
    """Try ``settings.settings`` settings.

    Parameters
    ----------
    trials : Trials
        Measures settings and keeps them.
    settings : FusionSearchConfig
        Number of settings, sampler and share for the Pareto front.
    seed : int
        Seed of the sampler.
    """
    budget = settings.settings
    # first of all: the current weights must be measured for every comparison
    for point_K in known_points(trials.space.shares_K):
        if len(trials.tried) < budget:
            trials.measure(point_K)
    widen, refine = int(budget * settings.front), int(budget * _REFINE)
    _study(trials, settings.sampler, budget - widen - refine, seed)
    _refine(trials, budget - widen)
    if widen:
        _widen_front(trials, budget, seed)


def known_points(shares_K: Array) -> Iterable[Array | None]:
    """The current weights, equal shares, and every granularity left out and alone."""
    yield None
    yield np.ones(len(shares_K))
    for granularity in range(len(shares_K)):
        if shares_K.sum() > shares_K[granularity]:
            yield np.where(np.arange(len(shares_K)) == granularity, 0.0, shares_K)
        yield np.eye(len(shares_K))[granularity]


def _study(trials: Trials, sampler: str, until: int, seed: int) -> None:
    """Maximise the main metric with Optuna, which gets all results; a third of the points are
    random mixtures.
    """
    random = np.random.default_rng(seed)
    num = len(trials.space.names)
    while len(trials.tried) < (until if sampler == "random" else until // 3):
        trials.measure(random.dirichlet(np.ones(num)))
    if len(trials.tried) >= until:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental options
        chosen = _optuna().samplers.TPESampler(
            seed=seed % 2**32, n_startup_trials=1, multivariate=True
        )
    study = _study_of(chosen, 1)
    for found in trials.tried:
        if found.shares_K is not None:
            # the sampler learns from the known and random points, too
            study.add_trial(_observed(found.shares_K, [found.metric], num))
    proposed = 0
    while len(trials.tried) < until and proposed < 2 * until:  # a repeated point costs nothing
        trial, proposed = study.ask(_distributions(num)), proposed + 1
        study.tell(trial, trials.measure(_point(trial.params, num)).metric)


def _refine(trials: Trials, until: int) -> None:
    """Vary one share after the other from the best point; prune a granularity if that costs
    nothing.
    """
    best = trials.picked(FusionSearchConfig())
    point_K = trials.space.shares_K if best.shares_K is None else best.shares_K
    moved = True
    while moved:
        moved = False
        for granularity in range(len(point_K)):
            for factor in _STEPS:
                if len(trials.tried) >= until:
                    return
                step_K = np.where(np.arange(len(point_K)) == granularity, point_K * factor, point_K)
                # a share of 0 stays 0, whatever the factor
                if not step_K.any() or step_K[granularity] == point_K[granularity]:
                    continue
                found = trials.measure(step_K)
                assert found.shares_K is not None
                # with an equal metric the smaller model wins
                if found.metric > best.metric or (factor == 0 and found.metric == best.metric):
                    best, point_K, moved = found, found.shares_K, True


def _widen_front(trials: Trials, until: int, seed: int) -> None:
    """Extend the Pareto front of metric and list properties with NSGA-II (Deb et al. 2002)."""
    num = len(trials.space.names)
    chosen = _optuna().samplers.NSGAIISampler(population_size=_POPULATION, seed=seed % 2**32)
    study = _study_of(chosen, 1 + len(LISTS))
    ahead = [found.shares_K for found in trials.front() if found.shares_K is not None]
    for index in (
        np.unique(np.linspace(0, len(ahead) - 1, _POPULATION).astype(int)) if ahead else ()
    ):
        study.enqueue_trial(_params(ahead[index]))
    proposed = 0
    while len(trials.tried) < until and proposed < 2 * until:
        trial, proposed = study.ask(_distributions(num)), proposed + 1
        found = trials.measure(_point(trial.params, num))
        study.tell(trial, [found.metric, *(found.lists[name] for name in LISTS)])


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "tune.search fusion needs optuna, which is not installed; run: pip install optuna"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _study_of(sampler: Any, num_objectives: int) -> Study:
    made: Study = _optuna().create_study(sampler=sampler, directions=["maximize"] * num_objectives)
    return made


def _distributions(num: int) -> dict[str, Any]:
    share = _optuna().distributions.FloatDistribution(0.0, 1.0)
    return {f"share_{granularity}": share for granularity in range(num)}


def _params(shares_K: Array) -> dict[str, float]:
    """A point as parameters of Optuna: its largest share is 1."""
    return {
        f"share_{granularity}": float(share)
        for granularity, share in enumerate(shares_K / shares_K.max())
    }


def _point(params: dict[str, float], num: int) -> Array:
    shares_K = np.array([params[f"share_{granularity}"] for granularity in range(num)])
    return shares_K if shares_K.any() else np.ones(num)


def _observed(shares_K: Array, values: Sequence[float], num: int) -> Any:
    return _optuna().trial.create_trial(
        params=_params(shares_K), distributions=_distributions(num), values=list(values)
    )


@dataclass(frozen=True)
class CrossFit:
    """The gain of a choice on users who did not choose it."""

    metric: Comparison
    lists: dict[str, float]  # differences, mean over the two halves


def cross_fit(trials: Trials, settings: FusionSearchConfig, seed: int, resamples: int) -> CrossFit:
    """Search on one half of the users and measure on the other, both ways; needs two queries.

    Parameters
    ----------
    trials : Trials
        The cached scores of at least two queries.
    settings : FusionSearchConfig
        Settings of each search.
    seed : int
        Seed of the halves, the searches and the bootstrap.
    resamples : int
        Number of bootstrap resamples.

    Returns
    -------
    CrossFit
        The gain of the main metric with its interval, and mean differences of the list properties.
    """
    order = np.random.default_rng(seed).permutation(len(trials.cache))
    # sorted, so that a half has its queries in the order of the whole
    halves = [trials.take(np.sort(order[index::2])) for index in range(2)]
    rows = [np.sort(order[index::2]) for index in range(2)]
    gained_Q, lists = np.zeros(len(order)), dict.fromkeys(LISTS, 0.0)
    for half in halves:
        search(half, settings, seed)
    for index, half in enumerate(halves):
        other = halves[1 - index].picked(settings)
        here = half.measure(other.shares_K)
        gained_Q[rows[index]] = here.values_Q - half.today.values_Q
        for name in LISTS:
            lists[name] += (here.lists[name] - half.today.lists[name]) / 2
    return CrossFit(compare(gained_Q, np.zeros(len(order)), resamples, seed), lists)

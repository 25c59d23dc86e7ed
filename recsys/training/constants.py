"""Choose the constants of closed-form granularities on validation, before the first epoch.

Why: a half-life or a regularisation is a property of the data, and a fit takes seconds. A section
says which of its keys may hold several values (``candidates``). The search starts at the first
value of each key, and keeps it if validation cannot tell the values apart. It goes through the keys
one after the other and takes the value with the best score, with the other keys as they are by
then. So the number of fits is the sum over the keys, not the product.

If there is a deadline, every granularity is first fitted once, the cheapest first. Then each
chooses its first key, then each its second key, and so on: a section names its keys in the order of
their effect, and the small choices of one granularity must not use up the time of the large choices
of another. The cost of a fit is measured; before a granularity's first fit it is estimated from its
``effort``. A key whose values would take too long keeps its first value. A granularity that would
take too long even with one value is left out.

The score is the validation metric of the granularity alone, as for the baselines, so that no member
is tuned worse than the baseline of the same kind. The fits use training events only; no test event
is read.

Legend: B queries, N items, P targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from recsys.config import Config, GranularityConfig, ModelConfig
from recsys.data.batches import last_position
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Queries, Split
from recsys.granularities import granularity_class
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State
from recsys.pace import Deadline, duration
from recsys.training.closed_form import sample_queries
from recsys.training.context import TrainContext
from recsys.training.fresh_model import Start, build_graphs, build_model

CONSTANTS: Final = "constants"
LEFT_OUT: Final = (
    "left_out"  # key of the training's choices: granularities without time for a fit, and why
)
_ROWS: Final = 512  # queries scored at a time
_QUERIES: Final = 2000  # enough to tell values apart; they are ranked some hundred times


@dataclass(frozen=True)
class Alone:
    """One closed-form granularity as a scorer of its own, for rankings and metrics.

    If it is not present in a query, the query is ranked by popularity, as by a whole model.
    """

    module: Granularity
    state: State
    items: ItemView
    popularity_N: Tensor
    max_history: int

    @torch.inference_mode()
    def scores(self, queries: Queries) -> Tensor:
        """Scores [B, N] float32."""
        batch = last_position(queries, self.max_history).to(self.popularity_N.device)
        if self.module.sparse:
            added = self.module.boost(batch, self.items, self.state)
            present_B = added.present(len(queries))
            scores_BN = added.add_to(
                torch.zeros(len(queries), len(self.popularity_N), device=present_B.device)
            )
        else:
            z_BR, present_B = self.module(batch, self.items, self.state)
            scores_BN = z_BR @ self.module.own_items(self.state).T
            if self.module.corrects:
                self.module.boost(batch, self.items, self.state).add_to(scores_BN)
        scores_BN[~present_B] = self.popularity_N.to(scores_BN.dtype)
        return scores_BN


def choose_values(
    config: Config,
    dataset: PreparedDataset,
    validate: Callable[[Any, Queries], Array],
    context: TrainContext,
    start: Start | None = None,
) -> dict[str, dict[str, Any]]:
    """For every enabled granularity with open keys, the values with the best validation metric;
    ignores the deadline.

    Parameters
    ----------
    config : Config
        The whole configuration.
    dataset : PreparedDataset
        The dataset; the fits read training events, the scores validation events.
    validate : callable
        (scorer, queries) to the validation metric of every query, [B].
    context : TrainContext
        Device; all workers take the values of the first one.
    start : Start | None
        Where a warm start begins; None: from scratch.

    Returns
    -------
    dict[str, dict[str, Any]]
        ``{name: {"chosen": {key: value}, "merit": what, "candidates": {key: {value: merit}}}}``;
        empty if no key is open.
    """
    return choose_in_time(config, dataset, validate, replace(context, deadline=Deadline()), start)[
        0
    ]


def choose_in_time(
    config: Config,
    dataset: PreparedDataset,
    validate: Callable[[Any, Queries], Array],
    context: TrainContext,
    start: Start | None = None,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """:func:`choose_values` until the deadline of the context.

    Also returns the closed-form granularities for which the time was too short, each with the
    reason.

    Parameters
    ----------
    config : Config
        The whole configuration.
    dataset : PreparedDataset
        The dataset; the fits read training events, the scores validation events.
    validate : callable
        (scorer, queries) to the validation metric of every query, [B].
    context : TrainContext
        Device and deadline; all workers take the values of the first one.
    start : Start or None
        Where a warm start begins.

    Returns
    -------
    chosen : dict of str to dict
        As :func:`choose_values` returns it.
    left_out : dict of str to str
        The reason by name; the granularity is to be left out of the model.

    Raises
    ------
    ConfigError
        The dataset lacks what a granularity reads.
    """
    enabled = config.model.granularities.enabled()
    sections = {name: section for name, section in enabled.items() if section.open_keys}
    if not sections:
        return {}, {}
    shard = context.shard(config.train)
    model = build_model(
        config.model, config.train, dataset, Split.TRAIN, start=start, shard=shard
    ).to(context.device)
    graphs = build_graphs(dataset, Split.TRAIN, model, config.evaluate, config.seed, context).to(
        context.device
    )
    text_NT = model.tower.text(None)
    items = ItemView(text_NT.new_zeros(dataset.num_items, 1), text_NT)
    queries = sample_queries(dataset, Split.VALID, _QUERIES)
    bench = _Bench(config, model.sizes, items, graphs, queries, validate, context)
    costs, found, left_out = _Costs(context), dict[str, dict[str, Any]](), dict[str, str]()
    has_deadline = context.deadline.left < math.inf
    fitted = [
        (name, section)
        for name, section in sorted(enabled.items(), key=lambda each: each[1].effort)  # stable
        if section.is_closed_form and section.effort
    ]
    for name, section in fitted:
        if why := costs.too_much(section):
            left_out[name] = why
        elif name not in sections:
            costs.promise(section)
        elif has_deadline:
            bench.measure(name, section, costs)
    searches = [
        _Search(bench, name, section, costs)
        for name, section in fitted
        if name in sections and name not in left_out
    ]
    for place in range(max((len(search.keys) for search in searches), default=0)):
        for search in searches:
            search.choose(place)
    for search in searches:
        found[search.name] = search.found()
    return {name: found[name] for name in sections if name in found}, left_out


def with_constants(config: Config, choices: Mapping[str, Any]) -> Config:
    """The configuration with the values that a training chose, one per key."""
    chosen = {name: found["chosen"] for name, found in choices.get(CONSTANTS, {}).items()}
    if not chosen:
        return config
    changed = config.model_copy(deep=True)
    for name, values in chosen.items():
        section = getattr(changed.model.granularities, name)
        setattr(changed.model.granularities, name, section.with_values(values))
    return changed


def narrowed(configured: ModelConfig, trained: ModelConfig) -> ModelConfig:
    """The requested model section, with the values that a trained
    model chose among its candidates.
    """
    changed = configured.model_copy(deep=True)
    for name, section in configured.granularities.enabled().items():
        other = trained.granularities.enabled().get(name)
        if type(other) is type(section):
            both = {key: (getattr(section, key), getattr(other, key)) for key in section.open_keys}
            chosen = {
                key: one[0]
                for key, (several, one) in both.items()
                if len(one) == 1 and one[0] in several
            }
            setattr(changed.granularities, name, section.with_values(chosen))
    return changed


class _Costs:
    """Measured and estimated seconds of the fits, compared with the time that is left."""

    def __init__(self, context: TrainContext) -> None:
        self.context, self.clock = context, context.deadline.clock
        self._own: dict[str, float] = {}  # seconds a value, by name
        self._seconds = self._efforts = self._promised = 0.0

    def took(self, name: str, section: GranularityConfig, values: int, seconds: float) -> None:
        """Record how long it took to fit and rank this many values."""
        self._own[name] = seconds / values
        self._seconds += seconds
        self._efforts += section.effort * values

    def holds(self, name: str, section: GranularityConfig, values: int) -> bool:
        """Whether the time is enough to choose among this many values."""
        return not self.context.lacks(
            self._promised + values * self._own.get(name, self._foreseen(section))
        )

    def too_much(self, section: GranularityConfig) -> str:
        """Why there is no time to fit it with one value; empty if there is time."""
        seconds = self._foreseen(section)
        if not self._efforts or not self.context.lacks(self._promised + seconds):
            return ""
        return f"no time is left to fit it, which would take about {duration(seconds)}"

    def promise(self, section: GranularityConfig) -> None:
        """Reserve the time for fitting it later, with its present values."""
        self._promised += self._foreseen(section)

    def _foreseen(self, section: GranularityConfig) -> float:
        return section.effort * self._seconds / self._efforts if self._efforts else 0.0


@dataclass(frozen=True)
class _Bench:
    """The data on which every fit is scored."""

    config: Config
    sizes: ModelSizes
    items: ItemView
    graphs: Graphs
    queries: Queries
    validate: Callable[[Any, Queries], Array]
    context: TrainContext

    def measure(self, name: str, section: GranularityConfig, costs: _Costs) -> None:
        """Fit and score the first value of every key, for the time that it takes."""
        begun = costs.clock()
        self.merits(name, [section.with_values(section.first_values)])
        costs.took(name, section, 1, costs.clock() - begun)

    def merits(self, name: str, sections: list[GranularityConfig]) -> list[float]:
        """The validation metric of a granularity with each of these settings; NaN without queries
        that count.
        """
        fits = self._fits(granularity_class(name, sections[0]), sections)
        return [self._merit(module, state) for module, state in fits]

    def _fits(
        self, cls: type[Granularity], sections: list[GranularityConfig]
    ) -> Iterator[tuple[Granularity, State]]:
        with torch.no_grad():
            yield from cls.fits(sections, self.sizes, self.items, self.graphs)

    def _merit(self, module: Granularity, state: State) -> float:
        length = max(self.config.model.max_history, self.config.model.fitted_history)
        alone = Alone(module, state, self.items, self.graphs.degree_N, length)
        values_B = self.validate(alone, self.queries)
        return float(values_B.mean()) if len(values_B) else math.nan


class _Search:
    """The choice of the values of one granularity, a key at a time."""

    def __init__(self, bench: _Bench, name: str, section: GranularityConfig, costs: _Costs) -> None:
        self.bench, self.name, self.section, self.costs = bench, name, section, costs
        self.keys = section.open_on(bench.sizes)
        self.values = section.first_values
        self.tried: dict[str, dict[str, float]] = {}
        self.unchosen: list[str] = []

    def choose(self, place: int) -> None:
        """Choose the value of the key at this place, if there is one and there is time."""
        if place >= len(self.keys):
            return
        key = self.keys[place]
        candidates = getattr(self.section, key)
        if not self.costs.holds(self.name, self.section, len(candidates)):
            self.unchosen.append(key)
            return
        begun = self.costs.clock()
        sections = [self.section.with_values({**self.values, key: value}) for value in candidates]
        merits = self.bench.merits(self.name, sections)
        best = max(range(len(merits)), key=lambda index: (merits[index], -index))
        if any(map(math.isnan, merits)):
            best = 0
        self.values[key] = candidates[int(self.bench.context.from_first(torch.tensor(best)))]
        self.tried[key] = {
            str(value): merit
            for value, merit in zip(candidates, merits, strict=True)
            if merit == merit
        }
        self.costs.took(self.name, self.section, len(candidates), self.costs.clock() - begun)

    def found(self) -> dict[str, Any]:
        """The chosen values and what was tried."""
        if self.unchosen:
            keys = f", {self.name}.".join(self.unchosen)
            self.bench.context.note(
                f"no time is left to choose {self.name}.{keys}: the defaults stay"
            )
        metric = self.bench.config.train.metric
        return {"chosen": self.values, "merit": metric, "candidates": self.tried}

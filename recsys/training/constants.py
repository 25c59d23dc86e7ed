"""Constants that fitted granularities choose on validation, before the first epoch.

Why: a half-life or a regularisation is a property of the data, its fit takes seconds, and each granularity is weighed
later by what it says alone. A section says which of its keys may hold several values (``candidates``); the first value
of each is where the search starts, and what stays where validation has nothing to say. One key after the other takes
the value with the best merit, the others as they are by then: sums of the keys' fits, not products.

Where time is short the cheapest come first. What a value costs is measured, and foreseen of a granularity that was not
fitted yet by its ``effort``: a key whose values would not fit keeps its first one, and a granularity that would not fit
with a single value is left out.

The merit is the validation metric of the granularity alone, as that of the baselines is, so that no member is chosen
worse than the baseline of its kind. Fitted on training events alone; no test event is seen.

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
from recsys.training.build import Start, build_graphs, build_model
from recsys.training.closed_form import sample_queries
from recsys.training.context import TrainContext

CONSTANTS: Final = "constants"
LEFT_OUT: Final = "left_out"  # among a training's choices: fitted granularities that time did not hold, with the reason
_ROWS: Final = 512  # queries scored at a time
_QUERIES: Final = 2000  # that tell values apart; some hundred rankings of them are made


@dataclass(frozen=True)
class Alone:
    """One fitted granularity as a scorer of its own; implements what rankings and metrics ask.

    A query in which it is not present is ranked by popularity, as a whole model would.
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
            scores_BN = added.add_to(torch.zeros(len(queries), len(self.popularity_N), device=present_B.device))
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
    """The values of every enabled granularity's open keys under which it is best on validation; whatever the deadline.

    Returns
    -------
    dict[str, dict[str, Any]]
        ``{name: {"chosen": {key: value}, "merit": what, "candidates": {key: {value: merit}}}}``, empty where nothing
        is open.
    """
    return choose_in_time(config, dataset, validate, replace(context, deadline=Deadline()), start)[0]


def choose_in_time(
    config: Config,
    dataset: PreparedDataset,
    validate: Callable[[Any, Queries], Array],
    context: TrainContext,
    start: Start | None = None,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """:func:`choose_values` until the deadline of the context, and the fitted granularities that it does not hold, each
    with the reason.
    """
    enabled = config.model.granularities.enabled()
    sections = {name: section for name, section in enabled.items() if section.open_keys}
    if not sections:
        return {}, {}
    model = build_model(config, dataset, Split.TRAIN, start=start).to(context.device)
    graphs = build_graphs(dataset, Split.TRAIN, model, config).to(context.device)
    text_NT = model.tower.text(None)
    items = ItemView(text_NT.new_zeros(dataset.num_items, 1), text_NT)
    queries = sample_queries(dataset, Split.VALID, _QUERIES)
    bench = _Bench(config, model.sizes, items, graphs, queries, validate, context)
    costs, found, left_out = _Costs(context), dict[str, dict[str, Any]](), dict[str, str]()
    for name, section in sorted(enabled.items(), key=lambda each: each[1].effort):  # stable
        if not section.is_fitted or not section.effort:
            continue
        if why := costs.too_much(section):
            left_out[name] = why
        elif name in sections:
            found[name] = bench.choose(name, section, costs)
        else:
            costs.promise(section)
    return {name: found[name] for name in sections if name in found}, left_out


def with_constants(config: Config, choices: Mapping[str, Any]) -> Config:
    """The configuration with the values that the choices of a training name, one a key."""
    chosen = {name: found["chosen"] for name, found in choices.get(CONSTANTS, {}).items()}
    if not chosen:
        return config
    changed = config.model_copy(deep=True)
    for name, values in chosen.items():
        section = getattr(changed.model.granularities, name)
        setattr(changed.model.granularities, name, section.with_values(values))
    return changed


def narrowed(asked: ModelConfig, trained: ModelConfig) -> ModelConfig:
    """The model section that is asked for with the values that a trained one has chosen among its candidates."""
    changed = asked.model_copy(deep=True)
    for name, section in asked.granularities.enabled().items():
        other = trained.granularities.enabled().get(name)
        if type(other) is type(section):
            both = {key: (getattr(section, key), getattr(other, key)) for key in section.open_keys}
            chosen = {key: one[0] for key, (several, one) in both.items() if len(one) == 1 and one[0] in several}
            setattr(changed.granularities, name, section.with_values(chosen))
    return changed


class _Costs:
    """What the fits of granularities take, as measured and foreseen, against the time that is left."""

    def __init__(self, context: TrainContext) -> None:
        self.context, self.clock = context, context.deadline.clock
        self._own: dict[str, float] = {}  # seconds a value, by name
        self._seconds = self._efforts = self._promised = 0.0

    def took(self, name: str, section: GranularityConfig, values: int, seconds: float) -> None:
        """So many values were fitted and ranked."""
        self._own[name] = seconds / values
        self._seconds, self._efforts = self._seconds + seconds, self._efforts + section.effort * values

    def holds(self, name: str, section: GranularityConfig, values: int) -> bool:
        """Whether the time holds a choice among so many values."""
        return not self.context.lacks(self._promised + values * self._own.get(name, self._foreseen(section)))

    def too_much(self, section: GranularityConfig) -> str:
        """Why there is no time to fit it with one value; empty where there is."""
        seconds = self._foreseen(section)
        if not self._efforts or not self.context.lacks(self._promised + seconds):
            return ""
        return f"no time is left to fit it, which would take about {duration(seconds)}"

    def promise(self, section: GranularityConfig) -> None:
        """It will be fitted later, with the values that it has."""
        self._promised += self._foreseen(section)

    def _foreseen(self, section: GranularityConfig) -> float:
        return section.effort * self._seconds / self._efforts if self._efforts else 0.0


@dataclass(frozen=True)
class _Bench:
    """What every fit is measured on."""

    config: Config
    sizes: ModelSizes
    items: ItemView
    graphs: Graphs
    queries: Queries
    validate: Callable[[Any, Queries], Array]
    context: TrainContext

    def choose(self, name: str, section: GranularityConfig, costs: _Costs) -> dict[str, Any]:
        cls = granularity_class(name, section)
        values: dict[str, Any] = {key: getattr(section, key)[0] for key in section.open_keys}
        tried: dict[str, dict[str, float]] = {}
        kept: list[str] = []
        for key in section.open_on(self.sizes):
            candidates = getattr(section, key)
            if not costs.holds(name, section, len(candidates)):
                kept.append(key)
                continue
            begun = costs.clock()
            sections = [section.with_values({**values, key: value}) for value in candidates]
            merits = [self._merit(module, state) for module, state in self._fits(cls, sections)]
            best = max(range(len(merits)), key=lambda place: (merits[place], -place)) if self._can_tell(merits) else 0
            values[key] = candidates[int(self.context.from_first(torch.tensor(best)))]
            tried[key] = {str(value): merit for value, merit in zip(candidates, merits, strict=True) if merit == merit}
            costs.took(name, section, len(candidates), costs.clock() - begun)
        if kept:
            self.context.note(f"no time is left to choose {name}.{f', {name}.'.join(kept)}: as by default")
        return {"chosen": values, "merit": self.config.train.metric, "candidates": tried}

    def _fits(self, cls: type[Granularity], sections: list[GranularityConfig]) -> Iterator[tuple[Granularity, State]]:
        with torch.no_grad():
            yield from cls.fits(sections, self.sizes, self.items, self.graphs)

    @staticmethod
    def _can_tell(merits: list[float]) -> bool:
        return not any(map(math.isnan, merits))

    def _merit(self, module: Granularity, state: State) -> float:
        length = max(self.config.model.max_history, self.config.model.fitted_history)
        alone = Alone(module, state, self.items, self.graphs.degree_N, length)
        values_B = self.validate(alone, self.queries)
        return float(values_B.mean()) if len(values_B) else math.nan

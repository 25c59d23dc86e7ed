"""Constants that fitted granularities choose on validation, before the first epoch.

Why: a half-life or a regularisation is a property of the data, its fit takes seconds, and each granularity is weighed
later by what it says alone. A section says which of its keys may hold several values (``candidates``); the first value
of each is where the search starts, and what stays where validation has nothing to say. One key after the other takes
the value with the best merit, the others as they are by then: sums of the keys' fits, not products.

The merit is the validation metric of the granularity alone, as that of the baselines is, so that no member is chosen
worse than the baseline of its kind. Fitted on training events alone; no test event is seen.

Legend: B queries, N items, P targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from recsys.config import Config, GranularityConfig, ModelConfig
from recsys.data.batches import last_position
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Queries, Split
from recsys.granularities import granularity_class
from recsys.granularities.base import Granularity, Graphs, ItemView, ModelSizes, State
from recsys.training.build import Start, build_graphs, build_model
from recsys.training.closed_form import sample_queries
from recsys.training.context import TrainContext

CONSTANTS: Final = "constants"
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
    """The values of every enabled granularity's open keys under which it is best on validation.

    Returns:
        ``{name: {"chosen": {key: value}, "merit": what, "candidates": {key: {value: merit}}}}``, empty where nothing
        is open.
    """
    sections = {name: section for name, section in config.model.granularities.enabled().items() if section.open_keys}
    if not sections:
        return {}
    model = build_model(config, dataset, Split.TRAIN, start=start).to(context.device)
    graphs = build_graphs(dataset, Split.TRAIN, model, config).to(context.device)
    text_NT = model.tower.text(None)
    items = ItemView(text_NT.new_zeros(dataset.num_items, 1), text_NT)
    queries = sample_queries(dataset, Split.VALID, _QUERIES)
    bench = _Bench(config, model.sizes, items, graphs, queries, validate, context)
    return {name: bench.choose(name, section) for name, section in sections.items()}


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

    def choose(self, name: str, section: GranularityConfig) -> dict[str, Any]:
        cls = granularity_class(name, section)
        values: dict[str, Any] = {key: getattr(section, key)[0] for key in section.open_keys}
        tried: dict[str, dict[str, float]] = {}
        for key in section.open_on(self.sizes):
            candidates = getattr(section, key)
            sections = [section.with_values({**values, key: value}) for value in candidates]
            merits = [self._merit(module, state) for module, state in self._fits(cls, sections)]
            best = max(range(len(merits)), key=lambda place: (merits[place], -place)) if self._can_tell(merits) else 0
            values[key] = candidates[int(self.context.from_first(torch.tensor(best)))]
            tried[key] = {str(value): merit for value, merit in zip(candidates, merits, strict=True) if merit == merit}
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

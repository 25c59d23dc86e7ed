"""What ``knowledge`` says of itself: facts about items, trained on or counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from recsys.config.granularity import GranularityConfig
from recsys.config.workload import FLOAT, Estimate, Workload
from recsys.errors import ConfigError

if TYPE_CHECKING:
    from recsys.granularities.base import ModelSizes


class KnowledgeConfig(GranularityConfig):
    module: ClassVar[str] = "recsys.granularities.knowledge.model:Knowledge"
    reads: ClassVar[str] = "knowledge"
    counts: ClassVar[str] = "recsys.granularities.knowledge.counts:KnowledgeCounts"

    conv: Literal["light", "rgcn"] = Field("light", description="a relation as a diagonal, or as mixed matrices")
    layers: int = Field(2, ge=1, description="hops; 2 reach the items that share an entity")
    bases: int = Field(4, ge=1, description="matrices that the relations of rgcn mix")
    refine: bool = Field(True, description="item vectors get what their facts say, too")
    min_degree: int = Field(2, ge=1, description="an entity, not an item, with fewer neighbours is left out")
    fit: Literal["training", "counts"] = Field(
        "training", description="counts: the facts of the history against those of all events; conv to init_std idle"
    )
    smoothing: float = Field(20.0, gt=0, description="events that a user is taken to have as everybody has (counts)")
    max_entities: int = Field(1024, ge=1, description="of most events, that are counted (counts)")
    heads: int = Field(1, ge=1, description="number of attention heads")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout rate in training")
    input_dropout: float = Field(0.1, ge=0, lt=1, description="of the entity vectors that the graph reads")
    init_std: float = Field(0.02, gt=0, description="standard deviation of the initial entity vectors")

    @property
    def target(self) -> str:
        return self.counts if self.by_counts else self.module

    def check(self, sizes: ModelSizes) -> None:
        if not sizes.inputs.get(self.signal, {}).get("relations"):
            raise ConfigError(
                "model.granularities.knowledge needs facts about items, and this dataset has none; disable it, give "
                "the source a table of knowledge with items.entity_id, or name columns in data.knowledge.item_columns"
            )

    def estimate(self, work: Workload) -> Estimate:
        graph = work.data.facts * 64
        if self.by_counts:
            return Estimate(layers=0.0, holds_events=True, graph=graph)
        nodes = work.data.items + work.data.entities
        step = work.queries * work.width * FLOAT * 8 + nodes * work.width * FLOAT * 2 * (self.layers + 2)
        return Estimate(parameters=work.data.entities * work.width, graph=graph, step=step)

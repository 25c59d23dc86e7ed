"""Settings of ``knowledge``: triples about items, by training or by counting."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from recsys.config.granularity import GranularityConfig
from recsys.config.workload import FLOAT, Estimate, Workload
from recsys.errors import ConfigError

if TYPE_CHECKING:
    from recsys.granularities.base import ModelSizes


class KnowledgeConfig(GranularityConfig):
    """Triples of the items in the history: a graph network, or counts (``fit: counts``)."""

    module: ClassVar[str] = "recsys.granularities.knowledge.model:Knowledge"
    reads: ClassVar[str] = "knowledge"
    counts: ClassVar[str] = "recsys.granularities.knowledge.counts:KnowledgeCounts"

    conv: Literal["light", "rgcn"] = Field(
        "light",
        description=(
            "light: each relation scales the dimensions; rgcn: each relation is a sum of shared"
            " matrices"
        ),
    )
    layers: int = Field(
        2, ge=1, description="number of hops; 2 reach the items that share an entity"
    )
    bases: int = Field(4, ge=1, description="number of shared matrices of rgcn")
    refine: bool = Field(True, description="add the triples to the item vectors too")
    min_degree: int = Field(
        2, ge=1, description="leave out entities (not items) with fewer neighbours"
    )
    fit: Literal["training", "counts"] = Field(
        "training",
        description=(
            "counts: triples of the history compared with those of all events; keys conv to "
            "init_std have no effect"
        ),
    )
    smoothing: float = Field(
        20.0,
        gt=0,
        description=(
            "prior strength in events: larger values pull a user towards the average (counts)"
        ),
    )
    max_entities: int = Field(
        1024, ge=1, description="number of entities counted, those with most events (counts)"
    )
    heads: int = Field(1, ge=1, description="number of attention heads")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout rate in training")
    input_dropout: float = Field(
        0.1, ge=0, lt=1, description="dropout of the entity vectors that the graph reads"
    )
    init_std: float = Field(
        0.02, gt=0, description="standard deviation of the initial entity vectors"
    )

    @property
    def target(self) -> str:
        """Class of the trained or the counted form."""
        return self.counts if self.by_counts else self.module

    def check(self, sizes: ModelSizes) -> None:
        """Check that the dataset has triples.

        Raises
        ------
        ConfigError
            It has none.
        """
        if not sizes.inputs.get(self.signal, {}).get("relations"):
            raise ConfigError(
                "model.granularities.knowledge needs triples about items, but this dataset has"
                " none; disable it, give the source a table of knowledge with items.entity_id,"
                " or name columns in data.knowledge.item_columns"
            )

    def estimate(self, work: Workload) -> Estimate:
        """Memory of the graph, or of the counts."""
        graph = work.data.triples * 64
        if self.by_counts:
            shares = work.data.items * min(self.max_entities, 2 * work.data.entities) * FLOAT
            return Estimate(layers=0.0, graph=graph, fitting=shares * 2)
        nodes = work.data.items + work.data.entities
        step = work.queries * work.width * FLOAT * 8 + nodes * work.width * FLOAT * 2 * (
            self.layers + 2
        )
        return Estimate(parameters=work.data.entities * work.width, graph=graph, step=step)

    def reads_all_items(self, num_events: int) -> bool:
        """True if it is trained: the graph has all items."""
        return not self.by_counts

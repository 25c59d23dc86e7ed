"""Settings of ``collaborative``: the user–item graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from recsys.config.granularity import GranularityConfig
from recsys.config.workload import FLOAT, Estimate, Workload, indexed
from recsys.errors import ConfigError

if TYPE_CHECKING:
    from recsys.config.root import Config
    from recsys.granularities.base import ModelSizes


class CollaborativeConfig(GranularityConfig):
    """Which users chose the same items: a graph network over users and items (LightGCN)."""

    module: ClassVar[str] = "recsys.granularities.collaborative.model:Collaborative"

    layers: int = Field(3, ge=1, description="number of graph convolution layers")
    user_embedding: bool = Field(
        False, description="one embedding per training user; for unordered data only"
    )
    max_edges: int = Field(
        4_000_000,
        ge=0,
        description=(
            "largest graph in memory; beyond it a step samples neighbours (not with user_embedding)"
        ),
    )
    fanout: int = Field(8, ge=1, description="neighbours of a node that a step samples")

    def is_sampled(self, num_events: int) -> bool:
        """Whether a step samples the graph of so many events, which is then never fully in
        memory.
        """
        return not self.user_embedding and num_events > self.max_edges

    def reads_all_items(self, num_events: int) -> bool:
        """True unless a step samples the graph."""
        return not self.is_sampled(num_events)

    def contradictions(self, config: Config, where: str) -> Iterator[str]:
        """User embeddings need unordered data."""
        if self.user_embedding and config.data.order in ("time", "file"):
            yield (
                f"{where}.user_embedding needs unordered data, but data.order is"
                f" {config.data.order}; set it to false"
            )

    def check(self, sizes: ModelSizes) -> None:
        """Check that user embeddings are used only with unordered data.

        Raises
        ------
        ConfigError
            The data is ordered; every position would contain later events.
        """
        if self.user_embedding and sizes.ordered:
            raise ConfigError(
                "model.granularities.collaborative.user_embedding on ordered data would leak later"
                " events into every position of a history; set it to false, or set data.order to"
                " none"
            )

    def estimate(self, work: Workload) -> Estimate:
        """Memory of the graph with its layers, or of a step's sample."""
        data, reads_table = work.data, not self.is_sampled(work.data.events)
        nodes = data.items + data.users * reads_table  # a sample has few users
        graph = (
            nodes * work.width * FLOAT * 2 * (self.layers + 2) + indexed(data.events) * reads_table
        )
        return Estimate(
            parameters=data.users * work.width * self.user_embedding,
            reads_events=reads_table,
            step=work.queries * work.width * FLOAT * 8 + graph,
            flops=12 * data.events * work.width * self.layers,
        )

"""Settings of ``item_knn``: items that co-occur with those of the history."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from recsys.config.granularity import GranularityConfig, HalfLives, Several, Types
from recsys.config.workload import FLOAT, Estimate, Workload, histories

MOST_LINKS = 2**23  # links in the model: 64 MB


class ItemKnnConfig(GranularityConfig):
    """Items that occur together with the items of the history."""

    module: ClassVar[str] = "recsys.granularities.item_knn.model:ItemKnn"
    always_closed_form: ClassVar[bool] = True
    candidates: ClassVar[tuple[str, ...]] = (
        "shrinkage",
        "neighbours",
        "types",
        "itself",
        "recency",
        "half_life",
    )
    smaller: ClassVar[str] = "neighbours"

    neighbours: Annotated[list[Annotated[int, Field(ge=1)]], Several, Field(min_length=1)] = Field(
        [100, 20, 500],
        description=f"number of most similar items per item; at most {MOST_LINKS:,} links in total",
    )
    shrinkage: Annotated[list[Annotated[float, Field(ge=0)]], Several, Field(min_length=1)] = Field(
        [20.0, 0.0, 5.0, 100.0],
        description="reduces the similarity of items with few common users; one or several",
    )
    types: Types = Field(
        ["all", "targets"],
        description="events that count: all, or only those of predicted types; one or both",
    )
    itself: Annotated[list[bool], Several, Field(min_length=1)] = Field(
        [False, True],
        description="whether an item raises its own score, which matters if repeats are predicted",
    )
    recency: Annotated[list[Annotated[float, Field(ge=0)]], Several, Field(min_length=1)] = Field(
        [0.0, 0.5, 1.0, 2.0],
        description="p: an event with n later events has weight (n + 1)^-p; ordered data only",
    )
    half_life: HalfLives = Field(
        ["none", 7.0, 30.0, 90.0, 365.0],
        description="half-life of an event's weight in days; data with times only",
    )

    def num_neighbours(self, items: int) -> int:
        """Number of neighbours kept per item."""
        return max(1, min(self.neighbours[0], MOST_LINKS // max(items, 1)))

    def estimate(self, work: Workload) -> Estimate:
        """Memory of co-occurring pairs and of the neighbours."""
        data = work.data
        pairs = min(
            data.items**2, data.events * max(data.events / max(data.users, 1), 1.0) * 4, 2**26
        )
        fitting = pairs * 8 * 2 + self.num_neighbours(data.items) * data.items * FLOAT * 4
        fitting += histories(self.types, work)
        return Estimate(layers=0.0, reads_events=True, fitting=fitting)

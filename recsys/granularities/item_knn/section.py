"""What ``item_knn`` says of itself: items that occur together with those of the history."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from recsys.config.granularity import GranularityConfig, HalfLives, Several
from recsys.config.workload import FLOAT, Estimate, Workload


class ItemKnnConfig(GranularityConfig):
    module: ClassVar[str] = "recsys.granularities.item_knn.model:ItemKnn"
    always_fitted: ClassVar[bool] = True
    candidates: ClassVar[tuple[str, ...]] = ("shrinkage", "recency", "half_life")
    smaller: ClassVar[str] = "neighbours"

    neighbours: int = Field(100, ge=1, description="most similar items that an item speaks for")
    shrinkage: Annotated[list[Annotated[float, Field(ge=0)]], Several, Field(min_length=1)] = Field(
        [20.0, 5.0, 100.0], description="makes items of few common users less similar; one or several"
    )
    recency: Annotated[list[Annotated[float, Field(ge=0)]], Several, Field(min_length=1)] = Field(
        [0.0, 0.5, 1.0, 2.0],
        description="p: an event with n behind it weighs (n + 1)^-p; data in order",
    )
    half_life: HalfLives = Field(
        ["none", 7.0, 30.0, 90.0, 365.0], description="days after which an event weighs half; data with times"
    )

    def estimate(self, work: Workload) -> Estimate:
        """Pairs of items, and the neighbours."""
        data = work.data
        pairs = min(data.items**2, data.events * max(data.events / max(data.users, 1), 1.0) * 4, 2**26)
        fitting = pairs * 8 * 2 + data.items * self.neighbours * FLOAT * 4
        return Estimate(layers=0.0, holds_events=True, fitting=fitting)

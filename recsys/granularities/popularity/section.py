"""What ``popularity`` says of itself: what many chose lately, at the moment of asking."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from recsys.config.granularity import GranularityConfig, HalfLives, Several
from recsys.config.workload import FLOAT, Estimate, Workload


class PopularityConfig(GranularityConfig):
    module: ClassVar[str] = "recsys.granularities.popularity.model:Popularity"
    always_fitted: ClassVar[bool] = True
    candidates: ClassVar[tuple[str, ...]] = ("half_life", "counts")
    smaller: ClassVar[str] = "moments"

    half_life: HalfLives = Field(
        ["none", 1.0, 3.0, 7.0, 30.0, 90.0, 365.0], description="days after which an event counts half, one or several"
    )
    counts: Annotated[list[Literal["users", "events"]], Several, Field(min_length=1)] = Field(
        ["users", "events"], description="a user counts once an item, or once a day; one or both"
    )
    moments: int = Field(64, ge=1, description="times at which counts are kept, for questions in the past")

    def estimate(self, work: Workload) -> Estimate:
        """The table of the moments, and the events in order."""
        fitting = work.data.items * self.moments * FLOAT * 2 + work.data.events * 60
        return Estimate(layers=0.0, fitting=fitting)

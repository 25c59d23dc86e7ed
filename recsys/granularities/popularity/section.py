"""What ``popularity`` says of itself: what many chose lately, at the moment of asking."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from recsys.config.granularity import GranularityConfig, HalfLives, Several, Types
from recsys.config.workload import FLOAT, Estimate, Workload

MOST_NUMBERS = 2**23  # of the table of moments: 32 MB


class PopularityConfig(GranularityConfig):
    module: ClassVar[str] = "recsys.granularities.popularity.model:Popularity"
    always_fitted: ClassVar[bool] = True
    effort: ClassVar[float] = 0.5
    candidates: ClassVar[tuple[str, ...]] = ("half_life", "types", "counts", "rest", "as_of")
    smaller: ClassVar[str] = "moments"

    half_life: HalfLives = Field(
        ["none", 1.0, 3.0, 7.0, 30.0, 90.0, 365.0], description="days after which an event counts half, one or several"
    )
    counts: Annotated[list[Literal["users", "events", "all"]], Several, Field(min_length=1)] = Field(
        ["users", "events", "all"],
        description="what counts of a user and an item: users: the first event; events: one a day; all; one or several",
    )
    types: Types = Field(["all", "targets"], description="events that count: all, or of predicted types; one or both")
    rest: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Several, Field(min_length=1)] = Field(
        [0.1, 0.001], description="ρ, the share of the counts of all times beside the recent ones; one or several"
    )
    as_of: Annotated[list[Literal["question", "last"]], Several, Field(min_length=1)] = Field(
        ["question", "last"],
        description="question: counts from before the question; last: those of all events, as a served model has them, "
        "which in leave-last are partly from after the question, as all else that a model knows",
    )
    moments: int = Field(256, ge=1, description="times at which counts are kept, for questions in the past")

    def open_on(self, sizes: Any) -> list[str]:
        """Without times there is one moment."""
        return [key for key in super().open_on(sizes) if sizes.timed or key not in ("counts", "rest", "as_of")]

    def estimate(self, work: Workload) -> Estimate:
        """The table of the moments, and the events in order."""
        table = min(work.data.items * self.moments, MOST_NUMBERS)
        fitting = table * FLOAT * 2 + work.data.events * 60
        return Estimate(layers=0.0, fitting=fitting)

"""Settings of ``popularity``: what many users chose lately, at the time of the request."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from recsys.config.granularity import GranularityConfig, HalfLives, Several, Types
from recsys.config.workload import FLOAT, HISTORY, Estimate, Workload

MOST_NUMBERS = 2**23  # size limit of the table of counts: 32 MB


class PopularityConfig(GranularityConfig):
    """What many users chose recently, with a half-life."""

    module: ClassVar[str] = "recsys.granularities.popularity.model:Popularity"
    always_closed_form: ClassVar[bool] = True
    effort: ClassVar[float] = 0.5
    candidates: ClassVar[tuple[str, ...]] = ("half_life", "types", "counts", "rest", "as_of")
    smaller: ClassVar[str] = "moments"

    half_life: HalfLives = Field(
        ["none", 1.0, 3.0, 7.0, 30.0, 90.0, 365.0],
        description="half-life of an event's weight in days; one or several",
    )
    counts: Annotated[list[Literal["users", "events", "all"]], Several, Field(min_length=1)] = (
        Field(
            ["users", "events", "all"],
            description=(
                "what counts per user and item: users: the first event; events: one per day; all;"
                " one or several"
            ),
        )
    )
    types: Types = Field(
        ["all", "targets"],
        description="events that count: all, or only those of predicted types; one or both",
    )
    rest: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Several, Field(min_length=1)] = (
        Field(
            [0.1, 0.001],
            description="ρ, the share of all-time counts next to recent ones; one or several",
        )
    )
    as_of: Annotated[list[Literal["question", "last"]], Several, Field(min_length=1)] = Field(
        ["question", "last"],
        description=(
            "question: counts of events before the query; last: counts of all events, as in a"
            " served model; on a leave-last split some of these are later than the query"
        ),
    )
    moments: int = Field(
        256,
        ge=1,
        description="number of times at which counts are stored, for requests in the past",
    )

    def open_on(self, sizes: Any) -> list[str]:
        """Keys that validation chooses; without times there is one stored time."""
        return [
            key
            for key in super().open_on(sizes)
            if sizes.timed or key not in ("counts", "rest", "as_of")
        ]

    def estimate(self, work: Workload) -> Estimate:
        """Memory of the table of counts, and of the events in order."""
        table = min(work.data.items * self.moments, MOST_NUMBERS)
        fitting = table * FLOAT * 2 + work.fit_events * HISTORY
        return Estimate(layers=0.0, fitting=fitting)

"""Settings of ``als``: implicit alternating least squares."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from recsys.config.granularity import GranularityConfig, Several, Types
from recsys.config.workload import FLOAT, Estimate, Workload, histories

Positive = Annotated[list[Annotated[float, Field(gt=0)]], Several, Field(min_length=1)]


class AlsConfig(GranularityConfig):
    """Implicit ALS; the vector of a user is solved exactly from the history."""

    module: ClassVar[str] = "recsys.granularities.als.model:Als"
    always_closed_form: ClassVar[bool] = True
    effort: ClassVar[float] = 5.0
    candidates: ClassVar[tuple[str, ...]] = ("alpha", "regularisation", "types")
    smaller: ClassVar[str] = "factors"

    factors: int = Field(64, ge=1, description="length of the factor vectors")
    iterations: int = Field(15, ge=1, description="alternations between users and items")
    alpha: Positive = Field(
        [1.0, 10.0], description="confidence of an event (1 for a missing pair); one or several"
    )
    regularisation: Positive = Field([1.0, 10.0], description="λ, one or several")
    types: Types = Field(
        ["all", "targets"], description="events that count: all, or of predicted types; one or both"
    )

    def estimate(self, work: Workload) -> Estimate:
        """Factors of users and items, a block of events, and the events that tell the types."""
        factors = (work.data.users + work.data.items) * self.factors * FLOAT * 3
        fitting = factors + min(work.data.events, 2**24) * 24 + histories(self.types, work)
        return Estimate(layers=0.0, reads_events=True, fitting=fitting)

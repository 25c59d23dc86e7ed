"""Settings of ``stratum``: user clusters."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from recsys.config.granularity import GranularityConfig, Several
from recsys.config.workload import FLOAT, Estimate, Workload

STRATUM: Final = "stratum"  # the signal: the number of strata, chosen on validation


class StratumConfig(GranularityConfig):
    """The cluster of users with similar histories that the user belongs to."""

    module: ClassVar[str] = "recsys.granularities.stratum.model:Stratum"
    reads: ClassVar[str] = STRATUM

    method: Literal["kmeans", "hierarchical"] = Field(
        "kmeans", description="algorithm that finds the user clusters"
    )
    num_strata: Annotated[list[Annotated[int, Field(ge=1)]], Several] = Field(
        [4, 8, 16, 32],
        min_length=1,
        description="number of user clusters; if several, validation chooses one before training",
    )
    input: Literal["text", "item"] = Field(
        "text", description="compare users by text or by item vectors"
    )
    temperature: float = Field(
        0.2,
        gt=0,
        description="softness of the membership, relative to the mean gap between user clusters",
    )
    refit_every: int = Field(
        1,
        ge=0,
        description=(
            "epochs between fits; 0: at the start only (for input item; text vectors do not change)"
        ),
    )

    def estimate(self, work: Workload) -> Estimate:
        """Memory of users, strata and items."""
        return Estimate(reads_events=True, step=work.queries * work.width * FLOAT * 8)

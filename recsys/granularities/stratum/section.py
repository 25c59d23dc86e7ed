"""What ``stratum`` says of itself: the group of like users."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BeforeValidator, Field

from recsys.config.granularity import GranularityConfig
from recsys.config.workload import FLOAT, Estimate, Workload

STRATUM: Final = "stratum"  # the signal: how many strata validation chose


def _as_list(value: Any) -> Any:
    """One number where several may stand."""
    return [value] if isinstance(value, int) else value


class StratumConfig(GranularityConfig):
    module: ClassVar[str] = "recsys.granularities.stratum.model:Stratum"
    reads: ClassVar[str] = STRATUM

    method: Literal["kmeans", "hierarchical"] = Field("kmeans", description="algorithm that finds user clusters")
    num_strata: Annotated[list[Annotated[int, Field(ge=1)]], BeforeValidator(_as_list)] = Field(
        [4, 8, 16, 32], min_length=1, description="one number, or several of which validation chooses before training"
    )
    input: Literal["text", "item"] = Field("text", description="what users are compared by: text or item vectors")
    temperature: float = Field(0.2, gt=0, description="how soft the membership is; 1: as the strata lie apart")
    refit_every: int = Field(
        1, ge=0, description="epochs between fits, 0: at the start only (item vectors; texts do not move in training)"
    )

    def estimate(self, work: Workload) -> Estimate:
        return Estimate(holds_events=True, step=work.queries * work.width * FLOAT * 8)

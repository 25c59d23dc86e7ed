"""What ``social`` says of itself: the taste of friends."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from recsys.config.granularity import GranularityConfig
from recsys.config.workload import FLOAT, Estimate, Workload


class SocialConfig(GranularityConfig):
    module: ClassVar[str] = "recsys.granularities.social.model:Social"
    reads: ClassVar[str] = "friends"

    conv: Literal["light", "sage", "gat"] = Field("sage", description="light and gat use the friends' weights")
    layers: int = Field(1, ge=1)
    heads: int = Field(2, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)

    def estimate(self, work: Workload) -> Estimate:
        step = work.queries * work.width * FLOAT * 8
        return Estimate(holds_events=True, graph=work.data.friends * 64, step=step)

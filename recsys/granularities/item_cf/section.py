"""What ``item_cf`` says of itself: a closed-form item–item model."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from recsys.config.granularity import GranularityConfig
from recsys.config.workload import Estimate, Workload


class ItemCFConfig(GranularityConfig):
    module: ClassVar[str] = "recsys.granularities.item_cf.model:ItemCF"
    always_fitted: ClassVar[bool] = True
    smaller: ClassVar[str] = "rank"

    rank: int = Field(256, ge=1, description="of the item–item model; exact when not below the users plus text width")
    regularisation: float = Field(100.0, gt=0)
    text_weight: float = Field(0.0, ge=0, description="of the items' text beside the events; 0: events alone")
    event_weights: Literal["none", "rank"] = Field("none", description="rank: by the rank of value within the user")

    def estimate(self, work: Workload) -> Estimate:
        """The singular vectors, with the copies that QR makes."""
        data = work.data
        rank = min(self.rank + 32, data.items, data.users + data.text_width)
        fitting = (data.items + data.users + data.text_width) * rank * 8 * 4
        return Estimate(layers=0.0, holds_events=True, fitting=fitting)

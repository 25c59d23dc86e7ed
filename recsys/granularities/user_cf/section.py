"""What ``user_cf`` says of itself: what users of the nearest taste chose."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from recsys.config.granularity import GranularityConfig
from recsys.config.workload import Estimate, Workload


class UserCFConfig(GranularityConfig):
    module: ClassVar[str] = "recsys.granularities.user_cf.model:UserCF"
    always_fitted: ClassVar[bool] = True
    effort: ClassVar[float] = 4.0
    smaller: ClassVar[str] = "rank or max_users"

    neighbours: int = Field(100, ge=1, description="nearest training users that a user is made of")
    power: float = Field(2.0, ge=0, description="a neighbour weighs cosine^power; 0: all alike")
    rank: int = Field(256, ge=1, description="of the space that tastes are compared in; exact when not below the users")
    popularity_power: float = Field(0.25, ge=0, le=1, description="β: an item counts users^-β in a taste")
    popularity_damping: float = Field(0.15, ge=0, description="γ: an item's score is divided by users^γ")
    max_users: int = Field(20_000, ge=1, description="training users kept as neighbours, an even sample beyond")

    def estimate(self, work: Workload) -> Estimate:
        """The singular vectors, with the copies that QR makes."""
        data = work.data
        rank = min(self.rank + 32, data.items, data.users + data.text_width)
        fitting = (data.items + data.users + data.text_width) * rank * 8 * 4
        return Estimate(layers=0.0, holds_events=True, fitting=fitting)

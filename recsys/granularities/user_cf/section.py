"""Settings of ``user_cf``: what the users with the most similar taste chose."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from recsys.config.granularity import GranularityConfig
from recsys.config.workload import FLOAT, Estimate, Workload, singular_vectors


class UserCFConfig(GranularityConfig):
    """What the most similar users chose."""

    module: ClassVar[str] = "recsys.granularities.user_cf.model:UserCF"
    always_closed_form: ClassVar[bool] = True
    effort: ClassVar[float] = 4.0
    smaller: ClassVar[str] = "rank or max_users"

    neighbours: int = Field(
        100, ge=1, description="number of nearest training users that represent a user"
    )
    power: float = Field(
        2.0, ge=0, description="a neighbour has weight cosine^power; 0: equal weights"
    )
    rank: int = Field(
        256, ge=1, description="rank of the taste space; exact if at least the number of users"
    )
    popularity_power: float = Field(
        0.25, ge=0, le=1, description="β: an item has weight (its users)^-β in a taste"
    )
    popularity_damping: float = Field(
        0.15, ge=0, description="γ: an item's score is divided by (its users)^γ"
    )
    max_users: int = Field(
        20_000,
        ge=1,
        description="number of training users kept as neighbours; beyond it an even sample",
    )

    def estimate(self, work: Workload) -> Estimate:
        """Memory of the singular vectors with QR's copies."""
        data = work.data
        rank = min(self.rank + 32, data.items, data.users + data.text_width)
        tastes = min(data.users, self.max_users) * self.rank * FLOAT * 3
        fitting = singular_vectors(data, rank) + tastes
        return Estimate(layers=0.0, reads_events=True, fitting=fitting)

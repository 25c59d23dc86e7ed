"""Settings of ``social_cf``: a regression of a user's items on those of the friends."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from recsys.config.granularity import GranularityConfig, Several
from recsys.config.workload import FLOAT, Estimate, Workload, singular_vectors


class SocialCFConfig(GranularityConfig):
    """A ridge regression from what friends chose to what the user chose."""

    module: ClassVar[str] = "recsys.granularities.social_cf.model:SocialCF"
    reads: ClassVar[str] = "friends"
    always_closed_form: ClassVar[bool] = True
    effort: ClassVar[float] = 2.0
    candidates: ClassVar[tuple[str, ...]] = ("regularisation",)
    smaller: ClassVar[str] = "rank"

    rank: int = Field(64, ge=1, description="rank of the taste space in which friends are summed")
    regularisation: Annotated[list[Annotated[float, Field(gt=0)]], Several, Field(min_length=1)] = (
        Field(
            [16.0, 4.0],
            description="λ in units of the mean squared length of a user's sum; one or several",
        )
    )
    max_friends: int = Field(
        200, ge=1, description="number of friends read per user, those with the largest weights"
    )

    def estimate(self, work: Workload) -> Estimate:
        """Memory of the singular vectors with QR's copies, the tastes of all users, and the
        friendships.
        """
        data = work.data
        rank = min(self.rank + 32, data.items, data.users)
        fitting = singular_vectors(data, rank) + data.users * self.rank * FLOAT
        return Estimate(layers=0.0, reads_events=True, graph=data.friends * 64, fitting=fitting)

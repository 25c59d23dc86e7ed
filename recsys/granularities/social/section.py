"""Settings of ``social``: the taste of friends."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from recsys.config.granularity import GranularityConfig, HalfLives, Several
from recsys.config.workload import FLOAT, HISTORY, Estimate, Workload, indexed


class SocialConfig(GranularityConfig):
    """What friends chose: a graph network over friendships, or counts (``fit: counts``)."""

    module: ClassVar[str] = "recsys.granularities.social.model:Social"
    counts: ClassVar[str] = "recsys.granularities.social.counts:SocialCounts"
    reads: ClassVar[str] = "friends"

    fit: Literal["training", "counts"] = Field(
        "training",
        description="counts: sum of what friends had; keys conv to dropout have no effect",
    )
    conv: Literal["light", "sage", "gat"] = Field(
        "sage", description="light and gat use edge weights"
    )
    layers: int = Field(
        1, ge=1, description="number of layers; n layers reach friends n steps away"
    )
    heads: int = Field(2, ge=1, description="number of attention heads")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout rate in training")
    half_life: HalfLives = Field(
        ["none", 30.0, 365.0],
        description="half-life of a friend's event in days; data with times only (counts)",
    )
    popularity_damping: Annotated[
        list[Annotated[float, Field(ge=0)]], Several, Field(min_length=1)
    ] = Field(
        [0.0, 0.25, 0.5],
        description="γ: an event has weight (users of its item)^-γ; one or several (counts)",
    )
    max_friends: int = Field(
        200,
        ge=1,
        description="number of friends read per user, those with the largest weights (counts)",
    )
    max_events: int = Field(
        500, ge=1, description="number of latest events read per friend (counts)"
    )

    candidates: ClassVar[tuple[str, ...]] = ("popularity_damping", "half_life")

    @property
    def target(self) -> str:
        """Class of the trained or the counted form."""
        return self.counts if self.by_counts else self.module

    @property
    def open_keys(self) -> list[str]:
        """Keys that validation chooses, for fit counts."""
        return super().open_keys if self.by_counts else []

    def estimate(self, work: Workload) -> Estimate:
        """Memory of the friendships, and of users or events."""
        if self.by_counts:
            return Estimate(
                layers=0.0,
                graph=work.data.friends * 64,
                # sorted twice: by pair and time, and by user and time
                fitting=work.fit_events * HISTORY * 2,
            )
        # of every layer the vectors of all users with their gradients; attention has one for each
        # friendship too, the others an index of the friendships
        numbers = work.data.users * 2 * (self.layers + 2)
        if self.conv == "gat":
            numbers += work.data.friends * self.layers
        return Estimate(
            reads_events=True,
            graph=work.data.friends * 96 + indexed(work.data.events) + numbers * work.width * FLOAT,
            step=work.queries * work.width * FLOAT * 8,
        )

    def reads_all_items(self, num_events: int) -> bool:
        """True if it is trained: a friend is a mean over events."""
        return not self.by_counts

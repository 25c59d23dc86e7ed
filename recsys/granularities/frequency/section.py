"""Settings of ``frequency``: the items that a user had most often, weighted by recency."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from recsys.config.granularity import (
    GranularityConfig,
    HalfLives,
    Types,
    exclude_seen_contradiction,
)
from recsys.config.workload import Estimate, Workload

if TYPE_CHECKING:
    from recsys.config.root import Config


class FrequencyConfig(GranularityConfig):
    """What the user chose most often recently; nothing is learned."""

    module: ClassVar[str] = "recsys.granularities.frequency.model:Frequency"
    always_closed_form: ClassVar[bool] = True
    effort: ClassVar[float] = 0.3
    candidates: ClassVar[tuple[str, ...]] = ("half_life", "types")

    half_life: HalfLives = Field(
        ["none", 7.0, 30.0, 90.0, 365.0],
        description=(
            "half-life of an event's weight: in days, or in events for data without times; one or"
            " several"
        ),
    )
    types: Types = Field(
        ["all", "targets"],
        description="events that count: all, or only those of predicted types; one or both",
    )

    def open_on(self, sizes: Any) -> list[str]:
        """All half-lives are tried on any data: without times they are in events."""
        return [key for key in self.open_keys if key != "types" or sizes.num_types > 1]

    def contradictions(self, config: Config, where: str) -> Iterator[str]:
        """Lists must be allowed to contain items of the history."""
        yield from exclude_seen_contradiction(config.evaluate, where)

    def estimate(self, work: Workload) -> Estimate:
        """Memory of the mask of target types only."""
        return Estimate(layers=0.0)

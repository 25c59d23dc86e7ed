"""What ``repeat`` says of itself: what a user had before and is about to have again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from recsys.config.granularity import GranularityConfig, lifts_seen
from recsys.config.workload import Estimate, Workload

if TYPE_CHECKING:
    from recsys.config.root import Config

_FEATURES = 40  # of a pair, rounded up


class RepeatConfig(GranularityConfig):
    module: ClassVar[str] = "recsys.granularities.repeat.model:Repeat"
    always_fitted: ClassVar[bool] = True
    effort: ClassVar[float] = 6.0
    smaller: ClassVar[str] = "max_pairs"

    smoothing: float = Field(20.0, gt=0, description="occasions on which an item is taken to be repeated as all are")
    max_pairs: int = Field(300_000, ge=1000, description="of a moment and an item had before, drawn to learn from")

    def contradictions(self, config: Config, where: str) -> Iterator[str]:
        yield from lifts_seen(config, where)

    def estimate(self, work: Workload) -> Estimate:
        """The pairs with their features, and the events in order instead of the table."""
        pairs = self.max_pairs * _FEATURES * 8 * 3
        return Estimate(layers=0.0, fitting=pairs + work.data.events * 60)

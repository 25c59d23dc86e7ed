"""Settings of ``repeat``: items of the history that a user will have again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from recsys.config.granularity import GranularityConfig, exclude_seen_contradiction
from recsys.config.workload import HISTORY, Estimate, Workload

if TYPE_CHECKING:
    from recsys.config.root import Config

_FEATURES = 40  # features of a pair, rounded up


class RepeatConfig(GranularityConfig):
    """What the user chose before and is likely to choose again now; learned per item."""

    module: ClassVar[str] = "recsys.granularities.repeat.model:Repeat"
    always_closed_form: ClassVar[bool] = True
    effort: ClassVar[float] = 6.0
    smaller: ClassVar[str] = "max_pairs"

    smoothing: float = Field(
        20.0,
        gt=0,
        description="prior strength in occasions: pulls an item towards the average repeat rate",
    )
    max_pairs: int = Field(
        300_000,
        ge=1000,
        description="number of sampled pairs of a time and an earlier item to learn from",
    )

    def contradictions(self, config: Config, where: str) -> Iterator[str]:
        """Lists must be allowed to contain items of the history."""
        yield from exclude_seen_contradiction(config.evaluate, where)

    def estimate(self, work: Workload) -> Estimate:
        """Memory of the pairs with their features, and of the events in order instead of the
        table.
        """
        pairs = self.max_pairs * _FEATURES * 8 * 3
        return Estimate(layers=0.0, fitting=pairs + work.fit_events * HISTORY)

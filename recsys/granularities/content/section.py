"""Settings of ``content``: similarity between item texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from recsys.config.granularity import GranularityConfig, HalfLives, Several
from recsys.config.workload import FLOAT, Estimate, Workload
from recsys.errors import ConfigError

if TYPE_CHECKING:
    from recsys.granularities.base import ModelSizes


class ContentConfig(GranularityConfig):
    """How similar the text of an item is to the history; nothing is trained."""

    module: ClassVar[str] = "recsys.granularities.content.model:Content"
    always_closed_form: ClassVar[bool] = True
    candidates: ClassVar[tuple[str, ...]] = ("recency", "half_life")

    recency: Annotated[list[Annotated[float, Field(ge=0)]], Several, Field(min_length=1)] = Field(
        [0.5, 0.0, 1.0, 2.0],
        description="p: an event with n later events has weight (n + 1)^-p; ordered data only",
    )
    half_life: HalfLives = Field(
        ["none", 3.0, 30.0, 365.0],
        description="half-life of an event's weight in days; data with times only",
    )

    def check(self, sizes: ModelSizes) -> None:
        """Check that the dataset has item texts.

        Raises
        ------
        ConfigError
            It has none.
        """
        if not sizes.text_width:
            raise ConfigError(
                "model.granularities.content compares item texts, but this dataset has none;"
                " disable it, or name text columns of items in data.text.fields and prepare again"
            )

    def estimate(self, work: Workload) -> Estimate:
        """Memory of another copy of the text vectors."""
        return Estimate(layers=0.0, fitting=work.data.items * work.data.text_width * FLOAT * 2)

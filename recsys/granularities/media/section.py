"""Settings of ``media``: images, audio and video of items."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from recsys.config.granularity import GranularityConfig
from recsys.errors import ConfigError

if TYPE_CHECKING:
    from recsys.config.root import Config
    from recsys.granularities.base import ModelSizes


class MediaConfig(GranularityConfig):
    """What the items of the history look or sound like."""

    module: ClassVar[str] = "recsys.granularities.media.model:Media"
    reads: ClassVar[str] = "media"
    per_user: ClassVar[bool] = True

    weight: float = Field(
        0.2,
        ge=0,
        le=1,
        description=(
            "λ: fixed (weighted) or its initial value (learned, gated); larger values cost quality"
            " if media are not predictive"
        ),
    )
    refine: bool = Field(True, description="add the media to the item vectors too")
    whiten: int = Field(
        256,
        ge=0,
        description="number of principal directions of a medium that are whitened; 0: centre only",
    )
    heads: int = Field(1, ge=1, description="number of attention heads")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout rate in training")

    def contradictions(self, config: Config, where: str) -> Iterator[str]:
        """Media must be configured in ``data.media``."""
        data = config.data
        if not (data.media.columns or data.media.images.column or data.source.kind == "synthetic"):
            yield (
                f"{where} needs data.media.columns or data.media.images; name columns of items"
                " there, or disable it"
            )

    def check(self, sizes: ModelSizes) -> None:
        """Check that the dataset has media.

        Raises
        ------
        ConfigError
            It has none.
        """
        if not sizes.inputs.get(self.signal):
            raise ConfigError(
                "model.granularities.media needs media vectors of items, but this dataset has none;"
                " disable it, or name columns of items in data.media.columns or data.media.images"
                " and prepare again"
            )

    def reads_all_items(self, num_events: int) -> bool:
        """True: the media of all items are projected."""
        return True

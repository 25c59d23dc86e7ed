"""What ``media`` says of itself: what items look or sound like."""

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
    module: ClassVar[str] = "recsys.granularities.media.model:Media"
    reads: ClassVar[str] = "media"
    per_user: ClassVar[bool] = True

    weight: float = Field(0.2, ge=0, le=1, description="λ, as above; more costs where media tell nothing")
    refine: bool = Field(True, description="item vectors get what their media say, too")
    whiten: int = Field(
        256, ge=0, description="leading directions of a medium that are kept and whitened; 0: centre only"
    )
    heads: int = Field(1, ge=1, description="number of attention heads")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout rate in training")

    def contradictions(self, config: Config, where: str) -> Iterator[str]:
        data = config.data
        if not (data.media.columns or data.media.images.column or data.source.kind == "synthetic"):
            yield f"{where} needs data.media.columns or data.media.images; name columns of items there, or disable it"

    def check(self, sizes: ModelSizes) -> None:
        if not sizes.inputs.get(self.signal):
            raise ConfigError(
                "model.granularities.media needs vectors of what items look or sound like, and this dataset has none; "
                "disable it, or name columns of items in data.media.columns or data.media.images and prepare again"
            )

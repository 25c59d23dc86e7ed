"""What ``profile`` says of itself: attributes of users and items, trained on or counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from recsys.config.granularity import GranularityConfig
from recsys.errors import ConfigError

if TYPE_CHECKING:
    from recsys.granularities.base import ModelSizes


class ProfileConfig(GranularityConfig):
    """Attributes of users and items with learned crosses. Vocabularies and statistics are of training rows alone."""

    module: ClassVar[str] = "recsys.granularities.profile.model:Profile"
    reads: ClassVar[str] = "profile"
    counts: ClassVar[str] = "recsys.granularities.profile.counts:ProfileCounts"
    effort: ClassVar[float] = 0.6

    weight: float = Field(0.1, ge=0, le=1, description="λ, as above; more makes few users learnt by heart")
    user_fields: list[str] | None = Field(None, description="columns of users; null: every usable one")
    item_fields: list[str] | None = Field(None, description="columns of items; null: every usable one")
    numeric: list[str] = Field([], description="fields of text that are numbers, e.g. age")
    categorical: list[str] = Field([], description="fields of numbers that are categories")
    min_frequency: int = Field(2, ge=1, description="rows that must share a category; rarer ones are unknown")
    max_categories: int = Field(10_000, ge=1, description="of a field, the most frequent ones")
    max_members: int = Field(16, ge=1, description="of a list that are read")
    bins: int = Field(8, ge=0, description="quantile bins of a number, whose crosses can be learned; 0: none")
    fit: Literal["training", "counts"] = Field(
        "training", description="counts: what users of the same attributes chose; fields of items, and below, idle"
    )
    crosses: list[Annotated[list[str], Field(min_length=1)]] = Field(
        [], description="fields of users that are crossed, e.g. [[age, gender]]; empty: each alone (counts)"
    )
    smoothing: float = Field(1000.0, gt=0, description="events that a cell is taken to have as everybody has (counts)")
    field_width: int = Field(16, ge=1, description="width of a field's vector")
    layers: int = Field(2, ge=0, description="cross layers; 0: no crosses")
    rank: int = Field(0, ge=0, description="of the cross matrices; 0: full")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of fields hidden in a step, as if they were missing")
    init_std: float = Field(0.3, gt=0, description="standard deviation of the initial attribute vectors")

    @model_validator(mode="after")
    def _one_reading(self) -> ProfileConfig:
        both = sorted({*self.numeric} & {*self.categorical})
        if both:
            raise ValueError(f"{', '.join(both)}: named in numeric and in categorical; choose one")
        return self

    @model_validator(mode="after")
    def _crosses_are_counted(self) -> ProfileConfig:
        if self.crosses and not self.by_counts:
            raise ValueError(
                "crosses are of fit counts; a training learns them, see layers: set fit, or leave them out"
            )
        return self

    @property
    def target(self) -> str:
        return self.counts if self.by_counts else self.module

    def check(self, sizes: ModelSizes) -> None:
        fields = sizes.inputs.get(self.signal) or {"users": [], "items": []}
        if self.by_counts:
            if not fields["users"]:
                raise ConfigError(
                    "model.granularities.profile.fit counts needs attributes of users, and there is no usable column; "
                    "give a table of users (data.source), name columns in user_fields, or disable the granularity"
                )
        elif not (fields["users"] or fields["items"]):
            raise ConfigError(
                "model.granularities.profile needs attributes, but neither users nor items have a usable column; "
                "give a table of users or items with attributes (data.source), name columns in user_fields and "
                "item_fields, or disable the granularity"
            )

"""Settings of ``profile``: attributes of users and items, by training or by counting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from recsys.config.granularity import GranularityConfig
from recsys.errors import ConfigError

if TYPE_CHECKING:
    from recsys.granularities.base import ModelSizes


class ProfileConfig(GranularityConfig):
    """Attributes of users and items with learned crosses; vocabularies and statistics come from
    training rows only.
    """

    module: ClassVar[str] = "recsys.granularities.profile.model:Profile"
    reads: ClassVar[str] = "profile"
    counts: ClassVar[str] = "recsys.granularities.profile.counts:ProfileCounts"
    effort: ClassVar[float] = 0.6

    weight: float = Field(
        0.1,
        ge=0,
        le=1,
        description=(
            "λ: fixed (weighted) or its initial value (learned, gated); with larger values a model"
            " memorises users of small datasets"
        ),
    )
    user_fields: list[str] | None = Field(
        None, description="columns of users; null: all usable ones"
    )
    item_fields: list[str] | None = Field(
        None, description="columns of items; null: all usable ones"
    )
    numeric: list[str] = Field([], description="text fields that contain numbers, e.g. age")
    categorical: list[str] = Field([], description="number fields that are categories")
    min_frequency: int = Field(
        2, ge=1, description="smallest number of rows of a category; rarer ones are unknown"
    )
    max_categories: int = Field(
        10_000,
        ge=1,
        description="largest number of categories of a field; the most frequent ones stay",
    )
    max_members: int = Field(16, ge=1, description="number of list members that are read")
    bins: int = Field(
        8,
        ge=0,
        description="quantile bins of a number, so that its crosses can be learned; 0: none",
    )
    fit: Literal["training", "counts"] = Field(
        "training",
        description=(
            "counts: what users with the same attributes chose; item_fields and the keys from "
            "field_width have no effect"
        ),
    )
    crosses: list[Annotated[list[str], Field(min_length=1)]] = Field(
        [],
        description="user fields to cross, e.g. [[age, gender]]; empty: each field alone (counts)",
    )
    smoothing: float = Field(
        1000.0,
        gt=0,
        description="prior strength in events: pulls a cell towards the average (counts)",
    )
    field_width: int = Field(16, ge=1, description="width of a field's vector")
    layers: int = Field(2, ge=0, description="cross layers; 0: no crosses")
    rank: int = Field(0, ge=0, description="rank of the cross matrices; 0: full")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of fields set to missing in a step")
    init_std: float = Field(
        0.3, gt=0, description="standard deviation of the initial attribute vectors"
    )

    @model_validator(mode="after")
    def _one_reading(self) -> ProfileConfig:
        both = sorted({*self.numeric} & {*self.categorical})
        if both:
            raise ValueError(
                f"{', '.join(both)}: in numeric and in categorical; remove it from one"
            )
        return self

    @model_validator(mode="after")
    def _crosses_are_counted(self) -> ProfileConfig:
        if self.crosses and not self.by_counts:
            raise ValueError(
                "crosses works with fit counts only; trained models learn crosses (see layers): "
                "set fit to counts, or remove crosses"
            )
        return self

    @property
    def target(self) -> str:
        """Class of the trained or the counted form."""
        return self.counts if self.by_counts else self.module

    def check(self, sizes: ModelSizes) -> None:
        """Check that the dataset has usable attributes.

        Raises
        ------
        ConfigError
            It has none, or none of users although ``fit`` counts needs them.
        """
        fields = sizes.inputs.get(self.signal) or {"users": [], "items": []}
        if self.by_counts:
            if not fields["users"]:
                raise ConfigError(
                    "model.granularities.profile.fit counts needs attributes of users, but there is"
                    " no usable column; add a table of users (data.source), name columns in"
                    " user_fields, or disable the granularity"
                )
        elif not (fields["users"] or fields["items"]):
            raise ConfigError(
                "model.granularities.profile needs attributes, but neither users nor items have a"
                " usable column; add a table of users or items with attributes (data.source), name"
                " columns in user_fields and item_fields, or disable the granularity"
            )

    def reads_all_items(self, num_events: int) -> bool:
        """True if it is trained and may read items: the attributes of all are encoded."""
        return not self.by_counts and self.item_fields != []

"""``model``: item tower, granularities and their fusion."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recsys.config.granularities import GranularitiesConfig
from recsys.config.section import Section
from recsys.errors import choices


class ItemTowerConfig(Section):
    """An item's vector: id embedding plus projected text. Items without training events have no id
    embedding.
    """

    id: bool = Field(True, description="whether an item's vector has an id embedding")
    text: bool = Field(True, description="whether an item's vector has projected text")
    text_hidden: int = Field(
        0, ge=0, description="width of a hidden layer of the text projection; 0: linear"
    )
    text_whiten: int = Field(
        256,
        ge=0,
        description=(
            "principal directions of the text vectors that are kept and whitened; 0: centre only"
        ),
    )
    id_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of items whose id embedding is hidden in a step"
    )
    init_std: float = Field(
        0.05, gt=0, description="standard deviation of the initial id embeddings"
    )


class FusionConfig(Section):
    """How the granularities are combined in one score."""

    kind: Literal["weighted", "learned", "gated"] = Field(
        "learned",
        description="weighted: fixed λ; learned: trained λ; gated: λ that depend on the user",
    )
    signal_dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="probability that a granularity of a user is masked in training",
    )
    stack: bool = Field(
        False,
        description=(
            "weights of all members by stacking on validation, never below the best one "
            "alone; see docs/quality.md"
        ),
    )
    check: bool = Field(
        False,
        description=(
            "train again without the granularities whose removal improves validation beyond noise"
        ),
    )


class ModelConfig(Section):
    """The item tower, the granularities and their fusion."""

    width: int = Field(64, ge=4, description="length D of item and user vectors")
    max_history: int = Field(
        50, ge=1, description="latest events of a user that granularities read"
    )
    fitted_history: int = Field(
        0,
        ge=0,
        description="latest events of a user that closed-form granularities read; 0: max_history",
    )
    unit_vectors: bool = Field(
        False,
        description=(
            "scale vectors of items and granularities to length 1, so that λ are comparable"
        ),
    )
    item: ItemTowerConfig = Field(default_factory=ItemTowerConfig)
    granularities: GranularitiesConfig = Field(default_factory=GranularitiesConfig)
    fusion: FusionConfig = Field(default_factory=FusionConfig)

    @model_validator(mode="after")
    def _something_to_learn(self) -> ModelConfig:
        if not self.granularities.enabled():
            names = choices(type(self.granularities).model_fields)
            raise ValueError(
                "no granularity is enabled; set granularities.NAME.enabled true for one of:"
                f" {names}"
            )
        if not (self.item.id or self.item.text):
            raise ValueError("an item needs item.id or item.text, and both are false; set one true")
        return self

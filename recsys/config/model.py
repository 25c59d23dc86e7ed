"""``model``: item tower, granularities and their fusion."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recsys.config.granularities import GranularitiesConfig
from recsys.config.section import Section
from recsys.errors import choices


class ItemTowerConfig(Section):
    """a_i = id embedding + projected text. Items without training events have no id part."""

    id: bool = True
    text: bool = True
    text_hidden: int = Field(0, ge=0, description="width of a hidden layer of the text projection; 0: linear")
    text_whiten: int = Field(
        256, ge=0, description="leading directions kept and whitened on the item set; 0: centre only"
    )
    id_dropout: float = Field(0.0, ge=0, lt=1, description="share of items whose id part is hidden in a step")
    init_std: float = Field(0.05, gt=0)


class FusionConfig(Section):
    kind: Literal["weighted", "learned", "gated"] = "learned"
    signal_dropout: float = Field(0.1, ge=0, lt=1, description="chance that a granularity of a user is masked")
    stack: bool = Field(
        False,
        description="weigh all members on validation by stacking, never below the best single one; see docs/quality.md",
    )
    check: bool = Field(
        False, description="train anew without a granularity whose silence makes validation better beyond noise"
    )


class ModelConfig(Section):
    width: int = Field(64, ge=4)
    max_history: int = Field(50, ge=1)
    fitted_history: int = Field(
        0, ge=0, description="latest events of a user that fitted granularities read; 0: max_history"
    )
    unit_vectors: bool = Field(
        False, description="items and granularities as unit vectors: cosine scores, λ comparable"
    )
    item: ItemTowerConfig = Field(default_factory=ItemTowerConfig)
    granularities: GranularitiesConfig = Field(default_factory=GranularitiesConfig)
    fusion: FusionConfig = Field(default_factory=FusionConfig)

    @model_validator(mode="after")
    def _something_to_learn(self) -> ModelConfig:
        if not self.granularities.enabled():
            names = choices(type(self.granularities).model_fields)
            raise ValueError(f"no granularity is enabled; set granularities.NAME.enabled true for one of: {names}")
        if not (self.item.id or self.item.text):
            raise ValueError("an item needs item.id or item.text, both are false")
        return self

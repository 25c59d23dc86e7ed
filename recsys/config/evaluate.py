"""``evaluate``: what is measured of a model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from recsys.config.section import Section
from recsys.config.values import MAX_K


class EvaluateConfig(Section):
    ks: list[Annotated[int, Field(ge=1, le=MAX_K)]] = Field([10, 20], min_length=1)
    exclude_seen: bool = True
    chunk_users: int = Field(512, ge=1)
    max_users: int = Field(100_000, ge=1, description="ranked, validation included; an even sample of users beyond")
    max_fit_events: int = Field(
        20_000_000, ge=1, description="baselines are fitted on; those of an even sample of users beyond"
    )
    baselines: list[Literal["popularity", "item_knn", "ease", "als", "frequency", "recent_popularity"]] = Field(
        ["popularity", "item_knn", "ease", "als", "frequency", "recent_popularity"],
        description="those are left out that the data rule out: frequency needs repeats, recent_popularity times",
    )
    ease_max_items: int = Field(8_000, ge=1, description="EASE keeps the most popular items up to this number")
    bootstrap: int = Field(1000, ge=100)
    ablate: bool = Field(True, description="metric without each granularity (weight set to zero, no retraining)")
    ablation: Literal["none", "full", "retrain"] = Field(
        "none", description="each granularity off and alone, fusions compared (--ablate: full); retrain: also anew"
    )
    item_group: str = Field("", description="column of items, such as a category, by which exposure is compared")
    user_groups: list[str] = Field([], description="columns of users by which quality and exposure are compared")
    num_examples: int = Field(4, ge=0, description="users shown in the report")
    show_ids: bool = Field(False, description="name the users that are shown by their ids; else by number")

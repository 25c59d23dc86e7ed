"""``evaluate``: what is measured of a model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from recsys.config.section import Section
from recsys.config.values import MAX_K, MetricKind


class EvaluateConfig(Section):
    """Metrics, baselines and the report."""

    ks: list[Annotated[int, Field(ge=1, le=MAX_K)]] = Field(
        [10, 20], min_length=1, description="lengths of the lists that metrics are computed at"
    )
    metrics: list[MetricKind] = Field(
        [],
        description=(
            "more accuracy metrics, of other packages: entry points of recsys.metrics, or"
            " module:function"
        ),
    )
    exclude_seen: bool = Field(
        True, description="whether items of a user's history are left out of the lists"
    )
    chunk_users: int = Field(512, ge=1, description="users that are ranked at once")
    max_users: int = Field(
        100_000,
        ge=1,
        description="users that are ranked, also in validation; of more users, an even sample",
    )
    max_fit_events: int = Field(
        20_000_000,
        ge=1,
        description=(
            "events that baselines are fitted on; of more events, those of an even sample of users"
        ),
    )
    baselines: list[
        Literal["popularity", "item_knn", "ease", "als", "frequency", "recent_popularity"]
    ] = Field(
        ["popularity", "item_knn", "ease", "als", "frequency", "recent_popularity"],
        description=(
            "baselines to compare with; frequency needs repeated events, recent_popularity needs"
            " times"
        ),
    )
    ease_max_items: int = Field(
        8_000, ge=1, description="most popular items that EASE uses, at most"
    )
    bootstrap: int = Field(1000, ge=100, description="bootstrap resamples of users for intervals")
    ablate: bool = Field(
        True, description="measure the model without each granularity (weight zero, no retraining)"
    )
    ablation: Literal["none", "full", "retrain"] = Field(
        "none",
        description=(
            "full: each granularity off, and alone, and other fusions (--ablate); retrain: "
            "also train each again"
        ),
    )
    item_group: str = Field(
        "", description="column of items, such as a category, whose values are compared in exposure"
    )
    user_groups: list[str] = Field(
        [], description="columns of users whose values are compared in quality and exposure"
    )
    num_examples: int = Field(4, ge=0, description="number of users that the report shows")
    show_ids: bool = Field(
        False, description="show these users with their ids; false: with numbers"
    )

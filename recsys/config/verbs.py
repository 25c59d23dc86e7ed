"""``recommend`` and ``update``: what is done with a registered model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from recsys.config.section import Place, Section
from recsys.storage.uris import without_query


class RecommendConfig(Section):
    k: int = Field(20, ge=1)
    exclude_seen: bool | None = Field(None, description="leave out what a user had; null: as the model was evaluated")
    model: Place = Field("", description="models:/NAME@ALIAS; default: the model that this run registered")
    batch_size: int = Field(1024, ge=1)
    requests: Place = Field(
        "", description="JSON lines of user_id, history, friends, k, exclude_seen, at; default: every user of the model"
    )
    out: Place = Field(
        "",
        description="Parquet file of the answers (--out); default: RUN/recommendations.parquet for every user, and "
        "RUN/answers/NAME.parquet for a file NAME.jsonl of requests",
    )
    rules: dict[str, Any] = Field(
        {},
        description="candidates, exclude, filters, boost, diversify, offset, explain, where a request says none",
    )
    stock_file: Place = Field("", description="items that are out of stock, as serve.stock_file: in no list")
    at: str = Field(
        "", description="time of asking where a request says none; default: that of the model's newest event"
    )

    @property
    def answers(self) -> str:
        """The file of the answers below the run folder, where ``out`` names no other place.

        >>> RecommendConfig().answers, RecommendConfig(requests="asked/new users.jsonl.gz").answers
        ('recommendations.parquet', 'answers/new users.parquet')
        """
        if not self.requests:
            return "recommendations.parquet"
        name = without_query(self.requests).rpartition("/")[2]
        return f"answers/{name.removesuffix('.gz').rpartition('.')[0].lstrip('.') or name.strip('.')}.parquet"


class SimilarConfig(Section):
    """Items like an item."""

    item: str = Field("", description="the item's id (--item)")
    by: Literal["auto", "vectors", "use", "text"] = Field(
        "auto",
        description="vectors of the model, use (who had both), text; auto: text for items without events, else vectors",
    )
    k: int = Field(20, ge=1)
    model: Place = Field("", description="models:/NAME@ALIAS or a bundle; default: RUN/bundle")
    rules: dict[str, Any] = Field({}, description="candidates, exclude, filters, boost, diversify, as in a request")


class UpdateConfig(Section):
    """How a registered model goes on: with new events (all, or the strata alone), or with feedback (fusion)."""

    only: Literal["all", "fusion", "strata"] = "all"
    events: list[Place] = Field(
        [],
        description="files, folders or globs of newer events (--events FILE…), appended to those of the model's "
        "dataset; what it has read is not read again; default: data.source (all, strata)",
    )
    dataset: Place = Field(
        "", description="dataset that the model was made of; default: where it was then (all, strata)"
    )
    replace: bool = Field(False, description="make the dataset of the named events alone and forget others (--replace)")
    model: Place = Field(
        "", description="models:/NAME@ALIAS, a run folder or a bundle; default: models:/REGISTRY.NAME@champion"
    )
    epochs: int = Field(5, ge=1, description="at most; the model as it is counts as epoch 0 (all)")
    lr_share: float = Field(0.3, gt=0, le=1, description="of train.lr (all)")
    feedback: list[Place] = Field([], description="files, folders or globs of events on shown items (fusion)")
    rewards: dict[str, float] = Field(
        {"click": 1.0, "purchase": 3.0, "skip": -1.0},
        description="event type → reward: above 0 liked, below 0 not; its size is how much it counts (fusion)",
    )
    prior_rows: float = Field(100.0, ge=0, description="rows of feedback that today's λ weigh as much as (fusion)")

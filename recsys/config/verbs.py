"""``recommend``, ``similar`` and ``update``: the use of a registered model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from recsys.config.section import PathOrUri, Section
from recsys.config.values import Duration
from recsys.storage.uris import without_query


class RecommendConfig(Section):
    """Lists for all users, or for the requests of a file."""

    k: int = Field(20, ge=1, description="number of items in a list, if a request gives none")
    exclude_seen: bool | None = Field(
        None, description="leave out items of the user's history; null: as the model was evaluated"
    )
    model: PathOrUri = Field(
        "",
        description="model to use: models:/NAME@ALIAS; default: the model that this run registered",
    )
    batch_size: int = Field(1024, ge=1, description="requests that are answered at once")
    requests: PathOrUri = Field(
        "",
        description=(
            "file of JSON lines, a request each: user_id, history, friends, attributes, context,"
            " horizon, at, k, exclude_seen, and the fields of recommend.rules (docs/serving.md);"
            " default: all users of the model"
        ),
    )
    out: PathOrUri = Field(
        "",
        description=(
            "Parquet file of the answers (--out); default: RUN/recommendations.parquet for every"
            " user, and RUN/answers/NAME.parquet for a file NAME.jsonl of requests"
        ),
    )
    rules: dict[str, Any] = Field(
        {},
        description=(
            "default rules (candidates, exclude, filters, boost, diversify, offset, per_user_limit,"
            " explain) of requests that give none"
        ),
    )
    stock_file: PathOrUri = Field(
        "",
        description="file of items that are out of stock, as serve.stock_file; they are in no list",
    )
    at: str = Field(
        "",
        description=(
            "time of the request, if a request gives none; default: the time of the model's newest"
            " event"
        ),
    )

    @property
    def answers(self) -> str:
        """The file of the answers in the run folder, if ``out`` names no other path.

        >>> RecommendConfig().answers, RecommendConfig(requests="in/new users.jsonl.gz").answers
        ('recommendations.parquet', 'answers/new users.parquet')
        """
        if not self.requests:
            return "recommendations.parquet"
        name = without_query(self.requests).rpartition("/")[2]
        stem = name.removesuffix(".gz").rpartition(".")[0].lstrip(".")
        return f"answers/{stem or name.strip('.')}.parquet"


class SimilarConfig(Section):
    """Items that are similar to an item."""

    item: str = Field("", description="id of the item (--item)")
    by: Literal["auto", "vectors", "use", "text"] = Field(
        "auto",
        description=(
            "similarity by the model's vectors, by use (users of both items) or by text; auto: text"
            " for items without events, else vectors"
        ),
    )
    k: int = Field(20, ge=1, description="number of similar items")
    model: PathOrUri = Field(
        "", description="model to use: models:/NAME@ALIAS or a bundle; default: RUN/bundle"
    )
    rules: dict[str, Any] = Field(
        {}, description="candidates, exclude, filters, boost, diversify, offset, as in a request"
    )


class UpdateConfig(Section):
    """An update of a registered model with new events (all, or only user clusters), or with
    feedback (fusion).
    """

    only: Literal["all", "fusion", "strata"] = Field(
        "all",
        description=(
            "what is updated: the whole model (all), only λ from feedback (fusion), or only the"
            " user clusters (strata)"
        ),
    )
    events: list[PathOrUri] = Field(
        [],
        description=(
            "files, folders or globs of newer events (--events FILE…), appended to those of the"
            " model's dataset; files that it has read are not read again; default: data.source;"
            " not used by update.only fusion"
        ),
    )
    dataset: PathOrUri = Field(
        "",
        description=(
            "dataset that the model was trained on; default: its path at that time; not used by"
            " update.only fusion"
        ),
    )
    replace: bool = Field(
        False, description="make the dataset only from the given events (--replace)"
    )
    model: PathOrUri = Field(
        "",
        description=(
            "model to update: models:/NAME@ALIAS, a run folder or a bundle; default: "
            "models:/REGISTRY.NAME@champion"
        ),
    )
    epochs: int = Field(
        5,
        ge=1,
        description=(
            "epochs of update.only all, at most; the model before the update counts as epoch 0"
        ),
    )
    lr_share: float = Field(
        0.3,
        gt=0,
        le=1,
        description="learning rate of update.only all, as a share of train.lr",
    )
    follow: Duration = Field(
        "",
        description=(
            "time between two searches for new files in update.events, such as 10s; the command"
            " keeps running, prepares new files during the current training, and uses them in the"
            " next one; empty: one update"
        ),
    )
    idle: Duration = Field(
        "",
        description=(
            "with update.follow: time without a new file after which the command ends; empty: run"
            " until interrupted"
        ),
    )
    promote: bool = Field(
        False,
        description=(
            "with update.follow: let the gate decide on every new version (section promote); each"
            " training then starts from the champion instead of the last version"
        ),
    )
    feedback: list[PathOrUri] = Field(
        [],
        description="files, folders or globs of events on shown items, for update.only fusion",
    )
    rewards: dict[str, float] = Field(
        {"click": 1.0, "purchase": 3.0, "skip": -1.0},
        description=(
            "event type → reward, for update.only fusion; above 0: liked, below 0: not liked; a"
            " larger absolute value weighs more"
        ),
    )
    prior_rows: float = Field(
        100.0,
        ge=0,
        description="weight of the present λ in update.only fusion, as a number of feedback rows",
    )

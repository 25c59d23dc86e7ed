"""``promote`` and ``pull``: which registered model becomes the champion, and how to download a
model.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from recsys.config.section import PathOrUri, Section


class PromoteConfig(Section):
    """The gate before ``models:/NAME@champion``: the same test users, the present champion and the
    baselines.

    ``better`` (the default) needs the whole interval of the difference above zero: a new model in
    traffic costs work and risk, and a difference by chance is not worth it. ``not_worse`` is for a
    model that has another advantage (newer events, a smaller model): the interval must stay above a
    loss of ``margin``.
    """

    model: str = Field(
        "",
        description=(
            "model to promote: models:/NAME@ALIAS or /VERSION; default:"
            " models:/REGISTRY.NAME@REGISTRY.ALIAS"
        ),
    )
    rule: Literal["better", "not_worse"] = Field(
        "better",
        description=(
            "better: the interval of the difference is above zero; not_worse: above -margin"
        ),
    )
    margin: float = Field(
        0.01, ge=0, le=1, description="share of the champion's metric that may be lost (not_worse)"
    )
    max_segment_loss: float = Field(
        0.05,
        ge=0,
        le=1,
        description=(
            "share of a segment's metric that may be lost; a larger significant loss refuses"
        ),
    )
    min_segment_users: int = Field(
        30, ge=2, description="test users of a segment; smaller segments are shown but not judged"
    )
    beat_baselines: bool = Field(
        True,
        description="whether the interval of the difference to every baseline must be above zero",
    )
    max_unknown_items: float | None = Field(
        0.5,
        ge=0,
        le=1,
        description=(
            "share of an update's newer events that may be about items unknown to its parent;"
            " null: any"
        ),
    )
    max_unknown_users: float | None = Field(
        None,
        ge=0,
        le=1,
        description=(
            "share of an update's newer events that may be of users unknown to its parent;"
            " null: any"
        ),
    )
    max_popularity_shift: float | None = Field(
        0.5,
        ge=0,
        description=(
            "population stability index of item popularity, newer events against the parent's;"
            " null: any"
        ),
    )
    max_miscalibration: float | None = Field(
        None,
        ge=0,
        le=1,
        description=(
            "share of an update's exposure that may differ from users' choices by head, "
            "middle and tail; null: any"
        ),
    )
    force: str = Field(
        "",
        description="reason to promote although the gate refuses; it is recorded (--force REASON)",
    )
    rollback: bool = Field(
        False, description="move the alias back to the previous champion (--rollback)"
    )


class PullConfig(Section):
    """A registered model as a folder that works without a tracking server: ``recsys pull MODEL
    DIR``.
    """

    model: PathOrUri = Field(
        "",
        description=(
            "model to download: models:/NAME@ALIAS or /VERSION; default:"
            " models:/REGISTRY.NAME@champion"
        ),
    )
    dir: PathOrUri = Field(
        "",
        description=(
            "output folder; an earlier pulled model is replaced, any other existing folder is"
            " refused"
        ),
    )

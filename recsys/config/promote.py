"""``promote`` and ``pull``: which registered model becomes the champion, and where a model is taken for deployment."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from recsys.config.section import Place, Section


class PromoteConfig(Section):
    """The gate before ``models:/NAME@champion``: on the same test users, against today's champion and the baselines.

    ``better`` (the default) wants the whole interval of the difference above zero: another model in traffic is work and
    risk, which chance does not pay. ``not_worse`` is for a model that is wanted for another reason (newer events, a
    smaller model): the interval must stay above a loss of ``margin``.
    """

    model: str = Field("", description="models:/NAME@ALIAS or /VERSION; default: models:/REGISTRY.NAME@REGISTRY.ALIAS")
    rule: Literal["better", "not_worse"] = "better"
    margin: float = Field(0.01, ge=0, le=1, description="share of the champion's metric that may be lost (not_worse)")
    max_segment_loss: float = Field(
        0.05, ge=0, le=1, description="share of a segment's metric that may be lost; more, beyond chance, refuses"
    )
    min_segment_users: int = Field(30, ge=2, description="segments with fewer test users are shown, not judged")
    beat_baselines: bool = Field(True, description="every baseline must be beaten, the whole interval above zero")
    max_unknown_items: float | None = Field(
        0.5, ge=0, le=1, description="share of an update's newer events about items new to its parent; null: any"
    )
    max_unknown_users: float | None = Field(None, ge=0, le=1, description="the same of users")
    max_popularity_shift: float | None = Field(
        0.5, ge=0, description="population stability index of item popularity, newer events against the parent's"
    )
    max_miscalibration: float | None = Field(
        None, ge=0, le=1, description="share of exposure off what is chosen by head, middle and tail (of an update)"
    )
    force: str = Field("", description="a reason to promote whatever the gate says; recorded (--force REASON)")
    rollback: bool = Field(False, description="give the alias back to the champion before this one (--rollback)")


class PullConfig(Section):
    """A registered model as a folder that needs no tracking server: ``recsys pull MODEL DIR``."""

    model: Place = Field("", description="models:/NAME@ALIAS or /VERSION; default: models:/REGISTRY.NAME@champion")
    dir: Place = Field("", description="the folder; one with a pulled model is replaced, any other is refused")

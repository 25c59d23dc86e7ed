"""Sections about people: pseudonyms, private training, and forgetting."""

from __future__ import annotations

from pydantic import Field, model_validator

from recsys.config.section import Place, Section


class PseudonymConfig(Section):
    """User ids as a keyed hash. Where the key is, not the key: a configuration is written into artefacts."""

    key_env: str = Field(
        "",
        pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$",
        description="NAME of the environment variable with the key, without a dollar sign",
    )
    key_file: Place = Field("", description="local file with the key, the same path on every machine")

    @model_validator(mode="after")
    def _one_place(self) -> PseudonymConfig:
        if self.key_env and self.key_file:
            raise ValueError("key_env and key_file both say where the key is; set one of them")
        return self


class PrivateConfig(Section):
    """Training with differential privacy for users (DP-SGD): see docs/privacy.md for what it covers."""

    epsilon: float = Field(0.0, ge=0, description="ε of the whole training; 0: not private")
    delta: float = Field(0.0, ge=0, lt=1, description="δ; 0: the power of ten below 1 / (10 · users)")
    clip: float = Field(1.0, gt=0, description="most that the gradient of a user may be long, in place of clip_norm")
    popularity_share: float = Field(
        0.1, gt=0, lt=1, description="of ε for the counts of items, which answer where nothing is known"
    )


class ForgetConfig(Section):
    """The users that `recsys forget` removes; their ids are not stored."""

    users: list[str] = Field([], exclude=True, description="ids (--user ID …)")
    file: Place = Field("", exclude=True, description="a file of ids, one a line, instead of or beside them")
    retrain: bool = Field(
        False, description="train again without them; false: fit again what is fitted, and the card says what is left"
    )
    also: list[Place] = Field(
        [],
        description="further files and folders (--also FOLDER …), local or remote: logs of answers, exports and copies "
        "of models in them are rewritten, and all of them is searched",
    )
    delete_versions: bool = Field(
        False,
        description="delete registered versions, copies and exports with the users that cannot be made again from this "
        "run folder",
    )
    signing_key: Place = Field(
        "", description="Ed25519 private key (PEM) that signs the proof; default: made once in ~/.config/multigrain"
    )
    unseen: Place = Field(
        "",
        description="JSON lines of requests (user_id, history) of people that no model has seen, for the test of "
        "membership; default: users whose events are all in the test part",
    )

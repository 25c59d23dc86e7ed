"""Sections about personal data: pseudonyms, private training, and forgetting users."""

from __future__ import annotations

from pydantic import Field, model_validator

from recsys.config.section import PathOrUri, Section


class PseudonymConfig(Section):
    """User ids as a keyed hash. The section says where the key is: a configuration is saved in
    artefacts.
    """

    key_env: str = Field(
        "",
        pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$",
        description="name of the environment variable with the key, without a dollar sign",
    )
    key_file: PathOrUri = Field(
        "", description="local file with the key, the same path on every machine"
    )

    @model_validator(mode="after")
    def _one_place(self) -> PseudonymConfig:
        if self.key_env and self.key_file:
            raise ValueError("key_env and key_file both say where the key is; set one of them")
        return self


class PrivateConfig(Section):
    """Training with differential privacy for users (DP-SGD): see docs/privacy.md for what it
    covers.
    """

    epsilon: float = Field(
        0.0, ge=0, description="ε of the whole training; 0: training is not private"
    )
    delta: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="δ of the whole training; 0: the power of ten below 1 / (10 · users)",
    )
    clip: float = Field(
        1.0, gt=0, description="largest norm of a user's gradient, instead of train.clip_norm"
    )
    popularity_share: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="share of ε for the counts of items, which rank items for unknown users",
    )


class ForgetConfig(Section):
    """The users that `recsys forget` removes; their ids are not stored."""

    users: list[str] = Field([], exclude=True, description="ids of users (--user ID …)")
    file: PathOrUri = Field("", exclude=True, description="file of user ids, one in each line")
    retrain: bool = Field(
        False,
        description=(
            "train again without them; false: only fit the closed-form parts again; the "
            "model card says what is left"
        ),
    )
    also: list[PathOrUri] = Field(
        [],
        description=(
            "further files and folders, local or remote (--also FOLDER …): all files are searched;"
            " logs of answers, exports and copies of models are rewritten"
        ),
    )
    delete_versions: bool = Field(
        False,
        description=(
            "delete registered versions, copies and exports that hold the users and cannot be made"
            " again from this run folder"
        ),
    )
    signing_key: PathOrUri = Field(
        "",
        description=(
            "Ed25519 private key (PEM) that signs the proof; default: a key in "
            "~/.config/multigrain, made on first use"
        ),
    )
    unseen: PathOrUri = Field(
        "",
        description=(
            "JSON lines of requests (user_id, history) of users that no model was trained on, for"
            " the membership test; default: users whose events are all in the test split"
        ),
    )

"""Settings of ``behaviour``: the text of the items in a history."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from pydantic import Field

from recsys.config.granularity import GranularityConfig
from recsys.config.workload import FLOAT, Estimate, Workload
from recsys.errors import ConfigError

if TYPE_CHECKING:
    from recsys.config.root import Config
    from recsys.granularities.base import ModelSizes


USER_TEXT: Final = "user_text"  # the signal: texts of users' histories


class BehaviourConfig(GranularityConfig):
    """Attention over the history: the texts of its items, or their vectors."""

    module: ClassVar[str] = "recsys.granularities.behaviour.model:Behaviour"
    per_user: ClassVar[bool] = True

    input: Literal["text", "item", "user_text", "both"] = Field(
        "text",
        description=(
            "text: pooled text vectors of the items; item: pooled item vectors; user_text: the text"
            " of the whole history; both: text and user_text"
        ),
    )
    heads: int = Field(4, ge=1, description="number of attention heads")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout rate in training")

    @property
    def signal(self) -> str:
        """Texts of users, if the granularity reads them."""
        return USER_TEXT if self.input in ("user_text", "both") else ""

    @property
    def reads_user_text(self) -> bool:
        """Whether the granularity reads texts of users."""
        return self.enabled and self.input in ("user_text", "both")

    def contradictions(self, config: Config, where: str) -> Iterator[str]:
        """Texts of users must be enabled if they are read."""
        if self.reads_user_text and not config.data.text.users.enabled:
            yield (
                f"{where}.input {self.input} reads the text of users; set data.text.users.enabled"
                " true, or set input to text"
            )

    def check(self, sizes: ModelSizes) -> None:
        """Check that the dataset has texts of users if they are read.

        Raises
        ------
        ConfigError
            It has none.
        """
        if self.signal and not sizes.inputs.get(USER_TEXT):
            raise ConfigError(
                "model.granularities.behaviour.input reads the text of users, but the dataset has"
                " none; set data.text.users.enabled true and run `recsys prepare`, or set input to"
                " text"
            )

    def estimate(self, work: Workload) -> Estimate:
        """Memory of attention, and of users' texts if they are read."""
        looked_at = work.longest if work.data.ordered else 1
        step = work.queries * work.width * FLOAT * 8 + work.queries * looked_at * self.heads * 16
        return Estimate(step=step + work.data.items * work.width * FLOAT * 4)

"""Settings of a granularity of kind ``apart``: a whole model, trained separately and weighted as
one member.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from recsys.config.granularity import GranularityConfig
from recsys.config.workload import FLOAT, Estimate, Workload

if TYPE_CHECKING:
    from recsys.config.model import ModelConfig
    from recsys.config.root import Config

KIND = "apart"


class ApartConfig(GranularityConfig):
    """``NAME: {kind: apart, model: …}``: a separately trained model, weighted as one member. A
    configuration may have several, each with its own name.
    """

    module: ClassVar[str] = "recsys.separate_model:Apart"
    always_closed_form: ClassVar[bool] = True  # takes no part in the training of the others
    effort: ClassVar[float] = 0.0  # trained, not fitted in closed form

    model: dict[str, Any] = Field(
        default_factory=dict, description="a section model with trained granularities only"
    )
    train: dict[str, Any] = Field(
        default_factory=dict, description="keys of the section train that differ from it"
    )
    seed: int = Field(0, ge=0, description="added to the seed of the run")

    @property
    def signal(self) -> str:
        """Its own signal, because two separate models share nothing."""
        own = json.dumps([self.model, self.train, self.seed], sort_keys=True)
        return f"{KIND} {hashlib.sha256(own.encode()).hexdigest()[:12]}"

    def own_model(self) -> ModelConfig:
        """The section ``model`` of the separate model."""
        from recsys.config.model import ModelConfig

        return ModelConfig.model_validate(self.model)

    @model_validator(mode="after")
    def _is_a_model(self) -> Self:
        if self.model or self.enabled:
            fitted = [
                name
                for name, section in self.own_model().granularities.enabled().items()
                if section.is_closed_form
            ]
            if fitted:
                raise ValueError(
                    f"model: {', '.join(fitted)} is in closed form; a separate model has trained"
                    " granularities only"
                )
        return self

    def contradictions(self, config: Config, where: str) -> Iterator[str]:
        """Stacking must be on."""
        if not config.model.fusion.stack:
            yield (
                f"{where} gets its weight from stacking; set model.fusion.stack true, or disable it"
            )
        own = self.own_model()
        alone = config.model_copy(update={"model": own})
        for name, section in own.granularities.enabled().items():
            yield from section.contradictions(alone, f"{where}.model.granularities.{name}")

    def estimate(self, work: Workload) -> Estimate:
        """Memory of its item vectors; its training runs after that of the others."""
        return Estimate(layers=0.0, fitting=work.data.items * self.own_model().width * FLOAT * 2)

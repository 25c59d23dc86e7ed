"""What a granularity of the kind ``apart`` says of itself: a whole model, trained apart and weighed as one member."""

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
    """``NAME: {kind: apart, model: …}``; there may be several, each under a name of its own."""

    module: ClassVar[str] = "recsys.apart:Apart"
    always_fitted: ClassVar[bool] = True  # it has no part in the training of the others
    effort: ClassVar[float] = 0.0  # it is trained, not fitted

    model: dict[str, Any] = Field(default_factory=dict, description="a section model, of trained granularities alone")
    train: dict[str, Any] = Field(default_factory=dict, description="keys of the section train that differ")
    seed: int = Field(0, ge=0, description="added to the seed of the run")

    @property
    def signal(self) -> str:
        """Of its own, as two models apart share nothing."""
        own = json.dumps([self.model, self.train, self.seed], sort_keys=True)
        return f"{KIND} {hashlib.sha256(own.encode()).hexdigest()[:12]}"

    def own_model(self) -> ModelConfig:
        """The section ``model`` of the model apart."""
        from recsys.config.model import ModelConfig

        return ModelConfig.model_validate(self.model)

    @model_validator(mode="after")
    def _is_a_model(self) -> Self:
        if self.model or self.enabled:
            fitted = [name for name, section in self.own_model().granularities.enabled().items() if section.is_fitted]
            if fitted:
                raise ValueError(f"model: {', '.join(fitted)} is fitted; a model apart has trained granularities alone")
        return self

    def contradictions(self, config: Config, where: str) -> Iterator[str]:
        if not config.model.fusion.stack:
            yield f"{where} is weighed by stacking: set model.fusion.stack true, or disable it"
        own = self.own_model()
        alone = config.model_copy(update={"model": own})
        for name, section in own.granularities.enabled().items():
            yield from section.contradictions(alone, f"{where}.model.granularities.{name}")

    def estimate(self, work: Workload) -> Estimate:
        """Its item vectors; it is trained after the others, in a training of its own."""
        return Estimate(layers=0.0, fitting=work.data.items * self.own_model().width * FLOAT * 2)

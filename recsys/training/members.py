"""Members of a model: the trained granularities together, and every fitted one; their weights by stacking.

Why after the training: fitted members are closed forms of the training events. They take no part in the training, and a
weight that is chosen on validation needs all of them as they answer there.
"""

from __future__ import annotations

from recsys.config import Config
from recsys.errors import ConfigError
from recsys.model import Encoders
from recsys.training.pruned import without


def fitted_names(config: Config) -> list[str]:
    """The enabled granularities that are fitted, not trained."""
    return [name for name, section in config.model.granularities.enabled().items() if section.is_fitted]


def trained_only(config: Config) -> Config:
    """The configuration of the training alone: without fitted members and their weights; of a model of fitted members
    alone, with the first of them, as a model must have one.
    """
    names = fitted_names(config)
    found = without(config, names if config.model.granularities.are_trained else names[1:])
    fusion = found.model.fusion.model_copy(update={"stack": False})
    return found.model_copy(update={"model": found.model.model_copy(update={"fusion": fusion})})


def refuse_stacked(encoders: Encoders, what: str, whose: str) -> None:
    """Refuse to choose λ of a model in which stacking weighs the members: its answers would not follow them.

    Parameters
    ----------
    encoders : Encoders
        of the model.
    what : str
        the key that asks for it, such as ``tune.search fusion``.
    whose : str
        the model, for the message.

    Raises
    ------
    ConfigError
        the model is stacked.
    """
    if encoders.stack is not None:
        raise ConfigError(
            f"{what}: the members of {whose} are weighed by stacking (model.fusion.stack), which already chose the "
            "best sum on validation; run `recsys train` or `recsys update` to choose it again on newer events"
        )


def trained_part(config: Config) -> Config:
    """The configuration that the training reads: without the fitted members where stacking adds them afterwards."""
    return trained_only(config) if config.model.fusion.stack else config

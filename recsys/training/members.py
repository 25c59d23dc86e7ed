"""Members of a model: all trained granularities together, and every closed-form one. Stacking gives
them weights.

Why after the training: closed-form members are computed from the training events and take no part
in the training. A weight that is chosen on validation needs the scores of all members there.
"""

from __future__ import annotations

from recsys.config import Config, ModelConfig
from recsys.errors import ConfigError
from recsys.model import Encoders
from recsys.training.pruned import without


def closed_form_names(model: ModelConfig) -> list[str]:
    """The enabled granularities that are fitted in closed form, not trained."""
    return [
        name for name, section in model.granularities.enabled().items() if section.is_closed_form
    ]


def trained_only(config: Config) -> Config:
    """The configuration without closed-form members and their weights.

    A model of closed-form members only keeps the cheapest of them with its first constants, as a
    model must have one. Why the cheapest: all members are fitted when their weights are chosen.
    """
    names = closed_form_names(config.model)
    if not config.model.granularities.are_trained:
        sections = config.model.granularities.enabled()
        kept = min(names, key=lambda name: sections[name].effort)
        names.remove(kept)
        config = config.model_copy(deep=True)
        first = sections[kept].with_values(sections[kept].first_values)
        setattr(config.model.granularities, kept, first)
    found = without(config, names)
    fusion = found.model.fusion.model_copy(update={"stack": False})
    return found.model_copy(update={"model": found.model.model_copy(update={"fusion": fusion})})


def refuse_stacked(encoders: Encoders, what: str, whose: str) -> None:
    """Refuse to choose λ of a stacked model: its scores would not depend on them.

    Parameters
    ----------
    encoders : Encoders
        Encoders of the model.
    what : str
        The key that asks for it, such as ``tune.search fusion``.
    whose : str
        The model, for the message.

    Raises
    ------
    ConfigError
        The model is stacked.
    """
    if encoders.stack is not None:
        raise ConfigError(
            f"{what}: the weights of {whose} are already chosen by stacking (model.fusion.stack)"
            " and cannot be changed; `recsys train` or `recsys update` chooses them again on newer"
            " events"
        )


def trained_part(config: Config) -> Config:
    """The configuration that the training reads: without the closed-form members if stacking adds
    them afterwards.
    """
    return trained_only(config) if config.model.fusion.stack else config

"""The fitted granularities that ``model: auto`` considers, and why a dataset cannot feed some of them.

Every granularity answers for itself: what it needs (``check``), what rules it out (``contradictions``) and whether the
data tells it anything (``idle``). Nothing here knows what one of them reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from recsys.config import Config, GranularitiesConfig, section_class
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.errors import ConfigError
from recsys.granularities import granularity_class
from recsys.training.build import model_sizes

_CLOSED_FORM: Final = (
    *("popularity", "item_cf", "item_knn", "als", "user_cf", "frequency", "repeat", "place", "content", "moment"),
)
_COUNTED: Final = ("social", "profile", "knowledge")

Tree = dict[str, Any]

CANDIDATES: Final[Tree] = {
    **{name: {"enabled": True} for name in _CLOSED_FORM},
    **{name: {"enabled": True, "fit": "counts"} for name in _COUNTED},
}


@dataclass(frozen=True)
class Fed:
    """What a dataset says of the candidates."""

    sections: Tree  # by name, with the keys that the granularity proposes for the dataset
    idle: dict[str, str]  # why the dataset cannot feed one, by name; those that it can feed are not there


def fed(config: Config, dataset: PreparedDataset) -> Fed:
    """Ask every candidate."""
    sections = {name: keys | _proposed(name, keys, dataset) for name, keys in CANDIDATES.items()}
    reasons = {name: _why_idle(name, keys, config, dataset) for name, keys in sections.items()}
    return Fed(sections, {name: why for name, why in reasons.items() if why})


def _proposed(name: str, keys: Tree, dataset: PreparedDataset) -> Tree:
    section = section_class(name).model_validate(keys)
    return granularity_class(name, section).proposed(section, dataset)


def _why_idle(name: str, keys: Tree, config: Config, dataset: PreparedDataset) -> str:
    section = section_class(name).model_validate(keys)
    model = config.model.model_copy(update={"granularities": GranularitiesConfig.model_validate({name: section})})
    alone = config.model_copy(update={"model": model})
    try:
        why = granularity_class(name, section).idle(section, dataset, alone)
        why = why or next(section.contradictions(alone, f"model.granularities.{name}"), "")
        for through in () if why else Split:  # it is fitted on training events, then on those through each later part
            section.check(model_sizes(alone, dataset, through))
    except ConfigError as error:
        return str(error)
    return why

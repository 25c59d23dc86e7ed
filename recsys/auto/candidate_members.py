"""The closed-form granularities that ``model: auto`` considers, and why a dataset does not support
some of them.

Every granularity decides for itself: what it needs (``check``), what excludes it
(``contradictions``) and whether the data is informative for it (``idle``). This module does not
know what any of them reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from recsys.config import Config, GranularitiesConfig, section_class
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.errors import ConfigError
from recsys.granularities import granularity_class
from recsys.training.fresh_model import model_sizes

_CLOSED_FORM: Final = (
    *(
        "popularity",
        "item_cf",
        "item_knn",
        "als",
        "user_cf",
        "social_cf",
        "frequency",
        "repeat",
        "place",
        "content",
        "moment",
    ),
)
_COUNTED: Final = ("social", "profile", "knowledge")

Tree = dict[str, Any]

CANDIDATES: Final[Tree] = {
    **{name: {"enabled": True} for name in _CLOSED_FORM},
    **{name: {"enabled": True, "fit": "counts"} for name in _COUNTED},
}


@dataclass(frozen=True)
class CandidateSupport:
    """Which candidates a dataset supports."""

    sections: Tree  # by name, with the keys that each granularity proposes for the dataset
    idle: dict[str, str]  # unsupported candidates → reason


def fed(config: Config, dataset: PreparedDataset) -> CandidateSupport:
    """Check every candidate against a dataset."""
    sections = {name: keys | _proposed(name, keys, dataset) for name, keys in CANDIDATES.items()}
    reasons = {name: _why_idle(name, keys, config, dataset) for name, keys in sections.items()}
    return CandidateSupport(sections, {name: why for name, why in reasons.items() if why})


def _proposed(name: str, keys: Tree, dataset: PreparedDataset) -> Tree:
    section = section_class(name).model_validate(keys)
    return granularity_class(name, section).proposed(section, dataset)


def _why_idle(name: str, keys: Tree, config: Config, dataset: PreparedDataset) -> str:
    section = section_class(name).model_validate(keys)
    # alone: a check must not depend on which other candidates are in the model
    model = config.model.model_copy(
        update={"granularities": GranularitiesConfig.model_validate({name: section})}
    )
    alone = config.model_copy(update={"model": model})
    try:
        why = granularity_class(name, section).idle(section, dataset, alone)
        why = why or next(section.contradictions(alone, f"model.granularities.{name}"), "")
        # it is fitted on training events, then on those through each later split
        for through in () if why else Split:
            section.check(model_sizes(alone.model, dataset, through))
    except ConfigError as error:
        return str(error)
    return why

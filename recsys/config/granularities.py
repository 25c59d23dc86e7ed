"""``model.granularities``: one section for each granularity, in the order of the design's table.

This is the registry of all granularities of this package. Each entry names the class of the
section, which names the module and everything else. Granularities of other packages come last, see
:mod:`~recsys.config.outside`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import ConfigDict, Field, PlainValidator, create_model, model_validator
from pydantic_core import PydanticCustomError

from recsys.config.granularity import GranularityConfig
from recsys.config.outside import GRANULARITIES, Offer, load, offers, resolve
from recsys.config.section import Section
from recsys.errors import choices, valid_instead

SECTIONS: Final = {
    "behaviour": "recsys.granularities.behaviour.section:BehaviourConfig",
    "evolution": "recsys.granularities.evolution.section:EvolutionConfig",
    "collaborative": "recsys.granularities.collaborative.section:CollaborativeConfig",
    "social": "recsys.granularities.social.section:SocialConfig",
    "knowledge": "recsys.granularities.knowledge.section:KnowledgeConfig",
    "stratum": "recsys.granularities.stratum.section:StratumConfig",
    "profile": "recsys.granularities.profile.section:ProfileConfig",
    "media": "recsys.granularities.media.section:MediaConfig",
    "item_cf": "recsys.granularities.item_cf.section:ItemCFConfig",
    "user_cf": "recsys.granularities.user_cf.section:UserCFConfig",
    "social_cf": "recsys.granularities.social_cf.section:SocialCFConfig",
    "item_knn": "recsys.granularities.item_knn.section:ItemKnnConfig",
    "als": "recsys.granularities.als.section:AlsConfig",
    "content": "recsys.granularities.content.section:ContentConfig",
    "place": "recsys.granularities.place.section:PlaceConfig",
    "moment": "recsys.granularities.moment.section:MomentConfig",
    "popularity": "recsys.granularities.popularity.section:PopularityConfig",
    "frequency": "recsys.granularities.frequency.section:FrequencyConfig",
    "repeat": "recsys.granularities.repeat.section:RepeatConfig",
}
KINDS: Final = {"apart": "recsys.granularities.apart.section:ApartConfig"}
"""Kinds of this package that a model may have several of, each under its own name."""
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
_OWN: Final = "\0name"  # key that gives a section of another package its name during validation


def _from_outside(value: Any) -> GranularityConfig:
    """Validate a section of another package, by its kind, or by a name that an installed package
    offers.

    Raises
    ------
    PydanticCustomError
        The name is unknown and the section has no ``kind``.
    ValueError
        The kind or the name is invalid, no package offers the kind, or a key is unknown.
    """
    if isinstance(value, GranularityConfig):
        return value
    name = value[_OWN]
    tree = {key: entry for key, entry in value.items() if key not in (_OWN, "kind")}
    kind = value.get("kind", name)
    if not isinstance(kind, str):
        raise ValueError(f"kind: expected module:Class or the name of an entry point, got {kind!r}")
    offer = Offer(kind, KINDS[kind], "", "") if kind in KINDS else resolve(GRANULARITIES, kind)
    if offer is None:
        if "kind" not in value:
            raise PydanticCustomError("extra_forbidden", "unknown granularity")
        raise ValueError(
            f"kind {kind!r} is neither module:Class nor offered by an installed package (entry"
            f" points of {GRANULARITIES}: {', '.join(sorted(offers(GRANULARITIES))) or 'none'}),"
            f" nor {choices(KINDS)}"
        )
    if not _NAME.fullmatch(name):
        raise ValueError(
            "the name of a granularity has lower-case letters, digits and _, and starts with a"
            " letter"
        )
    cls = load(offer, GranularityConfig)
    if unknown := [key for key in tree if key not in cls.model_fields]:
        raise ValueError(
            f"unknown key {', '.join(map(str, unknown))};"
            f" {valid_instead(unknown[0], cls.model_fields, 'valid keys here')}"
        )
    section: GranularityConfig = cls.model_validate(tree)
    section._kind = kind if "kind" in value else ""
    return section


class _Granularities(Section):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[Any, PlainValidator(_from_outside)]]

    @model_validator(mode="before")
    @classmethod
    def _named(cls, tree: Any) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        outside = {
            key: {} if value is None else value
            for key, value in tree.items()
            if key not in cls.model_fields
        }
        return {
            **tree,
            **{
                key: {**v, _OWN: key} if isinstance(v, Mapping) else v for key, v in outside.items()
            },
        }

    @classmethod
    def valid_names(cls) -> list[str]:
        """All names that need no kind: those of this package and of installed packages."""
        return [*cls.model_fields, *sorted(set(offers(GRANULARITIES)) - set(cls.model_fields))]

    def names(self) -> list[str]:
        """All granularities that have a section, those of other packages last."""
        return [*type(self).model_fields, *(self.model_extra or {})]

    def enabled(self) -> dict[str, GranularityConfig]:
        """The enabled granularities by name, in the order of the design's table."""
        return {name: getattr(self, name) for name in self.names() if getattr(self, name).enabled}

    def outside(self) -> dict[str, Offer]:
        """The offers of the enabled granularities of other packages, by name."""
        found = {}
        for name, section in (self.model_extra or {}).items():
            if section._kind in KINDS:
                continue
            offer = resolve(GRANULARITIES, section._kind or name)
            if section.enabled and offer is not None:
                found[name] = offer
        return found

    @property
    def are_trained(self) -> bool:
        """Whether any enabled granularity is trained; if not, all of them are fitted in closed
        form.
        """
        return any(not section.is_closed_form for section in self.enabled().values())


def section_class(name: str) -> type[GranularityConfig]:
    """The class of a granularity's section, in this package or in an installed package that offers
    the name.

    Raises
    ------
    KeyError
        No package has this name.
    ValueError
        The class cannot be imported.
    """
    if name not in SECTIONS:
        found: type[GranularityConfig] = load(offers(GRANULARITIES)[name], GranularityConfig)
        return found
    module, cls = SECTIONS[name].split(":")
    ours: type[GranularityConfig] = getattr(import_module(module), cls)
    return ours


if TYPE_CHECKING:

    class GranularitiesConfig(_Granularities):
        """The sections of all granularities; the other branch creates the real class."""

        def __getattr__(self, name: str) -> Any: ...

else:
    GranularitiesConfig = create_model(
        "GranularitiesConfig",
        __base__=_Granularities,
        __module__=__name__,
        __doc__="The granularities, each with a section of its own.",
        **{
            name: (section_class(name), Field(default_factory=section_class(name)))
            for name in SECTIONS
        },
    )

"""The base of every section of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator
from pydantic.fields import FieldInfo

from recsys.config.outside import reads_artifact
from recsys.config.renamed import with_current_keys
from recsys.storage.uris import expanded

PathOrUri = Annotated[str, AfterValidator(expanded)]
"""A path or URI; ``~`` at its start is the home folder of the user who starts the command."""
_OR_NAME: Final = "or a name"
PathOrName = Annotated[PathOrUri, _OR_NAME]
"""A path or URI, or a name that something else knows: a path if there is such a file or folder."""


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values are checked on assignment as well."""

    # path of the section; needed only where a key was renamed, see ``renamed``
    dotted: ClassVar[str] = ""

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        protected_namespaces=(),
        coerce_numbers_to_str=True,
        serialize_by_alias=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _with_current_keys(cls, tree: Any) -> Any:
        return (
            with_current_keys(cls.dotted, tree, reads_artifact())
            if isinstance(tree, Mapping)
            else tree
        )


def holds_paths(field: FieldInfo) -> bool:
    """Whether a key holds paths or URIs: one, or a list of them."""
    return any(getattr(part, "func", None) is expanded for part in _metadata(field))


def may_be_name(field: FieldInfo) -> bool:
    """Whether a key with a path may have a name instead."""
    return _OR_NAME in _metadata(field)


def _metadata(field: FieldInfo) -> list[Any]:
    """What is annotated to the type of a key, or to that of its list's members."""
    members = get_args(field.annotation)
    return [
        *field.metadata,
        *(part for one in members for part in getattr(one, "__metadata__", ())),
    ]


def as_list(value: Any) -> Any:
    """One value as a list of one."""
    return [value] if isinstance(value, (int, float, str)) else value


def as_word(value: Any) -> Any:
    """YAML reads a bare yes as true."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value

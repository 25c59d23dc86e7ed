"""The base of every section of the configuration."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from recsys.storage.uris import expanded

Place = Annotated[str, AfterValidator(expanded)]
"""A path or URI; ``~`` at its start is the home folder of whoever gives the configuration."""


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values are checked on assignment as well."""

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, protected_namespaces=(), coerce_numbers_to_str=True
    )


def as_word(value: Any) -> Any:
    """YAML reads a bare yes as true."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value

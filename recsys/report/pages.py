"""What every HTML page of the product shares: strict templates and the style sheet."""

from __future__ import annotations

from importlib import resources
from typing import Any

import jinja2


def packaged(package: str, name: str) -> str:
    """The text of a file of a package, such as a template."""
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def stylesheet() -> str:
    """The style sheet of the report, which other pages use too."""
    return packaged("recsys.report", "report.css")


def environment(loader: jinja2.BaseLoader | None = None, **filters: Any) -> jinja2.Environment:
    """Templates that escape every value and refuse unknown names.

    Parameters
    ----------
    loader : jinja2.BaseLoader | None
        Finds templates by name.
    filters : Any
        Functions that templates apply to values, by name.
    """
    found = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(filters)
    return found

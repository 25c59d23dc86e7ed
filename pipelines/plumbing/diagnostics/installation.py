"""Checks of the installed software: Python, libraries and optional libraries."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipelines.plumbing.diagnostics.finding import Finding

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from recsys.config import Config

_EXTRAS: Final = {
    "text": "the default language model (data.text)",
    "media": "image files (data.media.images)",
    "finetune": "fine-tuning of the language model (data.text.finetune)",
    "tune": "sweeps that learn from their trials (recsys tune)",
}


def versions(config: Config | None) -> Iterator[Finding]:
    """Versions of Python and of every required library."""
    python = platform.python_version()
    yield (
        Finding("python", "ok", f"{python} at {sys.executable}")
        if sys.version_info >= (3, 11)
        else Finding("python", "fail", python, "use Python 3.11 or newer")
    )
    for requirement in _requirements(""):
        found = _version(requirement.name)
        wanted = str(requirement.specifier)
        install = f"pip install '{requirement}'"
        if found is None:
            yield Finding(requirement.name, "fail", f"not installed, needs {wanted}", install)
        elif not requirement.specifier.contains(found, prereleases=True):
            yield Finding(requirement.name, "fail", f"{found}, needs {wanted}", install)
        else:
            yield Finding(requirement.name, "ok", f"{found} ({wanted})")


def extras(config: Config | None) -> Iterator[Finding]:
    """Optional libraries: a missing one is fine, a wrong version is a problem."""
    for extra, what in _EXTRAS.items():
        for requirement in _requirements(extra):
            found = _version(requirement.name)
            if found is None:
                yield Finding(
                    requirement.name, "ok", f"not installed; {what} needs the extra {extra}"
                )
            elif not requirement.specifier.contains(found, prereleases=True):
                cure = f"pip install '{requirement}'"
                yield Finding(
                    requirement.name, "warn", f"{found}, needs {requirement.specifier}", cure
                )
            else:
                yield Finding(requirement.name, "ok", f"{found}: {what}")


def _requirements(extra: str) -> list[Requirement]:
    """The requirements of the project: those of an extra, or those without an extra."""
    import tomllib
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement

    source = Path(__file__).parents[3] / "pyproject.toml"
    if source.is_file():  # a checkout may be newer than the installed metadata
        project = tomllib.loads(source.read_text(encoding="utf-8"))["project"]
        texts = (
            project["optional-dependencies"].get(extra, []) if extra else project["dependencies"]
        )
        return [Requirement(text) for text in texts]
    try:
        found = [Requirement(text) for text in requires("multigrain") or []]
    except PackageNotFoundError:
        return []
    plain = [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]
    if not extra:
        return plain
    return [
        one
        for one in found
        if one not in plain and one.marker and one.marker.evaluate({"extra": extra})
    ]


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None

"""Granularities, losses, sources and metrics of other packages: by an entry point, or by
``module:Class``; a metric is a function.

An installed package offers a class with an entry point of the groups below, and the configuration
uses its name. A configuration may also name any importable class as ``kind: module:Class``.

Importing a class runs its code. The user who starts the command wrote the configuration, so the
classes that it names are imported. A bundle, a checkpoint or a trained model may come from
anywhere. While one is read (:func:`reading_artifact`), a class is imported only if an *installed*
package offers it with an entry point, or if a configuration of this process has named it. A path
that only the artifact names is refused.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points, packages_distributions, version
from typing import Any, Final, cast

GRANULARITIES: Final = "recsys.granularities"
LOSSES: Final = "recsys.losses"
SOURCES: Final = "recsys.sources"
METRICS: Final = "recsys.metrics"

_PATH: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_named: set[str] = set()  # targets that configurations of this process have named
_is_artifact: ContextVar[bool] = ContextVar("is_artifact", default=False)


@dataclass(frozen=True)
class Offer:
    """A class that an installed package offers."""

    name: str
    target: str  # module:Class
    package: str
    version: str


@contextmanager
def reading_artifact() -> Iterator[None]:
    """Mark the configurations that are read inside the block as part of an artifact."""
    token = _is_artifact.set(True)
    try:
        yield
    finally:
        _is_artifact.reset(token)


def reads_artifact() -> bool:
    """Whether the configuration that is read now came with an artifact."""
    return _is_artifact.get()


def offers(group: str) -> dict[str, Offer]:
    """The offers of installed packages in an entry point group, by name."""
    return _offers(group, tuple(sys.path))


@lru_cache(maxsize=16)
def _offers(group: str, path: tuple[str, ...]) -> dict[str, Offer]:
    found = {}
    for point in entry_points(group=group):
        package = point.dist
        found[point.name] = Offer(
            point.name,
            point.value,
            package.name if package else "",
            package.version if package else "",
        )
    return found


def is_path(kind: str) -> bool:
    """Whether a kind is ``module:Class``.

    >>> is_path("weather.member:Weather"), is_path("weather")
    (True, False)
    """
    return bool(_PATH.fullmatch(kind))


def resolve(group: str, kind: str) -> Offer | None:
    """The class of a kind: the offer of that name, or the path with its package; None if no package
    offers the name.

    Raises
    ------
    ValueError
        Only an artifact names this path.
    """
    known = offers(group)
    if not is_path(kind):
        return known.get(kind)
    offered = next((offer for offer in known.values() if offer.target == kind), None)
    if reads_artifact():
        if offered is None and kind not in _named:
            raise ValueError(
                f"{kind!r} is named only in an artifact, which may come from anywhere, and no "
                "installed package offers it "
                f"with an entry point of {group}; install the package that does, or give the "
                "configuration that names it"
            )
    else:
        _named.add(kind)
    return offered or Offer("", kind, *_package_of(kind))


def _package_of(target: str) -> tuple[str, str]:
    """The installed package of a module and its version; empty for a plain file."""
    found = _packages(tuple(sys.path)).get(target.split(":")[0].split(".")[0], [])
    return (found[0], version(found[0])) if found else ("", "")


@lru_cache(maxsize=4)
def _packages(path: tuple[str, ...]) -> Mapping[str, list[str]]:
    """The installed packages by module. Why a cache: it reads the file list of every package, half
    a second, and each configuration asks for it several times.
    """
    return packages_distributions()


def load(offer: Offer, base: type) -> type[Any]:
    """The class of an offer.

    Raises
    ------
    ValueError
        The class cannot be imported, or is not a subclass of ``base``.
    """
    found = _imported(offer)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(
            f"{offer.target} is not a subclass of {base.__module__}.{base.__qualname__}"
        )
    return found


def load_function(offer: Offer) -> Callable[..., Any]:
    """The function of an offer.

    Raises
    ------
    ValueError
        The function cannot be imported, or is not callable.
    """
    found = _imported(offer)
    if not callable(found):
        raise ValueError(f"{offer.target} is not a function")
    return cast("Callable[..., Any]", found)


def _imported(offer: Offer) -> object:
    module, name = offer.target.split(":")
    try:
        found: object = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        cure = (
            f"install {offer.package} again"
            if offer.package
            else "install its package, or add it to PYTHONPATH"
        )
        raise ValueError(f"{offer.target} cannot be imported ({error}); {cure}") from None
    return found

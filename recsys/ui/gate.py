"""Registered models, their versions, and the gate's decision on each."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from recsys.registry.aliases import CHAMPION
from recsys.registry.digest import WEIGHTS_TAG
from recsys.registry.minimum import newest_versions
from recsys.registry.mlflow_client import all_pages
from recsys.ui.runs import answer_of

_MOST: Final = 200  # maximum number of versions per model, the newest ones
_FRESH_S: Final = 5.0


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    name: str
    number: str
    aliases: tuple[str, ...]
    created: datetime
    metrics: Mapping[str, str]
    main_metric: str  # empty for versions of earlier releases
    weights: str  # SHA-256 of its weights
    members: str  # without dropped ones
    dataset: str
    run_id: str
    # decision, against, reasons, time, by, difference, low, high, p; empty: not decided
    promotion: Mapping[str, str]

    @property
    def key(self) -> str:
        """The name of the version in URLs."""
        return f"{self.name}/{self.number}"

    @property
    def uri(self) -> str:
        """MLflow URI of the version."""
        return f"models:/{self.name}/{self.number}"

    @property
    def label(self) -> str:
        """Name of the version for people."""
        return " · ".join([f"{self.name} v{self.number}", *self.aliases])


@dataclass(frozen=True)
class Registered:
    """A registered model: its versions, the newest first."""

    name: str
    versions: tuple[Version, ...]

    def holder(self, alias: str) -> Version | None:
        """The version with an alias, or None."""
        return next((version for version in self.versions if alias in version.aliases), None)

    @property
    def champion(self) -> Version | None:
        """The champion, or None."""
        return self.holder(CHAMPION)


class Gate:
    """Reads the registry; an answer is reused for a few seconds."""

    def __init__(self, tracking_uri: str) -> None:
        self.tracking_uri = tracking_uri
        self._found: tuple[float, list[Registered], str] = (-_FRESH_S, [], "")

    def models(self) -> list[Registered]:
        """All registered models that have versions."""
        return self._from_registry()[0]

    @property
    def problem(self) -> str:
        """Why the registry cannot be read; empty if it answers."""
        return self._from_registry()[1]

    def get(self, key: str) -> Version | None:
        """The version with a key or ``NAME@ALIAS``, or None."""
        for model in self.models():
            for version in model.versions:
                if key == version.key or key in {
                    f"{model.name}@{alias}" for alias in version.aliases
                }:
                    return version
        return None

    def _from_registry(self) -> tuple[list[Registered], str]:
        when, models, problem = self._found
        if time.monotonic() - when > _FRESH_S:
            models, problem = _registered(self.tracking_uri)
            self._found = (time.monotonic(), models, problem)
        return models, problem


def _registered(uri: str) -> tuple[list[Registered], str]:
    found, problem = answer_of(uri, _models)
    return [model for model in found if model.versions], problem


def _models(registry: Any) -> list[Registered]:
    return [_model(registry, model) for model in _registered_models(registry)]


def _registered_models(registry: Any) -> list[Any]:
    return list(all_pages(registry.search_registered_models, max_results=100))


def _model(registry: Any, model: Any) -> Registered:
    newest = newest_versions(registry, str(model.name), _MOST)
    return Registered(str(model.name), tuple(_version(one, model.aliases) for one in newest))


def _version(one: Any, aliases: Mapping[str, Any]) -> Version:
    tags = dict(one.tags)
    return Version(
        name=str(one.name),
        number=str(one.version),
        aliases=tuple(
            sorted(alias for alias, number in aliases.items() if str(number) == str(one.version))
        ),
        created=datetime.fromtimestamp(one.creation_timestamp / 1000, UTC),
        metrics={
            key.removeprefix("metric.").replace("_at_", "@"): v
            for key, v in tags.items()
            if key.startswith("metric.")
        },
        main_metric=tags.get("main_metric", ""),
        weights=tags.get(WEIGHTS_TAG, ""),
        members=tags.get("members") or tags.get("granularities", ""),
        dataset=tags.get("dataset.name", ""),
        run_id=str(one.run_id or ""),
        promotion={
            key.removeprefix("promotion."): v
            for key, v in tags.items()
            if key.startswith("promotion.")
        },
    )

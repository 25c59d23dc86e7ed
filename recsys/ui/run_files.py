"""The JSON files of a run folder, as far as pages show them.

Why shapes: a folder with ``config.yaml`` and ``metrics.json`` may belong to another tool or to an
older release. A file of another shape counts as missing, so that it cannot stop a page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Self

from annotated_types import Len
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

Values = dict[str, float]  # metric → value
Ends = dict[str, Annotated[list[float], Len(2, 2)]]  # metric → both ends of its interval


class _Shape(BaseModel):
    """Keys with their types; other keys may have any content."""

    model_config = ConfigDict(strict=True, protected_namespaces=())


class _Data(_Shape):
    queries: int
    items: int


class _Confidence(_Shape):
    model: Ends = {}
    baselines: dict[str, Ends] = {}


class _Member(_Shape):
    kept: bool = True


class _Members(_Shape):
    each: dict[str, _Member] = {}


class MetricsShape(_Shape):
    """``metrics.json``."""

    metric: str
    model: Values
    data: _Data
    baselines: dict[str, Values] = {}
    confidence: _Confidence = _Confidence()
    granularities: dict[str, dict[str, float | None]] = {}
    members: _Members | None = None

    @model_validator(mode="after")
    def _has_its_metric(self) -> Self:
        if self.metric not in self.model:
            raise ValueError("the main metric has no value")
        return self


class PromotionShape(_Shape):
    """``promotion.json``."""

    decision: str
    time: str
    reasons: list[str] = []


class _Compared(_Shape):
    model_sha256: str


class _Difference(_Shape):
    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float


class ComparisonShape(_Shape):
    """``compare.json``."""

    first: _Compared
    second: _Compared
    metric: str
    metrics: Annotated[dict[str, _Difference], Len(1)]
    queries: int
    resamples: int = 0
    settings: dict[str, Annotated[list[Any], Len(2, 2)]]
    notes: list[str]


class _File(_Shape):
    sha256: str = ""


class BundleShape(_Shape):
    """``bundle.json``."""

    files: dict[str, _File] = {}


class TrackedShape(_Shape):
    """The file with the run's id in MLflow."""

    run_id: str = ""


def content_of(path: Path, shape: type[_Shape]) -> Mapping[str, Any]:
    """The JSON object in a file; empty if it is missing, incomplete, or of another shape."""
    try:
        found = path.stat()
        return _parsed(path, shape, found.st_mtime_ns, found.st_size)
    except (OSError, ValueError, RecursionError):
        return {}


@lru_cache(maxsize=512)
def _parsed(path: Path, shape: type[_Shape], mtime_ns: int, size: int) -> Mapping[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    try:
        shape.model_validate(content)
    except ValidationError:
        return {}
    assert isinstance(content, dict)
    return content

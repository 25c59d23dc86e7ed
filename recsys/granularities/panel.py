"""The panel of a granularity in the report: a title, a sentence and a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

Cell = str | float | int


@dataclass(frozen=True)
class Panel:
    """A panel of the report, also in ``panels`` of ``metrics.json``."""

    title: str
    text: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def to_json(self) -> dict[str, Any]:
        """Return the panel as JSON values."""
        return asdict(self)

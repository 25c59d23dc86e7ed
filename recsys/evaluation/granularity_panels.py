"""The report's panels that granularities define themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recsys.model import FrozenModel


def granularity_panels(model: FrozenModel, titles: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The panels of the granularities of a model, by name: ``panels`` of ``metrics.json``."""
    modules = [*model.encoders.each(), *model.encoders.each(closed_form=True)]
    found = {name: module.panel(model.states.get(name, {}), titles) for name, module in modules}
    return {name: panel.to_json() for name, panel in found.items() if panel is not None}

"""The HTML report of a search for fusion weights: gains, weights, and accuracy against list
properties.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from recsys.report.chart_geometry import Axis, axis
from recsys.report.pages import environment, packaged
from recsys.report.wording import metric_name

_SHOWN: Final = 0.75  # share of the best metric; worse settings are not drawn
_LISTS: Final = {
    "coverage": "share of the catalogue that is in at least one list",
    "diversity": "1 − mean cosine of the items in a list",
    "novelty": "mean self-information of a list's items, in bits",
}


def render_report(path: Path, report: dict[str, Any], name: str) -> None:
    """Write the content of ``fusion.json`` as one self-contained HTML file.

    Parameters
    ----------
    path : Path
        The HTML file.
    report : dict[str, Any]
        The content of ``fusion.json``.
    name : str
        Name of the dataset.
    """
    html = (
        environment(metric=metric_name)
        .from_string(packaged("tune", "fusion.html.j2"))
        .render(
            report=report,
            name=name,
            date=datetime.now(UTC).strftime("%-d %B %Y, %H:%M UTC"),
            panels=[panel(report, kind) for kind in _LISTS],
            lists=list(_LISTS),
            gains=gains(report),
            length=report["metric"].partition("@")[2],
            shown=_SHOWN,
        )
    )
    path.write_text(html, encoding="utf-8")


def panel(report: dict[str, Any], kind: str) -> dict[str, Any]:
    """All settings as points, and the front of this measure against the metric as a step line."""
    best = max(setting["metric"] for setting in report["settings"])
    shown = [setting for setting in report["settings"] if setting["metric"] >= _SHOWN * best]
    marked = {name: report[name] for name in ("today", "picked")}
    every = [*shown, *marked.values()]
    across, up = axis([each[kind] for each in every]), axis([each["metric"] for each in every])
    front: list[dict[str, Any]] = []
    for setting in sorted(shown, key=lambda each: (-each["metric"], -each[kind])):
        if not front or setting[kind] > front[-1][kind]:
            front.append(setting)
    corners = [_at(across, up, setting, kind) for setting in front]
    path = "".join(
        f"M{x} {y}" if index == 0 else f"H{x}V{y}" for index, (x, y) in enumerate(corners)
    )
    return {
        "kind": kind,
        "meaning": _LISTS[kind],
        "points": [_at(across, up, setting, kind) for setting in shown],
        "marks": {name: _at(across, up, each, kind) for name, each in marked.items()},
        "path": path,
        "x": across.labels(),
        "y": [(100 - position, text) for position, text in up.labels()],
    }


def _at(across: Axis, up: Axis, setting: dict[str, Any], kind: str) -> tuple[float, float]:
    return across.at(setting[kind]), round(100 - up.at(setting["metric"]), 3)


def gains(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The three gains on one axis that includes zero."""
    words = {
        "naive": "validation, on users who chose it",
        "cross_fitted": "validation, on users who did not choose it",
        "test": "test, with the model to register",
    }
    found = {name: report["gain"][name] for name in words}
    scale = axis([0.0, *(gain[end] for gain in found.values() for end in ("low", "high"))])
    return [
        {
            "name": words[name],
            "gain": gain["difference"],
            "low": gain["low"],
            "high": gain["high"],
            "at": scale.at(gain["difference"]),
            "from": scale.at(gain["low"]),
            "width": scale.at(gain["high"]) - scale.at(gain["low"]),
            "zero": scale.at(0.0),
        }
        for name, gain in found.items()
    ]

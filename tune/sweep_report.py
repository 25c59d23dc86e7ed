"""Render ``sweep.html``: the sweep on one page, without scripts or external files, in the report's
style.

Why: the table says which trial is best. Plots show whether the search has converged, which settings
matter, and whether the best value is at the edge of its range, so that the range should be
extended.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import jinja2

from recsys.evaluation.bootstrap import outcome
from recsys.report.chart_geometry import Axis, axis, curves
from recsys.report.pages import environment, packaged
from recsys.report.wording import breakable, duration, figure, metric_name, number, sentence, signed
from tune.ledger import Trial
from tune.outcome import changes, compare_with_default, comparison_words
from tune.plan import Plan
from tune.proposals import importance
from tune.space import Dimension
from tune.trial_lines import cell, short

_MAX_LINES: Final = 200  # maximum per chart


@dataclass(frozen=True)
class Scale:
    """Positions of the values of a dimension in percent; options in the middle of equal bands, so
    that their names have room, logarithmic ranges by their log.
    """

    dimension: Dimension

    def at(self, value: Any) -> float | None:
        """The position of a value; None outside the range (only the given configuration can be
        outside).
        """
        d = self.dimension
        if value not in d:
            return None
        if d.kind == "choice":
            position = next(n for n, option in enumerate(d.options) if option == value)
            return round(100 * (position + 0.5) / len(d.options), 3)
        if d.kind.startswith("log"):
            return round(100 * math.log(float(value) / d.low) / math.log(d.high / d.low), 3)
        return round(100 * (float(value) - d.low) / (d.high - d.low), 3)

    @property
    def labels(self) -> list[tuple[float, str]]:
        """Both ends of a range or all options of a choice, as (percent, text)."""
        d = self.dimension
        if d.kind == "choice":
            return [(self.at(option) or 0.0, cell(option)) for option in d.options]
        middle = math.sqrt(d.low * d.high) if d.kind.startswith("log") else (d.low + d.high) / 2
        return [(0.0, f"{d.low:.3g}"), (50.0, f"{middle:.3g}"), (100.0, f"{d.high:.3g}")]

    @property
    def room(self) -> float:
        """Width of a label in percent, so that it does not touch the next one."""
        return round(100 / len(self.labels), 3)


def render_sweep(path: Path, plan: Plan, root: Path) -> None:
    """Write the page; ``root`` is the run folder with the validation values of the trials.

    Parameters
    ----------
    path : Path
        The HTML file.
    plan : Plan
        The plan with its ledger.
    root : Path
        Folder of the sweep.
    """
    templates = environment(
        jinja2.FunctionLoader(_template),
        metric=metric_name,
        duration=duration,
        number=number,
        signed=signed,
        figure=figure,
        cell=cell,
        short=short,
        breakable=breakable,
        sentence=sentence,
    )
    trials = list(plan.ledger.trials.values())
    html = templates.get_template("sweep.html.j2").render(
        title=plan.config.run.name or "Sweep",
        date=datetime.now(UTC).strftime("%-d %B %Y, %H:%M UTC"),
        metric=plan.config.train.metric,
        counts={
            state: sum(t.state == state for t in trials)
            for state in ("finished", "stopped", "failed")
        },
        searched=len(plan.ledger.searched()),
        seconds=sum(trial.seconds for trial in trials),
        verdict=_verdict(plan, root),
        rows=_rows(plan),
        dimensions=plan.space.dimensions,
        fixed=plan.space.fixed,
        learning=_learning(plan),
        parallel=_parallel(plan),
        importance=_importance(plan),
        panels=_panels(plan),
        failures=[trial for trial in trials if trial.state == "failed"],
        changes=changes(plan),
        final=plan.ledger.final,
    )
    path.write_text(html, encoding="utf-8")


def _template(name: str) -> str:
    package = "tune" if name.startswith("sweep") else "recsys.report"
    return packaged(package, name)


def _verdict(plan: Plan, root: Path) -> dict[str, str]:
    """Whether the best trial is better than the given configuration."""
    words = comparison_words(plan, root)
    found = compare_with_default(plan, root)
    best = plan.best()
    is_given = best.number == 0
    head = f"{'The given configuration' if is_given else f'Trial {best.trials[0].name}'} is best."
    status = "alone" if found is None else outcome(found.to_json())
    return {"status": status, "head": head, "text": words}


def _rows(plan: Plan) -> list[dict[str, Any]]:
    """Rows of the table: configurations with all their seeds, the best first, then stopped and
    failed trials.
    """
    standings = plan.standings()
    ranked = {one.number for one in standings}
    rest = [trial for trial in plan.ledger.searched() if trial.number not in ranked]
    ordered = [(one.trials[0], one.values) for one in standings]
    ordered += [(trial, []) for trial in sorted(rest, key=lambda trial: -(trial.best or -math.inf))]
    return [
        {
            "trial": trial,
            "values": values,
            "value": (
                sum(values) / len(values)
                if values
                else (trial.best if trial.state == "stopped" else None)
            ),
            "epochs": max(trial.epochs, default=0),
            "params": _params(plan, trial),
            "best": values and trial.number == standings[0].number,
        }
        for trial, values in ordered
    ]


def _learning(plan: Plan) -> dict[str, Any] | None:
    """Validation metric by epoch of every searched trial, the best trial first."""
    best = plan.best().number
    trials = [t for t in plan.ledger.searched() if t.epochs]
    trials.sort(key=lambda t: (t.number != best, -(t.best or 0.0)))
    trials = trials[:_MAX_LINES]
    points = [
        [(float(epoch), entry["value"]) for epoch, entry in sorted(t.epochs.items())]
        for t in trials
    ]
    drawn = curves(points)
    if drawn is None:
        return None
    kinds = ["best" if t.number == best else t.state for t in trials]
    return {"curves": drawn, "kinds": kinds, "names": [t.name for t in trials]}


def _parallel(plan: Plan) -> dict[str, Any] | None:
    """Parallel coordinates: one line per trial, one axis per dimension, then the metric; better is
    darker.
    """
    trials = sorted(
        (t for t in plan.ledger.searched() if t.best is not None), key=lambda t: t.best or 0.0
    )[-_MAX_LINES:]
    if not trials:
        return None
    scales = [Scale(dimension) for dimension in plan.space.dimensions]
    up, best = axis([t.best or 0.0 for t in trials]), plan.best().number
    across = [round(100 * position / len(scales), 3) for position in range(len(scales) + 1)]
    lines = []
    for rank, trial in enumerate(trials):
        params = _params(plan, trial)
        heights = [scale.at(params[scale.dimension.path]) for scale in scales] + [
            up.at(trial.best or 0.0)
        ]
        points = [
            (x, round(100 - y, 3)) for x, y in zip(across, heights, strict=True) if y is not None
        ]
        kind = "best" if trial.number == best else trial.state
        shade = round(0.15 + 0.75 * (rank + 1) / len(trials), 2)
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
        lines.append({"path": path, "kind": kind, "shade": shade, "name": trial.name})
    axes = [(x, short(s.dimension.path), s.labels) for x, s in zip(across, scales, strict=False)]
    return {
        "lines": lines,
        "outside": [
            short(scale.dimension.path)
            for scale in scales
            if any(t.number == 0 for t in trials)
            and scale.at(plan.space.values_of(plan.config)[scale.dimension.path]) is None
        ],
        "axes": [*axes, (100.0, metric_name(plan.config.train.metric), up.labels())],
    }


def _importance(plan: Plan) -> list[dict[str, Any]]:
    shares = importance(plan.space, plan.known())
    widest = max(shares.values(), default=0.0) or 1.0
    return [
        {"path": path, "share": share, "width": 100 * share / widest}
        for path, share in shares.items()
    ]


def _panels(plan: Plan) -> list[dict[str, Any]]:
    """Every dimension against the metric, one dot per trial."""
    trials = [
        trial
        for trial in plan.ledger.searched()
        if trial.best is not None and trial.state != "failed"
    ]
    up: Axis = axis([trial.best or 0.0 for trial in trials])
    best, panels = plan.best().number, []
    for dimension in plan.space.dimensions:
        scale, dots = Scale(dimension), []
        for trial in sorted(trials, key=lambda trial: trial.number == best):
            value = _params(plan, trial)[dimension.path]
            left = scale.at(value)
            if left is not None:
                kind = "best" if trial.number == best else trial.state
                title = f"trial {trial.name}: {cell(value)}, {number(trial.best)}"
                dots.append(
                    {
                        "left": left,
                        "top": round(100 - up.at(trial.best or 0.0), 3),
                        "kind": kind,
                        "title": title,
                    }
                )
        labels = [(100 - position, text) for position, text in up.labels()]
        panels.append(
            {
                "path": dimension.path,
                "dots": dots,
                "x": scale.labels,
                "room": scale.room,
                "y": labels,
            }
        )
    return panels


def _params(plan: Plan, trial: Trial) -> dict[str, Any]:
    return trial.params if trial.number else plan.space.values_of(plan.config)

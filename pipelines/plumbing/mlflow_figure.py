"""The figure of a run that MLflow shows next to its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure


def recommenders_figure(metrics: Mapping[str, Any]) -> Figure:
    """Plot the main metric of the model and every baseline with its 95 % interval, the best on
    top.
    """
    metric, confidence = metrics["metric"], metrics["confidence"]
    named = {"model": (metrics["model"][metric], confidence["model"][metric])}
    named |= {
        name: (of[metric], confidence["baselines"][name][metric])
        for name, of in metrics["baselines"].items()
    }
    ordered = sorted(named, key=lambda name: named[name][0])
    figure = Figure(figsize=(6.4, 0.6 + 0.4 * len(ordered)), layout="constrained")
    axes = figure.add_subplot()
    for row, name in enumerate(ordered):
        value, (low, high) = named[name]
        colour = "#1f5fd0" if name == "model" else "#8b93a1"
        axes.plot([low, high], [row, row], color=colour, linewidth=2)
        axes.plot([value], [row], "o", color=colour)
        axes.annotate(
            f"{value:.4f}",
            (value, row),
            (0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(ordered)), ordered)
    axes.set_ylim(-0.6, len(ordered) - 0.2)
    axes.set_xlabel(f"{metric} on test, 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    return figure

"""Lines of progress for the reports of a training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pipelines.plumbing.run_folder import RunFolder
from recsys.pace import Count
from recsys.training.context import NOTE


def reporter(
    folder: RunFolder, log_epoch: Callable[[dict[str, Any]], None]
) -> Callable[[dict[str, Any]], None]:
    """A function that prints each report of a training, and logs reports of epochs to MLflow."""

    def report(values: dict[str, Any]) -> None:
        if NOTE in values:
            folder.progress(values[NOTE])
            return
        if values.get("epochs", 0) > 0:
            folder.progress.counted(epoch_count(values), stays=True)
        else:
            folder.progress(epoch_line(values))
        log_epoch(values)

    return report


def epoch_count(values: dict[str, Any]) -> Count:
    """One epoch as a count: of how many, with loss and metric."""
    epoch, epochs = values["epoch"], values["epochs"]
    return Count(
        "epochs",
        epoch,
        epochs,
        epoch / epochs,
        values.get("seconds", math.nan) * (epochs - epoch),
        f"{_measured(values)}{_phase(values)}".strip(),
        epoch_line(values),
        ended=epoch >= epochs,
    )


def epoch_line(values: dict[str, Any]) -> str:
    """One epoch as one line.

    >>> measured = {"ndcg@20": 0.2, "seconds": 1.26}
    >>> epoch_line({"phase": "select", "epoch": 3, "epochs": 20, "loss": 5.125, **measured})
    'epoch   3/20  loss 5.1250  ndcg@20 0.2000  1.3 s'
    >>> epoch_line({"phase": "select", "epoch": 0, "epochs": 0, **measured})
    'fitted  ndcg@20 0.2000  1.3 s'
    """
    rate = f"  lr {values['lr']:.2e}" if "lr" in values else ""
    took = f"  {values['seconds']:.1f} s" if "seconds" in values else ""
    what = f"epoch {values['epoch']:>3}/{values['epochs']}" if "loss" in values else "fitted"
    return f"{what}{_measured(values)}{rate}{took}{_phase(values)}"


def _measured(values: dict[str, Any]) -> str:
    """Loss and metrics of an epoch."""
    known = ("phase", "epoch", "epochs", "share", "loss", "lr", "seconds")
    metrics = [name for name in values if name not in known and isinstance(values[name], float)]
    shown = ["loss", *metrics] if "loss" in values else metrics
    return "".join(f"  {name} {values[name]:.4f}" for name in shown)


def _phase(values: dict[str, Any]) -> str:
    """The phase of an epoch where it is not the first one."""
    return "" if values.get("phase", "select") == "select" else f"  ({values['phase']})"

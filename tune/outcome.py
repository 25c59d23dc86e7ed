"""The outcome of a sweep: the table of trials, ``best.yaml``, and the best against the given
configuration.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml

from pipelines.plumbing.progress import table
from recsys.config import Config, redacted
from recsys.data.histories import Array
from recsys.evaluation.bootstrap import Comparison, compare
from recsys.registry.logged_values import flatten
from recsys.registry.mlflow_client import tracking_uri
from tune.plan import Plan, Standing
from tune.searcher import VALUES
from tune.trial_lines import cell, short

_RESAMPLES: Final = 2000


def trial_table(plan: Plan) -> str:
    """A table of all configurations, the best first; values are on validation."""
    metric = plan.config.train.metric
    paths = [dimension.path for dimension in plan.space.dimensions]
    rows = [["trial", "state", "epochs", "seeds", metric, *(short(path) for path in paths)]]
    standings = plan.standings()
    ranked = [one.trials[0] for one in standings]
    rest = [trial for trial in plan.ledger.searched() if trial not in ranked]
    means = {one.number: one for one in standings}
    for trial in [*ranked, *sorted(rest, key=lambda trial: -(trial.best or 0.0))]:
        one = means.get(trial.number)
        value = one.mean if one else trial.best
        params = trial.params or plan.space.values_of(plan.config)
        rows.append(
            [
                trial.name + (" (as given)" if trial.number == 0 else ""),
                trial.state,
                str(max(trial.epochs, default=0)),
                str(len(one.values)) if one else "–",
                "–" if value is None or trial.state == "failed" else f"{value:.4f}",
                *(cell(params[path]) for path in paths),
            ]
        )
    return table(rows)


def best_config(plan: Plan, dataset: str) -> Config:
    """The best configuration with its own run folder, on the sweep's dataset and in its tracking
    store.

    ``run.resume`` is true, because the sweep may be killed during this training.
    """
    config = plan.best_config()
    run = config.run.model_copy(update={"dir": str(Path(config.run.dir) / "best"), "resume": True})
    data = config.data.model_copy(update={"dir": dataset})
    tracking = config.tracking
    if tracking.enabled and not tracking.uri:
        tracking = tracking.model_copy(
            update={"uri": tracking_uri(plan.config.tracking, plan.config.run.dir)}
        )
    plain = type(config.tune)()
    return config.model_copy(update={"run": run, "data": data, "tracking": tracking, "tune": plain})


def best_yaml(plan: Plan, dataset: str, path: Path) -> str:
    """``best.yaml``: the best configuration, with a header that says where it comes from.

    Parameters
    ----------
    plan : Plan
        The finished plan.
    dataset : str
        Path of the prepared dataset, written as ``data.dir``.
    path : Path
        Where the text will be written, for the command in the header.

    Returns
    -------
    str
        YAML with a header of comments; secrets are left out.
    """
    tree = redacted(best_config(plan, dataset)).model_dump(mode="json")
    del tree["tune"]
    best = plan.best()
    changed = "".join(f"#   {key}: {json.dumps(value)}\n" for key, value in changes(plan).items())
    return (
        f"# trial {best.trials[0].name} of a sweep of {len(plan.ledger.searched())} trials: "
        f"{plan.config.train.metric} {best.mean:.4f} on validation, {_seeds(best)}\n"
        f"# command: recsys run --config {path}\n"
        + (f"# differences from the given configuration:\n{changed}" if changed else "")
        + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    )


def compare_with_default(plan: Plan, root: Path) -> Comparison | None:
    """Paired bootstrap on validation users, values averaged over seeds; None if there is nothing to
    compare.
    """
    best, default = plan.best(), plan.ledger.of(0)
    if best.number == 0 or not [trial for trial in default if trial.state == "finished"]:
        return None
    ours_B, theirs_B = _values(best, root), _values(Standing(0, tuple(default)), root)
    return compare(ours_B, theirs_B, _RESAMPLES, plan.config.seed)


def comparison_words(plan: Plan, root: Path) -> str:
    """A sentence that compares the best configuration with the given one."""
    metric, best = plan.config.train.metric, plan.best()
    if best.number == 0:
        return (
            f"no trial was better than the given configuration ({metric} {best.mean:.4f} on"
            " validation)"
        )
    found = compare_with_default(plan, root)
    if found is None:
        return (
            f"the given configuration failed, so the gain of the best ({metric} {best.mean:.4f}) is"
            " unknown"
        )
    default = Standing(0, tuple(plan.ledger.of(0)))
    return (
        f"on validation {metric} is {best.mean:.4f} ({_seeds(best)}) against {default.mean:.4f}"
        f" with the given configuration ({_seeds(default)}): {found.difference:+.4f}, 95 % interval"
        f" {found.low:+.4f} to {found.high:+.4f}; chosen on these users, so expect a smaller gain"
        " on test"
    )


def _seeds(standing: Standing) -> str:
    number = len(standing.values)
    return f"mean of {number} seeds" if number > 1 else "one seed"


def _values(standing: Standing, root: Path) -> Array:
    """Mean over seeds of the validation values: [B]."""
    finished = [trial.name for trial in standing.trials if trial.state == "finished"]
    found: Array = np.mean([np.load(root / "trials" / name / VALUES) for name in finished], axis=0)
    return found


def changes(plan: Plan) -> dict[str, Any]:
    """Dotted path → value of the best configuration, where it differs from the given one."""
    best, default = (flatten(c.model_dump(mode="json")) for c in (plan.best_config(), plan.config))
    return {path: value for path, value in best.items() if default.get(path) != value}

"""Estimate how well the choices of a shop can be predicted: the metric with knowledge of the rules
of its world.

Why it is reported with the gain: if popularity and chance make most of the choices, no model can be
far above the best baseline. The estimate takes the world at the cut, lets every test user choose
many times at the times of the targets, and ranks by how often an item is chosen. It is an estimate:
a limited number of draws per user, and no choices between the cut and the target.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.shop_files import Shop
from benchmarks.shop_world import DAY, FURTHER, TYPES, Array, Choices
from recsys.config import load_config
from recsys.evaluation.metrics import QUERY_METRICS, parse_metric

_DRAWS: Final = 60
# weight of an item's popularity against a draw: it orders items with equally many draws
_BEHIND: Final = 0.02


def ceiling(configuration: Path, shop: Shop) -> float | None:
    """Mean of the configuration's metric over test users with a history; None if the split is not
    temporal."""
    config, world, plan = load_config(configuration), shop.world, shop.world.plan
    if config.data.split.kind != "temporal":
        return None
    kind, k = parse_metric(config.train.metric, tuple(QUERY_METRICS))
    kind_asked = TYPES.index("purchase") if config.data.targets else 0
    is_asked_E = world.kinds == kind_asked
    cut = int(
        np.quantile(world.times[is_asked_E], 1 - float(config.data.split.test), method="higher")
    )
    choices, values = Choices.of(plan), []
    choices.make(until=cut)
    past = choices.world
    is_asked_E &= world.times >= cut
    for user in np.unique(world.users[is_asked_E]).tolist():
        had = (
            past.items[(past.users == user) & (past.kinds == kind_asked)]
            if config.evaluate.exclude_seen
            else []
        )
        rows_E = is_asked_E & (world.users == user)
        targets = np.setdiff1d(world.items[rows_E], had)
        if not choices.had[user] or not len(targets):
            continue
        counts_N = _counts(choices, user, world.times[rows_E].tolist())
        counts_N[had] = -1.0
        hits_1K = np.isin(np.argsort(-counts_N)[:k], targets)[None]
        values.append(float(QUERY_METRICS[kind](hits_1K, np.array([len(targets)]), k)[0]))
    return round(float(np.mean(values)), 4) if values else None


def _counts(choices: Choices, user: int, times: list[int]) -> Array:
    """Number of times that the user would choose each item at these times."""
    plan, styles_S = choices.plan, choices.people.styles[user]
    counts_N = _BEHIND * choices.offered((times[0] - plan.start) // DAY) * choices.wanted(user)
    if plan.has("taste"):
        counts_N = counts_N * (choices.fits @ styles_S)
    for draw in range(_DRAWS):
        item, is_meant = choices.choose(user, times[draw % len(times)])
        counts_N[item] += FURTHER[is_meant] if plan.has("types") else 1.0
    return counts_N

"""The five systems, each in the world of its signals: much better than its base, which lacks the
system's additions.

The worlds have the named knobs at 1 and the others at 0. In the world with all knobs, all
granularities together are no worse than any system alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from recsys.sources.world import KNOBS
from tests.planted import is_no_loss, margin, planted_dataset, train_ndcg

pytestmark = pytest.mark.usefixtures("one_thread")

SEED = 23
CHECKED: dict[str, Any] = {"fusion": {"check": True}}
# few events per item, so that ids are less predictive than other signals
SPARSE = {"num_items": 1000, "events_per_user": 6.0}
Granularities = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class System:
    """The granularities of a system, its base, and the world in which it helps."""

    knobs: Sequence[str]
    base: Granularities
    adds: Granularities
    world: dict[str, Any] = field(default_factory=dict)


SYSTEMS = {
    "S1": System(
        ("text", "social", "collaborative"),
        {"evolution": {}},
        {"behaviour": {}, "social": {}, "collaborative": {}},
    ),
    "S2": System(
        ("stratum",),
        {"collaborative": {"layers": 2}},
        {"stratum": {}},
        {"num_users": 500, "num_items": 600, "events_per_user": 14.0},
    ),
    "S3": System(("profile",), {"evolution": {}}, {"profile": {}, "item_cf": {}}, SPARSE),
    "S4": System(("evolution",), {"collaborative": {}}, {"evolution": {}}),
    "S5": System(
        ("text", "knowledge"), {"evolution": {}}, {"behaviour": {}, "knowledge": {}}, SPARSE
    ),
}


# Fast tests show the additions of S1, S3 and S4 one by one: test_planted_worlds.py and
# test_planted_profile.py.
SLOW = {"S1", "S3", "S4"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in SYSTEMS]
)
def test_system_finds_its_signals(name: str, tmp_path: Path) -> None:
    """Measured: S1 +66 %, S2 +77 %, S3 +96 %."""
    system = SYSTEMS[name]
    dataset = planted_dataset(tmp_path, dict.fromkeys(system.knobs, 1.0), **system.world, seed=SEED)
    base = train_ndcg(dataset, system.base)
    gained = margin(train_ndcg(dataset, {**system.base, **system.adds}, model=CHECKED), base)
    assert gained > 0.3


@pytest.mark.slow
def test_all_systems_together_are_no_worse_than_any(tmp_path: Path) -> None:
    dataset = planted_dataset(tmp_path, dict.fromkeys(KNOBS, 1.0), seed=SEED)
    systems = {name: {**system.base, **system.adds} for name, system in SYSTEMS.items()}
    together: Granularities = {
        key: options for system in systems.values() for key, options in system.items()
    }
    all_ = train_ndcg(dataset, together, model=CHECKED)
    for name, granularities in systems.items():
        alone = train_ndcg(dataset, granularities, model=CHECKED)
        assert is_no_loss(all_, alone), name

"""Training queries are some events before their targets, where the evaluation asks for several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.config import build_config
from recsys.config.contradictions import check_settings
from recsys.data.batches import every_position
from recsys.data.histories import Histories, Split
from recsys.data.loader import LoaderConfig, TrainingLoader
from recsys.data.look_ahead import with_look_ahead
from recsys.errors import ConfigError
from recsys.training.context import TrainContext
from recsys.training.fresh_model import build_loader
from tests.handmade import DAY, write_dataset


def test_every_event_but_the_first_is_a_target_and_queries_see_an_event() -> None:
    whole = Histories.of_items([list(range(30)), [5, 6]], [0, 1])
    distances = set()
    for seed in range(20):
        batch = every_position(with_look_ahead(whole, 4, seed), 50)
        assert sorted(batch.targets_P.tolist()) == sorted([*range(1, 30), 6])
        assert int(batch.seen_B.min()) == 1
        first_user = batch.rows_B == 0
        distances |= set((batch.targets_P - batch.seen_B)[first_user].tolist())
    assert distances == {0, 1, 2, 3, 4}


def test_events_before_a_first_touch_are_added() -> None:
    whole = Histories.of_items([list(range(10))], [0])
    touched = replace(whole, ahead_E=np.full(10, 3, dtype=np.int32))
    found = with_look_ahead(touched, 2, 1).ahead_E
    assert found.min() >= 3 and found.max() <= 5
    assert found[:5].tolist() == [3] * 5, "these queries see one event, or none"


def _look_ahead(folder: Path, kind: str, apart: int = 2 * DAY, **train: Any) -> int:
    rows = [[(item, 0, DAY + apart * item, Split.TRAIN) for item in range(4)]] * 4
    dataset = write_dataset(folder, rows, 4)
    dataset.manifest.split = {"kind": kind}
    config = build_config(
        {"model": {"granularities": {"behaviour": {"enabled": True}}}, "train": train}
    )
    context = TrainContext()
    loader = build_loader(config.model, config.train, 0, dataset, Split.TRAIN, context)
    return loader.config.look_ahead


@pytest.mark.parametrize(
    ("kind", "expected"), [("temporal", 20), ("ratio", 0), ("leave-last", 0), ("given", 0)]
)
def test_only_a_temporal_split_looks_ahead_by_default(
    tmp_path: Path, kind: str, expected: int
) -> None:
    assert _look_ahead(tmp_path, kind) == expected
    assert _look_ahead(tmp_path, kind, look_ahead=3) == 3


def test_events_of_one_visit_are_not_looked_over_by_default(tmp_path: Path) -> None:
    assert _look_ahead(tmp_path, "temporal", apart=DAY // 24) == 0


def test_dataset_without_an_order_is_refused(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, [[(0, 0, DAY, Split.TRAIN)]] * 2, 1, ordered=False)
    with pytest.raises(ConfigError, match=r"look_ahead 3 acts on data with an order only"):
        TrainingLoader(dataset, Split.TRAIN, LoaderConfig(4, 4, 0.0, 1.0, 10_000, 0, look_ahead=3))


def test_configured_order_none_is_refused() -> None:
    tree = {
        "data": {"source": {"kind": "synthetic"}, "order": "none"},
        "model": {"granularities": {"behaviour": {"enabled": True}}},
        "train": {"look_ahead": 5},
    }
    with pytest.raises(ConfigError, match=r"train\.look_ahead 5 is for data with an order"):
        check_settings(build_config(tree), ("train",))

"""``moment`` by hand, and in a world in which the hour determines the next item."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.config import build_config
from recsys.data.batches import last_position
from recsys.data.histories import Histories, Queries, Split
from recsys.errors import ConfigError
from recsys.evaluation.validation import Validator
from recsys.granularities.base import Graphs, ItemView, ModelSizes
from recsys.granularities.moment.model import Moment
from recsys.granularities.moment.section import MomentConfig
from recsys.model import FrozenModel
from recsys.training.fresh_model import build_graphs, build_model
from tests.handmade import DAY, write_dataset

HOUR = 3600
MONDAY = 4 * DAY  # 5 January 1970
SIZES = ModelSizes(
    4, 10, 2, 3, 1, 0, ordered=True, timed=True, context=(("size", 0), ("device", 4))
)


def test_hours_weekdays_and_context_equal_those_by_hand() -> None:
    histories = replace(
        Histories.of_items([[0, 1], [0]], [0, 1]),
        times_E=np.array([MONDAY + 5 * HOUR, MONDAY + DAY + 5 * HOUR, MONDAY + 20 * HOUR]),
        context_EC=np.array([[9, 2], [9, 3], [9, 0]], dtype=np.int16),
    )
    none = torch.zeros(0, dtype=torch.int64)
    graphs = Graphs(2, 3, none, none, histories=histories)
    module = Moment(MomentConfig(smoothing=2.0, query_context=["device"]), SIZES)
    view = ItemView(torch.zeros(3, 4), torch.zeros(3, 0))
    state = module.state(view, graphs)
    empty = Histories.of_items([[], [], []])
    context_BC = np.array([[0, 2], [0, 0], [0, 0]], dtype=np.int16)
    at = np.array([MONDAY + 7 * DAY + 5 * HOUR + 60, MONDAY + 20 * HOUR, 0])
    queries = Queries(empty, np.zeros(4, np.int64), np.zeros(0, np.int32), context_BC, at)
    z_BG, present_B = module(last_position(queries, 5), view, state)
    assert present_B.tolist() == [True, True, False] and not z_BG[2].any()
    scores_BN = (z_BG @ module.own_items(state).T).numpy()
    share, popularity = np.array([2, 1]) / 3, np.log(np.array([3, 2]) / 6)

    def odds(counts: list[int]) -> np.ndarray:
        return np.log((np.array(counts) + 2 * share) / ((sum(counts) + 2) * share))

    # at 5 h, on a Monday, with device 2
    expected = popularity + odds([1, 1]) + odds([2, 0]) + odds([1, 0])
    np.testing.assert_allclose(scores_BN[0, :2], expected, rtol=1e-5)
    np.testing.assert_allclose(
        scores_BN[1, :2], popularity + odds([1, 0]) + odds([2, 0]), rtol=1e-5
    )


def test_half_life_limits_the_popularity_to_the_last_days() -> None:
    histories = Histories.of_items([[0, 0, 1]])
    histories = replace(
        histories, times_E=np.array([DAY, 2 * DAY, 6 * DAY]), context_EC=np.zeros((3, 2), np.int16)
    )
    none = torch.zeros(0, dtype=torch.int64)
    view = ItemView(torch.zeros(3, 4), torch.zeros(3, 0))
    graphs = Graphs(1, 3, none, none, histories=histories)
    found = {}
    for half_life in ("none", 2.0):
        module = Moment(MomentConfig(half_life=half_life), SIZES)  # type: ignore[arg-type]
        found[half_life] = module.own_items(module.state(view, graphs))
    assert torch.equal(found["none"][:, :-1], found[2.0][:, :-1]), "the cells do not change"
    np.testing.assert_allclose(found["none"][:, -1], np.log(np.array([3, 2, 1]) / 6), rtol=1e-5)
    faded = np.array([2**-2.5 + 0.25, 1, 0])
    expected = np.log(0.9 * faded / faded.sum() + 0.1 * np.array([3, 2, 1]) / 6)
    np.testing.assert_allclose(found[2.0][:, -1], expected, rtol=1e-5)


def test_moment_refuses_data_without_times_and_context() -> None:
    with pytest.raises(
        ConfigError, match=r"names size, not in the categories of data\.context: device"
    ):
        Moment(MomentConfig(query_context=["size"]), SIZES)
    with pytest.raises(ConfigError, match="needs times"):
        Moment(MomentConfig(), replace(SIZES, timed=False))


def test_moment_finds_the_hour_that_determines_the_next_item(tmp_path: Path) -> None:
    """Twenty items; in each hour, one of them has probability one half."""
    random, rows = np.random.default_rng(0), []
    for _ in range(300):
        row = []
        for day in range(6):
            hour = int(random.integers(20))
            item = hour if random.random() < 0.5 else int(random.integers(20))
            row.append((item, 0, (day + 1) * DAY + hour * HOUR, Split.TRAIN))
        rows.append([*row[:4], (*row[4][:3], Split.VALID), (*row[5][:3], Split.TEST)])
    dataset = write_dataset(tmp_path / "data", rows, 20)
    section = {"enabled": True, "smoothing": 10.0}
    tree = {"model": {"granularities": {"moment": section}}, "evaluate": {"exclude_seen": False}}
    config = build_config({"data": {"dir": dataset.root}, **tree, "train": {"metric": "ndcg@10"}})
    model = build_model(config.model, config.train, dataset, Split.VALID)
    frozen = model.freeze(build_graphs(dataset, Split.VALID, model, config.evaluate, config.seed))
    queries = dataset.histories().queries(Split.TEST)
    unasked = replace(queries, asked_at_B=np.zeros(len(queries), dtype=np.int64))
    with_, without = (
        Validator.of(config.train, config.evaluate)(frozen, each).mean()
        for each in (queries, unasked)
    )
    assert with_ > 1.5 * without, (with_, without)
    read = FrozenModel.from_tensors(frozen.config, frozen.sizes, frozen.tensors())
    assert torch.equal(read.scores(queries), frozen.scores(queries))

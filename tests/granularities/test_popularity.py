"""Popularity at the time of the request: sums by hand, no events after a request, and its
constants.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.config import build_config
from recsys.data.batches import Batch, last_position
from recsys.data.histories import Histories, Queries, Split
from recsys.evaluation.validation import Validator
from recsys.granularities.base import Graphs, ItemView, ModelSizes
from recsys.granularities.popularity.model import Popularity
from recsys.granularities.popularity.section import PopularityConfig
from recsys.granularities.shares import moments
from recsys.model import FrozenModel
from recsys.training.constants import CONSTANTS, choose_values, narrowed, with_constants
from recsys.training.context import TrainContext
from recsys.training.fresh_model import build_graphs, build_model
from recsys.training.phases import fit
from recsys.training.selected import assemble
from tests.handmade import DAY, write_dataset

ITEMS = 4
EVENTS = [[(0, 10), (1, 12)], [(0, 10), (0, 12), (2, 20)]]  # item and day of each user
VIEW = ItemView(torch.zeros(ITEMS, 4), torch.zeros(ITEMS, 0))


def _graphs() -> Graphs:
    histories = Histories.of_items([[item for item, _ in row] for row in EVENTS], [0, 1])
    histories = replace(
        histories, times_E=np.array([day * DAY for row in EVENTS for _, day in row])
    )
    pairs = sorted({(user, item) for user, row in enumerate(EVENTS) for item, _ in row})
    users_E, items_E = torch.tensor(pairs).T
    return Graphs(2, ITEMS, users_E, items_E, histories=histories)


def _module(**keys: object) -> Popularity:
    section = PopularityConfig(**keys)  # type: ignore[arg-type]
    return Popularity(section, ModelSizes(4, 10, 2, ITEMS, 1, 0, ordered=True, timed=True)).eval()


def _asked(days: list[float]) -> Batch:
    empty = Histories.of_items([[] for _ in days])
    times = np.array([int(day * DAY) for day in days])
    return last_position(
        Queries(empty, np.zeros(len(days) + 1, np.int64), np.zeros(0, np.int32), asked_at_B=times),
        5,
    )


def _scores(module: Popularity, days: list[float]) -> tuple[np.ndarray, list[bool]]:
    state = module.state(VIEW, _graphs())
    z_BT, present_B = module(_asked(days), VIEW, state)
    return (z_BT @ module.own_items(state).T).numpy(), present_B.tolist()


def test_decayed_counts_equal_those_by_hand() -> None:
    """A half-life of two days; the stored times are days 10, 12 and 20."""
    scores_BN, present_B = _scores(_module(half_life=2, counts="events"), [10, 11, 12, 13, 21, 0])
    assert present_B == [False, True, True, True, True, True], "there are no events before day 10"
    assert not scores_BN[0].any()

    def expected(recent: list[float], ever: list[int]) -> np.ndarray:
        share = 0.9 * np.array(recent) / sum(recent) + 0.1 * (np.array(ever) + 1) / (
            sum(ever) + ITEMS
        )
        return np.log(share)

    np.testing.assert_allclose(scores_BN[1], expected([2, 0, 0, 0], [2, 0, 0, 0]), rtol=1e-5)
    np.testing.assert_allclose(
        scores_BN[2], scores_BN[1], err_msg="events at the time of the request do not count"
    )
    np.testing.assert_allclose(
        scores_BN[3], expected([2 / 2 + 1, 1, 0, 0], [3, 1, 0, 0]), rtol=1e-5
    )
    late = expected([2 / 32 + 1 / 16, 1 / 16, 1, 0], [3, 1, 1, 0])
    np.testing.assert_allclose(scores_BN[4], late, rtol=1e-5)
    np.testing.assert_allclose(
        scores_BN[5], late, rtol=1e-5, err_msg="a request without a time counts as now"
    )


def test_each_user_counts_once() -> None:
    scores_BN, _ = _scores(_module(half_life="none", counts="users"), [21])
    share = 0.9 * np.array([2, 1, 1, 0]) / 4 + 0.1 * np.array([3, 2, 2, 1]) / 8
    np.testing.assert_allclose(scores_BN[0], np.log(share), rtol=1e-5)


def test_later_events_do_not_change_earlier_requests() -> None:
    graphs, module = _graphs(), _module(half_life=3, counts="events")
    assert graphs.histories is not None
    early = replace(graphs, histories=graphs.histories.where(graphs.histories.times_E <= 12 * DAY))
    batch = _asked([11, 12.5])
    states = [module.state(VIEW, world) for world in (graphs, early)]
    whole, cut = (module(batch, VIEW, state)[0] @ module.own_items(state).T for state in states)
    assert torch.equal(whole, cut)


def test_delay_of_a_request_does_not_change_the_order() -> None:
    """Item 1 is new after the first stored time, day 10; a half-life is a hundredth of a day."""
    graphs, module = _graphs(), _module(half_life=0.01, counts="events", moments=2)
    assert graphs.histories is not None
    times_E = np.array([10 * DAY, 10.5 * DAY, 10 * DAY, 10 * DAY, 20 * DAY]).astype(np.int64)
    graphs = replace(graphs, histories=replace(graphs.histories, times_E=times_E))
    state = module.state(VIEW, graphs)
    found = module.boost(_asked([10.75, 19]), VIEW, state)
    assert found.items_P.tolist() == [1, 1] and float(found.values_P[0]) > 30
    assert found.values_P[1] == found.values_P[0]


def test_popularity_without_times_is_the_counts() -> None:
    module = _module(half_life=3)
    state = module.state(VIEW, replace(_graphs(), histories=None))
    z_BT, present_B = module(_asked([0, 15]), VIEW, state)
    scores_BN = z_BT @ module.own_items(state).T
    assert present_B.all() and torch.equal(scores_BN[0], scores_BN[1])
    share = 0.9 * np.array([2, 1, 1, 0]) / 4 + 0.1 * np.array([3, 2, 2, 1]) / 8
    np.testing.assert_allclose(scores_BN[0].numpy(), np.log(share), rtol=1e-5)


def test_stored_times_end_with_the_last_event_and_are_denser_there() -> None:
    found = moments(np.arange(1, 6401), 64)
    assert 60 <= len(found) <= 64 and found[-1] == 6400
    assert np.diff(found)[-8:].mean() < np.diff(found)[:8].mean() / 4
    assert moments(np.array([5, 5, 5]), 64).tolist() == [5]


@pytest.fixture
def fashions(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Every ten days another of six items is popular; 150 users with two events each."""
    random, rows = np.random.default_rng(0), []
    for start in random.integers(1, 50, 150):
        row = []
        for day in sorted({*(start + random.integers(0, 11, 4)).tolist()}):
            item = int(day) // 10 if random.random() < 0.8 else int(random.integers(6))
            row.append((item, 0, int(day) * DAY, Split.TRAIN))
        parts = [Split.TRAIN] * (len(row) - 2) + [Split.VALID, Split.TEST]
        rows.append(
            [(*event[:3], part) for event, part in zip(row, parts, strict=True)]
            if len(row) > 2
            else row
        )
    return write_dataset(tmp_path / "data", rows, 7)


def test_validation_chooses_a_short_half_life_if_fashions_change(fashions) -> None:  # type: ignore[no-untyped-def]
    section: dict[str, object] = {
        "enabled": True,
        "half_life": ["none", 2, 1000],
        "counts": "events",
        "rest": 0.1,
    }
    section |= {"as_of": "question", "types": "all"}
    tree = {
        "model": {"granularities": {"popularity": section}},
        "evaluate": {"exclude_seen": False},
    }
    config = build_config(
        {"data": {"dir": fashions.root}, **tree, "train": {"metric": "ndcg@10", "refit": True}}
    )
    found = choose_values(
        config, fashions, Validator.of(config.train, config.evaluate), TrainContext()
    )["popularity"]
    assert found["chosen"] == {"half_life": 2}
    assert found["candidates"]["half_life"]["2.0"] > found["candidates"]["half_life"]["none"] + 0.2
    trained = fit(config, fashions, Validator.of(config.train, config.evaluate), TrainContext())
    assert trained.choices[CONSTANTS]["popularity"]["chosen"] == {"half_life": 2}
    served = trained.frozen.config.granularities.popularity
    assert served.half_life == [2], "the model has its constants"
    assert narrowed(config.model, trained.frozen.config) == trained.frozen.config
    other = config.model.model_copy(deep=True)
    other.granularities.popularity.half_life = [5, 9]
    assert narrowed(other, trained.frozen.config) == other, "this value was not a candidate"
    settings = with_constants(config, trained.choices)
    model = build_model(settings.model, settings.train, fashions, Split.VALID)
    again = model.freeze(build_graphs(fashions, Split.VALID, model=model))
    queries = fashions.histories().queries(Split.TEST)
    torch.testing.assert_close(again.states["popularity"], trained.frozen.states["popularity"])
    made = assemble(config, fashions, Split.VALID, trained.weights, trained.choices)
    torch.testing.assert_close(made.states["popularity"], trained.frozen.states["popularity"])
    read = FrozenModel.from_tensors(
        trained.frozen.config, trained.frozen.sizes, trained.frozen.tensors()
    )
    assert torch.equal(read.scores(queries), trained.frozen.scores(queries))


def test_first_value_is_kept_if_validation_cannot_choose(fashions) -> None:  # type: ignore[no-untyped-def]
    def chosen(**keys: object) -> dict[str, dict[str, object]]:
        section = {"enabled": True, "rest": 0.1, "as_of": "question", "types": "all", **keys}
        tree = {"data": {"dir": fashions.root}, "model": {"granularities": {"popularity": section}}}
        config = build_config(tree)
        return choose_values(config, fashions, lambda _, queries: np.zeros(0), TrainContext())

    assert chosen(half_life=7, counts="users") == {}
    assert set(chosen(half_life=7)["popularity"]["chosen"]) == {"counts"}
    found = chosen()["popularity"]
    assert found["chosen"] == {"half_life": PopularityConfig().half_life[0], "counts": "users"}
    assert found["candidates"] == {"half_life": {}, "counts": {}}, "no NaN"

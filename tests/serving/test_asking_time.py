"""The time of a request: the first target in evaluation, its own time or now in serving, the newest
event in batch.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.command_line.configuration_checks import check
from recsys.config import build_config
from recsys.data.batches import every_position, last_position
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Queries, Split
from recsys.errors import ConfigError, RequestError
from recsys.evaluation.ranking import countable
from recsys.model import FrozenModel
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.request_parsing import parse_requests
from recsys.training.fresh_model import build_graphs, build_model
from tests.handmade import DAY, leave_last, small_model, small_world, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return small_world(tmp_path_factory.mktemp("world") / "dataset")


@pytest.fixture(scope="module")
def recommender(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    folder = tmp_path_factory.mktemp("model") / "bundle"
    write_bundle(folder, small_model(dataset), dataset, {})
    return Recommender(read_bundle(folder))


def test_evaluation_uses_the_time_of_the_earliest_target(tmp_path: Path) -> None:
    histories = [
        [(0, 0, DAY, Split.TRAIN), (1, 0, 5 * DAY, Split.TEST), (2, 0, 4 * DAY, Split.TEST)],
        [(0, 0, DAY, Split.TRAIN), (1, 0, 0, Split.TEST), (2, 0, 9 * DAY, Split.TEST)],
        [(0, 0, DAY, Split.TRAIN), (1, 0, 0, Split.TEST)],
    ]
    found = write_dataset(tmp_path, histories, 3, num_shards=1).histories().queries(Split.TEST)
    assert found.asked_at_B.tolist() == [4 * DAY, 9 * DAY, 0]
    assert found.take(np.array([1, 0])).asked_at_B.tolist() == [9 * DAY, 4 * DAY]
    kept, _, _ = countable(found, exclude_seen=True)
    assert kept.asked_at_B.tolist() == [4 * DAY, 9 * DAY, 0]


def test_batches_have_times_of_events_and_requests(tmp_path: Path) -> None:
    histories = write_dataset(
        tmp_path, [leave_last(3, 1, 2), leave_last(0, 1, 2, 3)], 4, num_shards=1
    ).histories()
    trained = every_position(histories, 2, np.arange(2))
    assert trained.times_UL.tolist() == [[DAY, 2 * DAY], [2 * DAY, 3 * DAY]]
    assert trained.asked_at_B.tolist() == [2 * DAY, 3 * DAY, 3 * DAY, 4 * DAY]
    asked = last_position(histories.queries(Split.TEST), 1)
    assert asked.times_UL.tolist() == [[2 * DAY], [3 * DAY]] and asked.asked_at_B.tolist() == [
        3 * DAY,
        4 * DAY,
    ]
    assert asked.whole is not None and asked.whole.histories.items_E.tolist() == [3, 1, 0, 1, 2]


def test_histories_are_loaded_only_where_a_member_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_dataset(tmp_path, [leave_last(0, 1, 0, 1, 2) for _ in range(40)], 3)
    tree: Any = {"data": {"dir": str(tmp_path)}, "evaluate": {"max_fit_events": 100}}
    tree["model"] = {
        "granularities": {"behaviour": {"enabled": True}, "item_cf": {"enabled": True}}
    }
    config = build_config(tree)
    model = build_model(config.model, config.train, dataset, Split.TRAIN)
    assert build_graphs(dataset, Split.TRAIN, model=model).histories is None
    monkeypatch.setattr(
        dict(model.encoders.each(closed_form=True))["item_cf"], "reads_histories", True
    )
    held = build_graphs(dataset, Split.TRAIN, model=model).histories
    assert held is not None and len(held) == 40
    assert held.items_E.tolist() == [0, 1, 0] * 40 and held.times_E[:3].tolist() == [
        DAY,
        2 * DAY,
        3 * DAY,
    ]
    some = build_graphs(
        dataset, Split.VALID, model=model, evaluate=config.evaluate, seed=config.seed
    ).histories  # an even sample of half the users
    assert some is not None and 10 <= len(some) <= 30 and set(some.lengths_U) == {4}


def test_request_time_is_now_by_default(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_234_567.9)
    rows = [
        {"user_id": "u0"},
        {"user_id": "u0", "at": "1970-01-02"},
        {"history": ["i1"], "at": 2 * 10**9},
    ]
    assert recommender.queries(parse_requests(rows)).asked_at_B.tolist() == [
        1_234_567,
        DAY,
        2 * 10**9,
    ]
    with pytest.raises(RequestError, match=r"request 0: at: got 'soon'.*expected a time"):
        parse_requests([{"user_id": "u0", "at": "soon"}])


def test_batch_uses_the_time_of_the_newest_event(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    parts = FrozenModel.contributions

    def watched(
        self: FrozenModel, queries: Queries, *rest: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        asked.extend(queries.asked_at_B.tolist())
        return parts(self, queries, *rest)

    monkeypatch.setattr(FrozenModel, "contributions", watched)
    recommender.recommend_users(["u0", "nobody"], 3)
    assert asked == [5 * DAY, 5 * DAY]  # the fifth event of u0
    recommender.recommend_users(["u0"], 3, at=7)
    assert asked[2:] == [7]


def test_batch_without_event_times_has_an_unknown_time(tmp_path: Path) -> None:
    histories = [
        [(item, 0, 0, part) for item, _, _, part in leave_last(0, 1, 2, 3)] for _ in range(3)
    ]
    dataset = write_dataset(tmp_path / "dataset", histories, 12, text_width=6)
    write_bundle(tmp_path / "bundle", small_model(dataset), dataset, {})
    assert Recommender(read_bundle(tmp_path / "bundle")).newest == 0


def test_invalid_time_of_a_batch_is_refused_before_the_start() -> None:
    config = build_config(
        {
            "recommend": {"at": "yesterday"},
            "model": {"granularities": {"behaviour": {"enabled": True}}},
        }
    )
    with pytest.raises(ConfigError, match="recommend.at: 'yesterday' is not a time"):
        check(config, ("recommend",))

"""The cost of diversity: measured with the lists that requests get, and shown in the report."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from recsys.config import Config
from recsys.data.histories import Histories, Split
from recsys.evaluation.metrics import ndcg_at
from recsys.evaluation.ranking import mark_hits, rank
from recsys.granularities.sparse import SparseScores
from recsys.report.panels import trade_off_panel
from recsys.serving.diversity import by_relevance
from recsys.serving.item_similarity import ItemSimilarity
from recsys.serving.trade_off import STRENGTHS, trade_off

USERS, ITEMS, WIDTH = 40, 150, 6


class Vectors:
    """A model whose scores are u · a of given vectors."""

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(0)
        self.item_vectors_ND = torch.randn(ITEMS, WIDTH, generator=random)
        self.users_UD = torch.randn(USERS, WIDTH, generator=random)
        self.popularity_N = torch.zeros(ITEMS)
        self.widths = [WIDTH]

    def user_vectors(self, queries: Any) -> tuple[torch.Tensor, torch.Tensor, SparseScores]:
        users_B = queries.histories.users_U
        return (
            self.users_UD[users_B],
            torch.ones(len(users_B), dtype=torch.bool),
            SparseScores.nothing(),
        )

    def scores(self, queries: Any) -> torch.Tensor:
        return self.users_UD[queries.histories.users_U] @ self.item_vectors_ND.T


@pytest.fixture(scope="module")
def measured() -> tuple[Any, Any, Config, dict[str, Any]]:
    random = np.random.default_rng(1)
    items = [random.permutation(ITEMS)[:6].tolist() for _ in range(USERS)]
    histories = Histories.of_items(items)
    splits = np.tile([0, 0, 0, 1, 2, 2], USERS).astype(np.uint8)
    object.__setattr__(histories, "splits_E", splits)
    queries = histories.queries(Split.TEST)
    config = Config()
    config.evaluate.bootstrap = 100
    model: Any = Vectors()
    return (
        model,
        queries,
        config,
        trade_off(model, queries, config.train, config.evaluate, config.seed),
    )


def test_strength_zero_keeps_the_list(measured: tuple[Any, Any, Config, dict[str, Any]]) -> None:
    model, queries, config, found = measured
    ranking = rank(model, queries, found["k"], config.evaluate.exclude_seen)
    expected = ndcg_at(
        mark_hits(ranking.items_BK, ranking.queries), ranking.num_targets_B, found["k"]
    ).mean()
    assert found["points"][0]["strength"] == 0
    assert found["points"][0]["value"] == pytest.approx(expected, abs=1e-12)


def test_larger_strength_gives_more_diverse_lists(
    measured: tuple[Any, Any, Config, dict[str, Any]],
) -> None:
    *_, found = measured
    diversity = [point["diversity"] for point in found["points"]]
    assert [point["strength"] for point in found["points"]] == list(STRENGTHS)
    assert diversity == sorted(diversity) and diversity[-1] > diversity[0] + 0.1
    assert all(point["low"] <= point["value"] <= point["high"] for point in found["points"])


def test_diversity_is_one_minus_the_mean_cosine_of_pairs(
    measured: tuple[Any, Any, Config, dict[str, Any]],
) -> None:
    model, queries, config, found = measured
    ranking = rank(model, queries, found["pool"], config.evaluate.exclude_seen)
    similarity, expected = ItemSimilarity(model), []
    for listed_P, scores_P in zip(ranking.items_BK, ranking.scores_BK, strict=True):
        items_P = listed_P[listed_P >= 0]
        order = by_relevance(
            scores_P[: len(items_P)].astype(np.float64), similarity.among(items_P), STRENGTHS[-1]
        )[: found["k"]]
        chosen = torch.nn.functional.normalize(
            model.item_vectors_ND[torch.as_tensor(items_P[order]).long()], dim=1
        )
        cosines = (chosen @ chosen.T).numpy()
        expected.append(1 - np.mean(cosines[np.triu_indices(found["k"], 1)]))
    assert found["points"][-1]["diversity"] == pytest.approx(np.mean(expected), abs=1e-5)


def test_report_shows_one_point_per_strength(
    measured: tuple[Any, Any, Config, dict[str, Any]],
) -> None:
    *_, found = measured
    panel = trade_off_panel({"trade_off": found})
    assert panel is not None
    places = panel["curve"].lines[0].points
    assert len(places) == len(STRENGTHS) and panel["curve"].mark == places[0]
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert trade_off_panel({}) is None

"""item_knn, als and content against sums by hand, and in worlds in which one of them determines the
next item.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.config import build_config
from recsys.data.batches import Batch, last_position
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Histories, Queries, Split
from recsys.errors import ConfigError
from recsys.evaluation.baselines import Als as AlsBaseline
from recsys.evaluation.validation import Validator
from recsys.granularities.als.model import Als
from recsys.granularities.als.section import AlsConfig
from recsys.granularities.base import Graphs, ItemView, ModelSizes
from recsys.granularities.content.model import Content
from recsys.granularities.content.section import ContentConfig
from recsys.granularities.history import event_weights, seen_events
from recsys.granularities.item_knn.model import ItemKnn
from recsys.granularities.item_knn.section import ItemKnnConfig
from recsys.model import FrozenModel
from recsys.training.constants import choose_values
from recsys.training.context import TrainContext
from recsys.training.phases import fit
from tests.handmade import DAY, leave_last, write_dataset

ITEMS, TEXT = 6, 4
ROWS = [[0, 1, 2], [0, 1], [1, 2, 3], [0, 3], [4]]
SIZES = ModelSizes(4, 10, len(ROWS), ITEMS, 1, TEXT, ordered=True, timed=True)


def _graphs() -> Graphs:
    users_E = torch.tensor([user for user, row in enumerate(ROWS) for _ in row])
    return Graphs(len(ROWS), ITEMS, users_E, torch.tensor([item for row in ROWS for item in row]))


def _view() -> ItemView:
    text = torch.randn(ITEMS, TEXT, generator=torch.Generator().manual_seed(0))
    text[3] = 0
    return ItemView(torch.zeros(ITEMS, 4), text)


def _batch(
    rows: list[list[int]], times: list[int] | None = None, asked_at: list[int] | None = None
) -> Batch:
    histories = Histories.of_items(rows)
    if times is not None:
        histories = replace(histories, times_E=np.array(times))
    at = np.zeros(len(rows), np.int64) if asked_at is None else np.array(asked_at)
    return last_position(
        Queries(histories, np.zeros(len(rows) + 1, np.int64), np.zeros(0, np.int32), asked_at_B=at),
        10,
    )


def test_event_weights_depend_on_position_and_age() -> None:
    """Three events, the last two on one item; the request is four days after the newest."""
    batch = _batch(
        [[5, 2, 2], [], [1]], [1 * DAY, 3 * DAY, 5 * DAY, 9 * DAY], [9 * DAY, 9 * DAY, 0]
    )
    seen = seen_events(batch).distinct()
    assert (
        seen.items_E.tolist() == [5, 2, 1]
        and seen.lags_E.tolist() == [2, 0, 0]
        and seen.rows_E.tolist() == [0, 0, 2]
    )
    assert seen.days_before(batch.asked_at_B).tolist() == [8, 4, 0]
    found = event_weights(seen, batch.asked_at_B, 1.0, 4.0)
    torch.testing.assert_close(found, torch.tensor([(1 / 3) * 2**-2, 2**-1, 1.0]))
    old = event_weights(seen, torch.tensor([9000 * DAY, 0, 0]), 0.0, 4.0)
    torch.testing.assert_close(
        old[1], torch.tensor(2.0**-20), msg="an old history still contributes"
    )


def test_item_knn_equals_the_sums_by_hand() -> None:
    module = ItemKnn(
        ItemKnnConfig(neighbours=2, shrinkage=1.0, recency=1.0, half_life="none"), SIZES
    )
    state = module.state(_view(), _graphs())
    added = module.boost(_batch([[3, 0], [4], []]), _view(), state).add_to(torch.zeros(3, ITEMS))
    degree = [3, 3, 2, 2, 1]

    def similar(i: int, j: int, common: int) -> float:
        return common / (float(np.sqrt(degree[i] * degree[j])) + 1.0)

    of_0 = {1: similar(0, 1, 2), 2: similar(0, 2, 1), 3: similar(0, 3, 1)}
    of_3 = {2: similar(3, 2, 1), 0: similar(3, 0, 1), 1: similar(3, 1, 1)}
    best = [sorted(row.items(), key=lambda pair: -pair[1])[:2] for row in (of_0, of_3)]
    expected, root = torch.zeros(ITEMS), np.sqrt(1.5)
    for weight, row in zip((1.0, 0.5), best, strict=True):
        for item, value in row:
            expected[item] += weight * value / root
    ties = {1, 2, 3}  # 2 and 3 are equally similar to 0
    torch.testing.assert_close(added[0].sum(), expected.sum())
    torch.testing.assert_close(added[0][[0, 4, 5]], expected[[0, 4, 5]])
    assert ties >= set(added[0].nonzero().flatten().tolist()) - {0}
    assert not added[1:].any(), "item 4 has no neighbour"


def test_als_user_vector_equals_the_baseline() -> None:
    module = Als(AlsConfig(factors=3, alpha=10.0, regularisation=2.0), SIZES)
    state = module.state(_view(), _graphs())
    batch = _batch([*ROWS, []])
    z_BR, present_B = module(batch, _view(), state)
    assert present_B.tolist() == [True] * len(ROWS) + [False]
    items_NR = state["items_NR"].double()
    for row, z_R in zip(ROWS, z_BR, strict=False):
        confidence = torch.ones(ITEMS, dtype=torch.float64)
        confidence[row] = 10.0
        left = (items_NR * confidence[:, None]).T @ items_NR + 2 * torch.eye(3, dtype=torch.float64)
        right = (items_NR * confidence[:, None]).T @ (confidence > 1).double()
        torch.testing.assert_close(
            z_R.double(), torch.linalg.solve(left, right), rtol=1e-3, atol=1e-4
        )
    assert AlsBaseline.factors == AlsConfig().factors


def test_content_is_the_mean_cosine_of_the_texts() -> None:
    view = _view()
    module = Content(ContentConfig(recency=1.0, half_life="none"), SIZES)
    state = module.state(view, _graphs())
    z_BT, present_B = module(_batch([[0, 3, 1], [3], []]), view, state)
    unit = torch.nn.functional.normalize(view.text_ST, dim=1)
    weights = torch.tensor([1 / 3, 1.0]) / (4 / 3)
    torch.testing.assert_close(z_BT[0] @ module.own_items(state).T, weights @ unit[[0, 1]] @ unit.T)
    assert present_B.tolist() == [True, False, False] and not z_BT[1:].any()
    with pytest.raises(ConfigError, match=r"content compares item texts.*data\.text\.fields"):
        Content(ContentConfig(), replace(SIZES, text_width=0))


@pytest.fixture
def steps(tmp_path: Path) -> PreparedDataset:
    """Users walk along a ring of forty items, at most three steps from the last one: the newest
    event determines the next item.
    """
    random, rows = np.random.default_rng(0), []
    for _ in range(300):
        places = np.cumsum([random.integers(40), *random.integers(1, 3, 7)]) % 40
        rows.append(leave_last(*places.tolist()))
    return write_dataset(tmp_path / "data", rows, 40)


@pytest.mark.parametrize("name", ["item_knn", "item_cf"])
def test_newest_event_has_most_weight_if_it_determines_the_next_item(
    name: str, steps: PreparedDataset
) -> None:
    section = {"enabled": True, "recency": [0.0, 2.0]}
    tree = {"model": {"granularities": {name: section}}, "train": {"metric": "ndcg@10"}}
    config = build_config({"data": {"dir": steps.root}, **tree})
    found = choose_values(
        config, steps, Validator.of(config.train, config.evaluate), TrainContext()
    )[name]
    assert (
        found["chosen"]["recency"] == 2.0
        and "half_life" not in found["chosen"]
        or name == "item_knn"
    )
    merits = found["candidates"]["recency"]
    assert merits["2.0"] > 1.15 * merits["0.0"], merits
    frozen = fit(config, steps, Validator.of(config.train, config.evaluate), TrainContext()).frozen
    queries = steps.histories().queries(Split.TEST)
    popular = torch.as_tensor(frozen.popularity_N)

    class Popular:
        def scores(self, queries: Queries) -> torch.Tensor:
            return popular.repeat(len(queries), 1)

    assert (
        Validator.of(config.train, config.evaluate)(frozen, queries).mean()
        > 2 * Validator.of(config.train, config.evaluate)(Popular(), queries).mean()
    )
    read = FrozenModel.from_tensors(frozen.config, frozen.sizes, frozen.tensors())
    assert torch.equal(read.scores(queries), frozen.scores(queries))

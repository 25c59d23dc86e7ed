"""User-based collaborative filtering: against dense neighbours, without the user itself, from a
sample of users.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.config import build_config
from recsys.data.batches import last_position
from recsys.data.histories import Histories, Queries, Split
from recsys.granularities.base import Graphs, ItemView, ModelSizes
from recsys.granularities.user_cf.model import UserCF
from recsys.granularities.user_cf.section import UserCFConfig
from recsys.model import FrozenModel
from recsys.training.fresh_model import build_graphs, build_model
from tests.handmade import small_world
from tests.planted import is_no_loss, margin, ndcg, planted_dataset, train

USERS, ITEMS = 30, 14


def _world() -> tuple[Graphs, ItemView, Histories]:
    random = np.random.default_rng(3)
    # the last item never occurs
    rows = [sorted(random.choice(ITEMS - 1, size=5, replace=False).tolist()) for _ in range(USERS)]
    histories = Histories.of_items(rows, list(range(USERS)))
    users_E = torch.arange(USERS).repeat_interleave(5)
    items_E = torch.as_tensor(histories.items_E.astype(np.int64))
    graphs = Graphs(USERS, ITEMS, users_E, items_E)
    return graphs, ItemView(torch.zeros(ITEMS, 4), torch.zeros(ITEMS, 0)), histories


def _module(**options: object) -> UserCF:
    section = UserCFConfig(enabled=True, rank=100, **options)  # type: ignore[arg-type]
    return UserCF(section, ModelSizes(4, 10, USERS, ITEMS, 1, 0, ordered=False, timed=False))


def _ask(histories: Histories) -> Queries:
    return Queries(histories, np.zeros(len(histories) + 1, np.int64), np.zeros(0, np.int32))


@pytest.mark.parametrize(("power", "neighbours"), [(2.0, 4), (0.0, 1), (1.0, 100)])
def test_full_rank_is_the_mean_of_the_nearest_users(power: float, neighbours: int) -> None:
    graphs, items, histories = _world()
    module = _module(power=power, neighbours=neighbours)
    state = module.state(items, graphs)
    z_BR, present_B = module(last_position(_ask(histories), 10), items, state)
    scores = (z_BR @ module.own_items(state).T).numpy()

    events = np.zeros((USERS, ITEMS))
    events[graphs.users_E, graphs.items_E] = 1
    degree = np.maximum(events.sum(0), 1)
    tastes = events * degree**-0.25
    unit = tastes / np.linalg.norm(tastes, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, 0)
    expected = np.zeros_like(events)
    certain = np.ones(USERS, dtype=bool)
    for user in range(USERS):
        order = np.argsort(-cosine[user])
        nearest, cut = order[:neighbours], order[neighbours - 1 : neighbours + 1]
        # no ties at the last neighbour
        certain[user] = len(cut) < 2 or np.ptp(cosine[user, cut]) > 1e-4
        weights = cosine[user, nearest] ** power * (cosine[user, nearest] > 1e-9)
        expected[user] = weights @ tastes[nearest] / weights.sum() * degree**0.1
    assert certain.sum() > 20
    np.testing.assert_allclose(scores[certain], expected[certain], atol=2e-5)
    assert present_B.all() and not scores[:, ITEMS - 1].any(), (
        "an item without events has no vector"
    )


def test_user_is_not_its_own_neighbour_but_an_unknown_user_finds_it() -> None:
    graphs, items, histories = _world()
    module = _module(neighbours=1)
    state = module.state(items, graphs)
    known, _ = module(last_position(_ask(histories.take(np.array([3]))), 10), items, state)
    unknown = Histories.of_items([histories.take(np.array([3])).items_E.tolist()])
    new_user_z, _ = module(last_position(_ask(unknown), 10), items, state)
    torch.testing.assert_close(new_user_z[0], state["tastes_VR"][3])
    assert not torch.allclose(known[0], state["tastes_VR"][3], atol=1e-3)


def test_max_users_limits_the_kept_users() -> None:
    graphs, items, histories = _world()
    module = _module(max_users=7)
    state = module.state(items, graphs)
    assert (
        state["tastes_VR"].shape[0] == state["ids_V"].shape[0] == 7 == len(state["ids_V"].unique())
    )
    whole = _module().state(items, graphs)["tastes_VR"]
    torch.testing.assert_close(state["tastes_VR"], whole[state["ids_V"]])
    z_BR, present_B = module(last_position(_ask(histories), 10), items, state)
    assert present_B.any() and torch.isfinite(z_BR).all()


def test_frozen_user_cf_is_served_next_to_item_cf(tmp_path: object) -> None:
    dataset = small_world(tmp_path, ordered=False)  # type: ignore[arg-type]
    on = {"enabled": True}
    sections = {"collaborative": on, "item_cf": {**on, "rank": 4}, "user_cf": {**on, "rank": 3}}
    config = build_config(
        {"data": {"dir": dataset.root}, "model": {"width": 8, "granularities": sections}}
    )
    torch.manual_seed(0)
    frozen = build_model(config.model, config.train, dataset, Split.TRAIN).freeze(
        build_graphs(dataset, Split.TRAIN)
    )
    assert (
        frozen.names == ["collaborative", "item_cf", "user_cf"]
        and frozen.item_vectors_ND.shape[1] == 8 + 4 + 3
    )
    queries = dataset.histories().queries(Split.TEST)
    read = FrozenModel.from_tensors(frozen.config, frozen.sizes, frozen.tensors())
    assert torch.equal(read.scores(queries), frozen.scores(queries))


def test_user_cf_helps_if_communities_determine_the_next_item(tmp_path: object) -> None:
    """With communities user_cf improves a text model, which cannot see them; without them it costs
    nothing.
    """
    for knob in (1.0, 0.0):
        dataset = planted_dataset(tmp_path / str(knob), {"collaborative": knob})  # type: ignore[operator]
        queries = dataset.histories().queries(Split.TEST)
        text = {"item": {"id": False, "text": True}}
        plain = {"behaviour": {"input": "text"}}
        without = ndcg(train(dataset, plain, model=text, epochs=3), queries)
        with_ = ndcg(
            train(dataset, {**plain, "user_cf": {"rank": 64}}, model=text, epochs=3), queries
        )
        if knob:
            # measured: 0.053 → 0.339; with the knob down 0.024 → 0.079, because neighbours reveal
            # popularity
            assert margin(with_, without) > 1.0, (with_.mean(), without.mean())
        else:
            assert is_no_loss(with_, without)

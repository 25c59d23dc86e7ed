"""Each granularity finds its own signal, and costs nothing without that signal, for all users or
for some.

The world has one knob at 1 and the others at 0; a model of another granularity on item ids is
trained with and without the one under test, in the world of the tested granularity's knob (up) and
in that of the other's (down).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Queries, Split
from recsys.model import FrozenModel
from tests.planted import is_no_loss, margin, ndcg, planted_dataset, train

pytestmark = pytest.mark.usefixtures("one_thread")

SEED = 21  # seed of the worlds; the slow tests use 22


@dataclass(frozen=True)
class Case:
    """A granularity under test: its knob, the granularity that it joins, that one's knob, and the
    size of the world.
    """

    knob: str
    base: str
    base_knob: str
    world: dict[str, Any] = field(default_factory=dict)


# Few events per item, so that text knows more than ids; many short histories, so that friends know
# more than events.
CASES = {
    "behaviour": Case(
        "text", "evolution", "evolution", {"num_items": 1000, "events_per_user": 6.0}
    ),
    "evolution": Case("evolution", "collaborative", "collaborative"),
    "collaborative": Case("collaborative", "social", "social"),
    "social": Case("social", "evolution", "evolution", {"short_history": 0.6}),
}


@dataclass(frozen=True)
class Trained:
    """A model with the granularity under test and one without it, in the same world."""

    dataset: PreparedDataset
    with_: FrozenModel
    without: FrozenModel

    def queries(self) -> Queries:
        return self.dataset.histories().queries(Split.TEST)


def trained(folder: Path, name: str, knob: str, seed: int) -> Trained:
    dataset = planted_dataset(folder, {knob: 1.0}, **CASES[name].world, seed=seed)
    base: dict[str, Any] = {CASES[name].base: {}}
    # friends are redundant if the community decides; they learn to work alone if histories are
    # dropped often
    fusion = {
        "check": True,
        "signal_dropout": 0.3 if name == "collaborative" and knob == "collaborative" else 0.1,
    }
    return Trained(
        dataset, train(dataset, {**base, name: {}}, model={"fusion": fusion}), train(dataset, base)
    )


@pytest.fixture(scope="module", params=CASES)
def up(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Trained]]:
    """Every granularity in the world of its knob."""
    name = request.param
    yield name, trained(tmp_path_factory.mktemp(f"up-{name}"), name, CASES[name].knob, SEED)


@pytest.fixture(scope="module")
def down(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Trained]:
    """A granularity in the world of the other's knob, by name and seed; trained once."""

    @cache
    def models(name: str, seed: int) -> Trained:
        return trained(tmp_path_factory.mktemp(f"down-{name}"), name, CASES[name].base_knob, seed)

    return models


def test_granularity_finds_its_signal(up: tuple[str, Trained]) -> None:
    _, models = up
    queries = models.queries()
    assert margin(ndcg(models.with_, queries), ndcg(models.without, queries)) > 0.3


def test_users_without_the_signal_lose_nothing(up: tuple[str, Trained]) -> None:
    name, models = up
    if name == "collaborative":
        pytest.skip(
            "next to collaborative, friends alone are worse than if trained alone:"
            " docs/dead-ends.md"
        )
    with_, queries = models.with_, models.queries()
    past = queries.histories
    if name == "behaviour":  # remove all texts
        items = replace(with_.items, text_ST=torch.zeros_like(with_.items.text_ST))
        with_ = FrozenModel(
            with_.config, with_.sizes, with_.encoders, items, with_.states, with_.popularity_N
        )
    elif name == "social":  # remove all friends
        with_ = friendless(with_)
    else:  # no history: friends alone; for evolution, whose base also needs a history, popularity
        queries = replace(queries, histories=past.where(np.zeros(len(past.items_E), dtype=bool)))
    _, weights_BK, _ = with_.contributions(queries)
    assert not weights_BK[:, with_.names.index(name)].any()
    assert is_no_loss(ndcg(with_, queries), ndcg(models.without, queries))


@pytest.mark.parametrize("seed", [SEED, pytest.param(22, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_granularity_costs_nothing_without_its_signal(
    name: str, seed: int, down: Callable[[str, int], Trained]
) -> None:
    models = down(name, seed)
    queries = models.queries()
    assert is_no_loss(ndcg(models.with_, queries), ndcg(models.without, queries))


def friendless(model: FrozenModel) -> FrozenModel:
    """The model in a world without friendships."""
    state = {
        **model.states["social"],
        "present_V": torch.zeros_like(model.states["social"]["present_V"]),
    }
    states = {**model.states, "social": state}
    return FrozenModel(
        model.config, model.sizes, model.encoders, model.items, states, model.popularity_N
    )


def test_random_friends_are_pruned_from_the_model(down: Callable[[str, int], Trained]) -> None:
    """Trained, they cost 13 %; pruning on validation gives exactly the model without them, with or
    without friends, and users who have only friends are still served by them.
    """
    models = down("social", SEED)
    checked, without, queries = models.with_, models.without, models.queries()
    both: dict[str, Any] = {"evolution": {}, "social": {}}
    unchecked = train(models.dataset, both, model={"fusion": {"check": False}})
    assert not is_no_loss(ndcg(unchecked, queries), ndcg(without, queries))
    assert torch.equal(checked.item_vectors_ND, without.item_vectors_ND)
    parameters = checked.encoders.state_dict()
    for name, tensor in without.encoders.state_dict().items():
        assert torch.equal(
            parameters[name][:1] if name.startswith("fusion.") else parameters[name], tensor
        ), name
    for model in (checked, friendless(checked)):
        torch.testing.assert_close(
            model.scores(queries), without.scores(queries), rtol=0, atol=1e-6
        )
        assert np.array_equal(ndcg(model, queries), ndcg(without, queries))
    social = checked.names.index("social")
    parts_BKD, weights_BK, _ = checked.contributions(queries)
    assert weights_BK[:, social].max() < 1e-9
    friends_only = replace(
        queries,
        histories=queries.histories.where(np.zeros(len(queries.histories.items_E), dtype=bool)),
    )
    scores_BN = checked.scores(friends_only)
    friends_BN = parts_BKD[:, social] @ checked.item_vectors_ND.T
    has_friend_B = weights_BK[:, social] > 0
    torch.testing.assert_close(scores_BN[has_friend_B], friends_BN[has_friend_B], rtol=0, atol=0)
    assert has_friend_B.float().mean() > 0.5 and scores_BN[has_friend_B].std(dim=1).min() > 0

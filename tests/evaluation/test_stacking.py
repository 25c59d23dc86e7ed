"""Stacking: weights of members, never below the best single member, and normalised scores."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from recsys.config import build_config
from recsys.data.histories import Array
from recsys.evaluation.ensemble_selection import _Lists, _Ranks, hits_of_lists
from recsys.evaluation.metrics import QUERY_METRICS
from recsys.evaluation.stacking import Candidates, choose_stack, values_of
from recsys.stack import NUM_GROUPS, Stack, covariance, inverse, spread
from recsys.training.members import trained_only

QUERIES, PLACES = 600, 40


def world(
    strengths: list[float], seed: int = 0, noise: float = 1.0, num_queries: int = QUERIES
) -> Candidates:
    """One target per query: the item with the largest sum of member scores times strengths, plus
    noise.
    """
    generator = torch.Generator().manual_seed(seed)
    scores_QPM = torch.randn(num_queries, PLACES, len(strengths), generator=generator)
    wanted_QP = scores_QPM @ torch.tensor(strengths) + noise * torch.randn(
        num_queries, PLACES, generator=generator
    )
    hits_QP = torch.zeros(num_queries, PLACES, dtype=torch.bool)
    hits_QP[torch.arange(num_queries), wanted_QP.argmax(dim=1)] = True
    lengths_Q = np.random.default_rng(seed).integers(0, NUM_GROUPS, num_queries)
    return Candidates(
        scores_QPM,
        hits_QP,
        torch.ones_like(hits_QP),
        np.ones(num_queries, dtype=np.int64),
        lengths_Q.astype(np.int64),
    )


def names(number: int) -> list[str]:
    return [f"member {place}" for place in range(number)]


def test_two_complementary_members_are_kept_and_beat_either() -> None:
    found = choose_stack(world([1.0, 0.7, 0.0]), names(3), NUM_GROUPS, "ndcg@10", seed=0)
    assert not found.is_single
    assert found.cross_fitted > max(found.alone.values())
    assert found.without["member 1"] < found.value
    assert json.loads(json.dumps(found.to_json(names(3))))["is_single"] is False, (
        "metrics.json holds it"
    )
    assert found.weights_GM[:, 2].max() <= 0.1, "an uninformative member has almost no weight"


def test_noise_members_have_almost_no_weight_and_informative_ones_stay() -> None:
    found = [
        choose_stack(world([1.0, 0.7, 0.0], seed), names(3), NUM_GROUPS, "ndcg@10", seed)
        for seed in range(6)
    ]
    assert all(each.weights_GM[:, 2].max() <= 0.1 for each in found)
    assert any(each.dropped == ["member 2"] for each in found), (
        "dropped by name, as it adds nothing for unseen users"
    )
    assert not any({"member 0", "member 1"} & set(each.dropped) for each in found)


@pytest.mark.parametrize("seed", range(5))
def test_informative_member_has_almost_all_weight_among_noise(seed: int) -> None:
    found = choose_stack(
        world([1.0, 0.0, 0.0, 0.0, 0.0], seed), names(5), NUM_GROUPS, "ndcg@10", seed=seed
    )
    assert found.single == "member 0"
    assert found.cross_fitted >= 0.99 * found.alone["member 0"]
    weights_M = found.weights_GM.max(axis=0)
    assert weights_M[0] == weights_M.max() and (weights_M[1:] <= 0.2).all()


@pytest.mark.parametrize(("weights", "is_single"), [((0.02, 1.0), True), ((1.0, 0.15), False)])
def test_single_member_is_the_model_only_if_it_is_better_beyond_a_standard_error(
    weights: tuple[float, float], is_single: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poor(blend: Any, candidates: Candidates) -> Array:
        return np.tile(weights, (NUM_GROUPS, 1))

    monkeypatch.setattr("recsys.evaluation.stacking.Blend.__call__", poor)
    found = choose_stack(world([1.0, 0.0]), names(2), NUM_GROUPS, "ndcg@10", seed=0)
    assert found.is_single == is_single and found.single == "member 0"
    if not is_single:
        assert found.cross_fitted < found.single_cross_fitted, "by less than a standard error"


def test_duplicate_members_are_dropped_one_by_one_and_others_take_their_weight() -> None:
    informative, copies = world([1.0, 1.0]), 12
    copies_QPC = informative.scores_QPM[:, :, 1:].repeat(1, 1, copies)
    copies_QPC += 0.3 * torch.randn(copies_QPC.shape, generator=torch.Generator().manual_seed(1))
    many = replace(
        informative, scores_QPM=torch.cat([informative.scores_QPM[:, :, :1], copies_QPC], dim=2)
    )
    found = choose_stack(many, names(1 + copies), NUM_GROUPS, "ndcg@10", seed=0)
    weights_M = found.weights_GM.mean(axis=0)
    assert found.dropped, "fewer than twelve copies are as good"
    assert weights_M[1:].sum() == pytest.approx(weights_M[0], rel=0.25)


def test_stack_is_never_below_its_best_member_on_its_queries() -> None:
    for seed in range(3):
        found = choose_stack(
            world([0.3, 0.3, 0.2], seed, noise=2.0), names(3), NUM_GROUPS, "recall@5", seed
        )
        assert found.value >= max(found.alone.values()) - 1e-12


def test_weights_of_the_parent_stay_unless_new_ones_are_better_beyond_a_standard_error() -> None:
    strengths, earlier_M = [1.0, 0.7, 0.0], np.array([1.0, 0.7, 0.0])
    few, many = world(strengths, num_queries=40), world(strengths)
    for candidates, earlier, stays in (
        (few, earlier_M, True),
        (many, earlier_M, True),
        (many, earlier_M[::-1], False),  # the noise has the largest weight
        (many, np.zeros(3), False),  # all members are new
    ):
        earlier_GM = np.tile(earlier, (NUM_GROUPS, 1))
        found = choose_stack(candidates, names(3), NUM_GROUPS, "ndcg@10", 0, earlier_GM)
        assert found.is_earlier == stays
        assert np.array_equal(found.weights_GM, earlier_GM / max(earlier.max(), 1)) == stays
        if stays:
            assert found.dropped == ["member 2"] and found.cross_fitted == found.value


def test_group_with_misleading_history_gets_other_weights() -> None:
    informative = world([1.0, 0.0])
    scores_QPM = informative.scores_QPM.clone()
    groups_Q = (informative.groups_Q > 3).astype(np.int64)
    misled_Q = torch.from_numpy(groups_Q == 1)
    scores_QPM[misled_Q, :, 0], scores_QPM[misled_Q, :, 1] = (
        informative.scores_QPM[misled_Q, :, 1],
        informative.scores_QPM[misled_Q, :, 0],
    )
    mixed = replace(informative, scores_QPM=scores_QPM, groups_Q=groups_Q)
    found = choose_stack(mixed, names(2), NUM_GROUPS, "ndcg@10", seed=0)
    share_G = found.weights_GM[:, 0] / found.weights_GM.sum(axis=1)
    assert share_G[1] < share_G[0] or found.is_single


@pytest.mark.parametrize("kind", sorted(QUERY_METRICS))
def test_values_on_candidates_equal_those_of_a_full_ranking(kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    scores_QP = torch.randn(30, 12, generator=generator)
    hits_QP = torch.rand(30, 12, generator=generator) < 0.3
    hits_QP[:, 0] = True
    targets_Q = hits_QP.sum(dim=1).numpy()
    few, many = (
        Candidates(
            scores_QP[:, :, None],
            hits,
            torch.ones_like(hits),
            hits.sum(dim=1).numpy(),
            np.zeros(30, dtype=int),
        )
        for hits in (torch.eye(12, dtype=torch.bool)[torch.arange(30) % 12], hits_QP)
    )
    for candidates in (few, many):
        order_QP = scores_QP.argsort(dim=1, descending=True)
        expected_Q = QUERY_METRICS[kind](
            candidates.hits_QP.gather(1, order_QP)[:, :5].numpy(), candidates.num_targets_Q, 5
        )
        np.testing.assert_allclose(values_of(scores_QP, candidates, kind, 5), expected_Q)
    assert targets_Q.max() > 3, "the second set is counted the other way"


def test_normalised_score_has_standard_deviation_one_or_zero() -> None:
    vectors_ND = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    users_BD = torch.tensor([[1.0, 2.0, 0.0, -1.0], [100.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    factor_B = inverse(spread(users_BD, covariance(vectors_ND)), torch.zeros(()))
    spread_B = ((users_BD * factor_B[:, None]) @ vectors_ND.T).std(dim=1, correction=0)
    torch.testing.assert_close(spread_B, torch.tensor([1.0, 1.0, 0.0]))


def test_weights_depend_on_the_length_of_the_history() -> None:
    stack = Stack(2)
    stack.weights_GM.copy_(torch.arange(2.0 * NUM_GROUPS).reshape(NUM_GROUPS, 2))
    assert stack.weights(torch.tensor([0, 2, 1000])).tolist() == [
        [0.0, 1.0],
        [2.0, 3.0],
        [12.0, 13.0],
    ]
    assert not stack.is_pruned(0)


@pytest.mark.parametrize(
    ("enabled", "expected"),
    [(["evolution", "item_cf", "popularity"], ["evolution"]), (["item_cf", "repeat"], ["item_cf"])],
)
def test_training_configuration_has_trained_members_or_one_closed_form(
    enabled: list[str], expected: list[str]
) -> None:
    sections = {name: {"enabled": True} for name in enabled}
    config = build_config({"model": {"granularities": sections, "fusion": {"stack": True}}})
    found = trained_only(config)
    assert list(found.model.granularities.enabled()) == expected and not found.model.fusion.stack


def test_lists_for_many_targets_have_the_hits_that_ranks_find() -> None:
    candidates = world([1.0, 0.7, 0.5])
    more_QP = torch.rand(QUERIES, PLACES, generator=torch.Generator().manual_seed(1)) < 0.3
    listed_QP = torch.ones_like(more_QP)
    listed_QP[::7, 3:] = False  # fewer candidates than the list is long
    candidates = replace(candidates, hits_QP=more_QP & listed_QP, listed_QP=listed_QP)
    lists, ranks = _Lists(candidates, 5), _Ranks(candidates, 5)
    for member in (2, 0, 2):
        np.testing.assert_array_equal(lists.hits_MQK(), ranks.hits_MQK())
        assert lists.hits_MQK().any()
        lists.add(member)
        ranks.add(member)


@pytest.mark.parametrize("places", [7, 20, 21, 300])
def test_hits_of_lists_are_those_of_the_best_places(places: int) -> None:
    generator = torch.Generator().manual_seed(places)
    scores_QP = torch.randn(50, places, generator=generator)
    hits_QP = torch.rand(50, places, generator=generator) < 0.2
    scores_QP[:, 0], hits_QP[:, 0] = -torch.inf, False  # no candidate
    top_QK = scores_QP.topk(min(20, places), dim=1).indices
    wanted_QK = torch.zeros(50, 20, dtype=torch.bool)
    wanted_QK[:, : top_QK.shape[1]] = hits_QP.gather(1, top_QK)
    found_QK = hits_of_lists(scores_QP.clone().numpy(), hits_QP.numpy(), 20)
    assert (found_QK == wanted_QK.numpy()).all()

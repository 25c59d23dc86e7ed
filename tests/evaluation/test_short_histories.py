"""Weights for short histories that validation does not have: made queries, and when they are
used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.data.histories import Histories, Queries
from recsys.evaluation.candidate_scores import gather
from recsys.evaluation.short_histories import ShortHistories, shortened, with_own_weights
from recsys.evaluation.stacking import Stacked, choose_stack
from recsys.pace import Deadline
from recsys.stack import NUM_GROUPS, Stack

USERS, ITEMS, LENGTH, TASTES = 400, 60, 9, 6


def _queries(lengths: int | list[int] = LENGTH, num_users: int = USERS) -> Queries:
    """Users of one taste each; items of taste t are t, t + 6, …; the target is one too."""
    random = np.random.default_rng(0)
    tastes = random.integers(0, TASTES, num_users)
    rows, targets = [], []
    for user, taste in enumerate(tastes.tolist()):
        own = random.permutation(np.arange(taste, ITEMS, TASTES))
        length = lengths if isinstance(lengths, int) else lengths[user % len(lengths)]
        rows.append(own[:length].tolist())
        targets.append(int(own[-1]))
    histories = Histories.of_items(rows, list(range(num_users)))
    return Queries(histories, np.arange(num_users + 1), np.array(targets, dtype=np.int32))


class _Model:
    """``history`` finds the taste from at least six events, ``friends`` knows it from the id,
    noisily.
    """

    members: Sequence[str] = ("history", "friends")

    def member_scores(self, queries: Queries) -> Sequence[Tensor]:
        generator = torch.Generator().manual_seed(1)
        noise_VN = torch.randn(USERS, ITEMS, generator=generator)
        users_B = torch.as_tensor(queries.histories.users_U.astype(np.int64))
        tastes_B = torch.as_tensor(np.random.default_rng(0).integers(0, TASTES, USERS))[users_B]
        of_taste_BN = (torch.arange(ITEMS) % TASTES == tastes_B[:, None]).float()
        is_long_B1 = torch.as_tensor(queries.histories.lengths_U >= 6)[:, None]
        history_BN = torch.where(is_long_B1, of_taste_BN, noise_VN[users_B].roll(1, 1))
        return [history_BN, of_taste_BN + noise_VN[users_B]]


def _chosen(
    queries: Queries, model: _Model | None = None, deadline: Deadline | None = None
) -> Stacked:
    model = model or _Model()
    candidates = gather(model, queries, True, ITEMS)
    found = choose_stack(candidates, model.members, NUM_GROUPS, "ndcg@10", 0)
    short = ShortHistories(model, queries, exclude_seen=True, num_items=ITEMS, ordered=True)
    return with_own_weights(found, candidates, short, model.members, "ndcg@10", 0, deadline)


@pytest.mark.parametrize("ordered", [True, False])
def test_shortened_histories_have_some_of_the_events_and_the_same_targets(ordered: bool) -> None:
    queries = _queries()
    found = shortened(queries, 3, 5, ordered)
    assert set(found.histories.lengths_U.tolist()) == {3, 4, 5}
    assert np.array_equal(found.target_items, queries.target_items)
    newest = 0
    for user in range(USERS):
        rows = (queries.histories.take(np.array([user])), found.histories.take(np.array([user])))
        whole, kept = (row.items_E.tolist() for row in rows)
        assert set(kept) < set(whole)
        newest += kept == whole[-len(kept) :]
    assert newest == USERS if ordered else newest < USERS / 4
    again = shortened(queries.take(np.array([7])), 3, 5, ordered)
    assert np.array_equal(again.histories.items_E, found.histories.take(np.array([7])).items_E), (
        "the events of a user do not depend on the other queries"
    )


def test_events_that_are_cut_away_are_no_candidates() -> None:
    queries = _queries()
    made = gather(
        _Model(), queries, True, ITEMS, lambda whole: shortened(whole, 1, 2, ordered=True)
    )
    assert (made.listed_QP.sum(dim=1) == ITEMS - LENGTH).all() and made.hits_QP.any(dim=1).all()
    assert set(made.groups_Q.tolist()) == {int(Stack(2).groups(torch.tensor([2])))}


def test_member_that_helps_short_histories_alone_gets_weight_for_them() -> None:
    found = _chosen(_queries())
    short, long = (int(Stack(2).groups(torch.tensor([length]))) for length in (2, LENGTH))
    assert found.weights_GM[long, 1] < 0.1, "it adds nothing to long histories"
    assert found.weights_GM[short, 1] > found.weights_GM[short, 0]
    assert [group.events for group in found.own] == ["0", "1 to 2", "3 to 5"]
    assert all(group.is_made and group.after > group.before for group in found.own)
    assert not found.is_single and not found.dropped


def test_member_without_weight_for_most_queries_gets_weight_for_short_ones() -> None:
    model, queries = _Model(), _queries([2, *[LENGTH] * 3])
    candidates = gather(model, queries, True, ITEMS)
    found = choose_stack(candidates, model.members, NUM_GROUPS, "ndcg@10", 0)
    history = replace(found, weights_GM=np.tile([1.0, 0.0], (NUM_GROUPS, 1)), dropped=["friends"])
    short = ShortHistories(model, queries, exclude_seen=True, num_items=ITEMS, ordered=True)
    again = with_own_weights(history, candidates, short, model.members, "ndcg@10", 0)
    of_two = next(group for group in again.own if group.events == "1 to 2")
    assert not of_two.is_made and of_two.after > of_two.before
    group = int(Stack(2).groups(torch.tensor([2])))
    assert again.weights_GM[group, 1] > again.weights_GM[group, 0] and not again.dropped
    gain = (of_two.after - of_two.before) / 4  # a fourth of the queries is so short
    assert again.cross_fitted == pytest.approx(history.cross_fitted + gain)
    assert again.without["friends"] < again.value and again.without["history"] < again.value


def test_no_weights_change_if_a_cut_history_needs_no_others() -> None:
    class Same(_Model):
        def member_scores(self, queries: Queries) -> Sequence[Tensor]:
            _, friends_BN = super().member_scores(queries)
            return [friends_BN, friends_BN.roll(1, 1)]

    found = _chosen(_queries(), Same())
    assert not found.own and found.is_single and found.dropped == ["friends"]


def test_few_long_histories_change_nothing() -> None:
    assert not _chosen(_queries(num_users=90)).own


def test_longer_histories_with_only_seen_targets_change_nothing() -> None:
    queries = _queries([2, *[LENGTH] * 3])
    lengths_B, first_B = queries.histories.lengths_U, queries.histories.offsets_U1[:-1]
    targets = np.where(
        lengths_B > 2, queries.histories.items_E[first_B], queries.target_items
    ).astype(np.int32)
    seen = replace(queries, target_items=targets)
    assert (lengths_B > 2).sum() >= 100
    assert not any(group.is_made for group in _chosen(seen).own)
    candidates = gather(_Model(), seen.take(np.flatnonzero(lengths_B > 2)), True, ITEMS)
    assert len(candidates) == len(candidates.scores_QPM) == len(candidates.hits_QP) == 0
    assert len(gather(_Model(), queries.take(np.arange(0)), True, ITEMS)) == 0


def test_no_group_is_begun_after_the_deadline() -> None:
    assert not _chosen(_queries(), deadline=Deadline(at=0.0)).own

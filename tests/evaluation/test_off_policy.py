"""Estimators find the known values of a planted world, and show what cannot be estimated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from recsys.data.histories import Array
from recsys.evaluation.experiment import outcomes
from recsys.evaluation.off_policy import Trials, estimate, predicted

POOL, K, SHARE = 8, 4, 0.5
# The value of every item, for every user; the log ranks items 0, 1, 2, …, the target 7, 6, 5, …
WORTH = np.linspace(0.05, 0.6, POOL)
EXAMINED = np.array([1.0, 0.8, 0.6, 0.5])
# of a list of the log
LOGGED_VALUE = sum(EXAMINED[p] * ((1 - SHARE) * WORTH[p] + SHARE * WORTH.mean()) for p in range(K))
TARGET_VALUE = sum(EXAMINED[p] * WORTH[POOL - 1 - p] for p in range(K))


def planted(num_users: int, seed: int, outside: int = 0) -> Trials:
    """A log of ε-uniform lists; users differ in their number of answers and in their mean reward.

    The first ``outside`` places of the target have an item that the log cannot show.
    """
    random = np.random.default_rng(seed)
    rows: list[tuple[float, ...]] = []
    answers = random.integers(1, 6, num_users)
    for user in range(num_users):
        liking = random.uniform(0.5, 1.5)
        for _ in range(answers[user]):
            order = random.permutation(POOL) if random.random() < SHARE else np.arange(POOL)
            for place in range(K):
                item = order[place]
                chance = SHARE / POOL + (1 - SHARE) * (item == place)
                hit = random.random() < EXAMINED[place] * WORTH[item] * liking
                rows.append(
                    (user, place, item, POOL if place < outside else POOL - 1 - place, chance, hit)
                )
    users, places, shown, target, chances, hits = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    whole = (column.astype(np.int64) for column in (places, shown, target))
    return Trials(
        users.astype(np.int64), answers, *whole, chances.astype(float), hits.astype(float)
    )


def test_intervals_contain_planted_value_but_not_that_of_the_log() -> None:
    found = estimate(planted(3000, 1), 500, 1)
    for name in ("ips", "snips", "dr"):
        assert found.values[name].low < TARGET_VALUE < found.values[name].high, name
        assert found.gains[name].low > 0, "the target is better beyond chance"
    shown = found.values["shown"]
    assert shown.low < LOGGED_VALUE < shown.high < found.values["dr"].low
    assert found.support.low < 1 < found.support.high, "the log could show every item of the target"


def test_intervals_have_the_stated_coverage() -> None:
    covered: dict[str, int] = {"ips": 0, "snips": 0, "dr": 0}
    for seed in range(100):
        found = estimate(planted(150, seed), 200, seed)
        for name in covered:
            covered[name] += found.values[name].low < TARGET_VALUE < found.values[name].high
    assert all(86 <= number <= 100 for number in covered.values()), covered


def test_estimates_are_unbiased_and_doubly_robust_has_least_variance() -> None:
    values = np.array(
        [
            [estimate(planted(150, seed), 2, 0).values[n].value for n in ("ips", "dr")]
            for seed in range(150)
        ]
    )
    errors = values.std(0) / np.sqrt(len(values))
    np.testing.assert_array_less(np.abs(values.mean(0) - TARGET_VALUE), 4 * errors)
    assert values[:, 1].std() < 0.9 * values[:, 0].std()


def test_snips_shifts_with_rewards_and_ips_does_not() -> None:
    trials = planted(300, 3)
    before, after = (
        estimate(one, 50, 0).values
        for one in (trials, replace(trials, rewards_R=trials.rewards_R + 5))
    )
    assert after["snips"].value == pytest.approx(before["snips"].value + 5 * K)
    assert abs(after["ips"].value - before["ips"].value - 5 * K) > 0.01
    assert after["dr"].value == pytest.approx(before["dr"].value + 5 * K, abs=0.5), (
        "the model of rewards follows"
    )


def test_estimates_are_the_sums_of_their_formulas() -> None:
    trials = Trials(
        users_R=np.array([0, 0, 1]),
        answers_U=np.array([1, 1]),
        positions_R=np.array([0, 1, 0]),
        shown_R=np.array([0, 1, 1]),
        target_R=np.array([0, 0, 1]),
        propensities_R=np.array([0.5, 0.25, 0.1]),
        rewards_R=np.array([1.0, 1.0, 2.0]),
    )
    found = estimate(trials, 50, 0)
    assert found.values["shown"].value == 4 / 2
    assert found.values["ips"].value == pytest.approx((2 * 1 + 10 * 2) / 2)
    assert found.values["snips"].value == pytest.approx((2 * 1 + 10 * 2) / 12 * 3 / 2)
    assert found.largest == 10 and found.effective == pytest.approx(12**2 / (4 + 100))
    assert found.support.value == pytest.approx(12 / 3)


def test_target_equal_to_the_log_has_the_shown_value() -> None:
    trials = planted(200, 5)
    same = replace(trials, target_R=trials.shown_R, propensities_R=np.ones(len(trials.shown_R)))
    found = estimate(same, 100, 0)
    for name in ("ips", "snips", "dr"):
        assert found.values[name].value == pytest.approx(found.values["shown"].value)
        assert found.gains[name].low == pytest.approx(0) and found.gains[
            name
        ].high == pytest.approx(0)


def test_mean_weight_shows_missing_support() -> None:
    found = estimate(planted(3000, 6, outside=1), 200, 0)
    assert found.support.low < 0.75 < found.support.high < 1
    assert found.values["ips"].high < TARGET_VALUE, "IPS counts it as zero"


def test_target_without_shown_items_has_no_weight_and_no_snips() -> None:
    trials = planted(50, 7)
    found = estimate(replace(trials, target_R=np.full(len(trials.shown_R), -1)), 50, 0)
    assert found.effective == 0 and found.largest == 0 and np.isnan(found.values["snips"].value)
    assert found.values["ips"].value == 0


def test_rewards_of_a_user_are_not_in_their_own_prediction() -> None:
    trials = planted(60, 8)
    mine = trials.users_R == 7
    other = replace(trials, rewards_R=np.where(mine, 1000.0, trials.rewards_R))
    for before, after in zip(predicted(trials), predicted(other), strict=True):
        assert np.array_equal(before[mine], after[mine]) and not np.array_equal(before, after)


def experiment(seed: int, lift: float) -> tuple[Array, Array, Array]:
    """Users of two versions; the answers to a user are similar, so the sample is users, not
    answers.
    """
    random = np.random.default_rng(seed)
    users = np.repeat(np.arange(200), random.integers(1, 40, 200))
    liking = random.normal(1.0, 1.0, 200)
    versions = (np.arange(200) % 2)[users]
    return users, versions, liking[users] + lift * versions + random.normal(0, 0.1, len(users))


def test_equal_versions_are_significant_only_at_the_stated_rate() -> None:
    wrong = wrong_by_answers = 0
    for seed in range(100):
        users, versions, rewards = experiment(seed, 0.0)
        [_, second], _ = outcomes(users, versions, rewards, 2, 200, seed)
        found = second.differences["reward_per_answer"]
        wrong += found.low > 0 or found.high < 0
        alone = np.arange(len(users))  # as if every answer had its own user
        [_, second], _ = outcomes(alone, versions, rewards, 2, 200, seed)
        found = second.differences["reward_per_answer"]
        wrong_by_answers += found.low > 0 or found.high < 0
    assert wrong <= 13 and wrong_by_answers > 40, (wrong, wrong_by_answers)


def test_better_version_is_found_and_measures_are_means() -> None:
    users, versions, rewards = experiment(0, 1.0)
    [first, second], num_shared = outcomes(users, versions, rewards, 2, 500, 0)
    assert first.measures["reward_per_answer"].value == pytest.approx(rewards[versions == 0].mean())
    assert second.measures["rewarded_share"].value == pytest.approx(
        (rewards[versions == 1] > 0).mean()
    )
    assert second.measures["reward_per_user"].value == pytest.approx(
        rewards[versions == 1].sum() / 100
    )
    assert (
        second.differences["reward_per_answer"].low > 0
        and second.differences["reward_per_answer"].p < 0.05
    )
    assert (first.answers, first.users, num_shared, first.differences) == (
        int((versions == 0).sum()),
        100,
        0,
        {},
    )
    _, num_shared = outcomes(np.array([0, 0, 1]), np.array([0, 1, 1]), np.ones(3), 2, 10, 0)
    assert num_shared == 1

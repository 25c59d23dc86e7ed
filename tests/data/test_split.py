"""Splits against results by hand, for two users with five and two events."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from recsys.config import SplitConfig
from recsys.data.cold_start import CUT
from recsys.data.hashing import string_hashes, uniform
from recsys.data.split import NEVER, SplitPlan, assign, bin_counts, check_split, cut_off, parse_time
from recsys.errors import ConfigError, DataError

OFFSETS = np.array([0, 5, 7])
TIMES = np.array([10, 20, 30, 40, 50, 25, 45])
NONE = np.zeros(7, dtype=np.uint8)
FLAT = np.zeros(7)


def parts(plan: SplitPlan, given: np.ndarray = NONE, numbers: np.ndarray = FLAT) -> list[int]:
    return assign(plan, OFFSETS, TIMES, given, numbers).tolist()


def test_leave_last_holds_out_the_last_two_of_users_with_three_or_more() -> None:
    assert parts(SplitPlan("leave-last")) == [0, 0, 0, 1, 2, 0, 0]


BASKETS = np.array([0, 7, 10, 12, 18])
SECONDS = np.array([1, 1, 2, 2, 3, 4, 4, 5, 5, 5, 1, 2, 1, 1, 2, 3, 3, 4])


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        # a user with one basket and one with two stay in training
        ("", "0000122 000 00 000112"),
        # the events between two baskets with targets are validation; those after the last are cut
        ("1.1..1. 111 11 111.1.", "001112C 000 00 001C2C"),
    ],
)
def test_last_basket_is_held_out_as_a_whole(targets: str, expected: str) -> None:
    types = np.array([mark == "1" for mark in targets.replace(" ", "")], dtype=np.uint8)
    plan = SplitPlan("leave-last-basket", target_types=(1,) if targets else ())
    nothing = np.zeros(len(SECONDS))
    # half a second apart is the same basket
    times = SECONDS * 1_000_000 + np.arange(len(SECONDS)) * 1_000
    found = assign(plan, BASKETS, times, nothing, nothing, types)
    assert found.tolist() == [
        CUT if mark == "C" else int(mark) for mark in expected.replace(" ", "")
    ]


def test_temporal_cuts_every_user_at_the_same_times() -> None:
    plan = SplitPlan("temporal", valid_from=30, test_from=45)
    assert parts(plan) == [0, 0, 1, 1, 2, 0, 2]


def test_ratio_takes_the_latest_share_and_leaves_one_in_training() -> None:
    assert parts(SplitPlan("ratio", valid=0.2, test=0.4)) == [0, 0, 1, 2, 2, 0, 2]
    assert parts(SplitPlan("ratio", valid=0.5, test=0.9)) == [0, 2, 2, 2, 2, 0, 2]


def test_random_ratio_keeps_each_users_largest_number_in_training() -> None:
    numbers = np.array([0.05, 0.95, 0.15, 0.5, 0.5, 0.01, 0.02])
    plan = SplitPlan("ratio", valid=0.1, test=0.1, ordered=False)
    assert plan.random
    assert parts(plan, numbers=numbers) == [2, 0, 1, 0, 0, 2, 0]


def test_given_split_without_validation_takes_it_from_training_only() -> None:
    given = np.array([0, 2, 0, 0, 2, 0, 2], dtype=np.uint8)
    numbers = np.array([0.01, 0.01, 0.5, 0.9, 0.9, 0.01, 0.9])
    plan = SplitPlan("given", valid=0.1, ordered=False)
    assert plan.random
    assert parts(plan, given, numbers) == [1, 2, 0, 0, 2, 0, 2]
    kept = SplitPlan("given", valid=0.1, given_valid=True)
    assert not kept.random
    assert parts(kept, np.array([0, 1, 2, 0, 0, 1, 2])) == [0, 1, 2, 0, 0, 1, 2]


def test_given_split_without_validation_takes_latest_training_events_if_ordered() -> None:
    given = np.array([0, 2, 0, 0, 2, 0, 0], dtype=np.uint8)
    plan = SplitPlan("given", valid=0.4)
    assert not plan.random
    # round(0.4 · 3) = 1 of three, round(0.4 · 2) = 1 of two
    assert parts(plan, given) == [0, 2, 0, 1, 2, 0, 1]
    everything = SplitPlan("given", valid=0.9)
    # the earliest event stays in training
    assert parts(everything, np.array([0, 0, 2, 2, 2, 2, 2])) == [0, 1, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("rank", [1, 2, 50, 999, 1000])
def test_cut_off_is_the_exact_order_statistic(rank: int) -> None:
    values = np.random.default_rng(0).integers(10**15, 10**15 + 3 * 10**13, 1000)
    values[:100] = values[0]  # ties
    found = cut_off(
        lambda s, w: bin_counts(values, s, w), int(values.min()), int(values.max()), rank
    )
    assert found == np.sort(values)[-rank]


def test_parse_time_reads_zones_and_refuses_nonsense() -> None:
    assert parse_time("1970-01-01T01:00:00+01:00", "x") == 0
    assert parse_time("1970-01-01T00:00:01", "x") == 1_000_000
    with pytest.raises(ConfigError, match=r"data\.split\.test_from: 'soon' is not a time"):
        parse_time("soon", "data.split.test_from")


@pytest.mark.parametrize(
    ("kind", "order", "timed", "given", "message"),
    [
        ("leave-last", "none", False, {}, "needs an order"),
        ("leave-last-basket", "file", False, {}, "needs times"),
        ("temporal", "file", False, {}, "needs a timestamp"),
        ("given", "time", True, {"train": 5}, "train: 5"),
    ],
)
def test_split_that_the_data_do_not_support_is_refused(
    kind: str, order: str, timed: bool, given: dict[str, int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        check_split(SplitConfig(kind=kind), order, timed, given)  # type: ignore[arg-type]


def test_hashes_are_the_same_everywhere_and_uniform() -> None:
    known = string_hashes(pa.array(["", "a", "user-1", "ü"]))
    assert known.tolist() == string_hashes(pa.array(["x", "", "a", "user-1", "ü"])).tolist()[1:]
    assert len(set(known.tolist())) == 4
    assert known[1] == KNOWN_HASH_OF_A
    ids = string_hashes(pa.array([str(i) for i in range(20_000)]))
    assert len(np.unique(ids)) == 20_000
    assert np.bincount((ids % np.uint64(8)).astype(int), minlength=8).min() > 2_300
    numbers = uniform(ids[:-1], ids[1:], seed=1)
    assert abs((numbers < 0.1).mean() - 0.1) < 0.01
    assert not np.array_equal(numbers, uniform(ids[:-1], ids[1:], seed=2))


# never change it: users would move to other shards, and events to other splits
KNOWN_HASH_OF_A = 15154452856141135343


def test_plan_describes_itself_in_iso_times() -> None:
    described = SplitPlan("temporal", valid_from=0, test_from=1_000_000).describe()
    assert described["test_from"] == "1970-01-01T00:00:01+00:00"
    assert "test_from" not in SplitPlan("leave-last", test_from=NEVER).describe()

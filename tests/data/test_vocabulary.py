"""Dense ids: looked up in the smaller of two arrays, with the same result."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from recsys.data.vocabulary import dense, extend


@pytest.mark.parametrize("num_known", [3, 1000])  # the vocabulary is smaller, or much larger
def test_dense_ids_are_positions_in_the_vocabulary(num_known: int) -> None:
    known = [f"u{number}" for number in np.random.default_rng(0).permutation(num_known)]
    parts = [known[:2], [], [known[2], known[0], known[0]]]
    found = dense([pa.array(part, pa.string()) for part in parts], pa.array(known))
    assert [each.tolist() for each in found] == [[0, 1], [], [2, 0, 0]]
    assert all(each.dtype == np.int32 for each in found)


@pytest.mark.parametrize("num_known", [2, 1000])
def test_known_ids_keep_their_numbers_and_new_ones_follow_sorted(num_known: int) -> None:
    known = [f"u{number}" for number in range(num_known)][::-1]
    found = extend(pa.array(known), pa.array(["z", "u1", "a", "u0"]))
    assert found.to_pylist() == [*known, "a", "z"]

"""`recsys init` on visits and baskets: visits as users, numbers of baskets, unnamed grades."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recsys.config.canonical import CanonicalSource
from recsys.inspect.look import look
from tests.inspect.test_unusual_files import at, columns_of_events, pairs, source_of, write


@pytest.mark.parametrize("by_column", [False, True])
@pytest.mark.parametrize("are_new", [True, False])
def test_split_whose_test_users_are_all_new_is_not_used(
    are_new: bool, by_column: bool, tmp_path: Path
) -> None:
    """As in logs of visits, where each visit is a user; such a test has no histories."""
    rows: dict[str, list[list[str]]] = {"train": [], "test": []}
    for n, (u, i, t) in enumerate(pairs()):
        split = ("train", "test")[(u if are_new else n) % 5 == 0]
        rows[split].append([f"s{u}", f"p{i}", at(t)])
    names = ["session_id", "item_id", "time"]
    if by_column:
        marked = [[*row, split] for split, of_split in rows.items() for row in of_split]
        files = [write(tmp_path / "log.csv", [*names, "split"], marked)]
    else:
        files = [write(tmp_path / f"{name}.csv", names, part) for name, part in rows.items()]
    found = look([str(file) for file in files])
    assert (found.config.data.split.kind == "given") != are_new
    assert any("would ask for lists without a history" in note for note in found.found.notes) == (
        are_new
    )
    num_users = len({u for u, _, _ in pairs()})
    words = str(found.found.tables[0])
    assert f"{num_users} distinct ids" in words, "of all files together"


def test_number_of_a_users_basket_is_the_order(tmp_path: Path) -> None:
    """Several items have one number, and the numbers of all users start at 0."""
    random = np.random.default_rng(0)
    rows = [
        (user, basket, item)
        for user in range(60)
        for basket in range(random.integers(3, 9))
        for item in random.choice(40, size=4, replace=False)
    ]
    found = look([str(write(tmp_path / "a.csv", ["user_id", "basket_id", "item_id"], rows))])
    source, split = found.config.data.source, found.config.data.split
    assert isinstance(source, CanonicalSource) and split.kind == "leave-last-basket"
    assert columns_of_events(source)["basket_id"] == "timestamp"
    # the same numbers in any order of the rows are ids
    shuffled = [rows[n] for n in random.permutation(len(rows))]
    source = source_of(write(tmp_path / "b.csv", ["user_id", "basket_id", "item_id"], shuffled))
    assert "events" not in source.rename


def test_column_of_grades_without_a_name_is_noted(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = [
        (u, i, at(t), random.integers(1, 6), i % 5 + 1, random.integers(2, 6))
        for u, i, t in pairs()
    ]
    found = look([str(write(tmp_path / "l.csv", ["user", "item", "time", "y", "of", "z"], rows))])
    notes = [note for note in found.found.notes if "if these are ratings" in note]
    assert len(notes) == 1 and notes[0].startswith("y has the numbers 1 to 5")

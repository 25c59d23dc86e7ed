"""`recsys init`: columns of two values that tell what a user wanted leave out the other rows, and
are no context.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import CanonicalSource
from recsys.inspect.look import Look, look
from tests.inspect.test_public_forms import triples, write


def log(path: Path, name: str, values: Sequence[Any], more: Sequence[str] = ()) -> Look:
    """Events with a column of the values in turn, and further columns of numbers."""
    names = ("user_id", "item_id", "time", name, *more)
    rows = [
        (u, i, t, values[u * i % 7 % len(values)], *[u * i % 900 / 10 + 1] * len(more))
        for u, i, t in triples()
    ]
    if path.suffix == ".parquet":
        columns = dict(zip(names, zip(*rows, strict=True), strict=True))
        pq.write_table(pa.table({key: list(cells) for key, cells in columns.items()}), path)
    else:
        write(path, [names, *rows])
    return look([str(path)])


def dropped(found: Look) -> dict[str, list[str]]:
    source = found.config.data.source
    assert isinstance(source, CanonicalSource)
    return source.drop


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("name", ["label", "target", "is_recommended", "is_click"])
def test_rows_without_interest_are_left_out(name: str, suffix: str, tmp_path: Path) -> None:
    found = log(tmp_path / f"log.{suffix}", name, (0, 1, 0, 0), ["hours"])
    assert dropped(found) == {name: ["0"]}
    assert not found.found.context and "rows with 0 are left out" in found.found.idle[name]


def test_two_numbers_that_are_no_yes_and_no_leave_out_nothing(tmp_path: Path) -> None:
    assert not dropped(log(tmp_path / "log.csv", "label", (0, -1), ["hours"]))


@pytest.mark.parametrize(
    ("values", "marks"), [((1, 1, 0), ["0"]), ((0, 0, 1), []), ((-1, 1, 1), ["-1"])]
)
def test_likes_leave_out_the_other_rows_unless_they_are_rare(
    values: tuple[int, ...], marks: list[str], tmp_path: Path
) -> None:
    found = log(tmp_path / "log.csv", "like", values, ["hours"])
    assert dropped(found) == ({"like": marks} if marks else {}) and not found.found.context


@pytest.mark.parametrize("values", [(True, True, False), (False, False, True)])
def test_recommendations_alone_are_values_and_only_the_higher_one_counts(
    values: tuple[bool, ...], tmp_path: Path
) -> None:
    found = log(tmp_path / "log.csv", "is_recommended", values)
    assert found.config.data.min_value is not None and 0 < found.config.data.min_value <= 1
    assert found.found.statistics.num_events < 0.9 * len(triples())


def test_two_grades_have_a_proposal_for_the_least_value(tmp_path: Path) -> None:
    found = log(tmp_path / "log.csv", "rating", (True, True, False))
    assert found.config.data.min_value is None
    assert "# min_value: 1.0" in found.draft.text()


@pytest.mark.parametrize(
    ("name", "is_context"),
    [("is_mobile", True), ("reordered", False), ("is_booking", False), ("long_view", False)],
)
def test_results_of_events_are_no_context(name: str, is_context: bool, tmp_path: Path) -> None:
    found = log(tmp_path / "log.csv", name, (0, 1))
    assert [column.name for column in found.found.context] == [name] * is_context


def test_column_that_tells_the_item_is_no_context(tmp_path: Path) -> None:
    rows = [("user_id", "time", "item_id", "version", "place")]
    rows += [(f"u{u}", t, f"i{i}", f"v{i}-{u % 3}", f"p{u * i % 5}") for u, i, t in triples()]
    found = look([write(tmp_path / "plays.csv", rows)])
    assert found.found.idle["version"]
    assert [column.name for column in found.found.context] == ["place"]


@pytest.mark.parametrize(
    ("name", "types", "kept"),
    [
        ("action", ("like", "pass"), ["like"]),
        ("decision", ("right", "left", "super"), ["right", "super"]),
        ("reaction", ("liked", "passed"), ["liked"]),
        ("event", ("swipe-right", "swipe-left"), ["swipe-right"]),
        ("event", ("pin", "unpin"), ["pin"]),
        ("event", ("pass", "drive"), []),
    ],
)
def test_types_that_say_no_beside_their_opposite_are_left_out(
    name: str, types: Sequence[str], kept: Sequence[str], tmp_path: Path
) -> None:
    assert log(tmp_path / "log.csv", name, types).config.data.interactions == kept

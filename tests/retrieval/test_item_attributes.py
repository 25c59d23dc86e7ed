"""Attributes of items: columns of every type are stored, and filters find the right items."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.data.attributes import as_numbers
from recsys.errors import RequestError
from recsys.retrieval.conditions import parse_filters
from recsys.retrieval.item_attributes import ItemAttributes, attribute_table


@pytest.fixture
def found(tmp_path: Path) -> Any:
    """A function: the places of the items of a column that meet a condition."""

    def places(column: pa.Array, condition: Any) -> list[int]:
        table = pa.table({"x": pa.chunked_array([column])})
        pq.write_table(attribute_table(table), tmp_path / "attributes.parquet")
        attributes = ItemAttributes.read(tmp_path / "attributes.parquet", len(column))
        mask_N = attributes.mask(parse_filters({"x": condition}), "filters")
        return [int(place) for place in mask_N.nonzero()[0]]

    return places


def test_integers_above_2_53_keep_different_keys_apart(found: Any) -> None:
    keys = pa.array([2**60, 2**60 + 1, None, 2**60 + 1])
    assert found(keys, 2**60 + 1) == [1, 3], "float64 would make them equal"
    assert found(pa.array([2**63, 2**63 + 1], pa.uint64()), 2**63) == [0]
    stock = pa.array([3, 2**63 - 1, None, 2**53 + 1])
    assert found(stock, {"gt": 3}) == [1, 3], "one large value leaves a column of numbers"
    # of users, for the model
    assert as_numbers(pa.chunked_array([keys]))[:2].tolist() == [2.0**60, 2.0**60]


@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Tokyo"])
def test_nanoseconds_and_far_dates_are_times(found: Any, zone: str | None) -> None:
    nanoseconds = pa.array([1, None, 1_577_836_800_123_456_789], pa.timestamp("ns", zone))
    assert found(nanoseconds, {"gt": "2019-12-31"}) == [2]
    far = datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC if zone else None)
    times = pa.array([far, datetime(2020, 1, 1, tzinfo=UTC if zone else None), None])
    times = times.cast(pa.timestamp("us", zone))
    assert found(times, {"gt": "2021-01-01"}) == [0]
    assert found(pa.array([date(9999, 12, 31), None, date(2020, 1, 1)]), {"gt": "2021-01-01"}) == [
        0
    ]


def test_texts_of_csv_and_json_that_are_all_times_are_times(found: Any) -> None:
    days = pa.array(["2024-05-31", None, "2023-01-02", " 2024-06-01 "])
    assert found(days, {"ge": "2024-05-31"}) == [0, 3] and found(days, "2023-01-02") == [2]
    moments = pa.array(["2024-05-31T17:30:00Z", "2024-05-31T20:30:00+02:00", None, "2024-06-01"])
    assert found(moments, {"gt": "2024-05-31T18:00:00"}) == [1, 3]
    with pytest.raises(RequestError, match="write times like 2024-05-31"):
        found(pa.array(["2024-05-31", "2024-13-31", "soon"]), {"ge": "2024-05-31"})
    assert found(pa.array(["2024", "2023", None]), "2023") == [1], "a year alone is a category"


@pytest.mark.parametrize(
    ("condition", "expected"),
    [({"lt": 10**400}, [0, 1]), ({"gt": -(10**400)}, [0, 1]), ({"ge": 10**400}, []), (10**400, [])],
    ids=["lt", "gt", "ge", "eq"],
)
def test_bounds_too_large_for_a_float_are_infinite(
    found: Any, condition: Any, expected: list[int]
) -> None:
    assert found(pa.array([1.0, -2.0, None]), condition) == expected


@pytest.mark.parametrize(
    "paths",
    [
        ["/Home/Kitchen", "/Home", "/Toys/Home", None, "/Homes"],
        ["Home > Kitchen", "Home", "Toys > Home", None, "Homes"],
        ["Home/Kitchen/", "Home/", "Toys//Home/", None, "Homes/"],
        ["» Home » Kitchen", "» Home", "» Toys » Home", None, "» Homes"],
    ],
)
def test_under_finds_paths_with_separators_at_the_ends(found: Any, paths: list[str | None]) -> None:
    column = pa.array(paths)
    for form in ("Home", "/Home", "Home/", ["Home"]):
        assert found(column, {"under": form}) == [0, 1]
    for form in ("/Home/Kitchen", "Home > Kitchen", ["Home", "Kitchen"]):
        assert found(column, {"under": form}) == [0]

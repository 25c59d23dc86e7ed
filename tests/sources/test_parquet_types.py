"""Parquet: ids of every type keep all digits or are refused."""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys import schema
from recsys.config import CanonicalSource
from recsys.errors import SourceError
from recsys.sources import open_source
from recsys.sources.base import read_all

BIG = 1234567890123456001


def events(*paths: Path) -> pa.Table:
    return read_all(
        open_source(CanonicalSource(events=[str(path) for path in paths])).pieces()["events"]
    )


def written(path: Path, users: Any, **more: Any) -> Path:
    pq.write_table(pa.table({"user_id": users, "item_id": ["i"] * len(users), **more}), path)
    return path


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([BIG, BIG + 1, None]), [str(BIG), str(BIG + 1), None]),
        (pa.array([2**64 - 1], pa.uint64()), [str(2**64 - 1)]),
        (pa.array([12.0, float("nan"), 2.5]), ["12", None, "2.5"]),
        (pa.array([12.0, 2.0**52]).dictionary_encode(), ["12", str(2**52)]),
        (pa.array([Decimal("12.00"), Decimal("2.50"), Decimal("100.00")]), ["12", "2.5", "100"]),
        (pa.array([Decimal(BIG)], pa.decimal128(38, 0)), [str(BIG)]),
        (pa.array(["a", None, " b "], pa.large_string()), ["a", None, "b"]),
        (pa.array(["a", "b"], pa.string_view()), ["a", "b"]),
        (pa.array([b"a", b"\xc3\xa9"]), ["a", "é"]),
        (pa.array([b"abcd"], pa.binary(4)), ["abcd"]),
        (pa.array([b"0123456789abcdef"], pa.uuid()), ["30313233-3435-3637-3839-616263646566"]),
        (pa.array([datetime.date(2020, 1, 2)]), ["2020-01-02"]),
        (pa.array([True]), ["true"]),
    ],
)
def test_ids_of_every_type_are_exact_text(
    ids: pa.Array, expected: list[str | None], tmp_path: Path
) -> None:
    assert (
        events(written(tmp_path / "e.parquet", ids)).column(schema.USER_ID).to_pylist() == expected
    )


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (
            pa.array([1.0, float(BIG), None]),
            r"column 'user_id' is double and holds 1\.23456789\d+e\+18 \(row 2\)",
        ),
        (pa.array([2.0**24], pa.float32()), "is float and holds 16777216"),
        (pa.array([float(BIG)]).dictionary_encode(), "not exact"),
        (pa.array([b"\xff\x00"]), "not UTF-8 text"),
        (pa.array([[1, 2]]), "expected ids as text or whole numbers"),
        (pa.array([{"id": 1}]), "lacks 'user_id'.*user_id.id: user_id"),
    ],
)
def test_ids_that_lost_digits_or_are_not_ids_are_refused(
    ids: pa.Array, says: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=says):
        events(written(tmp_path / "e.parquet", ids))


def test_integers_and_texts_give_the_same_ids(tmp_path: Path) -> None:
    files = [written(tmp_path / "a.parquet", [7, 8]), written(tmp_path / "b.parquet", ["7", "x"])]
    assert events(*files).column(schema.USER_ID).to_pylist() == ["7", "8", "7", "x"]


def test_pandas_category_of_floats_with_missing_values_is_read(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"user_id": pd.Series([1.0, None, 2.0]).astype("category"), "item_id": ["i"] * 3}
    )
    frame.to_parquet(tmp_path / "e.parquet")
    assert events(tmp_path / "e.parquet").column(schema.USER_ID).to_pylist() == ["1", None, "2"]


def test_other_columns_keep_their_values_with_any_encoding(tmp_path: Path) -> None:
    path = written(
        tmp_path / "e.parquet",
        ["u", "v"],
        price=pa.array([1.5, 2.5]).dictionary_encode(),
        shop=pa.array([Decimal(BIG), None], pa.decimal128(38, 0)),
        value=pa.array([2.0, 3.0]).dictionary_encode(),
        timestamp=pa.array([1_600_000_000_000_000_001] * 2, pa.timestamp("ns", "Asia/Tokyo")),
        tags=pa.array([["a", "b"], None]),
    )
    table = events(path)
    assert table.column("price").to_pylist() == [1.5, 2.5]
    assert table.column("shop").to_pylist() == [BIG, None]
    assert table.column("value").to_pylist() == [2.0, 3.0]
    assert table.column("tags").to_pylist() == [["a", "b"], None]
    assert (
        table.column(schema.TIMESTAMP).cast(pa.int64()).to_pylist() == [1_600_000_000_000_000] * 2
    )


def test_integers_do_not_become_floats_because_of_another_file(tmp_path: Path) -> None:
    files = [
        written(tmp_path / "a.parquet", ["u"], shop=[BIG]),
        written(tmp_path / "b.parquet", ["u"], shop=[0.5]),
    ]
    with pytest.raises(SourceError, match=r"a\.parquet: column 'shop' holds integers of 2\^53"):
        events(*files)
    small = [written(tmp_path / "a.parquet", ["u"], shop=[7]), files[1]]
    assert events(*small).column("shop").to_pylist() == [7.0, 0.5]


def test_column_name_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "e.parquet", ["u"], value=[1.0])
    path.write_bytes(path.read_bytes().replace(b"value", b"v\xf0lue"))
    with pytest.raises(SourceError, match="is not a Parquet file or is damaged"):
        events(path)


def test_column_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["u"])] * 3, names=["user_id", "item_id", "item_id"])
    pq.write_table(table, tmp_path / "e.parquet")
    with pytest.raises(SourceError, match="column 'item_id' occurs twice"):
        events(tmp_path / "e.parquet")

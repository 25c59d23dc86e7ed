"""Lines of orders get customer and time of their order, with all digits."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys import schema
from recsys.config import CanonicalSource
from recsys.errors import SourceError
from recsys.sources import open_source
from recsys.sources.base import read_all

BIG = 1234567890123456001
ORDERS = [
    {"id": n, "customer": BIG + n % 2, "ordered": 1_700_000_000 + n, "till": n} for n in (1, 2, 3)
]
LINES = [{"order_id": n, "sku": f"s{k}"} for n, k in ((1, 1), (1, 2), (3, 1), (9, 4))]
RENAME = {"events": {"customer": "user_id", "sku": "item_id", "ordered": "timestamp"}}


def written(path: Path, rows: list[dict[str, object]]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_lines_get_the_columns_of_their_order(form: str, tmp_path: Path) -> None:
    source = open_source(
        CanonicalSource(
            events=[written(tmp_path / f"lines.{form}", LINES)],
            lookup={"order_id = id": [written(tmp_path / f"orders.{form}", ORDERS)]},
            rename=RENAME,
        )
    )
    source.check()
    assert len(source.files()) == 2
    found = read_all(source.pieces()["events"])
    assert found.column(schema.USER_ID).to_pylist()[:3] == [str(BIG + 1)] * 3
    assert found.column(schema.TIMESTAMP).to_pylist()[2].timestamp() == 1_700_000_003
    assert [str(cell) for cell in found.column("till").to_pylist()[:3]] == ["1", "1", "3"]
    bad = found.filter(pc.is_valid(found.column(schema.REASON))).to_pylist()
    assert [(row[schema.ROW], row[schema.REASON]) for row in bad] == [(4, "missing user_id")]


def test_events_without_the_column_are_refused(tmp_path: Path) -> None:
    orders = written(tmp_path / "orders.csv", ORDERS)
    source = open_source(
        CanonicalSource(
            events=[written(tmp_path / "lines.csv", LINES)],
            lookup={"basket": [orders]},
            rename=RENAME,
        )
    )
    with pytest.raises(SourceError, match="no column 'basket', by which data.source.lookup"):
        source.check()


def test_columns_of_the_order_may_be_numbers(tmp_path: Path) -> None:
    lines = written(tmp_path / "lines.csv", LINES)
    lookup = {"order_id = id": [written(tmp_path / "orders.csv", ORDERS)]}
    given = {"events": [lines], "lookup": lookup, "rename": RENAME}
    source = open_source(CanonicalSource(**given, numbers={"events": ["till"]}))  # type: ignore[arg-type]
    source.check()
    found = read_all(source.pieces()["events"])
    assert found.column("till").to_pylist()[:3] == [1.0, 1.0, 3.0]
    wrong = open_source(CanonicalSource(**given, numbers={"events": ["tills"]}))  # type: ignore[arg-type]
    with pytest.raises(
        SourceError, match=r"events has no column 'tills' besides the standard.*till"
    ):
        wrong.check()


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_further_lines_of_an_order_get_what_its_first_line_alone_has(
    form: str, tmp_path: Path
) -> None:
    first = {"customer": BIG, "ordered": 1_700_000_000, "state": "paid"}
    orders = [{**first, "no": 1}, {**first, "no": 2, "state": "void"}, {**first, "no": 3}]
    lines: list[dict[str, object]] = [
        {**dict.fromkeys(first, ""), **(order if k == 0 else {}), "no": order["no"], "sku": f"s{k}"}
        for order in orders
        for k in range(3)
    ]
    if form != "csv":
        lines = [
            {name: None if cell == "" else cell for name, cell in row.items()} for row in lines
        ]
    path = written(tmp_path / f"lines.{form}", lines)
    read = open_source(
        CanonicalSource(
            events=[path], lookup={"no": [path]}, rename=RENAME, drop={"state": ["void"]}
        )
    )
    read.check()
    found = read_all(read.pieces()["events"])
    assert not found.column(schema.REASON).drop_null()
    assert found.column(schema.USER_ID).to_pylist() == [str(BIG)] * 6
    assert found.column(schema.ITEM_ID).to_pylist() == ["s0", "s1", "s2"] * 2
    assert {time.timestamp() for time in found.column(schema.TIMESTAMP).to_pylist()} == {1.7e9}

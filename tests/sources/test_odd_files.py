"""Unusual files of users, at the level of the adapters: every row is read or quarantined with a
reason, or the file is refused with one message.

Each input states what a user may expect: the exact good rows, or a refusal that names the file and
the cure. Where two behaviours are fine, both are listed. No row may vanish: good and bad rows
together are the rows of the file.
"""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys import schema
from recsys.config.sources import source_class
from recsys.errors import UserError
from recsys.sources import open_source

BIG = 1234567890123456001
Files = dict[str, bytes]


@dataclass(frozen=True)
class Rows:
    """The expected events: columns of good rows, number of bad rows, and their reasons."""

    columns: dict[str, list[Any]]
    bad: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Refused:
    """Texts that the message must contain, in any case; '|' separates alternatives."""

    says: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    files: Callable[[], Files]
    expect: tuple[Rows | Refused, ...]
    source: dict[str, Any] = field(default_factory=dict)
    table: str = "events"


def refused(*says: str) -> Refused:
    return Refused(says)


def rows(bad: int = 0, reason: str = "", **columns: list[Any]) -> Rows:
    return Rows(columns, bad, reason)


def text(name: str, content: str, encoding: str = "utf-8") -> Callable[[], Files]:
    return lambda: {name: content.encode(encoding)}


def parquet(**columns: Any) -> Callable[[], Files]:
    def files() -> Files:
        sink = io.BytesIO()
        pq.write_table(pa.table(columns), sink)
        return {"e.parquet": sink.getvalue()}

    return files


def lines(*records: Any) -> Callable[[], Files]:
    text_lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    return text("e.jsonl", "\n".join(text_lines) + "\n")


def zipped(*members: tuple[str, str]) -> Callable[[], Files]:
    def files() -> Files:
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members:
                archive.writestr(name, content)
        return {"e.csv.zip": sink.getvalue()}

    return files


def compressed(name: str, content: str, codec: str) -> Callable[[], Files]:
    def files() -> Files:
        data = content.encode()
        return {
            name: (
                gzip.compress(data)
                if codec == "gzip"
                else pa.Codec(codec).compress(data, asbytes=True)
            )
        }

    return files


PLAIN = "user_id,item_id\na,1\nb,2\n"
AB = rows(user_id=["a", "b"], item_id=["1", "2"])
NAMES = {"columns": ["user_id", "item_id"]}
TIMED = ["user_id", "item_id", "value", "timestamp"]

DELIMITED = {
    "plain": Case(text("e.csv", PLAIN), (AB,)),
    "byte-order mark and quoted header": Case(
        text("e.csv", '\ufeff"user_id","item_id"\n"a","1"\n"b","2"\n'), (AB,)
    ),
    "UTF-16": Case(text("e.csv", PLAIN, "utf-16"), (AB, refused("e.csv", "utf-16", "utf-8"))),
    "UTF-32": Case(
        text("e.csv", PLAIN, "utf-32"),
        (AB, refused("e.csv", "utf-32|utf-16|binary", "utf-8|format")),
    ),
    "carriage returns alone": Case(
        text("e.csv", PLAIN.replace("\n", "\r")), (AB, refused("e.csv", "line|header"))
    ),
    "two kinds of line end": Case(text("e.csv", "user_id,item_id\r\na,1\nb,2\r\n"), (AB,)),
    "last line without a line end": Case(text("e.csv", PLAIN.rstrip()), (AB,)),
    "blank lines": Case(text("e.csv", "user_id,item_id\n\na,1\n\n\nb,2\n\n"), (AB,)),
    "semicolon, named": Case(text("e.csv", PLAIN.replace(",", ";")), (AB,), {"separator": ";"}),
    "bar, named": Case(text("e.csv", PLAIN.replace(",", "|")), (AB,), {"separator": "|"}),
    "tab in a csv, named": Case(
        text("e.csv", PLAIN.replace(",", "\t")), (AB,), {"separator": "\t"}
    ),
    "two colons, named": Case(text("e.csv", PLAIN.replace(",", "::")), (AB,), {"separator": "::"}),
    "blanks, named": Case(
        text("e.csv", "user_id  item_id\na   1\nb 2\n"), (AB,), {"separator": " "}
    ),
    "leading blanks of aligned columns": Case(
        text("e.csv", "user_id item_id\n   a   1\n   b   2\n"), (AB,), {"separator": " "}
    ),
    "semicolon, not named": Case(
        text("e.csv", PLAIN.replace(",", ";")),
        (AB, refused("e.csv", "';'", "data.source.separator")),
    ),
    "tab in a csv, not named": Case(
        text("e.csv", PLAIN.replace(",", "\t")),
        (AB, refused("e.csv", "tab|\\\\t", "data.source.separator")),
    ),
    "a separator within quotes": Case(
        text("e.csv", 'user_id;item_id\n"a;x";1\nb;2\n'),
        (rows(user_id=["a;x", "b"]),),
        {"separator": ";"},
    ),
    "a colon inside a cell": Case(
        text("e.csv", "user_id::item_id\na:x::1\nb::2\n"),
        (rows(user_id=["a:x", "b"]),),
        {"separator": "::"},
    ),
    "an empty separator value is the default": Case(text("e.csv", PLAIN), (AB,), {"separator": ""}),
    "a header in capitals": Case(text("e.csv", "USER_ID, Item_Id \na,1\nb,2\n"), (AB,)),
    "a name in two cases": Case(
        text("e.csv", "user_id,User_ID,item_id\na,x,1\nb,y,2\n"), (AB, refused("User_ID"))
    ),
    "only ambiguous cases": Case(
        text("e.csv", "User_id,USER_ID,item_id\na,x,1\n"), (refused("user_id", "rename"),)
    ),
    "a repeated name": Case(
        text("e.csv", "user_id,item_id,user_id\na,1,x\n"), (refused("user_id", "twice"),)
    ),
    "a repeated name of a column that is not read": Case(
        text("e.csv", "user_id,item_id,total,total\na,1,5,6\nb,2,5,6\n"), (AB,)
    ),
    "headerless, named": Case(text("e.csv", "a,1\nb,2\n"), (AB,), NAMES),
    "headerless, ids of digits, named": Case(
        text("e.csv", "7,1\n8,2\n"), (rows(user_id=["7", "8"]),), NAMES
    ),
    "headerless, not named": Case(
        text("e.csv", "7,1,5,881250949\n8,2,3,881250950\n"),
        (refused("e.csv", "header|first row|first line", "columns"),),
    ),
    "headerless, renamed": Case(
        text("e.csv", "7,1\n8,2\n9,3\n"),
        (
            rows(user_id=["7", "8", "9"]),
            refused("header|first row|first line", "data.source.columns"),
        ),
        {"rename": {"7": "user_id", "1": "item_id"}},
    ),
    "columns next to a header": Case(
        text("e.csv", PLAIN), (AB, refused("header", "data.source")), NAMES
    ),
    "columns next to a header in capitals": Case(
        text("e.csv", PLAIN.replace("user_id", "USER_ID")),
        (AB, refused("header", "data.source")),
        NAMES,
    ),
    "other columns than the header": Case(
        text("e.csv", "uid,iid\na,1\nb,2\n"), (AB,), {**NAMES, "header": "yes"}
    ),
    "fewer names than cells": Case(
        text("e.csv", "a,1,5\nb,2,4\n"), (refused("e.csv", "3", "2", "columns"),), NAMES
    ),
    "more names than cells": Case(
        text("e.csv", "a,1\nb,2\n"), (refused("e.csv", "4", "2", "columns"),), {"columns": TIMED}
    ),
    "comment lines, named": Case(
        text("e.csv", "# a graph\n# of x\n" + PLAIN), (AB,), {"comment": "#"}
    ),
    "a comment line in the middle, named": Case(
        text("e.csv", PLAIN.replace("b,2", "# half\nb,2")), (AB,), {"comment": "#"}
    ),
    "comment lines, not named": Case(
        text("e.csv", "# a graph\n# of x\n" + PLAIN), (AB, refused("e.csv", "data.source.comment"))
    ),
    "ids that begin like a comment": Case(
        text("e.csv", "user_id,item_id\n#a,1\nb,2\n"), (rows(user_id=["#a", "b"]),)
    ),
    "rows of three lengths": Case(
        text("e.csv", PLAIN + "c\nd,4,x\n"), (rows(user_id=["a", "b"], bad=2, reason="2|expected"),)
    ),
    "every row one cell longer": Case(
        text("e.csv", "user_id,item_id\na,1,\nb,2,\n"), (AB, refused("e.csv", "3", "2|header"))
    ),
    "an index column of pandas": Case(text("e.csv", ",user_id,item_id\n0,a,1\n1,b,2\n"), (AB,)),
    "a decimal comma": Case(
        text("e.csv", "user_id;item_id;value\na;1;3,5\nb;2;1.200,25\n"),
        (rows(value=[3.5, 1200.25]), rows(value=[3.5], bad=1, reason="number")),
        {"separator": ";", "decimal": ","},
    ),
    "a decimal comma, not named": Case(
        text("e.csv", "user_id;item_id;value\na;1;3,5\n"),
        (rows(bad=1, reason="number", value=[]),),
        {"separator": ";"},
    ),
    "zero bytes": Case(
        text("e.csv", "user_id,item_id\na\0,1\nb,2\n"), (refused("e.csv", "binary|zero"),)
    ),
    "ids keep their digits": Case(
        text("e.csv", f"user_id,item_id\n007,1e5\n{BIG},12.0\n 9 ,+3\n"),
        (rows(user_id=["007", str(BIG), "9"], item_id=["1e5", "12.0", "+3"]),),
    ),
    "an id of 30 digits": Case(
        text("e.csv", f"user_id,item_id\n{'9' * 30},1\n"), (rows(user_id=["9" * 30]),)
    ),
    "missing ids": Case(
        text("e.csv", "user_id,item_id\nnan,1\nNone,2\nNULL,3\nNA,4\n,5\nb,2\n"),
        (rows(user_id=["b"], bad=5, reason="missing user_id"),),
    ),
    "a user called None": Case(
        text("e.csv", "user_id,item_id\nNone,1\nb,2\n"),
        (rows(user_id=["None", "b"]),),
        {"absent": []},
    ),
    "a dash for missing values, named": Case(
        text("e.csv", "user_id,item_id,value\na,1,-\nb,2,3\n"),
        (rows(value=[1.0, 3.0]),),
        {"absent": ["-"]},
    ),
}

CONTAINERS = {
    "zip": Case(zipped(("e.csv", PLAIN)), (AB,)),
    "zip of two different files": Case(
        zipped(("e.csv", PLAIN), ("readme.pdf", "x")),
        (AB, refused("e.csv.zip", "readme.pdf|2 files|several")),
    ),
    "zip with resource files of another system": Case(
        zipped(("e.csv", PLAIN), ("__MACOSX/._e.csv", "\0x")), (AB,)
    ),
    "empty zip": Case(zipped(), (refused("e.csv.zip", "zip"),)),
    "zip cut in the middle": Case(
        lambda: {"e.csv.zip": zipped(("e.csv", PLAIN * 99))()["e.csv.zip"][:-30]},
        (refused("e.csv.zip"),),
    ),
    "gzip by name": Case(compressed("e.csv.gz", PLAIN, "gzip"), (AB,)),
    "gzip without its ending": Case(
        compressed("e.csv", PLAIN, "gzip"), (AB, refused("e.csv", "gzip|compressed"))
    ),
    "gzip of two members": Case(
        lambda: {"e.csv.gz": gzip.compress(b"user_id,item_id\na,1\n") + gzip.compress(b"b,2\n")},
        (AB,),
    ),
    "gzip cut in the middle": Case(
        lambda: {
            "e.csv.gz": gzip.compress(
                "".join(f"{i},{i * 7919 % 1000}\n" for i in range(9999)).encode()
            )[:9000]
        },
        (refused("e.csv.gz", "gzip|whole|cut|truncated"),),
        NAMES,
    ),
    "plain text named gz": Case(text("e.csv.gz", PLAIN), (AB, refused("e.csv.gz", "gzip"))),
    "zstd": Case(compressed("e.csv.zst", PLAIN, "zstd"), (AB,)),
    "a partition of a folder": Case(
        lambda: {
            "event_type=buy%20now/e.csv": b"user_id,item_id\na,1\n",
            "event_type=view/e.csv": b"user_id,item_id\nb,2\n",
        },
        (rows(event_type=["buy now", "view"]),),
        {"events": ["{folder}"]},
    ),
    "a partition without a value": Case(
        lambda: {"date=__HIVE_DEFAULT_PARTITION__/e.csv": PLAIN.encode()},
        (AB,),
        {"events": ["{folder}"]},
    ),
    "an empty folder": Case(
        lambda: {"x/.hidden": b"x"},
        (refused("no file", "data.source"),),
        {"events": ["{folder}/x"]},
    ),
    "a bracket in a name": Case(
        lambda: {"e[1].csv": PLAIN.encode()},
        (AB, refused("e[1].csv")),
        {"events": ["{folder}/e[1].csv"]},
    ),
    "an open bracket in a pattern": Case(
        lambda: {"e.csv": PLAIN.encode()},
        (refused("[", "no file|exist"),),
        {"events": ["{folder}/e[.csv"]},
    ),
}

JSON = {
    "big ids and a NaN": Case(
        lines(
            {"user_id": BIG, "item_id": 1},
            '{"user_id": NaN, "item_id": 2}',
            {"user_id": BIG + 1, "item_id": 3},
        ),
        (rows(user_id=[str(BIG), str(BIG + 1)], bad=1, reason="missing user_id"),),
    ),
    "big ids and a fraction": Case(
        lines({"user_id": BIG, "item_id": 1}, {"user_id": 2.5, "item_id": 2}),
        (rows(user_id=[str(BIG), "2.5"]),),
    ),
    "big ids, some quoted": Case(
        lines({"user_id": BIG, "item_id": 1}, {"user_id": str(BIG), "item_id": 2}),
        (rows(user_id=[str(BIG)] * 2),),
    ),
    "ids beyond 64 bits": Case(
        lines({"user_id": 10**25 + 1, "item_id": 2**63}),
        (rows(user_id=[str(10**25 + 1)], item_id=[str(2**63)]),),
    ),
    "whole floats": Case(
        lines({"user_id": 12.0, "item_id": 1}, {"user_id": 12, "item_id": 2}),
        (rows(user_id=["12", "12"]),),
    ),
    "an id that is an object": Case(
        lines({"user_id": {"$oid": "x"}, "item_id": 1}, {"user_id": "a", "item_id": 2}),
        (
            rows(user_id=["a"], bad=1),
            rows(user_id=["x", "a"]),
            refused("user_id", "object"),
        ),
    ),
    "infinity for a value": Case(
        lines(
            '{"user_id": "a", "item_id": 1, "value": Infinity}',
            {"user_id": "b", "item_id": 2, "value": 3},
        ),
        (rows(user_id=["b"], bad=1, reason="finite"),),
    ),
    "NaN for a value": Case(
        lines(
            '{"user_id": "a", "item_id": 1, "value": NaN}',
            {"user_id": "b", "item_id": 2, "value": 3},
        ),
        (rows(value=[1.0, 3.0]), rows(value=[3.0], bad=1)),
    ),
    "an array": Case(
        text(
            "e.json", json.dumps([{"user_id": "a", "item_id": 1}, {"user_id": "b", "item_id": 2}])
        ),
        (AB, refused("e.json", "array|one object in each line")),
    ),
    "an array on many lines": Case(
        text(
            "e.json",
            json.dumps([{"user_id": "a", "item_id": 1}, {"user_id": "b", "item_id": 2}], indent=1),
        ),
        (AB, refused("e.json", "array|one object in each line")),
    ),
    "half an object": Case(
        lines({"user_id": "a", "item_id": 1}, '{"user_id": "b", "it'), (rows(user_id=["a"], bad=1),)
    ),
    "deep nesting": Case(
        lines({"user_id": "a", "item_id": 1}, '{"user_id": ' + "[" * 99_999 + "]" * 99_999 + "}"),
        (rows(user_id=["a"], bad=1), refused("e.jsonl", "nest")),
    ),
    "a list per line": Case(lines(["a", 1], ["b", 2]), (refused("e.jsonl", "object"),)),
}

MOMENT = datetime(2020, 11, 27, 21, 51, 13, tzinfo=UTC)

PARQUET = {
    "64-bit ids": Case(
        parquet(user_id=pa.array([BIG, -BIG]), item_id=pa.array([1, 2])),
        (rows(user_id=[str(BIG), str(-BIG)]),),
    ),
    "unsigned 64-bit ids": Case(
        parquet(user_id=pa.array([2**64 - 1], pa.uint64()), item_id=["1"]),
        (rows(user_id=[str(2**64 - 1)]),),
    ),
    "float ids with missing values": Case(
        parquet(user_id=pa.array([12346.0, None, float("nan")]), item_id=["1", "2", "3"]),
        (rows(user_id=["12346"], bad=2, reason="missing user_id"),),
    ),
    "float ids that lost digits": Case(
        parquet(user_id=pa.array([float(BIG), float(BIG) + 4096]), item_id=["1", "2"]),
        (refused("user_id", "float"), rows(user_id=[], bad=2)),
    ),
    "decimal ids": Case(
        parquet(user_id=pa.array([Decimal(BIG)], pa.decimal128(20, 0)), item_id=["1"]),
        (rows(user_id=[str(BIG)]),),
    ),
    "ids of bytes": Case(parquet(user_id=pa.array([b"a", b"b"]), item_id=["1", "2"]), (AB,)),
    "dictionary-encoded ids": Case(
        parquet(
            user_id=pa.array(["a", "b"]).dictionary_encode(), item_id=pa.array([1, 2], pa.int8())
        ),
        (AB,),
    ),
    "lists for ids": Case(
        parquet(user_id=pa.array([["a"], ["b"]]), item_id=["1", "2"]),
        (refused("user_id", "list"), rows(user_id=[], bad=2), rows(user_id=["['a']", "['b']"])),
    ),
    "nanoseconds": Case(
        parquet(
            user_id=["a"],
            item_id=["1"],
            timestamp=pa.array([1606513873123456789], pa.timestamp("ns")),
        ),
        (rows(timestamp=[datetime(2020, 11, 27, 21, 51, 13, 123456, UTC)]),),
    ),
    "another time zone": Case(
        parquet(
            user_id=["a"],
            item_id=["1"],
            timestamp=pa.array([1606513873], pa.timestamp("s", "Asia/Tokyo")),
        ),
        (rows(timestamp=[MOMENT]),),
    ),
    "dates": Case(
        parquet(user_id=["a"], item_id=["1"], timestamp=pa.array([date(2020, 11, 27)])),
        (rows(timestamp=[datetime(2020, 11, 27, tzinfo=UTC)]),),
    ),
    "a date key of digits": Case(
        parquet(user_id=["a"], item_id=["1"], timestamp=pa.array([20201127])),
        (rows(timestamp=[datetime(2020, 11, 27, tzinfo=UTC)]), rows(bad=1, user_id=[])),
    ),
    "too many columns": Case(
        lambda: {
            "e.csv": (
                (
                    ",".join(["user_id", "item_id", *(f"c{i}" for i in range(100_000))])
                    + "\n"
                    + "1," * 100_001
                    + "1\n"
                ).encode()
            )
        },
        (refused("e.csv", "columns"),),
    ),
}


def _time(value: str, want: datetime | None, source: dict[str, Any] | None = None) -> Case:
    """A time as a text cell; None: a bad time."""
    content = f'user_id,item_id,timestamp\na,1,"{value}"\n'
    expect = rows(timestamp=[want]) if want else rows(user_id=[], bad=1, reason="bad timestamp")
    return Case(text("e.csv", content), (expect,), source or {})


DAY = datetime(2020, 11, 27, tzinfo=UTC)
TIMES = {
    "seconds": _time("1606513873", MOMENT),
    "milliseconds": _time("1606513873000", MOMENT),
    "microseconds": _time("1606513873000000", MOMENT),
    "nanoseconds": _time("1606513873000000000", MOMENT),
    "seconds with a fraction": _time("1606513873.0", MOMENT),
    "ISO": _time("2020-11-27T21:51:13Z", MOMENT),
    "ISO with an offset": _time("2020-11-27T22:51:13+0100", MOMENT),
    "ISO with a comma": _time("2020-11-27 21:51:13,000", MOMENT),
    "a date": _time("2020-11-27", DAY),
    "a date of digits": _time("20201127", DAY),
    "a time of digits": _time("20201127215113", MOMENT),
    "a date in a given format": _time("27/11/2020", DAY, {"time_format": "%d/%m/%Y"}),
    "a date without its format": _time("27/11/2020", None),
    "an impossible date": _time("2020-13-45", None),
    "a date of a spreadsheet": _time("44162", None),
    "a word": _time("yesterday", None),
}

ALL = {
    f"{kind}: {name}": case
    for kind, cases in {
        "text": DELIMITED,
        "container": CONTAINERS,
        "json": JSON,
        "parquet": PARQUET,
        "time": TIMES,
    }.items()
    for name, case in cases.items()
}


@pytest.mark.parametrize("name", list(ALL))
def test_file_is_read_or_refused_as_expected(name: str, tmp_path: Path) -> None:
    case = ALL[name]
    found = _read(case, tmp_path)
    failures = [_difference(found, expected) for expected in case.expect]
    assert any(failure == "" for failure in failures), " | or: ".join(failures)


def test_there_are_more_than_a_hundred_odd_files() -> None:
    assert len(ALL) > 100


def _read(case: Case, folder: Path) -> pa.Table | str:
    """The events, or the message of the refusal."""
    for name, content in case.files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    places = case.source.get("events", [str(folder / next(iter(case.files())))])
    settings = {
        **case.source,
        "events": [place.replace("{folder}", str(folder)) for place in places],
    }
    try:
        adapter = open_source(source_class("canonical")(**settings))
        adapter.fingerprint()
        blocks = [block for piece in adapter.pieces()[case.table] for block in piece.read()]
    except UserError as error:
        return str(error).replace(str(folder), "")
    return pa.concat_tables(blocks)


def _difference(found: pa.Table | str, expected: Rows | Refused) -> str:
    """The differences from the expectation, empty if there are none."""
    if isinstance(expected, Refused):
        if not isinstance(found, str):
            return (
                f"not refused, but {found.num_rows} rows were read: {found.slice(0, 5).to_pylist()}"
            )
        absent = [
            t
            for t in expected.says
            if not any(option.lower() in found.lower() for option in t.split("|"))
        ]
        return f"the message lacks {absent}: {found}" if absent else ""
    if isinstance(found, str):
        return f"refused: {found}"
    good = found.filter(pc.is_null(found.column(schema.REASON)))
    bad = found.filter(pc.is_valid(found.column(schema.REASON)))
    got = {name: good.column(name).to_pylist() for name in expected.columns}
    if got != expected.columns:
        return f"{got}, not {expected.columns}"
    if bad.num_rows != expected.bad:
        return (
            f"{bad.num_rows} bad rows, not {expected.bad}: {bad.column(schema.REASON).to_pylist()}"
        )
    reasons = " ".join(bad.column(schema.REASON).to_pylist())
    wanted = any(option.lower() in reasons.lower() for option in expected.reason.split("|"))
    return "" if wanted else f"the reasons lack {expected.reason!r}: {reasons}"

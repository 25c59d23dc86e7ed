"""Odd files of all tables and kinds of source, in combination: read completely, noted, or refused
with the cure. :mod:`test_odd_files` covers events only.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.command_line.configuration_checks import check_input
from recsys import schema
from recsys.config import build_config
from recsys.config.sources import source_class
from recsys.errors import DataError, UserError
from recsys.preparation.dataset_writer import DatasetWriter
from recsys.preparation.quarantine import QUARANTINE_SCHEMA, Quarantine
from recsys.sources import open_source

EVENTS = "user_id,item_id\na,1\nb,2\n"
INTER = "user_id:token\titem_id:token\n1\t2\n"
Files = Mapping[str, str | bytes]


def parquet(**columns: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def timed(times: pa.Array) -> dict[str, bytes]:
    return {
        "e.parquet": parquet(
            user_id=["a"] * len(times), item_id=["1"] * len(times), timestamp=times
        )
    }


def lines(*records: Any) -> str:
    return "\n".join(map(json.dumps, records)) + "\n"


def read(folder: Path, files: Files, **settings: Any) -> tuple[dict[str, pa.Table], list[str]]:
    """All tables and the notes; the first file has the events."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    kind = settings.pop("kind", "canonical")
    first = str(folder / next(iter(files)))
    place: dict[str, Any] = {
        "canonical": {"events": [first]},
        "sequences": {"events": first},
        "recbole": {"folder": str(folder), "name": "r"},
    }[kind]
    for table in ("events", "items", "users", "social", "knowledge"):
        if table in settings:
            place[table] = [str(folder / name) for name in settings.pop(table)]
    adapter = open_source(source_class(kind)(**place, **settings))
    adapter.check()
    tables = {
        name: pa.concat_tables([block for piece in pieces for block in piece.read()])
        for name, pieces in adapter.pieces().items()
    }
    return tables, adapter.notes


READ: dict[str, tuple[Files, dict[str, Any], str, dict[str, list[Any]]]] = {
    "separator, gzip, columns, comment and decimal comma": (
        {"e.csv.gz": gzip.compress(b"# c\na;1;3,5;x\n# m\nb;2;4,25;y\n")},
        {
            "separator": ";",
            "columns": ["user_id", "item_id", "value", "_"],
            "comment": "#",
            "decimal": ",",
        },
        "events",
        {"user_id": ["a", "b"], "value": [3.5, 4.25]},
    ),
    "a separator of one table": (
        {"e.csv": EVENTS, "u.txt": "a 31\nb  22\n"},
        {"users": ["u.txt"], "separator": {"users": " "}, "columns": {"users": ["user_id", "age"]}},
        "users",
        {"user_id": ["a", "b"], "age": ["31", "22"]},
    ),
    "two separators": (
        {"e.dat": "a|1\nb|2\n", "i.dat": "1::A\n2::B\n"},
        {
            "items": ["i.dat"],
            "separator": {"events": "|", "items": "::"},
            "columns": {"events": ["user_id", "item_id"], "items": ["item_id", "title"]},
        },
        "items",
        {"item_id": ["1", "2"], "title": ["A", "B"]},
    ),
    "comments of one table, ids like comments in another": (
        {"e.csv": "# note\n" + EVENTS, "i.csv": "item_id,title\n#love,x\n#hate,y\n"},
        {"items": ["i.csv"], "comment": {"events": "#"}},
        "items",
        {"item_id": ["#love", "#hate"]},
    ),
    "an encoding of one table": (
        {
            "e.csv": "user_id,item_id\né,1\nb,2\n",
            "i.csv": "item_id,title\n1,café\n2,b\n".encode("latin-1"),
        },
        {"items": ["i.csv"], "encoding": {"items": "latin-1"}},
        "items",
        {"title": ["café", "b"]},
    ),
    "a file with commas and one with semicolons": (
        {"a.csv": EVENTS, "b.csv": "user_id;item_id\nc;3\n"},
        {"events": ["a.csv", "b.csv"]},
        "events",
        {"user_id": ["a", "b", "c"]},
    ),
    "Parquet and CSV": (
        {"a.csv": EVENTS, "b.parquet": parquet(user_id=pa.array([12.0, None]), item_id=[1, 2])},
        {"events": ["a.csv", "b.parquet"]},
        "events",
        {"user_id": ["a", "b", "12"]},
    ),
    "a file with a header and one without": (
        {"a.csv": EVENTS, "b.csv": "c,3\nd,4\n"},
        {"events": ["a.csv", "b.csv"], "columns": ["user_id", "item_id"]},
        "events",
        {"user_id": ["a", "b", "c", "d"]},
    ),
    "Hive folders of JSON lines": (
        {
            "h/user_id=007/a.jsonl.gz": gzip.compress(lines({"item_id": 2}).encode()),
            "h/user_id=08/b.jsonl": lines({"item_id": 3}),
        },
        {"events": ["h"]},
        "events",
        {"user_id": ["007", "08"], "item_id": ["2", "3"]},
    ),
    "Hive folders and configured columns": (
        {"h/user_id=007/a.csv": "1\n2\n"},
        {"events": ["h"], "columns": ["item_id"]},
        "events",
        {"user_id": ["007", "007"], "item_id": ["1", "2"]},
    ),
    "times of bytes": (
        timed(pa.array([b"2020-11-27", b"1606513873"])),
        {},
        "events",
        {"user_id": ["a", "a"], "item_id": ["1", "1"]},
    ),
    "lines of items that end with a separator": (
        {"s.txt": "1,5,6,\n2,7,,\n"},
        {"kind": "sequences", "separator": ","},
        "events",
        {"user_id": ["1", "1", "2"], "item_id": ["5", "6", "7"]},
    ),
    "atomic files with absent floats": (
        {
            "r.inter": INTER,
            "r.item": "item_id:token\tp:float\tv:float_seq\n2\t\t0.1 0.2\n3\tnan\t\n",
        },
        {"kind": "recbole"},
        "items",
        {"item_id": ["2", "3"], "p": [None, None], "v": [[0.1, 0.2], None]},
    ),
}


@pytest.mark.parametrize("name", list(READ))
def test_odd_table_is_read_as_expected(name: str, tmp_path: Path) -> None:
    files, settings, table, expected = READ[name]
    rows = read(tmp_path, files, **settings)[0][table]
    good = rows.filter(pa.compute.is_null(rows.column(schema.REASON)))
    assert {column: good.column(column).to_pylist() for column in expected} == expected


REFUSED: dict[str, tuple[Files, dict[str, Any], tuple[str, ...]]] = {
    "a separator that fits one table alone": (
        {"e.csv": EVENTS, "i.csv": "item_id;title\n1;A\n2;B\n"},
        {"items": ["i.csv"], "separator": ";"},
        ("e.csv", "set data.source.separator to ','", "separator: {events: …}"),
    ),
    "a separator of a table without files": (
        {"e.csv": EVENTS},
        {"separator": {"users": ";"}},
        ("data.source.users",),
    ),
    "a header in a comment": (
        {"e.csv": "# user_id,item_id\na,1\nb,2\n"},
        {"comment": "#"},
        ("data.source.comment", "data.source.columns"),
    ),
    "a web page": ({"e.csv": "<!DOCTYPE html>\n<html></html>\n"}, {}, ("web page",)),
    "a pointer of Git LFS": (
        {"e.csv": "version https://git-lfs.github.com/spec/v1\noid sha256:1\n"},
        {},
        ("git lfs pull",),
    ),
    "an archive": ({"e.tar": b"e.csv\0\0\0" * 99}, {}, ("unpack it",)),
    "another file in the folder": (
        {"x/a.csv": EVENTS, "x/README.md": "hi\n"},
        {"events": ["x"]},
        ("README.md", "*.csv"),
    ),
    "a column twice in a header": (
        {"e.csv": EVENTS, "i.csv": "item_id,title,title\n1,A,B\n"},
        {"items": ["i.csv"]},
        ("'title' occurs twice", "data.source.columns", "header to yes"),
    ),
    "friends named like users": (
        {"e.csv": EVENTS, "s.csv": "user_id,to\na,b\n"},
        {"social": ["s.csv"]},
        ("{social: {user_id: src_user_id, to: dst_user_id}}",),
    ),
    "facts without a relation": (
        {"e.csv": EVENTS, "k.tsv": "head\ttail\n1\tx\n"},
        {"knowledge": ["k.tsv"]},
        ("data.source.constants", "{knowledge: {relation: has}}"),
    ),
    "an atomic file with another name of users": (
        {"r.inter": INTER.replace("user_id", "uid")},
        {"kind": "recbole"},
        ("{uid: user_id}",),
    ),
    "a file of blank lines": (
        {"s.txt": "\n\n"},
        {"kind": "sequences"},
        ("blank lines", "USER ITEM"),
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_odd_table_is_refused_with_its_cure(name: str, tmp_path: Path) -> None:
    files, settings, says = REFUSED[name]
    with pytest.raises(UserError) as refused:
        read(tmp_path, files, **settings)
    assert [text for text in says if text not in str(refused.value)] == []


NOTED: dict[str, tuple[Files, dict[str, Any], str]] = {
    "a rename with a typing error": (
        {"e.csv": "user_id,item_id,t\na,1,5\n"},
        {"rename": {"t": "timestmap"}},
        "'timestmap' is not used as timestamp",
    ),
    "a rating that is not named": (
        {"e.csv": "user_id,item_id,rating\na,1,5\n"},
        {},
        "{rating: value}",
    ),
    "seconds as 32-bit floats": (
        timed(pa.array([1606513873.0], pa.float32())),
        {},
        "only to 128 s",
    ),
    "items in brackets": ({"s.txt": "1 [5, 6]\n2 [7]\n"}, {"kind": "sequences"}, "'[5,'"),
    "users with a colon": ({"s.txt": "1: 5 6\n2: 7\n"}, {"kind": "sequences"}, "'1:'"),
    "two separators in a line": ({"s.txt": "1\t5,6\n2\t7\n"}, {"kind": "sequences"}, "'5,6'"),
}


@pytest.mark.parametrize("name", list(NOTED))
def test_odd_table_is_read_with_a_note(name: str, tmp_path: Path) -> None:
    files, settings, note = NOTED[name]
    notes = read(tmp_path, files, **settings)[1]
    assert len(notes) == 1 and note in notes[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"separator": {"events": None}}, "data.source.separator.events: is empty"),
        (
            {"comment": {"events": '"'}},
            "data.source.comment.events: expected what comment lines begin with",
        ),
        ({"columns": {"events": "user_id,item_id"}}, "data.source.columns.events: expected a list"),
        ({"separator": {"user": ";"}}, "separator: 'user' is not a table"),
    ],
)
def test_setting_with_two_forms_is_explained_in_the_intended_form(
    settings: Any, message: str
) -> None:
    with pytest.raises(UserError) as refused:
        build_config({"data": {"source": {"kind": "canonical", "events": ["e.csv"], **settings}}})
    assert (
        message in str(refused.value) and "[" not in str(refused.value).split("(")[0].split(":")[1]
    )


def test_too_many_bad_rows_stop_and_name_the_setting_that_accepts_them(tmp_path: Path) -> None:
    quarantine = Quarantine(
        DatasetWriter(str(tmp_path / "dataset")), build_config({"model": _MODEL}).data
    )
    quarantine.start("events", 4)
    columns = {"file": ["e"], "row": [1], "reason": ["missing user_id"], "raw": ["x"]}
    quarantine.add("events", pa.table(columns, schema=QUARANTINE_SCHEMA))
    with pytest.raises(
        DataError, match=r"(?s)guests.* set data.quarantine.max_share to \{events: 0.3\}"
    ):
        quarantine.check("events")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"context": ["weather"]}, "data.context: 'weather' is not a column of the events"),
        (
            {"knowledge": {"item_columns": ["genre"]}},
            "data.knowledge.item_columns: 'genre' is not a column of the items",
        ),
    ],
)
def test_dry_run_finds_a_missing_column(data: Any, message: str, tmp_path: Path) -> None:
    source = {
        "kind": "canonical",
        "events": [str(tmp_path / "e.csv")],
        "items": [str(tmp_path / "i.csv")],
    }
    (tmp_path / "e.csv").write_text(EVENTS)
    (tmp_path / "i.csv").write_text("item_id,title\n1,A\n2,B\n")
    config = build_config({"data": {"source": source, **data}, "model": _MODEL})
    with pytest.raises(UserError, match=message):
        check_input(config, ("prepare",))


_MODEL = {"granularities": {"evolution": {"enabled": True}}}

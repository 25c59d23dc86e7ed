"""Adapters: bad rows with file and number, broken files with a message, public data sets with their
counts.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys import schema
from recsys.config import (
    CanonicalSource,
    HetRecLastFmSource,
    RecBoleSource,
    Section,
    SequencesSource,
)
from recsys.errors import ConfigError, DataError, SourceError
from recsys.preparation.reading import tables as tables_of
from recsys.sources import open_source
from recsys.sources.base import FILE_STRIDE, read_all
from recsys.sources.byte_ranges import CSV, TSV
from recsys.sources.delimited import DelimitedPiece, delimited_pieces
from recsys.sources.files import find, input_file
from recsys.sources.headers import read_header
from recsys.sources.sequence_lines import LINE_STRIDE
from recsys.sources.table_heads import TableFiles
from recsys.sources.table_pieces import table_pieces
from recsys.sources.validate import Layout

HEADER = "user_id,item_id,timestamp\n"


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def read(source: Section, table: str = "events") -> pa.Table:
    return read_all(open_source(source).pieces()[table])


def bad(table: pa.Table) -> list[tuple[str, int, str]]:
    rows = table.filter(pc.is_valid(table.column(schema.REASON))).to_pylist()
    return [(row[schema.FILE], row[schema.ROW], row[schema.REASON]) for row in rows]


def events(path: str, **options: Any) -> pa.Table:
    return read(CanonicalSource(events=[path], **options))


def error_of(source: Section) -> str:
    with pytest.raises(SourceError) as caught:
        adapter = open_source(source)
        adapter.fingerprint()
        adapter.pieces()
    return str(caught.value)


# ---------------------------------------------------------------------------------------- canonical


def test_csv_with_every_kind_of_bad_row_is_read(tmp_path: Path) -> None:
    rows = [
        "u1,i1,1000000000",
        ",i1,1",
        "u1,,1",
        "u1,i1,late",
        "u1,i1",
        "u1,i1,1,1",
        "",
        ",,",
        "u2,i2,",
    ]
    table = events(write(tmp_path / "log.csv", HEADER + "\n".join(rows) + "\n"))
    assert bad(table) == [
        ("log.csv", 2, "missing user_id"),
        ("log.csv", 3, "missing item_id"),
        ("log.csv", 4, "bad timestamp"),
        ("log.csv", 5, "unreadable row: 2 cells, expected 3"),
        ("log.csv", 6, "unreadable row: 4 cells, expected 3"),
        ("log.csv", 8, "missing user_id"),
    ]
    # the blank line is skipped but counted
    assert table.column(schema.ROW).to_pylist() == [1, 2, 3, 4, 5, 6, 8, 9]
    texts = [None, ",i1,1", "u1,,1", "u1,i1,late", "u1,i1", "u1,i1,1,1", ",,", None]
    assert table.column(schema.RAW).to_pylist() == texts
    assert table.column(schema.TIMESTAMP).cast(pa.int64()).to_pylist()[0] == 10**15
    assert table.schema.equals(Layout(schema.EVENTS).arrow)


@pytest.mark.parametrize("chunk_bytes", [1, 7, 40, 1000])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_row_numbers_continue_across_chunk_borders(
    tmp_path: Path, chunk_bytes: int, end: str
) -> None:
    lines = [f"u{i},i{i},{i}" if i % 5 else f"u{i}" for i in range(1, 61)]
    # no line end after the last
    file = input_file(write(tmp_path / "log.csv", end.join([HEADER.strip(), *lines])))
    pieces = table_pieces(TableFiles(schema.EVENTS, (file,), chunk_bytes=chunk_bytes))
    table = read_all(pieces)
    assert len(pieces) > 1 or chunk_bytes == 1000
    assert table.column(schema.ROW).to_pylist() == list(range(1, 61))
    assert bad(table) == [
        ("log.csv", i, "unreadable row: 1 cell, expected 3") for i in range(5, 61, 5)
    ]
    users = [f"u{i}" if i % 5 else None for i in range(1, 61)]
    assert table.column(schema.USER_ID).to_pylist() == users


@pytest.mark.parametrize("chunk_bytes", [1, 16, 10_000])
def test_line_breaks_in_quotes_are_one_row(tmp_path: Path, chunk_bytes: int) -> None:
    text = 'item_id,title\n1,"two\nlines, and ""quotes"""\n2,5" disc\n3,"a"\n4\n5,plain\n'
    file = input_file(write(tmp_path / "items.csv", text))
    table = read_all(table_pieces(TableFiles(schema.ITEMS, (file,), chunk_bytes=chunk_bytes)))
    assert table.column("title").to_pylist() == [
        'two\nlines, and "quotes"',
        '5" disc',
        "a",
        None,
        "plain",
    ]
    assert table.column(schema.ROW).to_pylist() == [1, 2, 3, 4, 5]
    assert bad(table) == [("items.csv", 4, "unreadable row: 1 cell, expected 2")]


@pytest.mark.parametrize("chunk_bytes", [1, 10_000])
def test_open_quote_loses_one_row(tmp_path: Path, chunk_bytes: int) -> None:
    file = input_file(
        write(tmp_path / "items.csv", 'item_id,title\n1,a\n2,"never closed\n3,c\n4,d\n')
    )
    table = read_all(table_pieces(TableFiles(schema.ITEMS, (file,), chunk_bytes=chunk_bytes)))
    assert bad(table) == [("items.csv", 2, "unreadable row: open quote")]
    assert table.column("title").to_pylist() == ["a", None, "c", "d"]


def test_tsv_keeps_quotes_unchanged(tmp_path: Path) -> None:
    path = write(tmp_path / "items.tsv", 'item_id\ttitle\n1\t"Heroes"\n2\t12" mix\n')
    table = read(
        CanonicalSource(events=[write(tmp_path / "e.csv", HEADER + "u,1,\n")], items=[path]),
        "items",
    )
    assert table.column("title").to_pylist() == ['"Heroes"', '12" mix']


def test_undecodable_bytes_are_one_bad_row_in_good_text(tmp_path: Path) -> None:
    rows = [f"u,i{n},".encode() for n in range(300)]
    rows[250] = b"u,\xff\xfe,"
    table = events(write(tmp_path / "log.csv", HEADER.encode() + b"\n".join(rows)))
    assert bad(table) == [("log.csv", 251, "unreadable row: not text in this encoding")]
    assert table.num_rows == 300


def test_configured_encoding_is_used(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", (HEADER + "Zoë,Köln,\n").encode("latin-1"))
    assert "set data.source.encoding" in error_of(CanonicalSource(events=[path]))
    assert events(path, encoding="latin-1").column(schema.USER_ID).to_pylist() == ["Zoë"]
    assert "'klingon' is unknown" in error_of(CanonicalSource(events=[path], encoding="klingon"))
    assert "not ASCII-compatible" in error_of(CanonicalSource(events=[path], encoding="utf-16"))


def test_byte_order_mark_and_carriage_returns_are_read(tmp_path: Path) -> None:
    table = events(write(tmp_path / "log.csv", "\ufeff" + HEADER + "u,a\rb,\nu,i,\n"))
    assert table.column(schema.ITEM_ID).to_pylist() == ["a b", "i"]


def test_gzip_in_several_blocks_is_read(tmp_path: Path) -> None:
    text = HEADER + "".join(f"u{n},i{n},\n" for n in range(50)) + "u\n"
    file = input_file(write(tmp_path / "log.csv.gz", gzip.compress(text.encode())))
    pieces = table_pieces(TableFiles(schema.EVENTS, (file,), chunk_bytes=64))
    assert len(pieces) == 1
    blocks = list(pieces[0].read())
    assert len(blocks) > 1
    assert bad(pa.concat_tables(blocks)) == [
        ("log.csv.gz", 51, "unreadable row: 1 cell, expected 3")
    ]


def test_renames_extra_columns_and_order_of_files_are_kept(tmp_path: Path) -> None:
    for name, user in (("a", "u1"), ("b", "u2")):
        write(tmp_path / "logs" / f"{name}.csv", f"uid,item_id,place\n{user},i,\n{user},j,home\n")
    write(tmp_path / "logs" / "_SUCCESS", "x")
    table = events(str(tmp_path / "logs"), rename={"uid": "user_id"})
    assert table.column("place").to_pylist() == [None, "home", None, "home"]
    assert table.column(schema.ORDER).to_pylist() == [1, 2, FILE_STRIDE + 1, FILE_STRIDE + 2]
    assert table.column(schema.FILE).to_pylist() == ["a.csv", "a.csv", "b.csv", "b.csv"]


def test_split_files_set_the_split(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", "user_id,item_id,split\nu,i,x\n")
    test = write(tmp_path / "test.csv", "user_id,item_id\nu,j\n")
    table = events(train, split_files={"train": [train], "test": [test]})
    assert [(row["item_id"], row["split"]) for row in table.to_pylist()] == [
        ("i", "train"),
        ("j", "test"),
    ]
    assert bad(table) == []
    assert "is in split_files of train and valid" in error_of(
        CanonicalSource(events=[train], split_files={"train": [train], "valid": [train]})
    )


def test_damaged_row_group_gives_a_message_with_file_and_rows(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    table = pa.table(
        {"user_id": [f"u{i}" for i in range(4000)], "item_id": [f"i{i}" for i in range(4000)]}
    )
    pq.write_table(table, path, row_group_size=2000)
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    for place in range(chunk.data_page_offset, chunk.data_page_offset + 40):
        content[place] ^= 0xFF
    path.write_bytes(content)
    first, second = open_source(CanonicalSource(events=[str(path)])).pieces()["events"]
    assert sum(block.num_rows for block in first.read()) == 2000
    with pytest.raises(
        SourceError, match=r"log\.parquet: row group 1 \(rows from 2001\) cannot be read"
    ):
        list(second.read())


def test_parquet_row_groups_and_types_are_read(tmp_path: Path) -> None:
    table = pa.table(
        {
            "user_id": pa.array([1.0, float("nan"), 3.0, 4.0, 5.0]),
            "item_id": pa.array(["a", "b", None, "d", "e"]).dictionary_encode(),
            "timestamp": pa.array([10**9, 10**12, 10**15, -2, None]),
            "value": [1.0, 1.0, float("nan"), float("inf"), float("inf")],
            "place": pa.array(["x"] * 5, pa.large_string()),
        }
    )
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=2)
    source = CanonicalSource(events=[str(tmp_path / "*.parquet")])
    assert len(open_source(source).pieces()["events"]) == 3
    found = read(source)
    assert found.column(schema.USER_ID).to_pylist() == ["1", None, "3", "4", "5"]
    assert found.column(schema.TIMESTAMP).cast(pa.int64()).to_pylist() == [10**15] * 3 + [
        None,
        None,
    ]
    expected = [
        "missing user_id",
        "missing item_id",
        "bad timestamp",
        "value is not a finite number",
    ]
    assert bad(found) == [
        ("log.parquet", row, reason) for row, reason in zip((2, 3, 4, 5), expected, strict=True)
    ]
    assert found.schema.field("place").type == pa.string()


@pytest.mark.parametrize("is_mixed", [False, True])
def test_jsonl_is_read(tmp_path: Path, is_mixed: bool) -> None:
    records: list[Any] = [
        {"user_id": 1, "item_id": "a", "timestamp": 1_000_000_000, "tags": ["x", "y"], "size": 1},
        {"user_id": 2, "item_id": "b", "timestamp": 1_000_000_000_000, "tags": None, "size": 2.5},
        {"user_id": None, "item_id": "c"},
    ]
    lines = [json.dumps(record) for record in records]
    if is_mixed:
        lines += [
            "{broken",
            "",
            "[1]",
            '{"user_id": "u", "item_id": 9, "value": Infinity, "timestamp": "2001-09-09"}',
        ]
    table = events(write(tmp_path / "log.jsonl", "\n".join(lines)))
    expected = [("log.jsonl", 3, "missing user_id")]
    if is_mixed:
        expected += [("log.jsonl", 4, "unreadable row"), ("log.jsonl", 6, "unreadable row")]
        expected += [("log.jsonl", 7, "value is not a finite number")]
    assert bad(table) == expected
    assert table.column(schema.USER_ID).to_pylist()[:2] == ["1", "2"]
    assert table.column("tags").to_pylist()[:3] == [["x", "y"], None, None]
    assert table.column("size").to_pylist()[:2] == [1.0, 2.5]
    assert table.column(schema.TIMESTAMP).cast(pa.int64()).to_pylist()[:2] == [10**15, 10**15]


def test_all_tables_are_read_through_ray(tmp_path: Path, ray_local: None) -> None:
    log = write(tmp_path / "log.csv", HEADER + "u,i,1\n,i,1\n")
    write(tmp_path / "more" / "empty.csv", HEADER + "\n  \nv,i,2\n")
    edges = write(
        tmp_path / "edges.jsonl", '{"src_user_id": "u", "dst_user_id": "v"}\n{"src_user_id": "u"}\n'
    )
    source = CanonicalSource(events=[log, str(tmp_path / "more")], social=[edges])
    tables = tables_of(open_source(source))
    assert list(tables) == ["events", "social"]
    rows = sorted(tables["events"].take_all(), key=lambda row: row[schema.ORDER])
    assert [(row["user_id"], row["_row"], row["_reason"]) for row in rows] == [
        ("u", 1, None),
        (None, 2, "missing user_id"),
        ("v", 3, None),
    ]
    assert tables["events"].schema().base_schema.equals(Layout(schema.EVENTS).arrow)
    assert tables["social"].count() == 2


# ------------------------------------------------------------------------------------- broken files


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.csv", HEADER, "only a header"),
        ("log.csv", HEADER + "\n\n", "only a header"),
        ("log.csv", "", "is empty"),
        ("log.csv", "user,item_id\nu,i\n", "lacks 'user_id'; found 'user', 'item_id'"),
        ("log.csv", "user_id item_id\nu i\n", "separated by ' '"),
        ("log.csv", "user_id,item_id,item_id\nu,i,i\n", "occurs twice"),
        ("log.csv", "user_id,item_id,_row\nu,i,1\n", "reserved"),
        ("log.csv", b"\xff\xfeu\x00", "utf-16"),
        ("log.csv", b"PAR1\x00\x01\n", "is a Parquet file"),
        ("log.csv", b"user_id,item_id\n\x00\x01\n", "binary data"),
        ("log.parquet", HEADER + "u,i,1\n", "not a Parquet file"),
        ("log.jsonl", HEADER + "u,i,1\n", "no JSON object"),
        ("log.jsonl", '{"user": 1, "item_id": 2}\n', "lacks 'user_id'"),
        ("log.txt", HEADER + "u,i,1\n", "cannot tell the format"),
        ("log.csv.gz", b"not gzip at all", "cannot be read"),
    ],
)
def test_broken_files_give_one_message(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    text = error_of(CanonicalSource(events=[write(tmp_path / name, content)]))
    assert message in text
    assert name in text


def test_missing_files_and_wrong_renames_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in error_of(CanonicalSource(events=[str(tmp_path / "no.csv")]))
    assert "matches no file" in error_of(CanonicalSource(events=[str(tmp_path / "*.csv")]))
    assert "matches no file" in error_of(CanonicalSource(events=[str(tmp_path)]))
    path = write(tmp_path / "log.csv", HEADER + "u,i,1\n")
    assert "names 'uid', which no file has" in error_of(
        CanonicalSource(events=[path], rename={"uid": "user_id"})
    )
    assert "occurs twice (after rename)" in error_of(
        CanonicalSource(events=[path], rename={"timestamp": "item_id"})
    )


def test_columns_of_two_types_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["i"], "x": [1]}), tmp_path / "a.parquet")
    pq.write_table(
        pa.table({"user_id": ["u"], "item_id": ["i"], "x": ["1"]}), tmp_path / "b.parquet"
    )
    assert "use one type" in error_of(CanonicalSource(events=[str(tmp_path)]))


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="canonical, hetrec-lastfm, recbole, sequences, synthetic"
    ):
        open_source(Section())


def test_globs_are_expanded_and_fingerprints_change_with_the_files(tmp_path: Path) -> None:
    one = write(tmp_path / "x" / "a.csv", HEADER + "u,i,1\n")
    write(tmp_path / "x" / "y" / "b.csv", HEADER + "u,i,1\n")
    write(tmp_path / "x" / ".hidden.csv", "x")
    names = {
        pattern: [f.name for f in find([f"{tmp_path}/{pattern}"])]
        for pattern in ("x", "x/*.csv", "**/*.csv", "x/?.csv")
    }
    assert names == {
        "x": ["a.csv", "b.csv"],
        "x/*.csv": ["a.csv"],
        "**/*.csv": ["a.csv", "b.csv"],
        "x/?.csv": ["a.csv"],
    }
    assert [f.path for f in find([f"file://{tmp_path}/x/*.csv"])] == [f"file://{one}"]
    assert find([f"file://{tmp_path}/x"])[0].read(0, 7) == b"user_id"
    source = CanonicalSource(events=[one])
    before = open_source(source).fingerprint()
    assert open_source(source).fingerprint() == before
    write(Path(one), HEADER + "u,i,2\n")
    assert open_source(source).fingerprint() != before
    assert (
        open_source(CanonicalSource(events=[one], format="csv")).fingerprint()
        != open_source(source).fingerprint()
    )


# ------------------------------------------------------------------------------------ other formats


def test_recbole_is_read(tmp_path: Path) -> None:
    stem = tmp_path / "toy" / "toy"
    write(
        stem.with_suffix(".inter"),
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\ta\t4.5\t1e9\n1\tb\tx\t1\n",
    )
    write(
        stem.with_suffix(".item"),
        'item_id:token\tname:token_seq\tv:float_seq\tp:float\na\tThe "A" b\t1 2.5\t3\nb\t\t\tx\n',
    )
    write(stem.with_suffix(".user"), "user_id:token\tage:token\n1\t24\n")
    write(stem.with_suffix(".net"), "source_id:token\ttarget_id:token\n1\t2\n1\t1\n")
    write(
        stem.with_suffix(".kg"),
        "head_id:token\trelation_id:token\ttail_id:token\nx\tr\ty\n\tr\ty\n",
    )
    write(stem.with_suffix(".link"), "item_id:token\tentity_id:token\na\tx\n\ty\nb\t\n")
    source = RecBoleSource(folder=str(tmp_path / "toy"))
    log = read(source)
    assert log.column(schema.VALUE).to_pylist()[0] == 4.5
    assert bad(log) == [("toy.inter", 2, "value is not a finite number")]
    items = read(source, "items")
    assert items.slice(0, 2).select(["item_id", "entity_id", "name", "v", "p"]).to_pylist() == [
        {"item_id": "a", "entity_id": "x", "name": 'The "A" b', "v": [1.0, 2.5], "p": 3.0},
        {"item_id": "b", "entity_id": None, "name": None, "v": None, "p": None},
    ]
    assert bad(items) == [("toy.link", 2, "missing item_id"), ("toy.link", 3, "missing entity_id")]
    assert bad(read(source, "social")) == [("toy.net", 2, "self-loop")]
    assert bad(read(source, "knowledge")) == [("toy.kg", 2, "missing head")]
    assert read(source, "users").column("age").to_pylist() == ["24"]
    stem.with_suffix(".item").unlink()
    assert read(source, "items").column(schema.ENTITY_ID).to_pylist()[0] == "x"


def test_bad_recbole_files_give_messages(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    assert "set data.source.name" in error_of(RecBoleSource(folder=str(folder)))
    write(folder / "toy.inter", "user_id\titem_id\n1\t2\n")
    assert "not a RecBole atomic file" in error_of(RecBoleSource(folder=str(folder)))
    write(folder / "toy.inter", "user_id:token\titem:token\n1\t2\n")
    assert "lacks 'item_id'" in error_of(RecBoleSource(folder=str(folder)))
    assert read(RecBoleSource(folder=str(folder), rename={"item": "item_id"})).num_rows == 1
    wrong = RecBoleSource(folder=str(folder), rename={"item": "item_id", "stars": "value"})
    assert "names 'stars'" in error_of(wrong)


def lastfm(folder: Path, pairs: str = "1\t10\n") -> HetRecLastFmSource:
    write(
        folder / "user_artists.dat",
        "userID\tartistID\tweight\r\n1\t10\t5\r\n1\t11\t7\r\n2\t10\tx\r\n",
    )
    tagged = ["userID\tartistID\ttagID\tday\tmonth\tyear", "1\t10\t1\t1\t4\t2009"]
    tagged += ["1\t11\t2\t31\t2\t2009", "2\t10\t9\t1\t1\t2010"]
    write(folder / "user_taggedartists.dat", "\r\n".join(tagged))
    write(folder / "tags.dat", "tagID\ttagValue\r\n1\tcafé\r\n2\trock\r\n".encode("latin-1"))
    artists = 'id\tname\turl\tpictureURL\n10\tBjörk "live\thttp://x\thttp://y\n11\tB\thttp://x\t\n'
    write(folder / "artists.dat", artists)
    write(folder / "user_friends.dat", "userID\tfriendID\r\n1\t2\r\n2\t1\r\n")
    held_out = write(folder / "test.tsv", "userID\tartistID\n" + pairs)
    return HetRecLastFmSource(folder=str(folder), test_pairs=held_out)


def test_hetrec_is_read(tmp_path: Path) -> None:
    source = lastfm(tmp_path / "lastfm", "1\t10\n1\t99\n")
    log = read(source)
    assert [
        (r["event_type"], r["item_id"], r["split"], r["tag"], r["_reason"]) for r in log.to_pylist()
    ] == [
        ("listen", "10", "test", None, None),
        ("listen", "11", "train", None, None),
        ("listen", "10", "train", None, "value is not a finite number"),
        ("interact", "99", None, None, "unknown held-out pair"),
        ("tag", "10", None, "café", None),
        ("tag", "11", None, "rock", "bad timestamp"),
        ("tag", "10", None, None, "unknown tag"),
    ]
    assert str(log.column(schema.TIMESTAMP)[4].as_py()) == "2009-04-01 00:00:00+00:00"
    assert bad(log)[1] == ("test.tsv", 2, "unknown held-out pair")
    assert len(set(log.column(schema.ORDER).to_pylist())) == log.num_rows
    items = read(source, "items").to_pylist()
    assert [(row["item_id"], row["name"]) for row in items] == [("10", 'Björk "live'), ("11", "B")]
    assert set(items[0]) == {"item_id", "entity_id", "name", *Layout(schema.ITEMS).arrow.names[2:]}
    assert read(source, "social").num_rows == 2
    whole = read(HetRecLastFmSource(folder=source.folder))
    assert whole.column(schema.SPLIT).null_count == whole.num_rows == 6


def test_hetrec_tags_become_triples(tmp_path: Path) -> None:
    source = lastfm(tmp_path / "lastfm")
    assert "knowledge" not in open_source(source).pieces()
    write(tmp_path / "lastfm/knowledge/kg.txt", "0\tmusic.artist.origin\t7\r\n1\t\t7\r\n")
    assert "item_index2entity_id.txt" in error_of(source), "triples without items"
    write(tmp_path / "lastfm/knowledge/item_index2entity_id.txt", "11\t0\r\n99\t4\r\n")
    assert [(row["item_id"], row["entity_id"]) for row in read(source, "items").to_pylist()] == [
        ("10", None),
        ("11", "0"),
    ]
    triples = read(source, "knowledge")
    assert [(r["head"], r["relation"], r["tail"], r["_reason"]) for r in triples.to_pylist()] == [
        ("0", "music.artist.origin", "7", None),
        ("1", None, "7", "missing relation"),
    ]


def test_hetrec_pairs_of_other_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the 1 held-out pairs"):
        open_source(lastfm(tmp_path, "7\t7\n")).pieces()
    write(tmp_path / "tags.dat", "id\ttag\n1\tx\n")
    assert "expected tagID, tagValue" in error_of(HetRecLastFmSource(folder=str(tmp_path)))


def test_sequences_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "toy" / "seq.txt", b"a 1 2 3\r\n\nb\nc \xff\n d  4 \n")
    text = "\n".join(f"{n}\tt{n}" for n in range(1, 5))
    items = write(tmp_path / "toy" / "items.tsv", "item\ttitle\n" + text)
    for source in (
        SequencesSource(events=path, items=[items], rename={"item": "item_id"}),
        SequencesSource(events=path),
    ):
        with pytest.raises(SourceError, match="line 4 is not utf-8"):
            open_source(source).pieces()
    write(Path(path), b"a 1 2 3\r\n\nb\n d  4 ")
    source = SequencesSource(events=path, items=[items], rename={"item": "item_id"})
    log = read(source)
    found = [
        (r["user_id"], r["item_id"], r["_row"], r["_order"] - r["_row"] * LINE_STRIDE)
        for r in log.to_pylist()
    ]
    assert found == [
        ("a", "1", 1, 0),
        ("a", "2", 1, 1),
        ("a", "3", 1, 2),
        ("b", None, 3, 0),
        ("d", "4", 4, 0),
    ]
    assert bad(log) == [("seq.txt", 3, "missing item_id")]
    assert log.column(schema.RAW).to_pylist()[3] == "b"
    assert read(source, "items").column("title").to_pylist() == ["t1", "t2", "t3", "t4"]
    assert open_source(source).name == "toy"


@pytest.mark.parametrize("chunk_bytes", [1, 50])
def test_sequences_across_chunk_borders_are_read(tmp_path: Path, chunk_bytes: int) -> None:
    from recsys.sources.sequences import SequencesAdapter

    adapter = SequencesAdapter(
        SequencesSource(events=write(tmp_path / "s.txt", "".join(f"u{n} x\n" for n in range(40))))
    )
    adapter.chunk_bytes = chunk_bytes
    pieces = adapter.pieces()["events"]
    assert len(pieces) > 1
    assert read_all(pieces).column(schema.ROW).to_pylist() == list(range(1, 41))


def test_piece_may_have_blocks_without_rows(tmp_path: Path) -> None:
    file = input_file(write(tmp_path / "log.tsv", "user_id\titem_id\n\n\n" + "\n" * 50 + "u\ti\n"))
    header = read_header(file, TSV)
    pattern = DelimitedPiece(
        file, 0, header.columns, Layout(schema.EVENTS), TSV, header.end, chunk_bytes=10
    )
    blocks = [block for piece in delimited_pieces(pattern) for block in piece.read()]
    assert {block.num_rows for block in blocks} == {0, 1}
    assert all(block.schema.equals(Layout(schema.EVENTS).arrow) for block in blocks)
    assert CSV.quoted


# ---------------------------------------------------------------------------------------- real data


def test_lastfm_has_its_published_counts(real_data: Path) -> None:
    folder = real_data / "lastfm"
    pairs = str(folder / "splits" / "random80.test.tsv")
    source = HetRecLastFmSource(folder=str(folder), test_pairs=pairs)
    log = read(source)
    kinds = pc.value_counts(log.column(schema.EVENT_TYPE)).to_pylist()
    assert {kind["values"]: kind["counts"] for kind in kinds} == {"listen": 92_834, "tag": 186_479}
    assert pc.sum(pc.equal(log.column(schema.SPLIT), "test")).as_py() == 18_567
    assert bad(log) == []  # four tags of 1956 and 1957 are times too, and a tag may be called none
    items = read(source, "items")
    assert (items.num_rows, bad(items)) == (17_632, [])
    assert read(source, "social").num_rows == 25_434
    assert read(source, "knowledge").num_rows == 15_518
    assert items.num_rows - items.column(schema.ENTITY_ID).null_count == 3_846


def test_movielens_has_its_published_counts(real_data: Path) -> None:
    source = RecBoleSource(folder=str(real_data / "ml-100k"))
    log, items = read(source), read(source, "items")
    assert (log.num_rows, bad(log)) == (100_000, [])
    assert items.num_rows == 1_682
    assert items.num_rows - items.column(schema.ENTITY_ID).null_count == 1_598
    assert read(source, "knowledge").num_rows == 91_631


def test_beauty_has_its_published_counts(real_data: Path) -> None:
    folder = real_data / "beauty"
    source = SequencesSource(
        events=str(folder / "sequences.txt"), items=[str(folder / "items.tsv")]
    )
    log = read(source)
    assert (log.num_rows, bad(log)) == (198_502, [])
    assert pc.count_distinct(log.column(schema.USER_ID)).as_py() == 22_363
    assert read(source, "items").num_rows == 12_101

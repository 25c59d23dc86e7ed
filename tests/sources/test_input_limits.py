"""Small files that would fill the memory or take minutes give one message, or are read in linear
time.
"""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys import schema
from recsys.config import CanonicalSource, SequencesSource
from recsys.errors import SourceError
from recsys.sources import byte_ranges, compression, limits, open_source, parquet_bounds
from recsys.sources.base import Piece, read_all

HEADER = b"user_id,item_id,title\n"


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def events(path: str) -> pa.Table:
    return read_all(open_source(CanonicalSource(events=[path])).pieces()["events"])


def bad(table: pa.Table) -> list[int]:
    return table.filter(pc.is_valid(table.column(schema.REASON))).column(schema.ROW).to_pylist()


# ------------------------------------------------------------------------------------------- quotes


@pytest.mark.parametrize("name", ["e.csv", "e.csv.gz"])
@pytest.mark.parametrize(
    "end", [b"", b'u,i,x"y\n', b"u,\xff,z\n"], ids=["open", "closed by another row", "not utf-8"]
)
def test_one_wrong_quote_loses_one_row_in_linear_time(
    name: str, end: bytes, tmp_path: Path
) -> None:
    """A reader that was quadratic in the rows after the quote took 148 s for 1 MB and gave one
    row.
    """
    rows = [b"u,i,a"] * 100 + [b'u,i,"abc'] + [b"u,i,xxxxxxxxxx"] * 60_000
    content = HEADER + b"\n".join(rows) + b"\n" + end
    started = time.process_time()
    table = events(
        write(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content)
    )
    assert time.process_time() - started < 20
    assert table.num_rows == 60_101 + (1 if end else 0)
    assert bad(table) == [101] + ([60_102] if b"\xff" in end else [])


def test_valid_cell_of_many_lines_stays_one_cell(tmp_path: Path) -> None:
    long = b"\n".join([b"line"] * 5000)
    table = events(write(tmp_path / "e.csv", HEADER + b'u,i,"' + long + b'"\nu,j,b\n'))
    assert table.column("title").to_pylist() == [long.decode(), "b"]
    assert table.column(schema.ROW).to_pylist() == [1, 2]


def test_row_numbers_continue_after_a_wrong_quote(tmp_path: Path) -> None:
    rows = [b'u,i,"open'] + [b"u,i,x"] * 300 + [b'u,i,"y"z'] + [b'u,i,"two\nlines"'] + [b"u,i"]
    table = events(write(tmp_path / "e.csv", HEADER + b"\n".join(rows) + b"\n"))
    assert bad(table)[0] == 1 and table.num_rows >= 304
    assert table.column(schema.ROW).to_pylist() == sorted(set(table.column(schema.ROW).to_pylist()))


@pytest.mark.parametrize("name", ["e.csv", "e.csv.gz"])
def test_open_quote_keeps_at_most_one_row_in_memory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_ranges, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr("recsys.sources.table_heads.CHUNK_BYTES", 100)
    content = HEADER + b'u,i,"open\n' + b"u,i,x\n" * 2000
    table = events(
        write(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content)
    )
    assert bad(table) == [1] and table.num_rows == 2001


# --------------------------------------------------------------------------------- rows and columns


@pytest.mark.parametrize("name", ["e.csv", "e.tsv", "e.jsonl", "s.txt"])
def test_row_without_an_end_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_ranges, "MAX_ROW_BYTES", 10 << 20)
    monkeypatch.setattr("recsys.sources.table_heads.CHUNK_BYTES", 1 << 20)
    monkeypatch.setattr("recsys.sources.sequences.CHUNK_BYTES", 1 << 20)
    head = {
        "e.csv": HEADER,
        "e.tsv": HEADER.replace(b",", b"\t"),
        "e.jsonl": b'{"user_id": "u", "item_id": "i"}\n',
        "s.txt": b"u i\n",
    }[name]
    path = write(tmp_path / name, head + b"u" + b"x" * (40 << 20))
    source = SequencesSource(events=path) if name == "s.txt" else CanonicalSource(events=[path])
    with pytest.raises(SourceError, match=r"row \d is longer than"):
        open_source(source).pieces()


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_hundred_thousand_columns_are_refused_at_once(form: str, tmp_path: Path) -> None:
    """This took ten minutes when each name was searched in the list of all names."""
    names = ["user_id", "item_id", *(f"c{n}" for n in range(100_000))]
    path = tmp_path / f"e.{form}"
    if form == "parquet":
        pq.write_table(pa.table({name: ["1"] for name in names[:5000]}), path)
    else:
        header, cells = ",".join(names), ",".join("1" * len(names))
        row = "{" + ",".join(f'"{name}":1' for name in names) + "}"
        path.write_text(f"{header}\n{cells}\n" if form == "csv" else row + "\n")
    started = time.process_time()
    with pytest.raises(SourceError, match=r"has [\d,]+ columns, at most 2,000 are allowed"):
        events(str(path))
    assert time.process_time() - started < 20


def test_messages_show_the_first_of_many_columns(tmp_path: Path) -> None:
    names = ",".join(f"c{n}" for n in range(1500))
    with pytest.raises(SourceError, match="and 1,480 more") as caught:
        events(write(tmp_path / "e.csv", f"{names}\n{names}\n".encode()))
    assert len(str(caught.value)) < 1000


# --------------------------------------------------------------------------------------- compressed


@pytest.mark.parametrize("form", ["gz", "zst", "zip"])
def test_file_with_an_impossible_unpacked_size_is_refused(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "FREE_BYTES", 1 << 20)
    path = packed(tmp_path / f"e.csv.{form}", b"user_id,item_id\n" + b"u,i\n" * (4 << 20))
    with pytest.raises(SourceError, match="unpacks to more than .* over 200 times"):
        open_source(CanonicalSource(events=[path])).pieces()


@pytest.mark.parametrize("form", ["gz", "zst", "zip"])
def test_file_with_the_compression_of_text_is_read(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "FREE_BYTES", 1 << 10)
    content = b"user_id,item_id\n" + b"".join(
        b"u%d,i%d\n" % (n * 7919 % 1000, n) for n in range(20_000)
    )
    assert events(packed(tmp_path / f"e.csv.{form}", content)).num_rows == 20_000


def packed(path: Path, content: bytes) -> str:
    import zipfile

    match path.suffix:
        case ".gz":
            path.write_bytes(gzip.compress(content))
        case ".zst":
            with pa.CompressedOutputStream(str(path), "zstd") as stream:
                stream.write(content)
        case _:
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(path.stem, content)
    return str(path)


# ------------------------------------------------------------------------------------------ Parquet


def test_kilobyte_of_parquet_does_not_become_gigabytes(tmp_path: Path) -> None:
    """Five thousand copies of a text of a megabyte took 5 GiB of values and 9 GiB of memory."""
    path = tmp_path / "e.parquet"
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), ["i" * 1_000_000])
    table = pa.table({"user_id": ["u"] * 5000, "item_id": texts})
    pq.write_table(table, path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 4096
    before = pa.total_allocated_bytes()
    with pytest.raises(
        SourceError, match=r"row group 0 .*has values of more than \d+ MiB in \d+ stored bytes"
    ):
        events(str(path))
    assert pa.total_allocated_bytes() - before < 64 << 20


def test_list_of_one_repeated_number_is_refused_by_its_footer(tmp_path: Path) -> None:
    values = pa.ListArray.from_arrays(
        pa.array([0, 20_000_000], pa.int32()), pa.repeat(1.0, 20_000_000)
    )
    pq.write_table(
        pa.table({"user_id": ["u"], "item_id": ["i"], "v": values}), tmp_path / "e.parquet"
    )
    with pytest.raises(SourceError, match="row group 0 has values of more than 152 MiB"):
        open_source(CanonicalSource(events=[str(tmp_path / "e.parquet")])).pieces()


def test_repeated_texts_in_lists_are_read_in_small_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_bounds, "_BATCH_BYTES", 100_000)
    table = pa.table(
        {"user_id": ["u"] * 500, "item_id": ["i"] * 500, "tags": [["t" * 1000, "u"]] * 500}
    )
    pq.write_table(table, tmp_path / "e.parquet")
    blocks = [block for piece in pieces(tmp_path / "e.parquet") for block in piece.read()]
    assert len(blocks) > 5 and sum(block.num_rows for block in blocks) == 500
    assert blocks[-1].column("tags").to_pylist()[-1] == ["t" * 1000, "u"]
    assert pa.concat_tables(blocks).column(schema.ROW).to_pylist() == list(range(1, 501))


def test_long_repeated_texts_are_decoded_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_bounds, "_BATCH_BYTES", 100_000)
    texts = [f"{n % 3}" * (1000 + n % 3) for n in range(500)]
    pq.write_table(
        pa.table({"user_id": ["u"] * 500, "item_id": ["i"] * 500, "x": texts}),
        tmp_path / "e.parquet",
    )
    blocks = [block for piece in pieces(tmp_path / "e.parquet") for block in piece.read()]
    assert len(blocks) > 5 and pa.concat_tables(blocks).column("x").to_pylist() == texts


def test_cell_of_parquet_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_bounds, "MAX_ROW_BYTES", 1 << 20)
    pq.write_table(
        pa.table({"user_id": ["u"], "item_id": ["i" * (3 << 20)]}), tmp_path / "e.parquet"
    )
    with pytest.raises(SourceError, match="a text of 'item_id' has 3 MiB, at most 1"):
        events(str(tmp_path / "e.parquet"))


def pieces(path: Path) -> list[Piece]:
    return open_source(CanonicalSource(events=[str(path)])).pieces()["events"]


def test_limits_are_far_above_common_tables() -> None:
    assert (
        limits.MAX_COLUMNS >= 1000
        and limits.MAX_ROW_BYTES >= 32 << 20
        and limits.FREE_BYTES >= 64 << 20
    )


@pytest.mark.parametrize("quote", [b"", b'"q"'])
def test_very_short_rows_are_in_byte_ranges_of_limited_rows(
    quote: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of sixteen million rows of a chunk may be a bad row, which is stored with its text."""
    monkeypatch.setattr(byte_ranges, "_MOST_ROWS", 100)
    rows = [b"u,i,t" if n % 3 else b"a" + quote for n in range(1000)]
    found = pieces(Path(write(tmp_path / "e.csv", HEADER + b"\n".join(rows) + b"\n")))
    table = pa.concat_tables([block for piece in found for block in piece.read()])
    assert len(found) == 10 and table.column(schema.ROW).to_pylist() == list(range(1, 1001))
    assert bad(table) == list(range(1, 1001, 3))


def test_long_first_row_is_read(tmp_path: Path) -> None:
    found = events(
        write(tmp_path / "e.csv", b"user_id,item_id,note\nu,i," + b"x" * (3 << 20) + b"\n")
    )
    assert found.column("user_id").to_pylist() == ["u"]


def test_first_line_without_an_end_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="the first line is longer than 1 MiB"):
        events(write(tmp_path / "e.csv", b"user_id,item_id," + b"x" * (3 << 20) + b"\nu,i,1\n"))

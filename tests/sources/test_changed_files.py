"""Files that change while they are read give one message, in every format.

Earlier, a truncated file gave half of its rows without an error.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import CanonicalSource, RecBoleSource, Section, SequencesSource
from recsys.errors import SourceError
from recsys.sources import open_source
from recsys.sources.base import read_all

ROWS = 2000


def table() -> pa.Table:
    return pa.table(
        {"user_id": [f"u{n}" for n in range(ROWS)], "item_id": [f"i{n % 7}" for n in range(ROWS)]}
    )


def text(delimiter: str, header: str) -> bytes:
    return "\n".join([header, *(f"u{n}{delimiter}i{n % 7}" for n in range(ROWS)), ""]).encode()


def objects() -> list[dict[str, str]]:
    return [{"user_id": f"u{n}", "item_id": f"i{n % 7}"} for n in range(ROWS)]


def source_of(kind: str, folder: Path) -> tuple[Section, Path]:
    """A source with one file of events, and that file."""
    folder = folder / "toy"
    folder.mkdir()
    match kind:
        case "parquet":
            pq.write_table(table(), folder / "e.parquet", row_group_size=500)
            return CanonicalSource(events=[str(folder / "e.parquet")]), folder / "e.parquet"
        case "recbole":
            (folder / "toy.inter").write_bytes(text("\t", "user_id:token\titem_id:token"))
            return RecBoleSource(folder=str(folder)), folder / "toy.inter"
        case "sequences":
            (folder / "s.txt").write_bytes(text(" ", "u i"))
            return SequencesSource(events=str(folder / "s.txt")), folder / "s.txt"
    lines = "\n".join(map(json.dumps, objects())).encode()
    name, content = {
        "csv": ("e.csv", text(",", "user_id,item_id")),
        "csv.gz": ("e.csv.gz", gzip.compress(text(",", "user_id,item_id"))),
        "jsonl": ("e.jsonl", lines),
        "json array": ("e.json", json.dumps(objects()).encode()),
    }[kind]
    (folder / name).write_bytes(content)
    return CanonicalSource(events=[str(folder / name)]), folder / name


KINDS = ["parquet", "recbole", "sequences", "csv", "csv.gz", "jsonl", "json array"]
SAYS = {
    "cut": r"had [\d,]+ bytes when it was found and has [\d,]+ now",
    "grown": r"had [\d,]+ bytes when it was found and has [\d,]+ now",
    "replaced": "was written again",
    "gone": "is no longer there",
}


def change(path: Path, how: str) -> None:
    content = path.read_bytes()
    match how:
        case "cut":
            os.truncate(path, len(content) // 2)
        case "grown":
            path.write_bytes(content + content)
        case "replaced":
            path.write_bytes(content)
            os.utime(path, ns=(1, 1))
        case "gone":
            path.unlink()


@pytest.mark.parametrize("how", SAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_change_between_finding_and_reading_gives_one_message(
    kind: str, how: str, tmp_path: Path
) -> None:
    source, path = source_of(kind, tmp_path)
    pieces = open_source(source).pieces()["events"]
    change(path, how)
    with pytest.raises(SourceError, match=SAYS[how]) as caught:
        read_all(pieces)
    assert path.name in str(caught.value) and "run the same command again" in str(caught.value)


@pytest.mark.parametrize("how", ["cut", "replaced"])
@pytest.mark.parametrize("kind", ["parquet", "csv.gz"])
def test_change_while_a_piece_is_read_gives_one_message(
    kind: str, how: str, tmp_path: Path
) -> None:
    source, path = source_of(kind, tmp_path)
    pieces = open_source(source).pieces()["events"]
    blocks = pieces[0].read()
    next(blocks)
    change(path, how)
    with pytest.raises(SourceError, match=SAYS[how]):
        list(blocks)


@pytest.mark.parametrize("how", ["cut", "grown", "gone", "new"])
def test_change_since_the_fingerprint_gives_one_message(how: str, tmp_path: Path) -> None:
    _, path = source_of("csv", tmp_path)
    adapter = open_source(CanonicalSource(events=[str(path.parent)]))
    adapter.fingerprint()
    assert read_all(adapter.unchanged_pieces()["events"]).num_rows == ROWS
    if how == "new":
        (path.parent / "more.csv").write_bytes(path.read_bytes())
    else:
        change(path, how)
    with pytest.raises(
        SourceError, match="was added while the source was read|changed while it was read"
    ):
        adapter.unchanged_pieces()


def test_file_that_shrinks_in_the_driver_causes_no_endless_loop(tmp_path: Path) -> None:
    from recsys.sources.byte_ranges import CSV, byte_ranges
    from recsys.sources.files import InputFile, input_file

    path = tmp_path / "e.csv"
    path.write_bytes(text(",", "user_id,item_id"))
    found = input_file(str(path))
    os.truncate(path, 5)
    with pytest.raises(SourceError, match="changed while it was read"):
        list(byte_ranges(found, 17, CSV, 100))
    with pytest.raises(SourceError, match="changed while it was read"):
        found.read(0, 100)
    assert InputFile(found.path, 5, path.stat().st_mtime_ns).read(0, 5) == b"user_"


@pytest.mark.parametrize("kind", KINDS)
def test_unchanged_file_is_read_completely(kind: str, tmp_path: Path) -> None:
    source, _ = source_of(kind, tmp_path)
    adapter = open_source(source)
    adapter.fingerprint()
    assert read_all(adapter.unchanged_pieces()["events"]).num_rows == ROWS + (kind == "sequences")

"""What the fuzzing targets found, and that each of them runs under atheris where that is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pyarrow.compute as pc
import pytest

from recsys import schema
from recsys.config import CanonicalSource, SequencesSource
from tests.fuzz.__main__ import TARGETS
from tests.fuzz.reading import tables_of, write

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(find_spec("atheris") is None, reason="needs the fuzz extra")
@pytest.mark.parametrize("name", ["canonical_text", "sequences"])
def test_targets_run_under_atheris(name: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz", name, "-runs=30", "-seed=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0 and "Done 3" in done.stderr, done.stderr[-2000:]


def test_every_target_has_its_file() -> None:
    files = {path.stem for path in (ROOT / "tests/fuzz").glob("*.py")} - {"__init__", "__main__", "reading"}
    assert files == set(TARGETS)


# ------------------------------------------------------------------------------------------------------------- findings


def events(name: str, content: bytes) -> list[tuple[str | None, str | None]]:
    """User and reason of every row."""
    tables = tables_of(CanonicalSource(events=[write(name, content)]))
    assert isinstance(tables, dict), tables
    table = tables["events"]
    return list(zip(*(table.column(name).to_pylist() for name in (schema.USER_ID, schema.REASON)), strict=True))


def test_a_carriage_return_in_a_header_is_a_space() -> None:
    said = tables_of(CanonicalSource(events=[write("h.csv", b"user_id\rx,item_id\nu,i\n")]))
    assert isinstance(said, str) and "lacks 'user_id'" in said and "'user_id x'" in said


def test_a_short_row_of_other_bytes_prints_no_traceback() -> None:
    """Arrow cannot show such a row to its handler of bad rows, and prints the error instead of raising it."""
    rows = [b"u%d,i" % n for n in range(300)]
    rows[200] = b"\xc3("
    found = events("short.csv", b"user_id,item_id\n" + b"\n".join(rows) + b"\n")
    assert [row for row, (_, reason) in enumerate(found) if reason] == [200] and len(found) == 300


def test_a_long_cell_is_a_good_row_beside_a_broken_one() -> None:
    """Python's csv refuses cells above 128 KiB, which Arrow reads."""
    long = b"x" * 200_000
    content = b'item_id,title\n1,"' + long + b'"\n' + b"2,\xff\n" + b"".join(b"%d,a\n" % n for n in range(3, 300))
    good = write("good.csv", b"user_id,item_id\nu,1\n")
    tables = tables_of(CanonicalSource(events=[good], items=[write("long.csv", content)]))
    assert isinstance(tables, dict)
    items = tables["items"]
    assert len(items.column("title")[0].as_py()) == len(long)
    assert items.filter(pc.is_valid(items.column(schema.REASON))).column(schema.ROW).to_pylist() == [2]


@pytest.mark.parametrize("half", [rb'"\ud83d"', b'"\xed\xa0\xbd"'], ids=["escaped", "raw"])
def test_half_a_character_makes_one_bad_row(half: bytes) -> None:
    rows = [b'{"user_id": "u", "item_id": "i"}'] * 300
    rows[200] = b'{"user_id": ' + half + b', "item_id": "i"}'
    found = events("half.jsonl", b"\n".join(rows))
    assert [row for row, (_, reason) in enumerate(found) if reason] == [200]


def test_half_a_character_in_a_key_makes_a_bad_row() -> None:
    content = b'{"user_id": "u", "item_id": "i"}\n{"user_id": "u", "item_id": "i", "\\ud800": 1}\n'
    assert [reason for _, reason in events("key.jsonl", content)] == [None, "unreadable row"]


@pytest.mark.parametrize("name", ["lines.txt.gz", "table.jsonl.gz", "table.csv.gz"])
def test_what_says_gz_and_is_not_is_refused(name: str) -> None:
    path = write(name, b"u1 a b\n")
    source = SequencesSource(events=path) if "txt" in name else CanonicalSource(events=[path])
    said = tables_of(source)
    assert isinstance(said, str) and name in said and "gzip" in said


def test_a_file_cut_off_behind_its_head_is_refused() -> None:
    import gzip
    import random

    lines = "".join(f"u{random.Random(n).getrandbits(60)},i\n" for n in range(120_000))
    whole = gzip.compress(b"user_id,item_id\n" + lines.encode(), 1)
    said = tables_of(CanonicalSource(events=[write("cut.csv.gz", whole[:-2000])]))
    assert isinstance(said, str) and "cut.csv.gz cannot be read" in said and "whole" in said


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/invocations", b'{"dataframe_split": {"columns": 0, "data": [["u0"]]}}', "columns"),
        ("/invocations", b'{"dataframe_split": {"columns": [["a"]], "data": [["u0"]]}}', "columns"),
        ("/invocations", b'{"\\ud800": 1, "inputs": []}', "half a character"),
        ("/recommend", b'{"\\ud800": 1}', "half a character"),
        ("/recommend", b'{"user_id": "\xed\xa0\x80"}', "no JSON"),
        ("/recommend", '{"user_id": "u0"}'.encode("utf-16"), "no JSON"),
        ("/recommend", b'{"attributes": {"age": 1' + b"0" * 400 + b"}}", "expected a finite number"),
        ("/recommend", b'{"user_id": "u0", "context": {"warmth": 1' + b"0" * 400 + b"}}", "expected a finite number"),
    ],
)
def test_calls_that_were_errors_of_ours(path: str, body: bytes, says: str) -> None:
    from tests.fuzz.requests import reply_to

    reply = reply_to(path, body)
    content = json.loads(reply.body)
    assert reply.status == 400 and says in (content.get("error") or content["message"])


def test_parquet_texts_that_are_no_text_are_refused() -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = write("texts.parquet", b"")
    wrong = pa.array([b"u", b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"user_id": wrong, "item_id": ["i", "i"]}), path)
    said = tables_of(CanonicalSource(events=[path]))
    assert isinstance(said, str) and "texts.parquet: row group 0" in said and "UTF8" in said

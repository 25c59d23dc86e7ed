"""Regression tests for findings of the fuzzing targets; each target runs under atheris if that is
installed."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import zlib
from importlib.util import find_spec
from pathlib import Path

import pyarrow.compute as pc
import pytest

from recsys import schema
from recsys.config import CanonicalSource, SequencesSource
from tests.fuzz.__main__ import TARGETS
from tests.fuzz.reading import tables_of, write

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(find_spec("atheris") is None, reason="needs the fuzz extra")
@pytest.mark.parametrize("name", ["canonical_text", "sequences"])
def test_targets_run_under_atheris(name: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz", name, "-runs=30", "-seed=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0 and "Done 3" in done.stderr, done.stderr[-2000:]


def test_every_target_has_its_file() -> None:
    files = {path.stem for path in (ROOT / "tests/fuzz").glob("*.py")} - {
        "__init__",
        "__main__",
        "reading",
    }
    assert files == set(TARGETS)


# ----------------------------------------------------------------------------------------- findings


def events(name: str, content: bytes) -> list[tuple[str | None, str | None]]:
    """User and reason of every row."""
    tables = tables_of(CanonicalSource(events=[write(name, content)]))
    assert isinstance(tables, dict), tables
    table = tables["events"]
    return list(
        zip(
            *(table.column(name).to_pylist() for name in (schema.USER_ID, schema.REASON)),
            strict=True,
        )
    )


def test_carriage_return_in_a_header_is_a_space() -> None:
    refusal = tables_of(CanonicalSource(events=[write("h.csv", b"user_id\rx,item_id\nu,i\n")]))
    assert isinstance(refusal, str) and "lacks 'user_id'" in refusal and "'user_id x'" in refusal


def test_short_row_with_invalid_bytes_prints_no_traceback() -> None:
    """Arrow cannot pass such a row to its handler of bad rows, and prints the error instead of
    raising it."""
    rows = [b"u%d,i" % n for n in range(300)]
    rows[200] = b"\xc3("
    found = events("short.csv", b"user_id,item_id\n" + b"\n".join(rows) + b"\n")
    assert [row for row, (_, reason) in enumerate(found) if reason] == [200] and len(found) == 300


def test_long_cell_is_a_good_row_next_to_a_broken_one() -> None:
    """Python's csv refuses cells above 128 KiB, which Arrow reads."""
    long = b"x" * 200_000
    content = (
        b'item_id,title\n1,"'
        + long
        + b'"\n'
        + b"2,\xff\n"
        + b"".join(b"%d,a\n" % n for n in range(3, 300))
    )
    good = write("good.csv", b"user_id,item_id\nu,1\n")
    tables = tables_of(CanonicalSource(events=[good], items=[write("long.csv", content)]))
    assert isinstance(tables, dict)
    items = tables["items"]
    assert len(items.column("title")[0].as_py()) == len(long)
    assert items.filter(pc.is_valid(items.column(schema.REASON))).column(
        schema.ROW
    ).to_pylist() == [2]


@pytest.mark.parametrize("half", [rb'"\ud83d"', b'"\xed\xa0\xbd"'], ids=["escaped", "raw"])
def test_truncated_character_makes_one_bad_row(half: bytes) -> None:
    rows = [b'{"user_id": "u", "item_id": "i"}'] * 300
    rows[200] = b'{"user_id": ' + half + b', "item_id": "i"}'
    found = events("half.jsonl", b"\n".join(rows))
    assert [row for row, (_, reason) in enumerate(found) if reason] == [200]


def test_half_a_character_in_a_key_makes_a_bad_row() -> None:
    content = b'{"user_id": "u", "item_id": "i"}\n{"user_id": "u", "item_id": "i", "\\ud800": 1}\n'
    assert [reason for _, reason in events("key.jsonl", content)] == [None, "unreadable row"]


@pytest.mark.parametrize("name", ["lines.txt.gz", "table.jsonl.gz", "table.csv.gz"])
def test_file_named_gz_without_gzip_content_is_refused(name: str) -> None:
    path = write(name, b"u1 a b\n")
    source = SequencesSource(events=path) if "txt" in name else CanonicalSource(events=[path])
    refusal = tables_of(source)
    assert isinstance(refusal, str) and name in refusal and "gzip" in refusal


def test_file_truncated_after_its_header_is_refused() -> None:
    import gzip
    import random

    lines = "".join(f"u{random.Random(n).getrandbits(60)},i\n" for n in range(120_000))
    whole = gzip.compress(b"user_id,item_id\n" + lines.encode(), 1)
    refusal = tables_of(CanonicalSource(events=[write("cut.csv.gz", whole[:-2000])]))
    assert (
        isinstance(refusal, str)
        and "cut.csv.gz cannot be read" in refusal
        and "not complete" in refusal
    )


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/invocations", b'{"dataframe_split": {"columns": 0, "data": [["u0"]]}}', "columns"),
        ("/invocations", b'{"dataframe_split": {"columns": [["a"]], "data": [["u0"]]}}', "columns"),
        ("/invocations", b'{"\\ud800": 1, "inputs": []}', "half a character"),
        ("/recommend", b'{"\\ud800": 1}', "half a character"),
        ("/recommend", b'{"user_id": "\xed\xa0\x80"}', "not valid JSON"),
        ("/recommend", '{"user_id": "u0"}'.encode("utf-16"), "not valid JSON"),
        (
            "/recommend",
            b'{"attributes": {"age": 1' + b"0" * 400 + b"}}",
            "expected a finite number",
        ),
        (
            "/recommend",
            b'{"user_id": "u0", "context": {"warmth": 1' + b"0" * 400 + b"}}",
            "expected a finite number",
        ),
    ],
)
def test_calls_that_caused_internal_errors_are_refused(path: str, body: bytes, says: str) -> None:
    from tests.fuzz.requests import reply_to

    reply = reply_to(path, body)
    content = json.loads(reply.body)
    assert reply.status == 400 and says in (content.get("error") or content["message"])


def test_parquet_texts_with_invalid_utf8_are_refused() -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = write("texts.parquet", b"")
    wrong = pa.array([b"u", b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"user_id": wrong, "item_id": ["i", "i"]}), path)
    refusal = tables_of(CanonicalSource(events=[path]))
    assert (
        isinstance(refusal, str) and "texts.parquet: row group 0" in refusal and "UTF8" in refusal
    )


# a column with a histogram of repetition levels that is too long
DAMAGED_FOOTER = zlib.decompress(base64.b85decode(
    'c-pO1OK1~87@nDKw%br@S~|ln<dB0MDzr5zq@YCYBx+i1Yg^E?L6B{_roqI<ByII%6+tMTdJq(R90V^tDJW<Uq8IU?Jt%tUL3<Pr'
    'dMgOx%s!HBlL!HS!u+%U<NId5+1ZS<$q<&X7q{V?pWnQbBN$=O0f5H`0RTD%xC0Y>?d6llil5i{u#9E@0P2Ri3ibAOUegjld~AXc'
    'f&U2<z<cqFSFay<BK$!B`69qJXnPy;_sacJ1yWU<w5m7_1a#Mkx=1Amn~+U<edGO&rro4Jk63>DY8_IitTGd%)zKQHLb8WzA3k;B'
    'J1fuscpc#szttlR+LYh!J^i)E&$Bx@rNPRq!s(8>IFY5Ub~X%DxtN+WaynK3ZtX&9^Fq-moXgC1ff2!M#WE!$=ZZ-@)>6vkjABX8'
    '<-0mZZgu#3th4a)lxI=TE*OBwT8}nDfgiVOVIcdoGB!p;A}f%rLVB1g?&H^bgyI;9L-lbNAxM)oio~LKAlWN&A#Ff<7dC<=*;tjG'
    'm}py&e1~)!(KXcATU5ojkFx>EX7g$TCYvRWi)l-ux248jo%&4Vi-$;5A=@5MS9)X%_DrVB{O*Bnm{MV?zF^=V;yYMxo9SwEBUm-X'
    'N8}?Un~;80=p)6E1eRrnmiX1tx{{!>_~D)6J51|dy6kQ24plQz8EAruta}LJnvzYfzF%!+lar?s2d(R+{y_VMEv2K3u?c3`Nye5~'
    'G|i4PmS(ZE8H@6QQ89@zHf#ne-foS}i`k4Aj+#)%#9)jId{HuL2IJ*=%c5dBl$@IxI+GR8!9}}19lIcwCQ4#+W@);@XW9ud%*L~&'
    '<kVPjIuYVs(_(#b;Vm0x{bl~swfRLZo((1wq4RoTf?W~ymzmi7u)yK@QF}8^Q#3kh`qZxV44Lbh8q21#2l7d~#g#t<)IeS@Tv{+n'
    'y{UY@S1%Oimja7Mp_rM!80Zi81^Ysp_?DG_pv?ooIR6*?3oj}m#s'
))  # fmt: skip


def test_contradicting_footer_gives_a_message_and_does_not_end_the_process() -> None:
    """Arrow's ``RowGroupMetaData.column`` calls ``terminate`` for it, so this runs in a separate
    process."""
    path = write("damaged.parquet", DAMAGED_FOOTER)
    code = (
        "import sys; from recsys.config import CanonicalSource; from tests.fuzz.reading import"
        " tables_of; "
    )
    code += "print(tables_of(CanonicalSource(events=sys.argv[1:])))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "the file is damaged" in done.stdout, done.stderr[-2000:]

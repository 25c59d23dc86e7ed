"""Text tables of every form: the first two bytes choose separator, header, names, comments and
folder."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from recsys.config import CanonicalSource, RecBoleSource, SequencesSource
from tests.fuzz.reading import place, tables_of, write

SEPARATORS = ("", ";", "|", "\t", "::", " ", "§", "~|~")
NAMES = ("user_id", "item_id", "value", "timestamp")
SEEDS = [
    b"\x00\x00user_id;item_id;value\nu1;i1;1,5\nu2;i2;2\n",
    b"\x04\x01u1::i1::5::1000000000\nu2::i2::::\n",
    b"\x05\x03# about\n u1  i1 5 1000000000\nu2 i2\t3 x\n",
    b"\x03\x11u1\ti1\t5\t1000000000\n\nu1\ti1\n",
    b"\x01\x24User ID;Item-ID;;\n1;2;3;4\n1;2;3;4\n",
    b"\x02\x40user_id|item_id|event_type\nu|i|view\n",
    b"\x00\x80user_id:token,item_id:token\nu,i\n",
    b"\x0c\x80u1::a::b\n# x\nu2::c\n",
]


def run(data: bytes) -> None:
    """First byte: 7 the separator, 8 of sequences or RecBole. Second byte: 1 columns, 2 comments, 4
    renames, 8 header, 16 no header, 32 decimal commas, 64 a folder that is a column, 128 another
    source."""
    if len(data) < 2:
        return
    first, second, content = data[0], data[1], data[2:]
    separator, comment = SEPARATORS[first & 7], "#" if second & 2 else ""
    if second & 128:
        _other(first, separator, comment, content)
        return
    name = "event_type=view/table.csv" if second & 64 else "table.csv"
    options: dict[str, Any] = {
        "separator": separator,
        "comment": comment,
        "decimal": "," if second & 32 else ".",
    }
    options |= {"columns": [*NAMES]} if second & 1 else {}
    options |= {"rename": {"uid": "user_id", "events": {"what": "item_id"}}} if second & 4 else {}
    options |= {"header": "yes" if second & 8 else "no" if second & 16 else "auto"}
    path = write(name, content)
    found = tables_of(CanonicalSource(events=[path], **options), chunk_bytes=None)
    is_unquoted = len(separator.encode()) > 1 or separator == " "
    if isinstance(found, str) or second & 25 != 17 or not is_unquoted:
        return
    lines = [line for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    rows = [line for line in lines if not (comment and line.startswith(b"#"))]
    assert found["events"].num_rows == len(rows), "a row was lost or made"


def _other(first: int, separator: str, comment: str, content: bytes) -> None:
    if first & 8:
        tables_of(
            SequencesSource(
                events=write("lines.txt", content), separator=separator, comment=comment
            )
        )
        return
    write("atoms/atoms.inter", content)
    try:
        source = RecBoleSource(folder=str(place() / "atoms"), separator=separator)
    except ValidationError:
        return
    tables_of(source)

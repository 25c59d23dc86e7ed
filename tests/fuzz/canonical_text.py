"""CSV and TSV of canonical tables. The first byte chooses table, format, encoding and
compression."""

from __future__ import annotations

import gzip

from recsys.config import CanonicalSource
from tests.fuzz.reading import tables_of, write

EVENTS = (
    b"user_id,item_id,timestamp,value,event_type,split\n"
    b"u1,i1,1000000000,1.5,view,train\n"
    b"u2,i2,,,buy,test\n"
)
ITEMS = b'item_id,title\n1,"two\nlines, and ""quotes"""\n2,5" disc\n'
SEEDS = [
    b"\x00" + EVENTS,
    b"\x01" + EVENTS.replace(b",", b"\t"),
    b"\x10" + EVENTS,
    b"\x20" + ITEMS,
    b"\x40" + b"src_user_id,dst_user_id,weight\na,b,2\nb,b,\n",
    b"\x08" + EVENTS,
    b"\x80" + b"head,relation,tail\na,r,b\n",
    b"\x00user_id,item_id,timestamp\r\nu,i,2020-01-01T00:00:00Z\r\nu,i\r\n\r\n,i,nan\r\n",
]


def run(data: bytes) -> None:
    if not data:
        return
    knob, content = data[0], data[1:]
    kind = "tsv" if knob & 1 else "csv"
    encoding = ("utf-8", "latin-1", "cp1252", "ascii")[knob >> 1 & 3]
    name = f"table.{kind}"
    if knob & 8:
        name, content = f"{name}.gz", gzip.compress(content, 1)
    if knob & 16:
        content = content * 3
    path = write(name, content)
    options = {"encoding": encoding}
    good = write("good.csv", EVENTS)
    if knob & 32:
        tables_of(CanonicalSource(events=[good], items=[path], **options))
    elif knob & 64:
        tables_of(CanonicalSource(events=[good], social=[path], **options))
    elif knob & 128:
        tables_of(CanonicalSource(events=[good], knowledge=[path], users=[path], **options))
    else:
        tables_of(CanonicalSource(events=[path], **options))

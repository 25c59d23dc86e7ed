"""JSON lines of canonical tables."""

from __future__ import annotations

import gzip

from recsys.config import CanonicalSource
from tests.fuzz.reading import tables_of, write

EVENTS = b"""{"user_id": "u", "item_id": "i", "timestamp": 1000000000, "value": 2}
{"user_id": 7, "item_id": null, "timestamp": "2020-01-01", "event_type": "view"}
{"user_id": 1.5, "item_id": true, "value": "x", "more": [1, "a", null]}
"""
ITEMS = b"""{"item_id": "i", "title": "a \\u00e9", "price": 1.5, "tags": ["x"], "vector": [1, 2.5]}
{"item_id": 2, "title": null, "price": "much", "tags": [1], "vector": ["a"], "more": {"a": 1}}
"""
ARRAY = (
    b'[{"user_id": 1234567890123456789, "item_id": 1.50},\n{"user_id": NaN, "item_id": "i", "x":'
    b" [{}]}]"
)
SEEDS = [
    b"\x00" + EVENTS,
    b"\x01" + ITEMS,
    b"\x02" + EVENTS,
    b'\x00{"user_id": "\\ud83d\\ude00", "item_id": 1e3}\n',
    b"\x00" + ARRAY,
    b"\x02\xef\xbb\xbf" + ARRAY,
    (
        b'\x00{\n "user_id": 1,\n "item_id": -0.0\n}\n{"user_id": 1e5, "item_id":'
        b" 18446744073709551616}"
    ),
]


def run(data: bytes) -> None:
    if not data:
        return
    knob, content = data[0], data[1:]
    name = "table.jsonl"
    if knob & 2:
        name, content = "table.jsonl.gz", gzip.compress(content, 1)
    path = write(name, content)
    if knob & 1:
        tables_of(CanonicalSource(events=[write("good.jsonl", EVENTS)], items=[path]))
    else:
        tables_of(CanonicalSource(events=[path]))

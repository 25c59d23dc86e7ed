"""Plain sequence files, and the same compressed."""

from __future__ import annotations

import gzip

from recsys.config import SequencesSource
from tests.fuzz.reading import tables_of, write

SEEDS = [
    b"\x00u1 a b c\nu2 d\n\nu3\n",
    b"\x01u1 a b\n",
    b"\x02u1 a b\nu2 c d",
    b"\x04" + gzip.compress(b"u1 a b\n"),
]


def run(data: bytes) -> None:
    """First byte, bit 1: compress the bytes; 2: cut them into small chunks; 4: name them
    compressed, even if they are not."""
    if not data:
        return
    knob, content = data[0], data[1:]
    name = "lines.txt.gz" if knob & 5 else "lines.txt"
    path = write(name, gzip.compress(content, 1) if knob & 1 else content)
    tables_of(SequencesSource(events=path), chunk_bytes=5 if knob & 2 else None)

"""RecBole atomic files: the bytes are one of the six, the others are good."""

from __future__ import annotations

from recsys.config import RecBoleSource
from tests.fuzz.reading import place, tables_of, write

GOOD = {
    ".inter": (
        b"user_id:token\titem_id:token\trating:float\ttimestamp:float\nu1\ti1\t4\t1000000000\nu2\ti2\t\t\n"
    ),
    ".item": b"item_id:token\ttitle:token_seq\tvector:float_seq\ni1\ta b\t1 2\ni2\t\t0.5 x\n",
    ".user": b"user_id:token\tage:float\nu1\t30\nu2\tnan\n",
    ".net": b"source_id:token\ttarget_id:token\nu1\tu2\nu2\tu2\n",
    ".kg": b"head_id:token\trelation_id:token\ttail_id:token\ne1\tr\te2\n",
    ".link": b"item_id:token\tentity_id:token\ni1\te1\ni9\t\n",
}
SUFFIXES = tuple(GOOD)
SEEDS = [bytes([number]) + content for number, content in enumerate(GOOD.values())]


def run(data: bytes) -> None:
    if not data:
        return
    spoilt = SUFFIXES[data[0] % len(SUFFIXES)]
    for suffix, content in GOOD.items():
        write(f"atomic/atomic{suffix}", data[1:] if suffix == spoilt else content)
    tables_of(
        RecBoleSource(folder=str(place() / "atomic")), chunk_bytes=32 if data[0] & 64 else None
    )

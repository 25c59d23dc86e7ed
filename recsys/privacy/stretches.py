"""Search for stretches (short sequences) of histories among numbers, all of them in one pass over
the bytes.

A stretch is found as 64 bit or 32 bit integers, little endian, at any place. At every place, eight
bytes are looked up in a hash table of the first bytes of the stretches; on a match the whole
stretch is compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.histories import Array

LONGEST: Final = 6  # events of a stretch, …
LEAST: Final = 3  # … and of the shortest stretch that identifies a user
_WIDTH: Final = 8
_PIECE: Final = 1 << 23


def stretches_of(values: Array) -> list[bytes]:
    """The first, the middle and the last stretch of a history, as bytes of int64.

    Empty if there are too few values or too few different ones.
    """
    if len(values) < LEAST:
        return []
    size = min(LONGEST, len(values))
    # three places: a file may hold only a part of a history
    starts = sorted({0, (len(values) - size) // 2, len(values) - size})
    found = [values[start : start + size].astype(np.int64) for start in starts]
    # an item that is repeated again and again occurs in many histories
    return [stretch.tobytes() for stretch in found if len(np.unique(stretch)) >= LEAST]


class Stretches:
    """A set of stretches to search for."""

    def __init__(self, keys: Iterable[bytes]) -> None:
        self._by_head: dict[
            bytes, list[tuple[bytes, bytes]]
        ] = {}  # eight bytes → (the form, the stretch)
        seconds = set[int]()
        for key in keys:
            values = np.frombuffer(key, dtype=np.int64)
            self._by_head.setdefault(key[:_WIDTH], []).append((key, key))
            seconds.add(int(values[1]))
            # files store ids and times in 32 bits too
            if np.abs(values).max() < 2**31:
                narrow = values.astype(np.int32).tobytes()
                self._by_head.setdefault(narrow[:_WIDTH], []).append((narrow, key))
        heads = np.frombuffer(b"".join(self._by_head), dtype=np.int64)
        self._heads, self._narrow = pa.array(heads), np.sort(heads[np.abs(heads) >= 2**31])
        self._seconds = np.array(sorted(seconds), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._by_head)

    def among(self, numbers: Array) -> set[bytes]:
        """The stretches that occur in an array of integers."""
        return self.inside(
            np.ascontiguousarray(numbers, dtype=np.int64).view(np.uint8).data, _WIDTH
        )

    def inside(self, data: Any, step: int = 1) -> set[bytes]:
        """The stretches that occur in bytes, at places that are multiples of ``step``."""
        found: set[bytes] = set()
        if not self._by_head:
            return found
        for start in range(0, len(data), _PIECE):
            # pieces overlap by the longest stretch, which may begin at the end of one
            piece = data[start : start + _PIECE + _WIDTH * (LONGEST + 1)]
            for place in self._places(piece, step):
                for form, key in self._by_head.get(bytes(piece[place : place + _WIDTH]), ()):
                    if bytes(piece[place : place + len(form)]) == form:
                        found.add(key)
        return found

    def _places(self, piece: Any, step: int) -> list[int]:
        """Places where the head of a stretch occurs and, for 64 bit integers, a second number that
        follows it.
        """
        found: list[int] = []
        for shift in range(0, _WIDTH, step):
            count = (len(piece) - shift) // _WIDTH
            if count < 1:
                continue
            view = np.frombuffer(piece, dtype=np.int64, count=count, offset=shift)
            hits = np.flatnonzero(np.asarray(pc.is_in(pa.array(view), value_set=self._heads)))
            if len(hits):
                # a head alone is one number, which is frequent; the next number removes nearly all
                # false hits
                after = view[np.minimum(hits + 1, count - 1)]
                hits = hits[np.isin(view[hits], self._narrow) | np.isin(after, self._seconds)]
                found += (hits * _WIDTH + shift).tolist()
        return found

"""Dense ids: external ids, each once, in the order of their bytes; the position is the dense id.

Why sorted: the numbering then depends on nothing but the set of ids, so equal inputs give equal datasets.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.histories import Array


def union(parts: Iterable[pa.Array]) -> pa.Array:
    """All ids of the parts, once each, sorted.

    >>> union([pa.array(["b", "a"]), pa.array(["b"])]).to_pylist()
    ['a', 'b']
    """
    merged = pa.array([], pa.string())
    for part in parts:
        fresh = part if len(merged) == 0 else part.filter(pc.invert(pc.is_in(part, value_set=merged)))
        merged = pa.concat_arrays([merged, fresh.unique()]) if len(fresh) else merged
    return merged.take(pc.sort_indices(merged))


def dense(parts: list[pa.Array], vocabulary: pa.Array) -> list[Array]:
    """The dense ids (int32) of every part; all its ids are in the vocabulary."""
    joined = pa.concat_arrays(parts) if parts else pa.array([], pa.string())
    positions = np.asarray(pc.index_in(joined, value_set=vocabulary)).astype(np.int32)
    return np.split(positions, np.cumsum([len(part) for part in parts])[:-1]) if parts else []

"""The items that are worth a score: the whole catalogue exactly, or those that an index of it names.

Why not a graph (HNSW) or cells (IVF), which look at fewer items: by inner product both can miss items that win by their
length, and with the few settings tried on 10⁵ synthetic vectors (docs/dead-ends.md) their recall stayed below .9; how
they do when tuned, or on vectors of a trained model, has not been measured. The index keeps four bits of every
direction of every item and looks at *all* of them (product quantisation, Jégou et al. 2011, scanned in registers, André
et al. 2017): it cannot miss an item for where it lies, only for how coarsely it is kept, and a list some times too
long, scored again exactly, mends that. How many times is measured on users of the model when it is registered.

Legend: B requests, R list length, C candidates, D width, N items.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from recsys.data.histories import Array
from recsys.evaluation.ranking import tie_order, top_by_vectors
from recsys.granularities.sparse import SparseScores
from recsys.pace import paced
from recsys.storage.beside import writing_beside

RECALL: Final = 0.99  # of the exact list that an index must find, at LIST places
LIST: Final = 100
REORDERS: Final = (4, 8, 16, 32)  # how many times too long the list may be
_ADDED: Final = 100_000  # items at a time
_TRAINING_ITEMS: Final = 65_536
_LONG_HISTORY: Final = 4096  # hidden items beyond which a request is answered exactly


def exact_top(
    users_BD: Tensor, vectors_ND: Tensor, k: int, rows_E: Array, hidden_E: Array, added: SparseScores | None = None
) -> Array:
    """The k best items of every user by u · a_i + ``added``, −1 behind the end: [B, R] int32.

    Of row ``rows_E[e]`` the item ``hidden_E[e]`` is left out; rows ascend.
    """
    return top_by_vectors(users_BD, vectors_ND, k, rows_E, hidden_E, added)[0]


class ItemIndex:
    """All items in four bits a direction, and how many times too long a list of them must be.

    Memory: half a byte a direction, 32 MB for 10⁶ items of width 64.
    """

    def __init__(self, index: Any, reorder: int) -> None:
        self._index, self.reorder = index, reorder

    @property
    def shape(self) -> tuple[int, int]:
        """Items and width."""
        return int(self._index.ntotal), int(self._index.d)

    def wanted(self, k: int) -> int:
        """Items that it names for a list of k."""
        return min(self.reorder * max(k, LIST), self.shape[0])

    @classmethod
    def build(cls, vectors_ND: Tensor, reorder: int = REORDERS[0]) -> ItemIndex:
        """Codes of these vectors; the codebooks are learned of an even sample of them."""
        import faiss

        vectors = np.ascontiguousarray(vectors_ND.numpy(), dtype=np.float32)
        index = faiss.index_factory(vectors.shape[1], f"PQ{vectors.shape[1]}x4fs", faiss.METRIC_INNER_PRODUCT)
        step = max(1, len(vectors) // _TRAINING_ITEMS)
        index.train(np.ascontiguousarray(vectors[::step]))
        for start in paced("adding items to the index", range(0, len(vectors), _ADDED)):
            index.add(vectors[start : start + _ADDED])
        return cls(index, reorder)

    @classmethod
    def read(cls, path: Path, reorder: int) -> ItemIndex:
        """An index from its file.

        Raises:
            RuntimeError: not a file of this kind.
        """
        import faiss

        return cls(faiss.read_index(str(path)), reorder)

    def write(self, path: Path) -> None:
        import faiss

        with writing_beside(path) as aside:
            faiss.write_index(self._index, str(aside))

    def top(
        self,
        users_BD: Tensor,
        vectors_ND: Tensor,
        k: int,
        rows_E: Array,
        hidden_E: Array,
        added: SparseScores | None = None,
    ) -> Array:
        """As :func:`exact_top`, of the items that the index names and those that ``added`` adds to, which it knows
        nothing of; of all items where it does not name enough, or where so many are hidden that it would have to name a
        large part of them."""
        num_hidden_B = np.bincount(rows_E, minlength=len(users_BD))
        if added is not None:  # what is lowered makes room, as what is hidden does
            num_hidden_B += np.bincount(added.rows_P[added.values_P < 0].numpy(), minlength=len(users_BD))
        is_long_B = num_hidden_B > _LONG_HISTORY
        most = int(num_hidden_B[~is_long_B].max(initial=0))
        _, candidates_BC = self._index.search(users_BD.numpy(), min(self.wanted(k) + most, len(vectors_ND)))
        hidden_B = np.split(hidden_E, np.searchsorted(rows_E, np.arange(1, len(users_BD))))  # rows_E ascends
        added_B = [added.between(row, row + 1) if added is not None else None for row in range(len(users_BD))]
        top_BR = np.full((len(users_BD), k), -1, dtype=np.int32)
        order_N, size = tie_order(len(vectors_ND)), min(k, len(vectors_ND))
        for row, (candidates_C, mine_E) in enumerate(zip(candidates_BC, hidden_B, strict=True)):
            mine = added_B[row]
            if mine is not None:
                candidates_C = np.union1d(candidates_C, mine.items_P.numpy())
            candidates_C = candidates_C[(candidates_C >= 0) & ~np.isin(candidates_C, mine_E)]
            if is_long_B[row] or len(candidates_C) < size:
                rows_e = np.zeros(len(mine_E), dtype=np.int64)
                top_BR[row] = exact_top(users_BD[[row]], vectors_ND, k, rows_e, mine_E, mine)[0]
                continue
            listed_C = torch.from_numpy(candidates_C)
            scores_C = (vectors_ND[listed_C] @ users_BD[row]).numpy()
            if mine is not None:
                scores_C += mine.at(listed_C[None])[0].numpy()
            best_R = np.lexsort((order_N[candidates_C], -scores_C))[:size]
            top_BR[row, :size] = candidates_C[best_R]
        return top_BR

    def __getstate__(self) -> dict[str, Any]:
        import faiss

        return {"codes": faiss.serialize_index(self._index), "reorder": self.reorder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        import faiss

        self._index, self.reorder = faiss.deserialize_index(state["codes"]), state["reorder"]


def can_index() -> bool:
    """Whether the library that makes and reads an index is installed."""
    return importlib.util.find_spec("faiss") is not None


def recall(index: ItemIndex, users_BD: Tensor, vectors_ND: Tensor, k: int = LIST) -> float:
    """Share of the exact lists that the index finds."""
    nothing = np.zeros(0, dtype=np.int64)
    found = 0
    size = min(k, len(vectors_ND))
    for row in range(len(users_BD)):
        asked = users_BD[[row]], vectors_ND, k, nothing, nothing
        found += len(np.intersect1d(exact_top(*asked)[0, :size], index.top(*asked)[0, :size]))
    return found / (size * max(len(users_BD), 1))


def calibrate(index: ItemIndex, users_BD: Tensor, vectors_ND: Tensor) -> float:
    """Set the least ``reorder`` that finds :data:`RECALL` of these users' lists, else the most; returns the recall."""
    reached = 0.0
    for index.reorder in REORDERS:
        reached = recall(index, users_BD, vectors_ND)
        if reached >= RECALL:
            break
    return reached

"""An index of all items: candidates for the best items, which are scored again exactly.

Why not a graph (HNSW) or cells (IVF), which look at fewer items: with the inner product both can
miss items with long vectors. In a small test on 10⁵ synthetic vectors (docs/dead-ends.md) their
recall stayed below 0.9. Tuned settings and vectors of a trained model have not been measured.

Our index stores four bits per dimension of every item and scans *all* items (product quantisation,
Jégou et al. 2011; fast scan in registers, André et al. 2017). It misses an item only through
quantisation error; therefore it returns several times more candidates than needed, which are scored
again exactly. How many times more is measured on users of the model when it is registered.

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
from recsys.evaluation.top_items import tie_order
from recsys.granularities.sparse import SparseScores
from recsys.pace import with_progress
from recsys.retrieval.exact import allowed_top, exact_top
from recsys.retrieval.selection import Allowed
from recsys.storage.beside import atomic_write

RECALL: Final = 0.99  # least share of the exact top LIST that an index must find
LIST: Final = 100
REORDERS: Final = (4, 8, 16, 32)  # candidates per listed item that are tried
_ADDED: Final = 100_000  # items added at a time
_TRAINING_ITEMS: Final = 65_536
_LONG_HISTORY: Final = 4096  # requests with more hidden items are answered without the index
_DEEPEST: Final = 16  # with more candidates than 1/16 of the items, all items are scored instead
_DEEPER: Final = 4  # factor by which the candidates grow where too few of them are allowed
# factor on the candidates, because allowed items are not spread evenly over the ranking
_SLACK: Final = 1.2


def _blocks(k: int) -> list[int]:
    """Ends of the blocks of ranks: 100, 200, 400, … until k is covered."""
    ends = [LIST]
    while ends[-1] < k:
        ends.append(2 * ends[-1])
    return ends


def _in_blocks(best_C: Array, ranks_C: Array, ends: list[int], reorder: int) -> Array:
    """Order candidates so that the first ``end`` come from the first ``reorder · end`` of the
    index.

    Why: the rank of an item then does not depend on how many candidates were requested.

    Parameters
    ----------
    best_C : Array
        Candidates by exact score, best first.
    ranks_C : Array
        Position of each candidate in the list of the index.
    ends : list[int]
        Ends of the blocks, see :func:`_blocks`.
    reorder : int
        Candidates per listed item.

    Examples
    --------
    >>> _in_blocks(np.array([2, 0, 1]), np.array([0, 1, 2]), [1, 2], 2).tolist()
    [0, 2]
    """
    if len(ends) == 1:
        return best_C
    found: list[Array] = []
    start = 0
    for end in ends:
        is_near_C = ranks_C[best_C] < reorder * end
        taken = np.flatnonzero(is_near_C)[: end - start]
        found.append(best_C[taken])
        best_C = np.delete(best_C, taken)
        start += len(taken)
    return np.concatenate(found)


class ItemIndex:
    """All items with four bits per dimension, and the number of candidates per listed item
    (``reorder``).

    Memory: half a byte per dimension, 32 MB for 10⁶ items of width 64.
    """

    def __init__(self, index: Any, reorder: int) -> None:
        self._index, self.reorder = index, reorder

    @property
    def shape(self) -> tuple[int, int]:
        """Number of items, and width of their vectors."""
        return int(self._index.ntotal), int(self._index.d)

    def wanted(self, k: int) -> int:
        """Number of candidates for a list of k items."""
        return min(self.reorder * max(k, LIST), self.shape[0])

    @classmethod
    def build(cls, vectors_ND: Tensor, reorder: int = REORDERS[0]) -> ItemIndex:
        """Build an index of item vectors; the codebooks are trained on an even sample of them."""
        import faiss

        vectors = np.ascontiguousarray(vectors_ND.numpy(), dtype=np.float32)
        index = faiss.index_factory(
            vectors.shape[1], f"PQ{vectors.shape[1]}x4fs", faiss.METRIC_INNER_PRODUCT
        )
        step = max(1, len(vectors) // _TRAINING_ITEMS)
        index.train(np.ascontiguousarray(vectors[::step]))
        for start in with_progress("adding items to the index", range(0, len(vectors), _ADDED)):
            index.add(vectors[start : start + _ADDED])
        return cls(index, reorder)

    @classmethod
    def read(cls, path: Path, reorder: int) -> ItemIndex:
        """Read an index from its file.

        Raises
        ------
        RuntimeError
            The file is not a Faiss index.
        """
        import faiss

        return cls(faiss.read_index(str(path)), reorder)

    def write(self, path: Path) -> None:
        """Write the index to a file, which is renamed when complete."""
        import faiss

        with atomic_write(path) as aside:
            faiss.write_index(self._index, str(aside))

    def top(
        self,
        users_BD: Tensor,
        vectors_ND: Tensor,
        k: int,
        rows_E: Array,
        hidden_E: Array,
        added: SparseScores | None = None,
        allowed: Allowed | None = None,
    ) -> Array:
        """As :func:`exact_top`, among candidates: items from the index and items with a score in
        ``added``.

        The index does not know ``added``, so these items are always candidates. With ``allowed``,
        only allowed items are listed, and the fewer they are, the more candidates are requested.
        All items are scored where so many are hidden, or so few allowed, that the candidates would
        be a large part of the catalogue. Ranks 1 to 100 come from one list of candidates, 101 to
        200 from one twice as long, and so on, so the rank of an item does not depend on ``k``.

        Parameters
        ----------
        users_BD : Tensor, [B, D] float32
            User vectors, on the CPU.
        vectors_ND : Tensor, [N, D] float32
            Vectors of the items of the index, for the exact scores.
        k : int
            Items per list R.
        rows_E : array, [E] int
            Rows of the hidden items, ascending.
        hidden_E : array, [E] int
            Item ``hidden_E[e]`` is left out of the list of row ``rows_E[e]``.
        added : SparseScores or None
            Scores of sparse members, added to the product.
        allowed : Allowed or None
            The allowed items; None: all.

        Returns
        -------
        array, [B, R] int32
            Items, best first; −1 after the end of a list.
        """
        num_hidden_B = np.bincount(rows_E, minlength=len(users_BD))
        if (
            added is not None
        ):  # lowered items drop out of the list like hidden ones, so more candidates are needed
            num_hidden_B += np.bincount(
                added.rows_P[added.values_P < 0].numpy(), minlength=len(users_BD)
            )
        # one very long history must not make the list of candidates longer for all requests
        is_long_B = num_hidden_B > _LONG_HISTORY
        depth = self._depth(k, int(num_hidden_B[~is_long_B].max(initial=0)), allowed)
        by_index_B = ~is_long_B if depth <= self._most() else np.zeros_like(is_long_B)
        # rows_E ascends
        hidden_B = np.split(hidden_E, np.searchsorted(rows_E, np.arange(1, len(users_BD))))
        top_BR = np.full((len(users_BD), k), -1, dtype=np.int32)
        rows_b = np.flatnonzero(by_index_B)
        if len(rows_b):
            _, candidates_bC = self._index.search(users_BD[torch.from_numpy(rows_b)].numpy(), depth)
        for at, row in enumerate(rows_b.tolist()):
            mine = added.between(row, row + 1) if added is not None else None
            found_R = self._of_row(
                users_BD[row], vectors_ND, k, candidates_bC[at], hidden_B[row], mine, allowed
            )
            by_index_B[row] = found_R is not None
            if found_R is not None:
                top_BR[row, : len(found_R)] = found_R
        for row in np.flatnonzero(~by_index_B).tolist():
            mine = added.between(row, row + 1) if added is not None else None
            rows_e = np.zeros(len(hidden_B[row]), dtype=np.int64)
            top_BR[row] = allowed_top(
                users_BD[[row]], vectors_ND, k, rows_e, hidden_B[row], mine, allowed
            )[0]
        return top_BR

    def _depth(self, k: int, num_hidden: int, allowed: Allowed | None) -> int:
        """Number of candidates to request, so that about enough of them are allowed and
        not hidden.
        """
        num_items = self.shape[0]
        wanted = self.reorder * _blocks(k)[-1] + num_hidden
        if allowed is None or allowed.num == num_items:
            return min(wanted, num_items)
        return min(int(_SLACK * wanted * num_items / max(allowed.num, 1)), num_items)

    def _most(self) -> int:
        """Largest number of candidates; beyond it, scoring all items is as fast."""
        return max(self.shape[0] // _DEEPEST, self.reorder * LIST + _LONG_HISTORY)

    def _of_row(
        self,
        user_D: Tensor,
        vectors_ND: Tensor,
        k: int,
        candidates_C: Array,
        hidden_e: Array,
        added: SparseScores | None,
        allowed: Allowed | None,
    ) -> Array | None:
        """The best items of one user; None where too many candidates would be needed."""
        num_items, ends = len(vectors_ND), _blocks(k)
        num_allowed = num_items if allowed is None else allowed.num
        wanted = min(self.reorder * ends[-1], num_allowed - len(np.unique(hidden_e)))
        while True:
            found_C = candidates_C[candidates_C >= 0]
            found_C = found_C if allowed is None else found_C[allowed.among(found_C)]
            found_C = found_C[~np.isin(found_C, hidden_e)]
            if len(found_C) >= wanted:
                break
            depth = min(_DEEPER * len(candidates_C), num_items)
            if depth > self._most() or len(candidates_C) == num_items:
                return None
            _, (candidates_C,) = self._index.search(user_D[None].numpy(), depth)
        # a search with more rows or hidden items returns more; the answer must not depend on them
        found_C = found_C[: self.reorder * ends[-1]]
        extra_C = np.zeros(0, dtype=np.int64) if added is None else added.items_P.numpy()
        extra_C = extra_C if allowed is None else extra_C[allowed.among(extra_C)]
        extra_C = extra_C[~np.isin(extra_C, hidden_e)]
        # an item of both lists must be scored, and listed, once
        found_C = found_C[~np.isin(found_C, extra_C)]
        listed_C = np.concatenate([extra_C, found_C]).astype(np.int64)
        # rank 0: items with an addition may be in every block
        ranks_C = np.concatenate([np.zeros(len(extra_C), dtype=np.int64), np.arange(len(found_C))])
        listed = torch.from_numpy(listed_C)
        scores_C = (vectors_ND.index_select(0, listed) @ user_D).numpy()
        if added is not None:
            scores_C += added.at(listed[None])[0].numpy()
        best_C = np.lexsort((tie_order(num_items)[listed_C], -scores_C))
        return np.asarray(listed_C[_in_blocks(best_C, ranks_C, ends, self.reorder)][:k])

    def __getstate__(self) -> dict[str, Any]:
        import faiss

        return {"codes": faiss.serialize_index(self._index), "reorder": self.reorder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        import faiss

        self._index, self.reorder = faiss.deserialize_index(state["codes"]), state["reorder"]


def can_index() -> bool:
    """Whether Faiss, which builds and reads an index, is installed."""
    return importlib.util.find_spec("faiss") is not None


def recall(index: ItemIndex, users_BD: Tensor, vectors_ND: Tensor, k: int = LIST) -> float:
    """The mean share of the exact top k that the index finds.

    Parameters
    ----------
    index : ItemIndex
        The index.
    users_BD : Tensor, [B, D] float32
        Vectors of the users to measure on; nothing is hidden from their lists.
    vectors_ND : Tensor, [N, D] float32
        Vectors of the items of the index.
    k : int
        Items per list.

    Returns
    -------
    float
        0 to 1; 0 without users.
    """
    nothing = np.zeros(0, dtype=np.int64)
    found = 0
    size = min(k, len(vectors_ND))
    for row in range(len(users_BD)):
        query = users_BD[[row]], vectors_ND, k, nothing, nothing
        found += len(np.intersect1d(exact_top(*query)[0, :size], index.top(*query)[0, :size]))
    return found / (size * max(len(users_BD), 1))


def calibrate(index: ItemIndex, users_BD: Tensor, vectors_ND: Tensor) -> float:
    """Set ``reorder`` to the smallest value with a recall of at least :data:`RECALL` for these
    users, or else to the largest; return the recall.

    Parameters
    ----------
    index : ItemIndex
        The index; its ``reorder`` changes.
    users_BD : Tensor, [B, D] float32
        Vectors of the users to measure on.
    vectors_ND : Tensor, [N, D] float32
        Vectors of the items of the index.

    Returns
    -------
    float
        Recall of the top :data:`LIST`, 0 to 1.
    """
    reached = 0.0
    for index.reorder in REORDERS:
        reached = recall(index, users_BD, vectors_ND)
        if reached >= RECALL:
            break
    return reached

"""The input of stacking: for validation queries, the scores of every member on the items that could
be in a list.

Why candidates: some hundred weighted sums are tried, and a full ranking of the catalogue each time
would take minutes. An item that no member has among its best :data:`BEST` is rarely among the first
of the sum. In a small catalogue all items are candidates. A target that is no candidate is a miss:
if it were added, it would be there without the other items of similar rank, and sums that rank such
items high would look better than they are.

Legend: b queries of a chunk, Q all queries, N items, M members, P candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor

from recsys.data.histories import Array, Queries
from recsys.evaluation.ranking import countable, mask_seen
from recsys.evaluation.stacking import Candidates
from recsys.evaluation.top_items import tie_order
from recsys.pace import with_progress
from recsys.stack import BOUNDS

BEST: Final = 60  # items of each member, …
MOST_NUMBERS: Final = 2**23  # … or all items if all queries together have no more scores than this
MAX_QUERIES: Final = 3000
_MAX_SCORES: Final = 2**26  # scores in memory at a time
# normalised scores within this distance count as equal; they get the order of every ranking here
_TIE: Final = 1e-5


class MemberScorer(Protocol):
    """A model as the sum of its members."""

    @property
    def members(self) -> Sequence[str]:
        """The members, in the order of M."""
        ...

    def member_scores(self, queries: Queries) -> Sequence[Tensor]:
        """The normalised scores of every member: M times [b, N]."""
        ...


def gather(
    model: MemberScorer,
    queries: Queries,
    exclude_seen: bool,
    num_items: int,
    cut: Callable[[Queries], Queries] | None = None,
) -> Candidates:
    """The candidates of every query with a target that counts.

    Memory: 4 bytes per query, candidate and member, with at most :data:`BEST` candidates per
    member, or all items of a small catalogue.

    Parameters
    ----------
    model : MemberScorer
        The model, which gives the scores of each member.
    queries : Queries
        Validation queries; at most ``MAX_QUERIES`` of them are used, evenly spaced.
    exclude_seen : bool
        Whether items of the history are left out of lists and targets.
    num_items : int
        Number of items N.
    cut : callable, Queries → Queries, or None
        Makes histories shorter; members score these, but no item of the whole history is a
        candidate, as the user has it.

    Returns
    -------
    Candidates
        Scores of every member, hits and listed places of Q queries and P candidates; empty if no
        query has a target that counts.
    """
    counted, _, _ = countable(queries, exclude_seen)
    if len(counted) > MAX_QUERIES:
        counted = counted.take(np.linspace(0, len(counted) - 1, MAX_QUERIES).astype(np.int64))
    chunk = max(1, _MAX_SCORES // max(num_items * len(model.members), 1))
    tie_N = torch.from_numpy(tie_order(num_items)).float() / max(num_items, 1) * _TIE
    is_whole = len(counted) * num_items * len(model.members) <= MOST_NUMBERS
    best = num_items if is_whole else min(BEST, num_items)
    chunks = with_progress(
        "scoring validation users by every member", counted.chunks(chunk), -(-len(counted) // chunk)
    )
    none_bP = torch.zeros(0, 1, dtype=torch.bool)
    pieces = [
        _piece(model, piece, piece if cut is None else cut(piece), exclude_seen, tie_N, best)
        for piece in chunks
    ] or [(torch.zeros(0, 1, len(model.members)), none_bP, none_bP)]
    width = max(scores.shape[1] for scores, _, _ in pieces)
    return Candidates(
        torch.cat([_padded(scores, width) for scores, _, _ in pieces]),
        torch.cat([_padded(hits, width) for _, hits, _ in pieces]),
        torch.cat([_padded(listed, width) for _, _, listed in pieces]),
        counted.num_targets_B.astype(np.int64),
        groups_of(counted if cut is None else cut(counted)),
    )


def groups_of(queries: Queries) -> Array:
    """The group of every query by length of history, as in :class:`recsys.stack.Stack`."""
    return np.searchsorted(np.array(BOUNDS), queries.histories.lengths_U, side="right")


def _piece(
    model: MemberScorer,
    queries: Queries,
    asked: Queries,
    exclude_seen: bool,
    tie_N: Tensor,
    best: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [b, P, M] of the members for ``asked`` with ties broken, hits [b, P], and which places
    hold a candidate [b, P].
    """
    scores = model.member_scores(asked)
    with torch.inference_mode():  # in place: the scores of all members are the largest memory
        for scores_bN in scores:
            scores_bN -= tie_N
    num_items = len(tie_N)
    is_candidate_bN = torch.zeros(len(queries), num_items, dtype=torch.bool)
    for scores_bN in scores:
        shown_bN = scores_bN.clone()
        if exclude_seen:
            mask_seen(shown_bN, queries)
        best_bC = shown_bN.topk(best, dim=1).indices
        is_candidate_bN.scatter_(1, best_bC, True)
    if exclude_seen:  # with fewer items than places, seen items are among the best
        hidden_bN = torch.zeros(is_candidate_bN.shape)
        mask_seen(hidden_bN, queries)
        is_candidate_bN &= hidden_bN == 0
    is_target_bN = torch.zeros_like(is_candidate_bN)
    is_target_bN[
        torch.from_numpy(queries.target_rows()), torch.from_numpy(queries.target_items).long()
    ] = True
    width = max(int(is_candidate_bN.sum(dim=1).max()), 1)
    places_bP = is_candidate_bN.float().topk(width, dim=1).indices
    listed_bP = is_candidate_bN.gather(1, places_bP)
    scores_bPM = torch.stack([scores_bN.gather(1, places_bP) for scores_bN in scores], dim=2)
    return scores_bPM, is_target_bN.gather(1, places_bP) & listed_bP, listed_bP


def _padded(values: Tensor, width: int) -> Tensor:
    missing = width - values.shape[1]
    shape = (values.shape[0], missing, *values.shape[2:])
    return torch.cat([values, values.new_zeros(shape)], dim=1) if missing else values

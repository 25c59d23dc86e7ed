"""Similar items: by the model's item vectors, by co-occurrence in histories, or by their texts.

Why three methods: vectors reflect how users use items, but know nothing about an item without
events; co-occurrence finds items that go together, but only among used items; text is available
from the first day. The answer says which method was used.

    vectors   cos(a_i, a_j), every member's part scaled, see :mod:`recsys.serving.item_similarity`
    use       n_ij / (√(n_i n_j) + 10): n_ij users had both items, n_i users had item i; the 10
              damps pairs that few users had
    text      cosine of the text vectors

Legend: N items, U users, E events.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import torch

from recsys.bundle.layout import Bundle
from recsys.data.histories import Array
from recsys.errors import RequestError
from recsys.evaluation.top_items import tie_order
from recsys.retrieval.exact import best_positions
from recsys.retrieval.selection import Catalogue, Plan
from recsys.serving.item_similarity import ItemSimilarity, exact_cosines
from recsys.serving.page import Pager, is_reordered
from recsys.serving.requests import SimilarAnswer, SimilarRequest

By = Literal["vectors", "use", "text"]
WAYS: Final = {
    "vectors": "the model's item vectors",
    "use": "co-occurrence, users who had both",
    "text": "their texts",
}
_SHRINKAGE: Final = 10.0
_MAX_USERS: Final = 10_000  # of an item that are counted, an even sample
_ROWS: Final = 65_536  # text vectors multiplied at a time


class Similar:
    """Answers requests for similar items."""

    def __init__(
        self,
        bundle: Bundle,
        rows: Any,
        catalogue: Catalogue,
        similarity: ItemSimilarity,
        pager: Pager,
    ) -> None:
        self._bundle, self._rows = bundle, rows
        self._catalogue, self._similarity, self._pager = catalogue, similarity, pager

    def answer(self, requests: Sequence[SimilarRequest], first: int = 0) -> list[SimilarAnswer]:
        """One answer per request, in order; ``first`` is the number of the first request, for
        messages.

        Raises
        ------
        RequestError
            An item that the model does not know or that has neither vector, users nor text; or a
            rule that does not fit the items' attributes.
        """
        return [
            self._one(request, f"request {index}")
            for index, request in enumerate(requests, start=first)
        ]

    def _one(self, request: SimilarRequest, where: str) -> SimilarAnswer:
        item = self._rows.get(request.item_id, -1)
        if item < 0:
            raise RequestError(
                f"{where}: item_id: the model does not know {request.item_id!r}; expected the id of"
                " an item that was in the catalogue when the model was trained"
            )
        plan = self._catalogue.plan(request, where)
        by, why = self._method(request, item, where)
        similarity_N = {"vectors": self._by_vectors, "use": self._by_use, "text": self._by_text}[
            by
        ](item)
        # a copy, because the answer shows the similarity without boosts
        scores_N = similarity_N.copy()
        # an item is always the most similar to itself
        scores_N[item] = -np.inf
        raised_N, spread = self._apply_rules(scores_N, plan)
        depth = min(request.depth, len(scores_N))
        page = None
        while page is None:
            top = best_positions(scores_N, tie_order(len(scores_N)), depth)
            is_whole = len(top) < depth or depth >= len(scores_N)
            page = self._pager.cut(request, top, is_whole, lambda some: scores_N[some])
            depth = min(4 * depth, len(scores_N))
        scores_R = self._exact_scores(by, item, page, similarity_N) + (
            0.0 if raised_N is None else raised_N[page] * spread
        )
        if not is_reordered(request):
            order_R = np.argsort(-scores_R, kind="stable")
            page, scores_R = page[order_R], scores_R[order_R]
        return SimilarAnswer(
            item_id=request.item_id,
            by=by,
            why=why,
            item_ids=[self._bundle.item_ids[row] for row in page],
            titles=[self._bundle.titles[row] for row in page],
            scores=scores_R.tolist(),
            boosts=(
                None
                if raised_N is None
                else [float(f"{factor:.6g}") for factor in np.exp(raised_N[page])]
            ),
            unknown_in_rules=dict(plan.unknown) or None,
        )

    def _method(self, request: SimilarRequest, item: int, where: str) -> tuple[By, str]:
        """The method of comparison, and the reason for it.

        Raises
        ------
        RequestError
            The item cannot be compared by the requested method, or by any method.
        """
        is_cold = not self._bundle.popularity_N[item]
        has_vectors = self._similarity.vectors_ND.shape[1] > 0
        missing: dict[str, str] = {}
        if not has_vectors:
            missing["vectors"] = "the model has no item vectors"
        elif not bool(self._similarity.vectors_ND[item].any()):
            missing["vectors"] = "the vector of the item is zero"
        if not len(self._users_of(item)):
            missing["use"] = "no user has had the item yet"
        text = self._bundle.item_text
        if text is None or not bool((text[item] != 0).any()):
            missing["text"] = (
                "the model has no texts of items" if text is None else "the item has no text"
            )
        if request.by != "auto":
            if request.by in missing:
                others = (
                    ", ".join(way for way in ("vectors", "use", "text") if way not in missing)
                    or "none"
                )
                raise RequestError(
                    f"{where}: by: {request.item_id!r} cannot be compared by {request.by}:"
                    f" {missing[request.by]}; possible for this item: {others}"
                )
            return request.by, "as requested"
        order: tuple[By, ...] = (
            ("text", "vectors", "use") if is_cold else ("vectors", "use", "text")
        )
        for way in order:
            if way not in missing:
                if way != order[0]:
                    return way, f"not by {order[0]}: {missing[order[0]]}"
                users = len(self._users_of(item))
                if is_cold:
                    return way, "no user has had the item yet, so texts are compared"
                return way, f"{users:,} users have had the item"
        reasons = "; ".join(f"{way}: {reason}" for way, reason in missing.items())
        raise RequestError(
            f"{where}: item_id: {request.item_id!r} cannot be compared with other items ({reasons})"
        )

    def _exact_scores(self, by: By, item: int, page: Array, similarity_N: Array) -> Array:
        """The scores of the items of a page without boosts, with the same digits on
        every machine.
        """
        if by == "use":
            return np.asarray(similarity_N[page])
        if by == "vectors":
            return self._similarity.exactly(item, page)
        return exact_cosines(torch.as_tensor(self._bundle.item_text), item, page)

    def _apply_rules(self, scores_N: Array, plan: Plan) -> tuple[Array | None, float]:
        """Apply boosts and remove items that are not allowed, in place.

        Returns
        -------
        tuple[Array | None, float]
            The logarithms of the factors [N], None without a boost, and the standard deviation of
            the scores that they are multiplied by.
        """
        selection, log_N, spread = plan.selection, None, 1.0
        if selection is not None and selection.log_N is not None:
            log_N = selection.log_N.astype(np.float64)
            finite = scores_N[np.isfinite(scores_N)]
            # in units of the scores, so that one factor means the same for every method
            spread = (float(finite.std()) if len(finite) else 0.0) or 1.0
            scores_N += log_N * spread
        if selection is not None:
            scores_N[~selection.allowed.among(np.arange(len(scores_N)))] = -np.inf
        scores_N[plan.excluded] = -np.inf
        return log_N, spread

    def _by_vectors(self, item: int) -> Array:
        return self._similarity.to_all(item).numpy().astype(np.float64)

    def _by_text(self, item: int) -> Array:
        text = self._bundle.item_text
        assert text is not None, "_way has checked it"
        whole = torch.as_tensor(text)
        # text vectors may be stored as float16
        item_T = whole[item].float()
        item_T = item_T / item_T.norm().clamp(min=1e-12)
        found = []
        for start in range(0, len(whole), _ROWS):
            piece = whole[start : start + _ROWS].float()
            lengths = piece.norm(dim=1)
            cosines = piece @ item_T / lengths.clamp(min=1e-12)
            # an item without text is not similar to anything, rather than 0
            found.append(torch.where(lengths > 0, cosines, -torch.inf))
        return torch.cat(found).numpy().astype(np.float64)

    def _by_use(self, item: int) -> Array:
        """Scores by co-occurrence: float64 [N], −∞ for items that no user had together with this
        one.
        """
        users = self._users_of(item)
        taken = users[
            np.unique(
                np.linspace(0, len(users) - 1, min(_MAX_USERS, len(users))).round().astype(np.int64)
            )
        ]
        histories = self._bundle.histories
        lengths = histories.lengths_U[taken]
        starts = np.repeat(histories.offsets_U1[taken] - (np.cumsum(lengths) - lengths), lengths)
        events_E = starts + np.arange(int(lengths.sum()))
        rows = np.repeat(np.arange(len(taken)), lengths)
        is_target = histories.are_targets_E[events_E]
        num_items = self._bundle.num_items
        # a user who had an item several times counts once
        pairs = np.unique(rows[is_target] * num_items + histories.items_E[events_E[is_target]])
        # the factor scales the sample up to all users of the item
        together_N = np.bincount(pairs % num_items, minlength=num_items) * (len(users) / len(taken))
        counts_N = np.diff(self._users_by_item[0])
        scores_N = together_N / (np.sqrt(counts_N * float(len(users))) + _SHRINKAGE)
        return np.where(together_N > 0, scores_N, -np.inf)

    def _users_of(self, item: int) -> Array:
        starts_N1, users_P = self._users_by_item
        return users_P[starts_N1[item] : starts_N1[item + 1]]

    @cached_property
    def _users_by_item(self) -> tuple[Array, Array]:
        """The users of every item, each once: the start of each item's users [N + 1], and the
        users.
        """
        histories, num_items = self._bundle.histories, self._bundle.num_items
        users_E = np.repeat(np.arange(len(histories)), histories.lengths_U)
        kept_E = histories.are_targets_E
        pairs_P = np.unique(
            histories.items_E[kept_E].astype(np.int64) * max(len(histories), 1) + users_E[kept_E]
        )
        items_P, users_P = np.divmod(pairs_P, max(len(histories), 1))
        return np.searchsorted(items_P, np.arange(num_items + 1)), users_P.astype(np.int32)

"""Softmax over (query, target) pairs, with its gradient: exact over the catalogue, or sampled with
log-Q correction.

The gradient is computed in the forward pass, chunk by chunk: no [B, S] matrix is kept.

Legend: B queries, P pairs, S items in view, M negatives, D width, H pairs of a query and an item
that it leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

_MAX_LOGITS: Final = 2**23  # logits in memory at a time: 32 MB of float32
_CACHED_LOGITS: Final = 2**18  # logits that fit the cache of a CPU core: 1 MB
_MIN_ROWS: Final = 128  # per chunk on a CPU, if memory allows: smaller matrix products are slow
# largest logit whose exponentials and sums stay finite in float32 without a shift
_MAX_SHIFTLESS: Final = 60.0
# its exponential is the smallest that a CPU computes fast: that of −inf takes four times as long
_NO_LOGIT: Final = -85.0


@dataclass(frozen=True)
class LeftOut:
    """Items that the softmax of a query leaves out, unless they are the target: those that the user
    had before. A list of recommendations leaves them out too, so no score has to rank them low.
    """

    queries_H: Tensor  # int64 query of each pair, ascending
    items_H: Tensor  # int64 its item, as a row of the items in view

    def among(self, negatives_M: Tensor, num_queries: int, num_items: int) -> Tensor:
        """Which of the negatives each query leaves out: [B, M] bool.

        Parameters
        ----------
        negatives_M : Tensor
            Rows of the items in view: [M] int64.
        num_queries : int
            B.
        num_items : int
            S.

        Returns
        -------
        Tensor
            [B, M] bool.
        """
        drawn_U, places_M = torch.unique(negatives_M, return_inverse=True)
        place_S = negatives_M.new_full((num_items,), -1)
        place_S[drawn_U] = torch.arange(len(drawn_U), device=negatives_M.device)
        found_H = place_S[self.items_H]
        is_left_BU = torch.zeros(
            num_queries, len(drawn_U), dtype=torch.bool, device=negatives_M.device
        )
        is_left_BU[self.queries_H[found_H >= 0], found_H[found_H >= 0]] = True
        return is_left_BU[:, places_M]


def full_softmax(
    users_BD: Tensor,
    items_SD: Tensor,
    pairs_P: Tensor,
    targets_P: Tensor,
    weights_P: Tensor,
    smoothing: float = 0.0,
    left_out: LeftOut | None = None,
) -> Tensor:
    """Σ_p w_p (logsumexp_i u·a_i − u·a_target), over every item in view; the sum, not the mean.

    With ``left_out``, i are the target and the items in view that the query neither leaves out nor
    has as another target.

    ``smoothing`` moves that share of a target's probability evenly to all items (Szegedy et al.
    2016). The logits of a query are computed once, no matter how many targets it has, chunk by
    chunk, and their gradient in the same pass: no [B, S] matrix is kept for the backward pass.

    Parameters
    ----------
    users_BD : Tensor, [B, D] float
        Query vectors.
    items_SD : Tensor, [S, D] float
        Vectors of the items in view.
    pairs_P : Tensor, [P] int64
        The query of each pair, from 0 to B − 1; ascending with ``left_out``.
    targets_P : Tensor, [P] int64
        The target of each pair, from 0 to S − 1.
    weights_P : Tensor, [P] float
        Weight of each pair.
    smoothing : float
        Share from 0 to 1; 0 with ``left_out``.
    left_out : LeftOut or None
        Items that the queries leave out; None: none.

    Returns
    -------
    Tensor, scalar
        The sum over the pairs, with a gradient for queries and items.
    """
    known = (users_BD, items_SD, pairs_P, targets_P, weights_P)
    found: Tensor
    if left_out is None:
        found = _FullSoftmax.apply(*known, smoothing)  # type: ignore[no-untyped-call]
    else:
        assert not smoothing, "smoothing would raise the scores of items that are left out"
        found = _UnseenSoftmax.apply(*known, left_out)  # type: ignore[no-untyped-call]
    return found


class _SoftmaxLoss(torch.autograd.Function):
    """A loss that computes the gradients of users and items, its first two inputs, in the forward
    pass.
    """

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        user_grad, item_grad = ctx.saved_tensors
        return grads[0] * user_grad, grads[0] * item_grad, *[None] * (len(ctx.needs_input_grad) - 2)


class _FullSoftmax(_SoftmaxLoss):
    @staticmethod
    def forward(
        ctx: Any,
        users_BD: Tensor,
        items_SD: Tensor,
        pairs_P: Tensor,
        targets_P: Tensor,
        weights_P: Tensor,
        smoothing: float,
    ) -> Tensor:
        ctx.kinds = users_BD.dtype, items_SD.dtype
        weights_B = torch.zeros(len(users_BD), device=users_BD.device).index_add_(
            0, pairs_P, weights_P
        )
        # for the large products only
        narrow_BD, narrow_SD = (_as_autocast(users_BD), _as_autocast(items_SD))
        users_BD, items_SD = users_BD.float(), items_SD.float()
        user_grad, item_grad = torch.empty_like(users_BD), torch.zeros_like(items_SD)
        total = torch.zeros((), device=users_BD.device)
        shift, num_rows = _needs_shift(users_BD, items_SD), _num_rows(items_SD)
        room_bS = narrow_BD.new_empty(min(num_rows, len(users_BD)), len(items_SD))
        for start in range(0, len(users_BD), num_rows):
            rows = slice(start, start + num_rows)
            chunk_bD, weight_b = narrow_BD[rows], weights_B[rows]
            logits_bS = torch.mm(chunk_bD, narrow_SD.T, out=room_bS[: len(chunk_bD)]).float()
            if shift:
                top_b1 = logits_bS.amax(1, keepdim=True)
                total += weight_b @ top_b1[:, 0]
                logits_bS -= top_b1
            exp_bS = logits_bS.exp_()
            z_b = exp_bS.sum(1)
            total += weight_b @ z_b.log()
            share_b1 = (weight_b / z_b)[:, None]
            user_grad[rows] = _push(exp_bS, share_b1, chunk_bD, narrow_SD, item_grad)
        _pull_targets(
            users_BD,
            items_SD,
            pairs_P,
            targets_P,
            (1 - smoothing) * weights_P,
            user_grad,
            item_grad,
        )
        hits_P = (users_BD[pairs_P] * items_SD[targets_P]).sum(1)
        total -= (1 - smoothing) * (weights_P * hits_P).sum()
        if smoothing:
            mean_D, weighted_D = items_SD.mean(0), (weights_B[:, None] * users_BD).sum(0)
            total -= smoothing * (weighted_D * mean_D).sum()
            user_grad -= smoothing * weights_B[:, None] * mean_D
            item_grad -= smoothing / len(items_SD) * weighted_D
        ctx.save_for_backward(user_grad.to(ctx.kinds[0]), item_grad.to(ctx.kinds[1]))
        return total


class _UnseenSoftmax(_SoftmaxLoss):
    """With items left out; a target is part of the sum of its own pair only."""

    @staticmethod
    def forward(
        ctx: Any,
        users_BD: Tensor,
        items_SD: Tensor,
        pairs_P: Tensor,
        targets_P: Tensor,
        weights_P: Tensor,
        left_out: LeftOut,
    ) -> Tensor:
        ctx.kinds = users_BD.dtype, items_SD.dtype
        narrow_BD, narrow_SD = (_as_autocast(users_BD), _as_autocast(items_SD))
        users_BD, items_SD = users_BD.float(), items_SD.float()
        hits_P = (users_BD[pairs_P] * items_SD[targets_P]).sum(1)
        less_P = torch.empty_like(hits_P)
        user_grad, item_grad = torch.empty_like(users_BD), torch.zeros_like(items_SD)
        total = -(weights_P @ hits_P)
        shift, num_rows = _needs_shift(users_BD, items_SD), _num_rows(items_SD)
        room_bS = narrow_BD.new_empty(min(num_rows, len(users_BD)), len(items_SD))
        starts = range(0, len(users_BD), num_rows)
        borders = torch.tensor([*starts, len(users_BD)], device=pairs_P.device)
        # where the pairs of each chunk begin, and the places of their logits in all [B, S]
        firsts = torch.searchsorted(pairs_P, borders).tolist()
        firsts_H = torch.searchsorted(left_out.queries_H, borders).tolist()
        places_P = pairs_P * len(items_SD) + targets_P
        places_H = left_out.queries_H * len(items_SD) + left_out.items_H
        # without a shift, all logits are above −60, and its exponential is lost in the sum
        nothing = float("-inf") if shift else _NO_LOGIT
        for chunk, start in enumerate(starts):
            rows, own = slice(start, start + num_rows), slice(firsts[chunk], firsts[chunk + 1])
            chunk_bD, pairs_p, hits_p = narrow_BD[rows], pairs_P[own] - start, hits_P[own]
            logits_bS = torch.mm(chunk_bD, narrow_SD.T, out=room_bS[: len(chunk_bD)]).float()
            for places in (places_P[own], places_H[firsts_H[chunk] : firsts_H[chunk + 1]]):
                logits_bS.view(-1).index_fill_(0, places - start * len(items_SD), nothing)
            if shift:
                top_b = logits_bS.amax(1)
                top_b.clamp_(min=torch.finfo(top_b.dtype).min)  # a query without any item
                logits_bS -= top_b[:, None]
                rest_p = logits_bS.exp_().sum(1)[pairs_p]
                # a target may be far from all other items, and from the other targets of its query
                log_z_p = torch.logaddexp(top_b[pairs_p] + rest_p.log(), hits_p)
                share_p = weights_P[own] * (top_b[pairs_p] - log_z_p).exp()
                own_p = weights_P[own] * (hits_p - log_z_p).exp()
            else:
                exp_p = hits_p.exp()
                z_p = logits_bS.exp_().sum(1)[pairs_p] + exp_p
                log_z_p, share_p = z_p.log(), weights_P[own] / z_p
                own_p = share_p * exp_p
            total += weights_P[own] @ log_z_p
            less_P[own] = weights_P[own] - own_p
            share_b1 = share_p.new_zeros(len(chunk_bD), 1).index_add_(0, pairs_p, share_p[:, None])
            user_grad[rows] = _push(logits_bS, share_b1, chunk_bD, narrow_SD, item_grad)
        _pull_targets(users_BD, items_SD, pairs_P, targets_P, less_P, user_grad, item_grad)
        ctx.save_for_backward(user_grad.to(ctx.kinds[0]), item_grad.to(ctx.kinds[1]))
        return total


def _push(
    exp_bS: Tensor, share_b1: Tensor, chunk_bD: Tensor, narrow_SD: Tensor, item_grad: Tensor
) -> Tensor:
    """The gradient of Σ_b share_b Σ_i exp u·a_i for the users of a chunk; that of the items is
    added in place.
    """
    exp_bS = exp_bS.to(chunk_bD.dtype)
    # scales the smaller factor of both products: cheaper
    pull_bD = (share_b1 * chunk_bD).to(chunk_bD.dtype)
    if pull_bD.dtype == item_grad.dtype:
        item_grad.addmm_(exp_bS.T, pull_bD)
    else:
        item_grad += exp_bS.T @ pull_bD
    return share_b1 * (exp_bS @ narrow_SD)


def _needs_shift(users_BD: Tensor, items_SD: Tensor) -> bool:
    """Whether the largest logit must be subtracted before the exponential.

    On a CPU, the norms tell. A GPU always subtracts: to test costs more there.
    """
    if users_BD.device.type != "cpu" or not len(users_BD):
        return True
    return float(users_BD.norm(dim=1).max() * items_SD.norm(dim=1).max()) > _MAX_SHIFTLESS


def _num_rows(items_SD: Tensor) -> int:
    """Queries per chunk."""
    most = max(1, _MAX_LOGITS // max(1, len(items_SD)))
    if items_SD.device.type != "cpu":
        return most
    return min(most, max(_MIN_ROWS, _CACHED_LOGITS // max(1, len(items_SD))))


def _as_autocast(tensor: Tensor) -> Tensor:
    """Return the tensor in the autocast type of its device if autocast is on, else unchanged."""
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


def _pull_targets(
    users_BD: Tensor,
    items_SD: Tensor,
    pairs_P: Tensor,
    targets_P: Tensor,
    weights_P: Tensor,
    user_grad: Tensor,
    item_grad: Tensor,
) -> None:
    """Add the gradient of −Σ_p w_p u·a_target in place."""
    column_P1 = weights_P[:, None]
    user_grad.index_add_(0, pairs_P, items_SD[targets_P] * column_P1, alpha=-1)
    item_grad.index_add_(0, targets_P, users_BD[pairs_P] * column_P1, alpha=-1)


def sampled_softmax(
    users_BD: Tensor,
    items_SD: Tensor,
    pairs_P: Tensor,
    targets_P: Tensor,
    weights_P: Tensor,
    *,
    negatives_M: Tensor,
    log_q_M: Tensor,
    left_out: LeftOut | None = None,
) -> Tensor:
    """Softmax over each pair's target and M shared negatives, with log-Q correction.

    ``log_q_M`` = log(M·q(i)), the log of the expected number of draws of i, is subtracted from the
    logits of negatives, so that the sum over negatives estimates the sum over the catalogue (Bengio
    & Senécal 2008). The target keeps its own logit. A negative that equals the pair's target is
    left out, so that the estimate never counts it twice.

    Parameters
    ----------
    users_BD : Tensor, [B, D] float
        Query vectors.
    items_SD : Tensor, [S, D] float
        Vectors of the items in view.
    pairs_P : Tensor, [P] int64
        The query of each pair, from 0 to B − 1.
    targets_P : Tensor, [P] int64
        The target of each pair, from 0 to S − 1.
    weights_P : Tensor, [P] float
        Weight of each pair.
    negatives_M : Tensor, [M] int64
        Items in view that were drawn, with repeats.
    log_q_M : Tensor, [M] float
        Log of the expected number of draws of each of them.
    left_out : LeftOut or None
        Items that are no negatives of a query; None: each negative counts for all queries.

    Returns
    -------
    Tensor, scalar
        The weighted sum over the pairs, with a gradient for queries and items.
    """
    found: Tensor = _SampledSoftmax.apply(
        users_BD, items_SD, pairs_P, targets_P, weights_P, negatives_M, log_q_M, left_out
    )  # type: ignore[no-untyped-call]
    return found


class _SampledSoftmax(_SoftmaxLoss):
    """Processes chunks of pairs, with the gradient in the same pass: no [P, M] matrix is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        users_BD: Tensor,
        items_SD: Tensor,
        pairs_P: Tensor,
        targets_P: Tensor,
        weights_P: Tensor,
        negatives_M: Tensor,
        log_q_M: Tensor,
        left_out: LeftOut | None,
    ) -> Tensor:
        ctx.kinds = users_BD.dtype, items_SD.dtype
        is_left_BM = (
            None if left_out is None else left_out.among(negatives_M, len(users_BD), len(items_SD))
        )
        narrow_MD = _as_autocast(items_SD[negatives_M])
        users_BD, items_SD = users_BD.float(), items_SD.float()
        chosen_PD = users_BD[pairs_P]
        hit_P, narrow_PD = (chosen_PD * items_SD[targets_P]).sum(1), _as_autocast(chosen_PD)
        negative_grad = torch.zeros(narrow_MD.shape, device=items_SD.device)
        chosen_grad = torch.empty_like(chosen_PD)
        log_z_P, less_P = torch.empty_like(hit_P), torch.empty_like(hit_P)
        num_rows = _num_rows(narrow_MD)
        for start in range(0, len(pairs_P), num_rows):
            rows = slice(start, start + num_rows)
            logits_pM = (narrow_PD[rows] @ narrow_MD.T).float().sub_(log_q_M)
            logits_pM.masked_fill_(targets_P[rows, None] == negatives_M, float("-inf"))
            if is_left_BM is not None:
                logits_pM.masked_fill_(is_left_BM[pairs_P[rows]], float("-inf"))
            top_p = torch.maximum(logits_pM.amax(1), hit_P[rows])
            exp_pM = logits_pM.sub_(top_p[:, None]).exp_()
            hit_p = (hit_P[rows] - top_p).exp()
            z_p = exp_pM.sum(1) + hit_p
            log_z_P[rows] = z_p.log() + top_p
            share_p = weights_P[rows] / z_p  # scales the smaller factor of both products: cheaper
            less_P[rows] = weights_P[rows] - share_p * hit_p
            exp_pM = exp_pM.to(narrow_MD.dtype)
            chosen_grad[rows] = share_p[:, None] * (exp_pM @ narrow_MD)
            negative_grad += exp_pM.T @ (share_p[:, None] * narrow_PD[rows]).to(narrow_MD.dtype)
        user_grad = torch.zeros_like(users_BD).index_add_(0, pairs_P, chosen_grad)
        item_grad = torch.zeros_like(items_SD).index_add_(0, negatives_M, negative_grad)
        _pull_targets(users_BD, items_SD, pairs_P, targets_P, less_P, user_grad, item_grad)
        ctx.save_for_backward(user_grad.to(ctx.kinds[0]), item_grad.to(ctx.kinds[1]))
        return (weights_P * (log_z_P - hit_P)).sum()

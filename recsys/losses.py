"""Softmax losses over (query, target) pairs: exact over the catalogue, or sampled with log-Q correction.

Both sum over pairs, so that workers add their sums and divide once by the number of pairs of the whole step. Queries
exist for real positions only, so there is no padding to mask. Legend: B queries, P pairs, S items in view, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def full_softmax(
    users_BD: Tensor, items_SD: Tensor, pairs_P: Tensor, targets_P: Tensor, weights_P: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Σ_p w_p (logsumexp_i u·a_i − u·a_target), over every item in view; the sum, not the mean.

    ``smoothing`` moves that share of a target's probability evenly onto all items (Szegedy et al. 2016).
    """
    logits_BS = (users_BD @ items_SD.T).float()
    log_z_B = torch.logsumexp(logits_BS, dim=1)
    hit_P = logits_BS[pairs_P, targets_P]
    if smoothing:
        hit_P = (1 - smoothing) * hit_P + smoothing * logits_BS.mean(1)[pairs_P]
    return (weights_P * (log_z_B[pairs_P] - hit_P)).sum()


def sampled_softmax(
    users_BD: Tensor,
    items_SD: Tensor,
    pairs_P: Tensor,
    targets_P: Tensor,
    weights_P: Tensor,
    *,
    negatives_M: Tensor,
    log_q_M: Tensor,
) -> Tensor:
    """Softmax over each pair's target and M shared negatives, corrected by how often a negative is drawn.

    Logits of negatives are lowered by ``log_q_M`` = log(M·q(i)), the expected number of times that i is drawn, so that
    the sum over negatives estimates the sum over the catalogue (Bengio & Senécal 2008). The target keeps its own
    logit, and a negative that is the pair's target is left out, so the estimate never counts it twice.
    """
    chosen_PD = users_BD[pairs_P]
    hit_P = (chosen_PD * items_SD[targets_P]).sum(1).float()
    logits_BM = (users_BD @ items_SD[negatives_M].T).float() - log_q_M
    logits_PM = logits_BM[pairs_P].masked_fill(targets_P[:, None] == negatives_M, float("-inf"))
    log_z_P = torch.logaddexp(torch.logsumexp(logits_PM, dim=1), hit_P)
    return (weights_P * (log_z_P - hit_P)).sum()

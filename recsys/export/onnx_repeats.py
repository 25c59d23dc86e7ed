"""``repeat`` over padded histories; its features: :mod:`recsys.granularities.repeat.pair_features`.

A pair of a query and an item is stored at the position of the item's last event. Its features are
sums over the events of the same item. Numbers are float64, as in the original.

Legend: B queries, L events, X raw numbers, F features, Q quantiles, N items.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recsys.export.seen import Seen
from recsys.granularities.base import State
from recsys.granularities.repeat.model import Repeat
from recsys.granularities.repeat.pair_features import NAMES, PRIOR_GAPS, PRODUCTS


@dataclass(frozen=True)
class PaddedPairs:
    """As :class:`recsys.granularities.repeat.habits.Pairs`; only the last event of an item is
    valid: [B, L].
    """

    is_last_BL: Tensor
    first_BL: Tensor
    basket_BL: Tensor
    times_had_BL: Tensor
    again_BL: Tensor
    others_BL: Tensor
    gaps_BL: Tensor
    log_gap_BL: Tensor
    log_steps_BL: Tensor
    num_baskets_B: Tensor
    first_time_B: Tensor
    last_time_B: Tensor

    @staticmethod
    def of(seen: Seen, is_target_T: Tensor) -> PaddedPairs:
        """Compute the pairs of queries and items."""
        real_BL, times_BL, positions_L = seen.real_BL, seen.times_BL, seen.positions_L
        begins_BL = (
            torch.cat(
                [real_BL[:, :1], (times_BL[:, 1:] != times_BL[:, :-1]) | (times_BL[:, 1:] == 0)],
                dim=1,
            )
            & real_BL
        )
        basket_BL = begins_BL.long().cumsum(1) - 1
        is_target_BL = seen.of_types(real_BL, is_target_T)
        same_BLL = (seen.items_BL[:, :, None] == seen.items_BL[:, None, :]) & real_BL[:, None, :]
        is_earlier_LL = positions_L[None, :] < positions_L[:, None]
        one_basket_BLL = basket_BL[:, :, None] == basket_BL[:, None, :]
        had_before_BLL = same_BLL & one_basket_BLL & is_target_BL[:, None, :] & is_earlier_LL
        # the first event of its pair in its basket
        is_new_BL = is_target_BL & ~had_before_BLL.any(2)
        before_BL = torch.where(
            same_BLL & is_new_BL[:, None, :] & is_earlier_LL, positions_L, -1
        ).amax(2)
        follows_BL, before_BL = is_new_BL & (before_BL >= 0), before_BL.clamp(min=0)
        time_before_BL = times_BL.gather(1, before_BL)
        gap_BL, step_BL = times_BL - time_before_BL, basket_BL - basket_BL.gather(1, before_BL)
        timed_BL = follows_BL & (gap_BL > 0) & (times_BL != 0) & (time_before_BL != 0)
        first_BL = torch.where(same_BLL, basket_BL[:, None, :], 2**40).amin(2)
        is_again_BLL = is_new_BL[:, None, :] & (basket_BL[:, None, :] > first_BL[:, :, None])

        def of_item(values_BL: Tensor) -> Tensor:
            return (same_BLL.double() @ values_BL.double()[:, :, None])[:, :, 0]

        has_events_B = seen.lengths_B > 0
        last_B1 = (seen.lengths_B - 1).clamp(min=0)[:, None]
        return PaddedPairs(
            is_last_BL=seen.distinct(real_BL),
            first_BL=first_BL,
            basket_BL=basket_BL,
            times_had_BL=of_item(is_new_BL),
            again_BL=(same_BLL & is_again_BLL).double().sum(2),
            others_BL=of_item(real_BL & ~is_target_BL),
            gaps_BL=of_item(timed_BL),
            log_gap_BL=of_item(torch.where(timed_BL, gap_BL.double().clamp(min=1).log(), 0.0)),
            log_steps_BL=of_item(torch.where(follows_BL, step_BL.double().clamp(min=1).log(), 0.0)),
            num_baskets_B=begins_BL.long().sum(1),
            first_time_B=torch.where(has_events_B, times_BL[:, 0], 0),
            last_time_B=torch.where(has_events_B, times_BL.gather(1, last_B1)[:, 0], 0),
        )


def repeat(module: Repeat, state: State, seen: Seen) -> Tensor:
    """log(1 + p / p̄) of the items of the histories: [B, N].

    Parameters
    ----------
    module : Repeat
        The member.
    state : State
        Its fitted tensors: ``is_target_T``, ``weights_F`` and ``mean_chance`` (p̄).
    seen : Seen
        The queries with their padded histories.

    Returns
    -------
    Tensor
        Float [B, N]; 0 for items outside the history.
    """
    pairs = PaddedPairs.of(seen, state["is_target_T"] > 0)
    raw_BLX = _raw_numbers(module, state, seen, pairs)
    chance_BL = 1 / (
        1 + torch.exp(-(_features(state, raw_BLX) @ state["weights_F"].double()).clamp(-50, 50))
    )
    values_BL = torch.log1p(chance_BL / state["mean_chance"].double().clamp(min=1e-6)).float()
    return seen.per_item(values_BL.where(pairs.is_last_BL, 0.0), len(state["repeats_N"]))


def _raw_numbers(module: Repeat, state: State, seen: Seen, pairs: PaddedPairs) -> Tensor:
    """Raw numbers of every pair, in the order of ``NAMES``, NaN if unknown: [B, L, X]."""
    habits = {name: state[name].double()[seen.items_BL] for name in ("repeats_N", "occasions_N")}
    gaps = {name: state[name].double()[seen.items_BL] for name in ("log_gap_N", "log_steps_N")}
    share, asked_B1, unknown = state["share"].double(), seen.asked_at_B[:, None], torch.nan
    is_now_B = (seen.asked_at_B != 0) & (seen.asked_at_B == pairs.last_time_B)
    basket_B1 = (pairs.num_baskets_B - is_now_B.long())[:, None]
    steps_BL = (basket_B1 - pairs.basket_BL).clamp(min=0)
    known_BL = (asked_B1 != 0) & (seen.times_BL != 0)
    log_seconds_BL = torch.where(
        known_BL, ((asked_B1 - seen.times_BL).clamp(min=0).double() + 60).log(), unknown
    )
    log_steps_BL = steps_BL.double().clamp(min=0.5).log()
    share_BL = (habits["repeats_N"] + module.config.smoothing * share) / (
        habits["occasions_N"] + module.config.smoothing
    )
    expected_BL = _shrunk(pairs.log_gap_BL, pairs.gaps_BL, gaps["log_gap_N"])
    follows_BL = (pairs.times_had_BL - 1).clamp(min=0)
    expected_steps_BL = _shrunk(pairs.log_steps_BL, follows_BL, gaps["log_steps_N"])
    size_B1 = pairs.is_last_BL.double().sum(1, keepdim=True).clamp(min=1)
    since_BL = (basket_B1 - pairs.first_BL).double() + 1
    columns = (
        pairs.times_had_BL.log1p(),
        ((pairs.times_had_BL + 0.5) / since_BL.clamp(min=1)).log(),
        log_steps_BL,
        (steps_BL == 0).double(),
        log_seconds_BL,
        log_seconds_BL - expected_BL,
        log_steps_BL - expected_steps_BL,
        _log_odds(share_BL),
        _habit(pairs, share)[:, None].expand_as(log_steps_BL),
        _pace(pairs)[:, None].expand_as(log_steps_BL),
        size_B1.log().expand_as(log_steps_BL),
        pairs.others_BL.log1p(),
    )
    return torch.stack(columns, dim=2)


def _features(state: State, raw_BLX: Tensor) -> Tensor:
    """As :meth:`recsys.granularities.repeat.pair_features.Basis.features`: [B, L, F + 1]."""
    low_X, high_X, mean_X, knots_XQ, centre_F, scale_F = (
        state[name].double()
        for name in ("low_X", "high_X", "mean_X", "knots_XQ", "centre_F", "scale_F")
    )
    known_BLX = torch.where(raw_BLX.isnan(), mean_X, raw_BLX)
    cut_BLX = torch.where(
        raw_BLX.isnan(), mean_X, torch.minimum(torch.maximum(known_BLX, low_X), high_X)
    )
    hinges_BLXQ = (cut_BLX[..., None] - knots_XQ).clamp(min=0)
    centred_BLX = cut_BLX - mean_X
    products = [
        centred_BLX[..., NAMES.index(a)] * centred_BLX[..., NAMES.index(b)] for a, b in PRODUCTS
    ]
    open_BLF = torch.cat([cut_BLX, hinges_BLXQ.flatten(2), torch.stack(products, dim=2)], dim=2)
    made_BLF = (open_BLF - centre_F) / scale_F
    return torch.cat([made_BLF, torch.ones_like(made_BLF[..., :1])], dim=2)


def _shrunk(sums_BL: Tensor, counts_BL: Tensor, prior_BL: Tensor) -> Tensor:
    return (sums_BL + PRIOR_GAPS * prior_BL) / (counts_BL + PRIOR_GAPS)


def _log_odds(share: Tensor) -> Tensor:
    return share.log() - torch.log1p(-share)


def _habit(pairs: PaddedPairs, share: Tensor) -> Tensor:
    """Log-odds that a user repeats an item in a basket: [B]."""
    occasions_BL = (pairs.num_baskets_B[:, None] - 1 - pairs.first_BL).double()
    repeats_B = pairs.again_BL.where(pairs.is_last_BL, 0.0).sum(1)
    occasions_B = occasions_BL.where(pairs.is_last_BL, 0.0).sum(1)
    return _log_odds((repeats_B + 20 * share) / (occasions_B + 20))


def _pace(pairs: PaddedPairs) -> Tensor:
    """Logarithm of the mean time between two baskets, NaN if unknown: [B]."""
    span_B = (pairs.last_time_B - pairs.first_time_B).clamp(min=0).double()
    known_B = (pairs.first_time_B != 0) & (pairs.last_time_B != 0) & (pairs.num_baskets_B > 1)
    mean_B = span_B / (pairs.num_baskets_B - 1).clamp(min=1).double()
    return torch.where(known_B, (mean_B + 60).log(), torch.nan)

"""Fit only the fusion weights λ again, to feedback on shown items; the rest of the model stays.
Takes seconds.

Why: what users click, buy and skip shows which granularity was predictive (S5: feedback re-fits λ).
The scores s_k(u, i) = z_k · a_i of every granularity are computed once. What remains is a logistic
regression in K + 1 numbers,

    min  Σ_r c_r log(1 + exp(−y_r (b + Σ_k w_k s_rk))) / Σ_r c_r
         +  m / 2R · Σ_k σ_k² (w_k − w⁰_k)²,   w ≥ 0,

y = ±1 liked or not, c_r the weight of the event, σ_k the standard deviation of s_k. It is convex,
so the result does not depend on the start. w⁰ = g λ⁰ are the current weights on the scale g that
fits the feedback best; they count as much as m rows. A common factor changes no ranking, so the new
λ have the sum of the current ones.

For ``gated`` the gate stays and its prior is fitted with the same loss. Closed-form granularities
(item_cf) come after the trained ones; their weights are plain numbers in every kind of fusion.

Legend: R rows of feedback, K granularities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from recsys.data.histories import Array
from recsys.fusion import Fusion, GatedFusion

HELD_OUT = 0.2  # share of the rows that decide whether the fit is better
# least scale of the current scores (in standard deviations), however badly they fit
_LEAST_SCALE = 0.1


@dataclass(frozen=True)
class Evidence:
    """Feedback in the form that the fusion reads."""

    shares_RK: Tensor  # float64: z_k · a_i, zero where missing
    present_RK: Tensor  # bool
    gate_RK: (
        Tensor  # float64: logits of the gate for the trained granularities; not read without a gate
    )
    liked_R: Tensor  # float64: 1 or 0
    counts_R: Tensor  # float64 > 0: weight of the row

    def __len__(self) -> int:
        return len(self.liked_R)

    def take(self, rows: Array) -> Evidence:
        """Some of the rows."""
        chosen = torch.as_tensor(rows)
        columns = (self.shares_RK, self.present_RK, self.gate_RK, self.liked_R, self.counts_R)
        return Evidence(*(column[chosen] for column in columns))


@dataclass(frozen=True)
class Refit:
    """The current and the fitted weights, with their log-loss on held-out feedback."""

    before_K: Tensor
    after_K: Tensor
    loss_before: float
    loss_after: float
    error: float  # standard error of the difference, rows paired

    @property
    def better(self) -> bool:
        """Whether the fitted weights are better by more than the
        standard error of the comparison.
        """
        return (
            bool(self.after_K.isfinite().all()) and self.loss_before - self.loss_after > self.error
        )


def refit_fusion(
    fusion: Fusion,
    evidence: Evidence,
    prior_rows: float,
    seed: int,
    fitted_weights: Tensor | None = None,
) -> Refit:
    """Fit on four fifths of the feedback and evaluate on the fifth that the seed holds out.

    ``fitted_weights`` are the current weights of the closed-form granularities.

    Parameters
    ----------
    fusion : Fusion
        The current fusion; it is not changed.
    evidence : Evidence
        The feedback.
    prior_rows : float
        m: the current weights count as much as this number of rows.
    seed : int
        Draws the rows that are held out.
    fitted_weights : Tensor or None
        Weights of the closed-form granularities, which come last in K; None if there are none.

    Returns
    -------
    Refit
        Weights [K] float64, and losses per row, in nats.
    """
    order = np.random.default_rng(seed).permutation(len(evidence))
    held_out = max(int(len(evidence) * HELD_OUT), 1)
    judge, fitted = evidence.take(order[:held_out]), evidence.take(order[held_out:])
    gated = isinstance(fusion, GatedFusion)
    before_K = today(fusion)
    if fitted_weights is not None:
        before_K = torch.cat([before_K, fitted_weights.double()])
    # both weights get their best intercept and scale, so that the comparison is of the order alone
    intercept, scale = _calibrated(fitted, gated, before_K)
    spread = float(_scores(fitted, gated, before_K).std())
    start = max(scale, _LEAST_SCALE / max(spread, 1e-12))
    fit = _fit_prior if gated else _fit_weights
    new_intercept, new_scale, after_K = fit(fitted, before_K, start, prior_rows)
    losses = [
        _losses(judge, offset + factor * _scores(judge, gated, values_K))
        for offset, factor, values_K in (
            (intercept, scale, before_K),
            (new_intercept, new_scale, after_K),
        )
    ]
    share_R = judge.counts_R / judge.counts_R.sum()
    gained_R = losses[0] - losses[1]
    mean = float((share_R * gained_R).sum())
    # the standard error of a weighted mean of paired differences
    error = float((share_R.square() * (gained_R - mean).square()).sum().sqrt())
    before, after = (float((share_R * loss_R).sum()) for loss_R in losses)
    return Refit(before_K, after_K, before, after, error)


def today(fusion: Fusion) -> Tensor:
    """The current λ_K, or the prior of a gate."""
    if isinstance(fusion, GatedFusion):
        return fusion.prior_K.detach().double()
    everything = torch.ones(1, fusion.names_K, dtype=torch.bool)
    return fusion.lambdas(torch.zeros(1, fusion.names_K, 1), everything)[0].detach().double()


def _scores(evidence: Evidence, gated: bool, values_K: Tensor) -> Tensor:
    """The score u · a_i of every row, with other weights or with another prior."""
    if not gated:
        return evidence.shares_RK @ values_K
    trained = evidence.gate_RK.shape[1]
    weights_RK = GatedFusion.opened(
        evidence.gate_RK, values_K[:trained], evidence.present_RK[:, :trained]
    )
    weights_RK = torch.cat([weights_RK, values_K[trained:].expand(len(evidence), -1)], dim=1)
    return (weights_RK * evidence.shares_RK).sum(1)


def _losses(evidence: Evidence, logits_R: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logits_R, evidence.liked_R, reduction="none")


def _mean_loss(evidence: Evidence, logits_R: Tensor) -> Tensor:
    return (evidence.counts_R * _losses(evidence, logits_R)).sum() / evidence.counts_R.sum()


def _calibrated(evidence: Evidence, gated: bool, values_K: Tensor) -> tuple[float, float]:
    """The intercept and the scale ≥ 0 with which the current scores fit the feedback best."""
    scores_R = _scores(evidence, gated, values_K)
    spread = float(scores_R.std().clamp(min=1e-12))

    def loss(x: Tensor) -> Tensor:
        return _mean_loss(evidence, x[0] + x[1] * scores_R / spread)

    found = _minimum(loss, np.array([0.0, 1.0]), lowest=[None, 0.0])
    return float(found[0]), float(found[1]) / spread


def _fit_weights(
    evidence: Evidence, before_K: Tensor, scale: float, prior_rows: float
) -> tuple[float, float, Tensor]:
    """Intercept, scale and λ with λ · scale the minimum; all λ NaN when no granularity helps."""
    spread_K = evidence.shares_RK.std(0)
    # a granularity that is missing in all feedback has no spread; its weight stays where it is
    spread_K = torch.where(spread_K > 0, spread_K, 1.0)
    start_K = scale * before_K * spread_K
    shares_RK = evidence.shares_RK / spread_K
    pull = prior_rows / len(evidence) / 2

    def loss(x: Tensor) -> Tensor:
        return (
            _mean_loss(evidence, x[0] + shares_RK @ x[1:]) + pull * (x[1:] - start_K).square().sum()
        )

    found = _minimum(loss, np.append(0.0, start_K.numpy()), lowest=[None, *[0.0] * len(before_K)])
    weights_K = torch.as_tensor(found[1:]) / spread_K
    factor = float(weights_K.sum() / before_K.sum().clamp(min=1e-12))
    return (
        float(found[0]),
        factor,
        weights_K / factor if factor > 0 else torch.full_like(weights_K, torch.nan),
    )


def _fit_prior(
    evidence: Evidence, before_K: Tensor, scale: float, prior_rows: float
) -> tuple[float, float, Tensor]:
    """Intercept, scale and prior, followed by the weights of the closed-form granularities."""
    pull = prior_rows / len(evidence) / 2
    trained, num = evidence.gate_RK.shape[1], len(before_K)
    unit_K = torch.ones(num, dtype=torch.float64)  # a prior has no unit, a weight has one
    unit_K[trained:] = scale * evidence.shares_RK.std(0)[trained:]

    def loss(x: Tensor) -> Tensor:
        scores_R = _scores(evidence, True, x[2:])
        return (
            _mean_loss(evidence, x[0] + scale * x[1] * scores_R)
            + pull * (unit_K * (x[2:] - before_K)).square().sum()
        )

    lowest = [None, 0.0, *[None] * trained, *[0.0] * (num - trained)]
    found = _minimum(loss, np.concatenate([[0.0, 1.0], before_K.numpy()]), lowest)
    return float(found[0]), float(found[1]) * scale, torch.as_tensor(found[2:])


def _minimum(loss: Callable[[Tensor], Tensor], start: Array, lowest: list[float | None]) -> Array:
    """L-BFGS-B with gradients by torch."""
    from scipy.optimize import minimize

    def value_and_gradient(x: Array) -> tuple[float, Array]:
        point = torch.tensor(x, requires_grad=True)
        value = loss(point)
        value.backward()  # type: ignore[no-untyped-call]
        assert point.grad is not None
        return value.item(), point.grad.numpy()

    bounds = [(low, None) for low in lowest]
    found = minimize(
        value_and_gradient,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": 500},
    )
    return np.asarray(found.x)

"""The search space of fusion weights: the share of every granularity in the spread of the scores.

A common factor does not change a ranking, and the scores of granularities have different spreads
σ_k. So a setting is a point p ≥ 0 with λ_k ∝ p_k / σ_k; if p_k is near 0, granularity k contributes
little, whatever its scale. For ``gated`` fusion the gate stays and p scales its odds. A setting is
converted to the parameters of the fusion: for weighted fusion the largest λ is 1, for learned
fusion the sum of λ stays the same.

Legend: Q queries, K granularities (the closed-form ones last), D width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from recsys.data.histories import Array
from recsys.fusion import GatedFusion
from recsys.model import Encoders, FrozenModel
from recsys.training.refit_fusion import today
from tune.score_cache import ScoreCache

_PROBE: Final = 256  # number of queries to measure the spreads
_LEAST: Final = 1e-6  # factor for the gate's odds of a pruned granularity


@dataclass(frozen=True)
class WeightSpace:
    """Converts points p to values for :meth:`~recsys.model.Encoders.refitted`, and to weights per
    query.
    """

    names: list[str]
    encoders: Encoders
    today_K: Tensor  # float64: current λ; for a gate, its prior
    mean_K: Array  # current weight of every granularity, mean over queries that have it
    spread_K: Array  # standard deviation of its scores
    gate_QK: Tensor | None  # gate weights of the trained granularities, if there is a gate

    @property
    def num_trained(self) -> int:
        """Number of trained granularities; they come first."""
        return self.encoders.fusion.names_K

    @property
    def shares_K(self) -> Array:
        """The current point; its shares sum to 1."""
        return _normalised(self.mean_K * self.spread_K)

    def take(self, rows: Array) -> WeightSpace:
        """The space for some of the queries."""
        gate_QK = None if self.gate_QK is None else self.gate_QK[torch.as_tensor(rows)]
        return WeightSpace(
            self.names, self.encoders, self.today_K, self.mean_K, self.spread_K, gate_QK
        )

    def values(self, shares_K: Array) -> Tensor:
        """The values of a point: float64."""
        weights_K = np.asarray(shares_K, dtype=np.float64) / self.spread_K
        if self.gate_QK is None:
            whole = (
                1.0 / weights_K.max()
                if self.encoders.fusion.is_constant
                else self.mean_K.sum() / weights_K.sum()
            )
            return torch.as_tensor(weights_K * whole)
        trained = self.num_trained
        # the prior is a logarithm, which 0 does not have
        weights_K[:trained] = np.maximum(weights_K[:trained], _LEAST * weights_K.sum())
        # the weights of a gate sum to their number
        weights_K *= trained / weights_K[:trained].sum()
        odds_K = np.log(
            np.maximum(weights_K[:trained] / np.maximum(self.mean_K[:trained], 1e-12), 1e-12)
        )
        return torch.cat(
            [self.today_K[:trained] + torch.as_tensor(odds_K), torch.as_tensor(weights_K[trained:])]
        )

    def weights(self, values_K: Tensor, present_QK: Tensor) -> Tensor:
        """λ of every query in a model with these values: [Q, K] float32, zero if missing."""
        changed = self.encoders.refitted(values_K)
        fusion = copy.deepcopy(self.encoders.fusion).eval()
        own = {
            name.removeprefix("fusion."): value
            for name, value in changed.items()
            if name.startswith("fusion.")
        }
        fusion.load_state_dict({**fusion.state_dict(), **own})
        trained_QK = present_QK[:, : self.num_trained]
        with torch.inference_mode():
            if isinstance(fusion, GatedFusion):
                assert self.gate_QK is not None
                weights_QK = fusion.opened(self.gate_QK, fusion.prior_K, trained_QK)
            else:
                weights_QK = fusion.lambdas(
                    torch.zeros(len(present_QK), self.num_trained, 1), trained_QK
                )
            fitted_K = changed.get("fitted_weights", self.encoders.fitted_weights)
            found: Tensor = (
                torch.cat([weights_QK, fitted_K.expand(len(present_QK), -1)], dim=1) * present_QK
            )
            return found

    def for_model(self, encoders: Encoders, values_K: Tensor) -> dict[str, Tensor]:
        """Parameters that change another training of this model as the values change this one.

        A trained λ changes by its ratio to the current λ, so the current point changes nothing. The
        λ of closed-form granularities are the same in both models.
        """
        theirs_K, trained = today_of(encoders), self.num_trained
        moved_K = values_K.clone()
        if self.gate_QK is not None:
            moved_K[:trained] += theirs_K[:trained] - self.today_K[:trained]
        elif not encoders.fusion.is_constant:
            moved_K[:trained] *= theirs_K[:trained] / self.today_K[:trained].clamp(min=1e-12)
        return encoders.refitted(moved_K)

    @staticmethod
    def of(frozen: FrozenModel, cache: ScoreCache) -> WeightSpace:
        """The space of a model's weights, for the queries of a cache."""
        encoders, present_QK = frozen.encoders, cache.present_QK
        fusion, gate_QK = encoders.fusion, None
        today_K = today_of(encoders)
        mean_K = today_K.numpy().copy()
        if isinstance(fusion, GatedFusion):
            trained = fusion.names_K
            with torch.inference_mode():
                gate_QK = fusion.gate_logits(
                    cache.contributions.vectors_BKD[:, :trained, : frozen.config.width]
                )
                opened_QK = (
                    fusion.opened(gate_QK, fusion.prior_K, present_QK[:, :trained])
                    * present_QK[:, :trained]
                )
            counts_K = present_QK[:, :trained].sum(0).clamp(min=1)
            mean_K[:trained] = (opened_QK.double().sum(0) / counts_K).numpy()
        return WeightSpace(frozen.names, encoders, today_K, mean_K, _spreads(cache), gate_QK)


def today_of(encoders: Encoders) -> Tensor:
    """Current values of all granularities: float64."""
    return torch.cat([today(encoders.fusion), encoders.fitted_weights.detach().double()])


@contextmanager
def refitted(encoders: Encoders, changed: dict[str, Tensor]) -> Iterator[None]:
    """Change some parameters of the encoders inside the block."""
    before = {name: tensor.clone() for name, tensor in encoders.state_dict().items()}
    encoders.load_state_dict({**before, **changed})
    try:
        yield
    finally:
        encoders.load_state_dict(before)


def _spreads(cache: ScoreCache) -> Array:
    """Standard deviation of every granularity's scores over all items, for the first queries that
    have it.
    """
    found = []
    for granularity in range(cache.present_QK.shape[1]):
        rows = cache.present_QK[:, granularity].nonzero().squeeze(1)[:_PROBE]
        scores = cache.contributions.take(rows).of([granularity]).scores(cache.item_vectors_ND)
        found.append(float(scores.std()) if scores.numel() > 1 else 0.0)
    # equal scores change no ranking, so any divisor does
    return np.array([spread if spread > 0 else 1.0 for spread in found])


def _normalised(shares_K: Array) -> Array:
    total = shares_K.sum()
    return np.asarray(shares_K / total if total > 0 else np.full(len(shares_K), 1 / len(shares_K)))

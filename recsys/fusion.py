"""Fusion of a user's granularities: u = Σ_k λ_k z_k, linear in z; missing granularities are masked.

Why linear: a user is one vector at serving time, top-K is one matrix product, and λ_k z_k · a_i is
exactly the share of granularity k in the score of item i. Legend: B queries, K granularities, D
width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.config import FusionConfig

_TRACE = 1e-12  # λ of a pruned granularity: no effect next to another vector in float32


class Fusion(nn.Module):
    """Base class: computes λ of every query and granularity; subclasses define where λ comes from.

    In training each present granularity of a query is masked with probability ``signal_dropout``,
    but never the last one, so that the model keeps working when a signal is missing (dropout over
    modalities, Neverova et al. 2016).
    """

    is_constant = False  # True: λ are settings in [0, 1]

    def __init__(self, config: FusionConfig, weights: list[float], width: int) -> None:
        super().__init__()
        self.signal_dropout = config.signal_dropout
        self.names_K = len(weights)
        self.only: list[int] = []  # if not empty: training uses these granularities alone

    def lambdas(self, z_BKD: Tensor, present_BK: Tensor) -> Tensor:
        """Return λ_BK before masking."""
        raise NotImplementedError

    def refitted(self, values_K: Tensor) -> dict[str, Tensor]:
        """Return the parameters that set λ to new values (gated: a new prior), by name in the state
        dict.
        """
        raise NotImplementedError

    def scaled(self, factors_K: Tensor) -> dict[str, Tensor]:
        """Return the parameters that multiply λ (gated: its odds) by factors, by name in the state
        dict.

        A factor of zero leaves a trace of λ. Why: the trace has no effect next to another
        granularity, but it still gives an answer for a user who has no other granularity.
        """
        raise NotImplementedError

    def forward(self, z_BKD: Tensor, present_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Return user vectors ``u_BD`` and the masked weights ``λ_BK`` that produced them."""
        if self.training and self.only:
            used_K = torch.zeros(self.names_K, dtype=torch.bool, device=present_BK.device)
            used_K[self.only] = True
            present_BK = present_BK & used_K
        elif self.training and self.signal_dropout and self.names_K > 1:
            present_BK = self._drop(present_BK)
        weights_BK = self.lambdas(z_BKD, present_BK) * present_BK.to(z_BKD.dtype)
        return torch.einsum("bk,bkd->bd", weights_BK, z_BKD), weights_BK

    def _drop(self, present_BK: Tensor) -> Tensor:
        chance_BK = torch.rand(present_BK.shape, device=present_BK.device)
        kept_BK = present_BK & (chance_BK >= self.signal_dropout)
        none_left_B1 = ~kept_BK.any(1, keepdim=True)
        return torch.where(none_left_B1, present_BK, kept_BK)


class WeightedFusion(Fusion):
    """λ are hyper-parameters (a, b, c of S1; α, λ of S5) that a sweep searches."""

    weights_K: Tensor
    is_constant = True

    def __init__(self, config: FusionConfig, weights: list[float], width: int) -> None:
        super().__init__(config, weights, width)
        self.register_buffer("weights_K", torch.tensor(weights))

    def lambdas(self, z_BKD: Tensor, present_BK: Tensor) -> Tensor:
        """The configured weights."""
        return self.weights_K.to(z_BKD.dtype).expand(z_BKD.shape[0], -1)

    def refitted(self, values_K: Tensor) -> dict[str, Tensor]:
        """λ stay in [0, 1], the range of the configuration; a common factor changes no ranking."""
        return {"weights_K": (values_K / values_K.max().clamp(min=1)).to(self.weights_K.dtype)}

    def scaled(self, factors_K: Tensor) -> dict[str, Tensor]:
        """Multiply the weights."""
        return {"weights_K": self.weights_K * factors_K.clamp(min=_TRACE)}


class LearnedFusion(Fusion):
    """λ are trained, one per granularity. A softplus keeps them positive; the configured weights
    are the start.
    """

    def __init__(self, config: FusionConfig, weights: list[float], width: int) -> None:
        super().__init__(config, weights, width)
        self.raw_K = nn.Parameter(_inverse_softplus(torch.tensor(weights).clamp(min=1e-3)))

    def lambdas(self, z_BKD: Tensor, present_BK: Tensor) -> Tensor:
        """The trained weights."""
        return nn.functional.softplus(self.raw_K).to(z_BKD.dtype).expand(z_BKD.shape[0], -1)

    def refitted(self, values_K: Tensor) -> dict[str, Tensor]:
        """Set the trained weights."""
        return {"raw_K": _inverse_softplus(values_K.clamp(min=_TRACE)).to(self.raw_K.dtype)}

    def scaled(self, factors_K: Tensor) -> dict[str, Tensor]:
        """Multiply the trained weights."""
        raw_K = self.raw_K.detach()
        changed_K = self.refitted(nn.functional.softplus(raw_K) * factors_K)["raw_K"]
        # a factor of 1 changes no bit
        return {"raw_K": torch.where(factors_K == 1, raw_K, changed_K)}


def _inverse_softplus(values_K: Tensor) -> Tensor:
    return values_K + torch.log(-torch.expm1(-values_K))


class GatedFusion(Fusion):
    """λ_k(u): a masked softmax over the present granularities, from a small gate on their own
    vectors.

    The softmax is multiplied by K, so that a uniform gate gives each granularity the weight 1. The
    configured weights are its prior.
    """

    def __init__(self, config: FusionConfig, weights: list[float], width: int) -> None:
        super().__init__(config, weights, width)
        self.prior_K = nn.Parameter(torch.tensor(weights).clamp(min=1e-3).log())
        self.gate = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.gate.weight)

    def lambdas(self, z_BKD: Tensor, present_BK: Tensor) -> Tensor:
        """The gate's softmax over the present granularities."""
        return self.opened(self.gate_logits(z_BKD), self.prior_K, present_BK)

    def gate_logits(self, z_BKD: Tensor) -> Tensor:
        """Logits of the gate for every granularity, before the prior: [B, K]."""
        logits_BK: Tensor = self.gate(nn.functional.normalize(z_BKD, dim=-1)).squeeze(-1)
        return logits_BK

    @staticmethod
    def opened(gate_BK: Tensor, prior_K: Tensor, present_BK: Tensor) -> Tensor:
        """λ_BK from gate and prior: a softmax over the present granularities, times K.

        Parameters
        ----------
        gate_BK : Tensor, [B, K] float
            Logits of the gate, per query.
        prior_K : Tensor, [K] float
            Logits that all queries share.
        present_BK : Tensor, [B, K] bool
            Where a granularity has an input.

        Returns
        -------
        Tensor, [B, K] float
            Weights; each row sums to K, also where nothing is present.
        """
        logits_BK = (gate_BK + prior_K).masked_fill(~present_BK, float("-inf"))
        nothing_B1 = ~present_BK.any(1, keepdim=True)
        return torch.softmax(logits_BK.masked_fill(nothing_B1, 0.0), dim=1) * present_BK.shape[1]

    def refitted(self, values_K: Tensor) -> dict[str, Tensor]:
        """Set the prior."""
        return {"prior_K": values_K.to(self.prior_K.dtype)}

    def scaled(self, factors_K: Tensor) -> dict[str, Tensor]:
        """Multiply the odds of the prior."""
        return {"prior_K": self.prior_K.detach() + factors_K.clamp(min=_TRACE).log()}


class NoFusion(Fusion):
    """For a model whose members are all in closed form: nothing is trained, so there are no λ."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__(config, [], 0)
        self.is_constant = config.kind == "weighted"

    def lambdas(self, z_BKD: Tensor, present_BK: Tensor) -> Tensor:
        """An empty tensor: there is nothing to weight."""
        return z_BKD.new_zeros(present_BK.shape)

    def refitted(self, values_K: Tensor) -> dict[str, Tensor]:
        """No parameters."""
        return {}

    def scaled(self, factors_K: Tensor) -> dict[str, Tensor]:
        """No parameters."""
        return {}


FUSIONS = {"weighted": WeightedFusion, "learned": LearnedFusion, "gated": GatedFusion}

"""The block of HSTU (Zhai et al. 2024, "Actions Speak Louder than Words"): attention without
softmax, gated.

Why: with softmax the events of a history compete, because its weights are positive and sum to one.
Here every pair of events has its own weight, and a gate from the query's event decides which part
of the sum counts. The gate also replaces the feed-forward layer. A norm after the sum removes its
size, as in the paper::

    U, Q, V, K = SiLU(W₁ norm(x))                                four times [L, D]
    A_ij = SiLU(q_i · k_j + lag bias + time bias) / (i + 1)      for j ≤ i, else 0
    y = x + W₂ dropout(norm(A V) ⊙ U)

Events count from 0, so i + 1 events are visible from event i. The paper divides by the longest
history; the number of visible events does not depend on padding, so the result is the same in every
batch. Later events are multiplied by zero, because minus infinity as a logit, as for softmax,
becomes NaN in SiLU. There is no custom kernel: the weights of a step are one tensor of U · H · L²
numbers.

Legend: U rows (in tensor names), L length, D width, H heads, X width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from recsys.granularities.dropout import Dropout
from recsys.granularities.evolution.section import EvolutionConfig


class HstuBlock(nn.Module):
    """One layer of HSTU, with the biases of
    :class:`~recsys.granularities.evolution.model.CausalAttention`.
    """

    uses_softmax = False

    def __init__(self, width: int, config: EvolutionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(width)
        self.norm_mixed = nn.LayerNorm(width, eps=1e-6)  # A V is small after a long history
        self.uqvk = nn.Linear(width, 4 * width)
        self.mix = nn.Linear(width, width)
        self.dropout = Dropout(config.dropout)

    def forward(self, states_ULD: Tensor, bias_UHLL: Tensor) -> Tensor:
        """Next states of all positions: [U, L, D]."""
        gate_ULD, *others = silu(self.uqvk(self.norm(states_ULD))).chunk(4, dim=-1)
        q, v, k = (self._by_head(part_ULD) for part_ULD in others)
        weights_UHLL = silu(q @ k.transpose(2, 3) + bias_UHLL) * visible_shares(q.shape[2], q)
        mixed_ULD = (weights_UHLL @ v).transpose(1, 2).flatten(2)
        return self._leave(states_ULD, mixed_ULD, gate_ULD)

    def at(self, states_ULD: Tensor, bias_UHLL: Tensor, position_U: Tensor) -> Tensor:
        """The next state at one position of every row: [U, D].

        Gate and query are computed for that position alone. Keys and values are needed for all
        events: they pass through SiLU, so the trick of :meth:`Block.at` does not apply.

        Parameters
        ----------
        states_ULD : Tensor, [U, L, D] float
            States of all events before this layer.
        bias_UHLL : Tensor, [U, H, L, L] float
            Numbers to add to the logits; the first two axes may be 1.
        position_U : Tensor, [U] int64
            Position of each row, from 0.
        """
        rows_U = torch.arange(position_U.shape[0], device=position_U.device)
        normed_ULD, state_UD = self.norm(states_ULD), states_ULD[rows_U, position_U]
        (to_uq, to_vk), (bias_uq, bias_vk) = self.uqvk.weight.chunk(2), self.uqvk.bias.chunk(2)
        gate_UD, q_UD = silu(linear(normed_ULD[rows_U, position_U], to_uq, bias_uq)).chunk(
            2, dim=-1
        )
        v, k = (
            self._by_head(part)
            for part in silu(linear(normed_ULD, to_vk, bias_vk)).chunk(2, dim=-1)
        )
        q_UH1X = self._by_head(q_UD[:, None])
        bias_UHL = bias_UHLL.expand(rows_U.shape[0], -1, -1, -1)[rows_U, :, position_U]
        shares_UL = visible_shares(k.shape[2], k)[position_U]
        weights_UH1L = (
            silu(q_UH1X @ k.transpose(2, 3) + bias_UHL[:, :, None]) * shares_UL[:, None, None]
        )
        return self._leave(state_UD, (weights_UH1L @ v).flatten(1), gate_UD)

    def _by_head(self, part_ULD: Tensor) -> Tensor:
        """[U, H, L, X]."""
        return part_ULD.reshape(*part_ULD.shape[:2], self.heads, -1).transpose(1, 2)

    def _leave(self, states_XD: Tensor, mixed_XD: Tensor, gate_XD: Tensor) -> Tensor:
        gated_XD = self.dropout(self.norm_mixed(mixed_XD) * gate_XD)
        left_XD: Tensor = states_XD + self.mix(gated_XD)
        return left_XD


def visible_shares(length: int, like: Tensor) -> Tensor:
    """Weight of every event j in the mean after event i, [L, L]: 1 / (i + 1) if visible, 0 if
    later.

    >>> visible_shares(2, torch.zeros(1)).tolist()
    [[1.0, 0.0], [0.5, 0.5]]
    """
    visible_L = torch.arange(1, length + 1, device=like.device, dtype=torch.float32)
    return torch.tril(visible_L.reciprocal()[:, None].expand(length, length)).to(like.dtype)

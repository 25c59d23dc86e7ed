"""The block of HSTU (Zhai et al. 2024, "Actions Speak Louder than Words"): attention without softmax, gated.

Why: softmax makes the events of a history compete, since its weights sum to one and none is negative. Here every pair
of events has a weight of its own, and a gate of the query's event says what of the sum counts.
The gate also takes the place of the feed-forward. The norm behind the sum takes its size out again, as in the paper::

    U, Q, V, K = SiLU(W₁ norm(x))                                four times [L, D]
    A_ij = SiLU(q_i · k_j + lag bias + time bias) / (i + 1)      for j ≤ i, else 0
    y = x + W₂ dropout(norm(A V) ⊙ U)

Events count from 0, so i + 1 events are visible from event i. The paper divides by the longest history; the number of
visible events does not depend on padding, so an answer is the same in every batch. Later events are multiplied by zero:
minus infinity as a logit, as softmax has it, is nan in SiLU. It covers no kernel of its own: the weights of a step are
one tensor of U · H · L² numbers.

Legend: U rows (in tensor names), L length, D width, H heads, X width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from recsys.granularities.dropout import Dropout
from recsys.granularities.evolution.section import EvolutionConfig


class HstuBlock(nn.Module):
    """One layer of HSTU, with the biases of :class:`~recsys.granularities.evolution.model.CausalAttention`."""

    uses_softmax = False

    def __init__(self, width: int, config: EvolutionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(width)
        self.norm_mixed = nn.LayerNorm(width, eps=1e-6)  # A V is small behind a long history
        self.uqvk = nn.Linear(width, 4 * width)
        self.mix = nn.Linear(width, width)
        self.dropout = Dropout(config.dropout)

    def forward(self, states_ULD: Tensor, bias_UHLL: Tensor) -> Tensor:
        gate_ULD, *others = silu(self.uqvk(self.norm(states_ULD))).chunk(4, dim=-1)
        q, v, k = (self._by_head(part_ULD) for part_ULD in others)
        weights_UHLL = silu(q @ k.transpose(2, 3) + bias_UHLL) * visible_shares(q.shape[2], q)
        mixed_ULD = (weights_UHLL @ v).transpose(1, 2).flatten(2)
        return self._leave(states_ULD, mixed_ULD, gate_ULD)

    def at(self, states_ULD: Tensor, bias_UHLL: Tensor, place_U: Tensor) -> Tensor:
        """The next state of one place of every row, [U, D], without dropout.

        Gate and query are computed for that place alone. Keys and values are needed of all events: they pass SiLU, so
        the question cannot be carried to the events as in attention.
        """
        rows_U = torch.arange(place_U.shape[0], device=place_U.device)
        normed_ULD, state_UD = self.norm(states_ULD), states_ULD[rows_U, place_U]
        (to_uq, to_vk), (bias_uq, bias_vk) = self.uqvk.weight.chunk(2), self.uqvk.bias.chunk(2)
        gate_UD, q_UD = silu(linear(normed_ULD[rows_U, place_U], to_uq, bias_uq)).chunk(2, dim=-1)
        v, k = (self._by_head(part) for part in silu(linear(normed_ULD, to_vk, bias_vk)).chunk(2, dim=-1))
        q_UH1X = self._by_head(q_UD[:, None])
        bias_UHL = bias_UHLL.expand(rows_U.shape[0], -1, -1, -1)[rows_U, :, place_U]
        shares_UL = visible_shares(k.shape[2], k)[place_U]
        weights_UH1L = silu(q_UH1X @ k.transpose(2, 3) + bias_UHL[:, :, None]) * shares_UL[:, None, None]
        return self._leave(state_UD, (weights_UH1L @ v).flatten(1), gate_UD)

    def _by_head(self, part_ULD: Tensor) -> Tensor:
        """[U, H, L, X]."""
        return part_ULD.reshape(*part_ULD.shape[:2], self.heads, -1).transpose(1, 2)

    def _leave(self, states_XD: Tensor, mixed_XD: Tensor, gate_XD: Tensor) -> Tensor:
        gated_XD = self.dropout(self.norm_mixed(mixed_XD) * gate_XD)
        left_XD: Tensor = states_XD + self.mix(gated_XD)
        return left_XD


def visible_shares(length: int, like: Tensor) -> Tensor:
    """What every event j weighs in the mean behind event i, [L, L]: 1 / (i + 1) where visible, 0 where later.

    >>> visible_shares(2, torch.zeros(1)).tolist()
    [[1.0, 0.0], [0.5, 0.5]]
    """
    visible_L = torch.arange(1, length + 1, device=like.device, dtype=torch.float32)
    return torch.tril(visible_L.reciprocal()[:, None].expand(length, length)).to(like.dtype)

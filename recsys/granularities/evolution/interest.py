"""Long-term and immediate interest (S4): two states besides the cell that predicts the next
interest state.

The published formulas, with ⊕ the concatenation and σ the logistic function::

    h_t = W_h σ(H_{t−1} ⊕ i_{t−1}) + b_h        long-term state
    i_t = W_i σ(H_{t−1} ⊕ i_{t−1}) + b_i        immediate state
    H_{t+1} = f(h_t, i_t, H_t)                  next interest state, f the cell

The formulas do not say where the behaviour x_t enters. Here it is part of the immediate state that
step t reads: i_{t−1} means i_{t−1} + x_t, the interest before plus what the user just did. This
changes no formula: with x_t = 0, when nothing new has happened, they hold as printed. It is also
the only place from which both h_t and i_t see the newest event; otherwise H_{t+1} would be a
prediction without it. x_t is the event's vector, layer-normed so that σ sees it at full strength;
H_0 = H_1 = 0, i_0 = 0. f reads h_t ⊕ i_t as its input and H_t as its state: an LSTM or a GRU cell,
or causal attention, whose state H_t is all its earlier inputs.

The recurrence goes through H *and* i, so no kernel computes it. There are two ways:

* ``formula``: step by step, exactly (LSTM, GRU);
* ``parallel``: sweeps over all positions at once. Each sweep computes h and i of every step from
  the H and i of the previous sweep (Jacobi's iteration, from zero), then H of all steps with the
  cell's own kernel. Sweep n is exact for the first n events, so L sweeps equal the formula. A few
  sweeps come close, because σ and W damp distant events.

Legend: U rows, L length, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

# inputs of all steps [U, L, …] → H of the step after each [U, L, D]
Cell = Callable[[Tensor], Tensor]


class InterestStates(nn.Module):
    """W_h, b_h and W_i, b_i.

    Initial values make W σ(r) + b ≈ V r, where the entries of V are about 1/√(2D): σ has slope ¼ at
    0, and b removes its mean of ½, which would hide the differences between users.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.long, self.immediate = nn.Linear(2 * width, width), nn.Linear(2 * width, width)
        for linear in (self.long, self.immediate):
            nn.init.normal_(linear.weight, std=4 / math.sqrt(2 * width))
            with torch.no_grad():
                linear.bias.copy_(-0.5 * linear.weight.sum(dim=1))

    def step(
        self, before_XD: Tensor, immediate_XD: Tensor, events_XD: Tensor
    ) -> tuple[Tensor, Tensor]:
        """h_t and i_t from H_{t−1}, i_{t−1} and x_t.

        Parameters
        ----------
        before_XD : Tensor, […, D] float
            H_{t−1}.
        immediate_XD : Tensor, […, D] float
            i_{t−1}.
        events_XD : Tensor, […, D] float
            x_t, already normalised.

        Returns
        -------
        long_XD : Tensor, […, D] float
            h_t.
        immediate_XD : Tensor, […, D] float
            i_t.
        """
        read_X2D = torch.sigmoid(torch.cat([before_XD, immediate_XD + events_XD], dim=-1))
        return self.long(read_X2D), self.immediate(read_X2D)

    def sweep(self, events_ULD: Tensor, cell: Cell, sweeps: int) -> tuple[Tensor, Tensor]:
        """H_{t+1} and i_t of every step, by parallel sweeps.

        Parameters
        ----------
        events_ULD : Tensor, [U, L, D] float
            Vectors of the events, before they are normalised.
        cell : callable
            Inputs of all steps [U, L, 2 D] to the state after each step [U, L, D].
        sweeps : int
            Number of sweeps. After n of them the first n steps are exact.

        Returns
        -------
        next_ULD : Tensor, [U, L, D] float
            H_{t+1}.
        immediate_ULD : Tensor, [U, L, D] float
            i_t.
        """
        events_ULD = self.norm(events_ULD)
        next_ULD = immediate_ULD = torch.zeros_like(events_ULD)
        for _ in range(sweeps):
            long_ULD, immediate_ULD = self.step(
                _later(next_ULD, 2), _later(immediate_ULD, 1), events_ULD
            )
            next_ULD = cell(torch.cat([long_ULD, immediate_ULD], dim=-1))
        return next_ULD, immediate_ULD

    def formula(self, events_ULD: Tensor, cell: nn.LSTM | nn.GRU) -> tuple[Tensor, Tensor]:
        """H_{t+1} and i_t of every step, computed step by step."""
        events_ULD = self.norm(events_ULD)
        nothing_UD = torch.zeros_like(events_ULD[:, 0])
        before_UD, now_UD, immediate_UD = nothing_UD, nothing_UD, nothing_UD
        memory, following, immediates = None, [], []
        for event_UD in events_ULD.unbind(1):
            long_UD, immediate_UD = self.step(before_UD, immediate_UD, event_UD)
            output_U1D, memory = cell(torch.cat([long_UD, immediate_UD], dim=-1)[:, None], memory)
            before_UD, now_UD = now_UD, output_U1D[:, 0]
            following.append(now_UD)
            immediates.append(immediate_UD)
        return torch.stack(following, dim=1), torch.stack(immediates, dim=1)


class Fuse(nn.Module):
    """z = (1 − s) norm(H_{t+1}) + s norm(i_t), where the share s of the immediate state is learned
    for every query.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Linear(2 * width, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, -1.0)  # a quarter at the start

    def forward(self, long_BD: Tensor, immediate_BD: Tensor) -> tuple[Tensor, Tensor]:
        """The normalised immediate state, and its share [B, 1]; ``long_BD`` must be normalised."""
        immediate_BD = self.norm(immediate_BD)
        return immediate_BD, torch.sigmoid(self.gate(torch.cat([long_BD, immediate_BD], dim=-1)))


def _later(values_ULD: Tensor, steps: int) -> Tensor:
    """Shift every step's value by some steps; zero at the start."""
    earlier_ULD = values_ULD[:, : max(values_ULD.shape[1] - steps, 0)]
    return nn.functional.pad(earlier_ULD, (0, 0, min(steps, values_ULD.shape[1]), 0))

"""Dropout that costs little on a CPU.

Why: torch draws a Bernoulli number there in the time of hundreds of multiplications, and a step of attention needs some
hundreds of them a position. Here 16 bits of an SFC64 stream decide about a number. The stream starts from one number of
torch's generator, so ``torch.manual_seed`` fixes it, and a step is the same wherever it is trained again.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

_SIDES = 2**16  # of the die; a rate is as fine as one over that


class Dropout(nn.Module):
    """Zero with chance ``rate`` in training, the rest scaled to keep the mean (Srivastava et al. 2014)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return values
        if values.device.type != "cpu":
            return dropout(values, self.rate)
        return values * _mask(values.shape, self.rate).to(values.dtype)


def _mask(shape: torch.Size, rate: float) -> Tensor:
    """Zero or one over the kept share, float32."""
    number, dropped = shape.numel(), round(rate * _SIDES)
    seed = int(torch.randint(2**62, ()))
    words = np.random.Generator(np.random.SFC64(seed)).integers(0, 2**64, -(-number // 4), dtype=np.uint64)
    kept = words.view(np.uint16)[:number] >= dropped
    return torch.from_numpy(kept.view(np.uint8)).float().mul_(_SIDES / (_SIDES - dropped)).view(shape)

"""Dropout that is fast on a CPU.

Why: on a CPU, torch needs the time of hundreds of multiplications for one Bernoulli number, and a
step of attention needs some hundreds of them per position. Here 16 bits of an SFC64 stream decide
about one number. The seed of the stream is a number of torch's generator, so ``torch.manual_seed``
fixes it, and a repeated step gives the same result.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

_SIDES = 2**16  # resolution of a rate is one over this


class Dropout(nn.Module):
    """Set values to zero with probability ``rate`` in training and rescale the rest (Srivastava et
    al. 2014).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, values: Tensor) -> Tensor:
        """Apply dropout in training; return the values unchanged otherwise."""
        if not self.training or not self.rate:
            return values
        if values.device.type != "cpu":
            return dropout(values, self.rate)
        return values * _mask(values.shape, self.rate).to(values.dtype)


def _mask(shape: torch.Size, rate: float) -> Tensor:
    """A float32 mask: zero, or one over the share of values that stay."""
    number, dropped = shape.numel(), round(rate * _SIDES)
    seed = int(torch.randint(2**62, ()))
    words = np.random.Generator(np.random.SFC64(seed)).integers(
        0, 2**64, -(-number // 4), dtype=np.uint64
    )
    is_kept = words.view(np.uint16)[:number] >= dropped
    return (
        torch.from_numpy(is_kept.view(np.uint8))
        .float()
        .mul_(_SIDES / (_SIDES - dropped))
        .view(shape)
    )

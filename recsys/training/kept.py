"""What is kept of every trained λ, checked on validation once the best epoch is known.

Why: training moves λ slowly, and under ``unit_vectors`` nothing else can make a granularity quiet, so that one whose
signal the data does not hold costs what its noise adds to every score. Where one is silenced the model is selected
anew, with training hearing it only where nothing else speaks (``signal_dropout``), so that it still answers users who
have nothing else; with no such dropout nothing would teach it that, and the model stays as it was trained.
Legend: B queries, K granularities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch
from torch import Tensor

from recsys.data.histories import Array
from recsys.fusion import Fusion

KEPT: Final = "kept"
_NOISE: Final = 1.0  # standard errors of the paired difference that a change must gain


def choose_kept(fusion: Fusion, names: list[str], metric: Callable[[], Array]) -> dict[str, float]:
    """The share of every trained granularity's λ that is kept: 1, or 0 where validation gains beyond its noise.

    One granularity after the other, the one whose silence gains most first; the last that speaks is never silenced.

    Args:
        fusion: of the model that ``metric`` measures; it is as before when this returns.
        names: the trained granularities, in the order of K.
        metric: the validation metric of every query with the λ at the time of the call, [B].
    """
    kept = dict.fromkeys(names, 1.0)

    def at(changed: Mapping[str, float]) -> Array:
        with scaled(fusion, names, {**kept, **changed}):
            return metric()

    best_B = at({})
    if len(names) == 1 or not len(best_B):
        return kept
    gained = {name: float((at({name: 0.0}) - best_B).mean()) for name in names}
    for name in sorted(names, key=lambda name: -gained[name]):
        if not any(kept[other] for other in names if other != name):
            continue
        silent_B = at({name: 0.0})
        if _better(silent_B, best_B):
            kept[name], best_B = 0.0, silent_B
    return kept


@contextmanager
def scaled(fusion: Fusion, names: list[str], kept: Mapping[str, float]) -> Iterator[None]:
    """The fusion with these shares of its λ, 1 where none is named; as before when left."""
    before = {name: tensor.detach().clone() for name, tensor in fusion.state_dict().items()}
    scale(fusion, names, kept)
    try:
        yield
    finally:
        fusion.load_state_dict(before)


@torch.no_grad()
def scale(fusion: Fusion, names: list[str], kept: Mapping[str, float]) -> None:
    """Leave these shares of λ for good, 1 where none is named."""
    if any(kept.get(name, 1.0) != 1.0 for name in names):
        place = next(iter(fusion.state_dict().values())).device
        factors_K: Tensor = torch.tensor([kept.get(name, 1.0) for name in names], device=place)
        fusion.load_state_dict({**fusion.state_dict(), **fusion.scaled(factors_K)})


def _better(values_B: Array, than_B: Array) -> bool:
    gain_B = values_B - than_B
    return bool(gain_B.mean() > _NOISE * gain_B.std() / np.sqrt(len(gain_B)))

"""Which trained granularities a model keeps, checked on validation once the best epoch is known.

Why: training moves λ slowly, and under ``unit_vectors`` nothing else can make a granularity quiet. One whose signal the
data does not hold then costs twice: what its noise adds to every score, and what the others did not learn, since
training let it explain by heart what they should have. Silence at serving time mends the first only, so the model is
trained anew *without* what is silenced, as if the configuration had never named it: same seeds, same parameters, hence
no loss by construction. What is silenced then learns on its own, all else as it is, to answer those who have nothing
else (see :mod:`recsys.training.phases`). Legend: B queries, K granularities.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from recsys.config import Config
from recsys.data.histories import Array
from recsys.fusion import Fusion

KEPT: Final = "kept"
_NOISE: Final = 1.0  # standard errors of the paired difference that a change must gain
_FUSION: Final = "model.encoders.fusion."
_FITTED: Final = "model.encoders.fitted_weights"


def choose_kept(names: Sequence[str], metric: Callable[[frozenset[str]], Array]) -> dict[str, float]:
    """The share of every trained granularity's λ that is kept: 1, or 0 where validation gains beyond its noise.

    One granularity after the other, the one whose silence gains most first; the last that speaks is never silenced.

    Parameters
    ----------
    names : Sequence[str]
        the trained granularities.
    metric : Callable[[frozenset[str]], Array]
        the validation metric of every query with these granularities silent, [B].
    """
    silent: frozenset[str] = frozenset()
    best_B = metric(silent)
    if len(names) > 1 and len(best_B):
        gained = {name: float((metric(frozenset({name})) - best_B).mean()) for name in names}
        for name in sorted(names, key=lambda name: -gained[name]):
            if len(silent) + 1 == len(names):
                break
            silent_B = metric(silent | {name})
            if _better(silent_B, best_B):
                silent, best_B = silent | {name}, silent_B
    return {name: float(name not in silent) for name in names}


def _better(values_B: Array, than_B: Array) -> bool:
    gain_B = values_B - than_B
    return bool(gain_B.mean() > _NOISE * gain_B.std() / np.sqrt(len(gain_B)))


def silenced(choices: Mapping[str, Any]) -> frozenset[str]:
    """The granularities that the choices of a training silence."""
    return frozenset(name for name, share in choices.get(KEPT, {}).items() if not share)


def without(config: Config, names: Collection[str]) -> Config:
    """The configuration that does not enable these granularities."""
    if not names:
        return config
    changed = config.model_copy(deep=True)
    for name in names:
        getattr(changed.model.granularities, name).enabled = False
    return changed


def transplant(
    weights: Mapping[str, Tensor], names: Sequence[str], own: Mapping[str, Tensor], own_names: Sequence[str]
) -> dict[str, Tensor]:
    """The weights ``own`` of a model, with all that another model of more or fewer trained granularities has of them.

    Parameters
    ----------
    weights : Mapping[str, Tensor]
        of the other model.
    names : Sequence[str]
        its trained granularities, in the order of K.
    own : Mapping[str, Tensor]
        of the model that is to have them.
    own_names : Sequence[str]
        its trained granularities.
    """
    found = {}
    for key, tensor in own.items():
        other = weights.get(key)
        if key == _FITTED and other is not None and len(other) != len(tensor):
            other = None  # the training knew no fitted granularities; stacking weighs them
        if other is not None and key.startswith(_FUSION) and key.endswith("_K"):
            tensor = tensor.clone()
            for place, name in enumerate(own_names):
                if name in names:
                    tensor[place] = other[names.index(name)]
            other = tensor
        found[key] = tensor if other is None else other
    if names and f"{_FUSION}prior_K" in found and _FITTED in found:  # a gate's λ are K times a share
        found[_FITTED] = found[_FITTED] * (len(own_names) / len(names))
    return found


def names_of(weights: Mapping[str, Tensor], names: Sequence[str], silent: Collection[str]) -> list[str]:
    """The trained granularities of weights, in the order of their λ: all, or those that spoke before *join*."""
    lengths = {len(tensor) for key, tensor in weights.items() if key.startswith(_FUSION) and key.endswith("_K")}
    return [name for name in names if name not in silent or len(names) in lengths]


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

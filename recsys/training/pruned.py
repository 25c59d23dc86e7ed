"""Prune trained granularities whose removal improves validation, once the best epoch is known.

Why: training changes λ slowly, and with ``unit_vectors`` nothing else can weaken a granularity. One
without a real signal in the data then costs twice: its noise is added to every score, and it
memorises training events that the other granularities should have learned from. Setting λ to zero
afterwards repairs only the first. So the model is trained again from scratch *without* the pruned
granularities, as if the configuration had never named them: same seeds, same parameters. The pruned
ones are then trained alone, with the rest fixed, for users who have no other signal (see
:mod:`recsys.training.phases`). Legend: B queries, K granularities.
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
_NOISE: Final = 1.0  # a change must gain this many standard errors of the paired difference
_FUSION: Final = "model.encoders.fusion."
_FITTED: Final = "model.encoders.fitted_weights"


def choose_pruned(
    names: Sequence[str], metric: Callable[[frozenset[str]], Array]
) -> dict[str, float]:
    """The share of λ that every trained granularity keeps: 1, or 0 if removing it improves
    validation beyond noise.

    Removes one granularity after the other, the one with the largest gain first; the last one is
    never removed.

    Parameters
    ----------
    names : Sequence[str]
        The trained granularities.
    metric : Callable[[frozenset[str]], Array]
        The validation metric of every query without these granularities, [B].
    """
    pruned: frozenset[str] = frozenset()
    best_B = metric(pruned)
    if len(names) > 1 and len(best_B):
        gained = {name: float((metric(frozenset({name})) - best_B).mean()) for name in names}
        for name in sorted(names, key=lambda name: -gained[name]):
            if len(pruned) + 1 == len(names):
                break
            without_B = metric(pruned | {name})
            if _better(without_B, best_B):
                pruned, best_B = pruned | {name}, without_B
    return {name: float(name not in pruned) for name in names}


def _better(values_B: Array, than_B: Array) -> bool:
    gain_B = values_B - than_B
    return bool(gain_B.mean() > _NOISE * gain_B.std() / np.sqrt(len(gain_B)))


def pruned_names(choices: Mapping[str, Any]) -> frozenset[str]:
    """The granularities that a training pruned, from its choices."""
    return frozenset(name for name, share in choices.get(KEPT, {}).items() if not share)


def without(config: Config, names: Collection[str]) -> Config:
    """The configuration with these granularities disabled."""
    if not names:
        return config
    changed = config.model_copy(deep=True)
    for name in names:
        getattr(changed.model.granularities, name).enabled = False
    return changed


def transplant(
    weights: Mapping[str, Tensor],
    names: Sequence[str],
    own: Mapping[str, Tensor],
    own_names: Sequence[str],
) -> dict[str, Tensor]:
    """The weights ``own`` of a model, overwritten with those of another model where both have them.

    Parameters
    ----------
    weights : Mapping[str, Tensor]
        The weights of the other model, which may have more or fewer trained granularities.
    names : Sequence[str]
        Its trained granularities, in the order of K.
    own : Mapping[str, Tensor]
        The weights of the model that takes them over.
    own_names : Sequence[str]
        Its trained granularities.
    """
    found = {}
    for key, tensor in own.items():
        other = weights.get(key)
        if key == _FITTED and other is not None and len(other) != len(tensor):
            other = None  # the training had no closed-form granularities; stacking weights them
        if other is not None and key.startswith(_FUSION) and key.endswith("_K"):
            tensor = tensor.clone()
            for k, name in enumerate(own_names):
                if name in names:
                    tensor[k] = other[names.index(name)]
            other = tensor
        found[key] = tensor if other is None else other
    if (
        names and f"{_FUSION}prior_K" in found and _FITTED in found
    ):  # a gate's λ are K times a share
        found[_FITTED] = found[_FITTED] * (len(own_names) / len(names))
    return found


def names_of(
    weights: Mapping[str, Tensor], names: Sequence[str], pruned: Collection[str]
) -> list[str]:
    """The trained granularities that have a λ in these weights, in the order of K: all, or, before
    the phase *join*, those that were not pruned.

    Parameters
    ----------
    weights : Mapping of str to Tensor
        Trainable weights of a model; the length of its λ decides.
    names : Sequence of str
        All trained granularities, in the order of K.
    pruned : Collection of str
        Those that were pruned.
    """
    lengths = {
        len(tensor)
        for key, tensor in weights.items()
        if key.startswith(_FUSION) and key.endswith("_K")
    }
    return [name for name in names if name not in pruned or len(names) in lengths]


@contextmanager
def scaled(fusion: Fusion, names: list[str], shares: Mapping[str, float]) -> Iterator[None]:
    """The fusion with these shares of its λ (1 if not named); restored on exit.

    Parameters
    ----------
    fusion : Fusion
        The fusion, changed in place.
    names : list of str
        Its granularities, in the order of K.
    shares : Mapping of str to float
        Factor of each λ, by name.
    """
    before = {name: tensor.detach().clone() for name, tensor in fusion.state_dict().items()}
    scale(fusion, names, shares)
    try:
        yield
    finally:
        fusion.load_state_dict(before)


@torch.no_grad()
def scale(fusion: Fusion, names: list[str], shares: Mapping[str, float]) -> None:
    """Multiply λ by these shares (1 if not named), permanently.

    Parameters
    ----------
    fusion : Fusion
        The fusion, changed in place.
    names : list of str
        Its granularities, in the order of K.
    shares : Mapping of str to float
        Factor of each λ, by name.
    """
    if any(shares.get(name, 1.0) != 1.0 for name in names):
        device = next(iter(fusion.state_dict().values())).device
        factors_K: Tensor = torch.tensor([shares.get(name, 1.0) for name in names], device=device)
        fusion.load_state_dict({**fusion.state_dict(), **fusion.scaled(factors_K)})

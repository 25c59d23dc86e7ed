"""Losses of training: sums over weighted (query, target) pairs.

As they are sums, workers add them and divide once by the weight of the whole step. Queries exist
for real positions only, so there is no padding to mask.

Legend: B queries, P pairs, S items in view, M negatives, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from recsys.config import LossConfig
from recsys.config.outside import LOSSES, load, resolve
from recsys.errors import ConfigError
from recsys.softmax import LeftOut, full_softmax, sampled_softmax


class Loss(ABC):
    """A loss over the (query, target) pairs of a step; ``train.loss.kind`` may name a subclass of
    another package.

    Workers add their sums and divide once by the weight of the whole step, so a loss is a sum over
    pairs, never a mean.
    """

    # True: a step draws negatives instead of viewing the whole catalogue
    needs_negatives: ClassVar[bool] = False
    # True: a call has the keyword ``left_out`` (LeftOut) where lists leave out seen items
    leaves_out: ClassVar[bool] = False

    def __init__(self, config: LossConfig) -> None:
        self.config = config  # ``config.options`` has the settings of a subclass

    @abstractmethod
    def __call__(
        self,
        users_BD: Tensor,
        items_SD: Tensor,
        pairs_P: Tensor,
        targets_P: Tensor,
        weights_P: Tensor,
        negatives_M: Tensor,
        log_q_M: Tensor,
    ) -> Tensor:
        """Return Σ_p w_p loss_p, a scalar.

        Parameters
        ----------
        users_BD : Tensor
            User vectors, already divided by the temperature.
        items_SD : Tensor
            Vectors of the items in view.
        pairs_P : Tensor
            Query of each pair, int64.
        targets_P : Tensor
            Target of each pair as a row of ``items_SD``, int64.
        weights_P : Tensor
            Weight of each pair.
        negatives_M : Tensor
            Rows of ``items_SD`` that were drawn; empty unless ``needs_negatives``.
        log_q_M : Tensor
            Log of the expected number of draws of each negative in a step.
        """


class FullSoftmax(Loss):
    """The exact softmax over all items; see :func:`full_softmax`."""

    leaves_out = True

    def __call__(
        self,
        users_BD: Tensor,
        items_SD: Tensor,
        pairs_P: Tensor,
        targets_P: Tensor,
        weights_P: Tensor,
        negatives_M: Tensor,
        log_q_M: Tensor,
        left_out: LeftOut | None = None,
    ) -> Tensor:
        """Σ_p w_p loss_p over all items in view."""
        known = (users_BD, items_SD, pairs_P, targets_P, weights_P)
        return full_softmax(*known, self.config.label_smoothing, left_out)


class SampledSoftmax(Loss):
    """The softmax over a target and shared negatives; see :func:`sampled_softmax`.

    Raises
    ------
    ConfigError
        Label smoothing is set, which this loss does not have.
    """

    needs_negatives = True
    leaves_out = True

    def __init__(self, config: LossConfig) -> None:
        super().__init__(config)
        if config.label_smoothing:
            raise ConfigError(
                "train.loss.label_smoothing works with full_softmax only; set it to 0, or set "
                "train.loss.kind to full_softmax"
            )

    def __call__(
        self,
        users_BD: Tensor,
        items_SD: Tensor,
        pairs_P: Tensor,
        targets_P: Tensor,
        weights_P: Tensor,
        negatives_M: Tensor,
        log_q_M: Tensor,
        left_out: LeftOut | None = None,
    ) -> Tensor:
        """Σ_p w_p loss_p over the drawn negatives."""
        known = (users_BD, items_SD, pairs_P, targets_P, weights_P)
        return sampled_softmax(*known, negatives_M=negatives_M, log_q_M=log_q_M, left_out=left_out)


def make_loss(config: LossConfig, num_items: int) -> Loss:
    """Return the loss that a configuration names, for a catalogue of this size.

    Raises
    ------
    ConfigError
        No installed package offers the kind, or its class cannot be imported.
    """  # noqa: DOC501
    if config.kind == "auto":
        return (FullSoftmax if num_items <= config.max_full_items else SampledSoftmax)(config)
    ours = {"full_softmax": FullSoftmax, "sampled_softmax": SampledSoftmax}
    if config.kind in ours:
        return ours[config.kind](config)
    try:
        offer = resolve(LOSSES, config.kind)
        if offer is None:
            raise ValueError(f"no installed package offers it by an entry point of {LOSSES}")
        made: Loss = load(offer, Loss)(config)
    except ValueError as error:
        raise ConfigError(f"train.loss.kind {config.kind!r}: {error}") from None
    return made

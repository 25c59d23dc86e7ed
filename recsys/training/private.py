"""DP-SGD (Abadi et al. 2016) with a user as the unit: adding or removing one user changes the model
only little.

Every step draws each user with probability q, clips the gradient of each user's loss to norm C,
sums the gradients, and adds Gaussian noise:

    g = (Σ_{u drawn} g_u · min(1, C / ‖g_u‖) + N(0, σ² C² I)) / (q U)

σ is the smallest value, up to 0.05 %, for which the accountant of Opacus (Rényi differential
privacy, Mironov 2017; Poisson sampling) gives ε at δ for all steps and the noised counts of items
together.

Why not the hooks of Opacus: they compute a gradient per sample for layers whose first axis is the
samples. Our item tower computes all items at once, so its first axis is items, and the loss of
every user depends on all of them. So each user gets a separate backward pass.

σ protects the trained weights, item vectors and counts. It does not protect the histories in a
bundle, or the figures, which come from real test users. The noise comes from torch's generator,
seeded by the operating system: no seed in the configuration reproduces a private training. Legend:
U users, N items, P parameters.
"""

from __future__ import annotations

import math
import secrets
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from recsys.config import DataConfig, ModelConfig, TrainConfig
from recsys.config.privacy import PrivateConfig
from recsys.config.privacy_rules import privacy_violations
from recsys.data.histories import Array, Histories
from recsys.data.loader import TrainingLoader
from recsys.errors import ConfigError
from recsys.training.checkpoint import Progress
from recsys.training.context import TrainContext
from recsys.training.fresh_model import Start

PRIVACY: Final = "privacy"  # key of the training's choices
COUNTED_ITEMS: Final = 20  # most items per user in the noised counts
_MOST_NOISE: Final = 1e3
# orders of the Rényi divergence that a small ε needs
_LARGE_ORDERS: Final = (80, 112, 160, 224, 320, 448, 640, 896)
_WHOLE_ORDERS: Final = (*range(2, 11), *range(12, 64), *_LARGE_ORDERS)
# those of Opacus, and the large ones
_ORDERS: Final = (*(1 + tenths / 10 for tenths in range(1, 100)), *range(12, 64), *_LARGE_ORDERS)
_PRECISION: Final = 5e-4  # of the noise, relative


@dataclass(frozen=True)
class Budget:
    """The privacy budget of a training and its parameters."""

    epsilon: float  # spent; at most the requested one
    delta: float
    noise_multiplier: float  # σ
    clip: float  # C
    sample_rate: float  # q
    steps: int
    counts_noise_multiplier: float  # of the counts of items
    users: int
    unit: str = "user"
    accountant: str = "opacus, RDP"

    def to_json(self) -> dict[str, Any]:
        """The content as plain values for JSON."""
        return asdict(self)

    @property
    def steps_of_epoch(self) -> int:
        """Number of steps of an epoch."""
        return max(1, round(1 / self.sample_rate))


def plan(settings: PrivateConfig, num_users: int, batch_size: int, epochs: int) -> Budget:
    """The budget of a training. An epoch has as many steps as draw each user once on average.

    Parameters
    ----------
    settings : PrivateConfig
        The section ``train.privacy``; a ``delta`` of 0 is set by the number of users.
    num_users : int
        Number of users with training rows.
    batch_size : int
        Users per step on average.
    epochs : int
        Number of epochs.

    Returns
    -------
    Budget
        The smallest noise that keeps ε, and the budget that it spends.

    Raises
    ------
    ConfigError
        Opacus is not installed, or ε is too small for so many steps.
    """
    rate = min(1.0, batch_size / max(num_users, 1))
    delta = settings.delta or 10.0 ** math.floor(math.log10(1 / (10 * max(num_users, 1))))
    steps = epochs * max(1, round(1 / rate))
    counts = _least_noise(
        lambda s: [(s, 1.0, 1)], settings.epsilon * settings.popularity_share, delta
    )
    sigma = _least_noise(lambda s: [(s, rate, steps), (counts, 1.0, 1)], settings.epsilon, delta)
    spent = _epsilon([(sigma, rate, steps), (counts, 1.0, 1)], delta, _ORDERS)
    return Budget(spent, delta, sigma, settings.clip, rate, steps, counts, num_users)


def _least_noise(history: Any, epsilon: float, delta: float) -> float:
    """The smallest noise multiplier for which a history of mechanisms stays within ε, at most
    0.05 % too large.

    Why two searches: fractional orders lower the noise a little, and cost a hundred times as much
    as whole ones.

    Raises
    ------
    ConfigError
        Even the largest noise exceeds ε.
    """

    def stays_within(noise: float, orders: Sequence[float]) -> bool:
        return _epsilon(history(noise), delta, orders) <= epsilon

    low, high = 1e-2, 1.0
    while not stays_within(high, _WHOLE_ORDERS):
        low, high = high, 2 * high
        if high > _MOST_NOISE:
            raise ConfigError(
                f"train.privacy.epsilon: no noise of reasonable size keeps ε {epsilon:g} at δ"
                f" {delta:g}; ask for a larger one, or for fewer epochs (train.epochs)"
            )
    high = _bisected(low, high, lambda noise: stays_within(noise, _WHOLE_ORDERS))
    while stays_within(low := 0.9 * high, _ORDERS):
        high = low
    return _bisected(low, high, lambda noise: stays_within(noise, _ORDERS))


def _bisected(low: float, high: float, holds: Callable[[float], bool]) -> float:
    """The smallest value for which a condition holds; it holds for ``high`` and not for ``low``."""
    while high - low > _PRECISION * high:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _epsilon(
    history: list[tuple[float, float, int]], delta: float, orders: Sequence[float]
) -> float:
    try:
        from opacus.accountants import RDPAccountant
    except ImportError:
        raise ConfigError(
            "train.privacy needs Opacus: run `pip install 'multigrain[privacy]'`"
        ) from None
    accountant = RDPAccountant()
    accountant.history = history
    with warnings.catch_warnings():
        # about a best order at the end of the range: the bound still holds
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta=delta, alphas=[*orders]))


def private_progress(
    data: DataConfig,
    model: ModelConfig,
    train: TrainConfig,
    progress: Progress,
    start: Start | None,
) -> Progress:
    """A private training chooses nothing, so it starts at the refit if ``train.refit`` is true.

    Parameters
    ----------
    data : DataConfig
        The section ``data``.
    model : ModelConfig
        The section ``model``.
    train : TrainConfig
        The section ``train``.
    progress : Progress
        Where the training stands.
    start : Start | None
        Where a warm start begins; it must be None.

    Returns
    -------
    Progress
        Where the training begins.

    Raises
    ------
    ConfigError
        It would start from weights whose training the budget does not count, or the settings are
        not private.
    """
    if start is not None:
        raise ConfigError(
            "train.privacy: a private training cannot start from another model, because ε would"
            " not include the training of that model; train from scratch with `recsys run`, or set"
            " train.privacy.epsilon 0"
        )
    if wrong := list(privacy_violations(data, model, train)):
        raise ConfigError("settings contradict each other:\n  " + "\n  ".join(wrong))
    if progress.phase != "select" or not train.refit:
        return progress
    return replace(progress, phase="refit", best_epoch=train.epochs)


class PrivateSteps:
    """The gradients of a private training: of drawn users, clipped, summed and with noise."""

    def __init__(self, loader: TrainingLoader, budget: Budget, device: torch.device) -> None:
        self.loader, self.budget, self.device = loader, budget, device
        rows, _ = loader.all_rows()
        users, row_users = np.unique(rows.users_U, return_inverse=True)
        # stable, so that the rows of a user stay in the order of the loader
        order = np.argsort(row_users, kind="stable")
        self._rows_of = np.split(
            order, np.cumsum(np.bincount(row_users, minlength=len(users)))[:-1]
        )
        # from the operating system: anyone who knows the seed can subtract the noise
        self._random = np.random.default_rng(secrets.randbits(128))
        self._noise = torch.Generator(device=device).manual_seed(secrets.randbits(63))

    @staticmethod
    def num_users(loader: TrainingLoader) -> int:
        """Number of users with training rows."""
        return len(np.unique(loader.all_rows()[0].users_U))

    def drawn(self) -> list[int]:
        """One row for each user that a step draws."""
        chosen = np.flatnonzero(self._random.random(len(self._rows_of)) < self.budget.sample_rate)
        return [int(self._random.choice(self._rows_of[user])) for user in chosen]

    def set_gradients(
        self, loss: torch.nn.Module, rows: list[int], key: tuple[int, int, int]
    ) -> tuple[float, float]:
        """Set the noised gradient of every trainable parameter; return the summed loss of the users
        and their weight.

        Parameters
        ----------
        loss : torch.nn.Module
            Gives the summed loss of a batch.
        rows : list of int
            One row of the loader for each drawn user, as :meth:`drawn` returns them.
        key : tuple of three int
            Seed, epoch and step.

        Returns
        -------
        total : float
            Loss summed over the targets, without noise; the budget does not cover it.
        weight : float
            Weight of these targets.
        """
        parameters = [parameter for parameter in loss.parameters() if parameter.requires_grad]
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        total = weight = 0.0
        for row in rows:
            batch, targets = self.loader.batch_of(np.array([row]), key[1])
            if not targets:
                continue
            summed = loss(batch.to(self.device), key)
            # a mean over the user's targets, as a user with many would only be clipped more
            found = torch.autograd.grad(summed / targets, parameters, allow_unused=True)
            add_clipped(sums, found, self.budget.clip)
            total, weight = total + float(summed.detach()), weight + targets
        # by the expected number of users, not the drawn one, which is itself private
        scale = 1 / (self.budget.sample_rate * self.budget.users)
        for parameter, of_all in zip(parameters, sums, strict=True):
            parameter.grad = (of_all + self._normal(of_all)) * scale
        return total, weight

    def _normal(self, like: Tensor) -> Tensor:
        std = self.budget.noise_multiplier * self.budget.clip
        return std * torch.randn(
            like.shape, generator=self._noise, device=like.device, dtype=like.dtype
        )

    def counts(self, histories: Histories, num_items: int) -> Tensor:
        """The noised number of users of each item, with at most :data:`COUNTED_ITEMS` items per
        user: [N] float32.
        """
        noise_N = torch.randn(num_items, generator=self._noise, device=self.device).cpu()
        # a user changes at most COUNTED_ITEMS counts by one: an L2 sensitivity of its root
        std = self.budget.counts_noise_multiplier * math.sqrt(COUNTED_ITEMS)
        exact_N = torch.from_numpy(bounded_counts(histories, num_items, self._random)).float()
        # rounding and clamping read only the noised counts, so they cost no privacy
        return (exact_N + std * noise_N).round().clamp(min=0).to(self.device)


def private_steps(
    train: TrainConfig,
    loader: TrainingLoader,
    context: TrainContext,
    num_items: int,
    num_negatives: int,
) -> PrivateSteps:
    """The steps of a private training; notes its noise and its budget.

    Parameters
    ----------
    train : TrainConfig
        The section ``train``.
    loader : TrainingLoader
        The training rows, from which users are drawn.
    context : TrainContext
        Device; ``note`` gets the line.
    num_items : int
        Number of items, for the message.
    num_negatives : int
        Negatives of a sampled softmax; it must be 0, a softmax over all items.

    Returns
    -------
    PrivateSteps
        The steps.

    Raises
    ------
    ConfigError
        Negatives would be drawn by item frequency, which is not private.
    """
    if num_negatives:
        raise ConfigError(
            f"train.privacy: {num_items:,} items are more than train.loss.max_full_items"
            f" {train.loss.max_full_items:,}, and a sampled softmax draws negatives by item"
            " frequency, which is not private; set train.loss.max_full_items higher"
        )
    users = PrivateSteps.num_users(loader)
    budget = plan(train.privacy, users, train.batch_size, train.epochs)
    context.note(
        f"private training: noise {budget.noise_multiplier:.3f} in {budget.steps:,} steps of a"
        f" share {budget.sample_rate:.3f} of the users gives ε {budget.epsilon:.3f} at δ"
        f" {budget.delta:.0e}"
    )
    return PrivateSteps(loader, budget, context.device)


def add_clipped(sums: list[Tensor], gradients: tuple[Tensor | None, ...], most: float) -> None:
    """Add a user's gradient to ``sums``, clipped to a norm of at most
    ``most`` over all parameters.

    Parameters
    ----------
    sums : list of Tensor
        Sum of each parameter; changed in place.
    gradients : tuple of Tensor or None
        Gradient of each parameter; None where it has none.
    most : float
        Clipping norm C.
    """
    there = [gradient for gradient in gradients if gradient is not None]
    length = torch.sqrt(
        sum(
            # float64: a sum over millions of squares decides how much a user may count
            (gradient.double().square().sum() for gradient in there),
            torch.zeros((), dtype=torch.double),
        )
    )
    # a gradient of zero stays zero instead of NaN
    factor = min(1.0, most / max(float(length), 1e-12))
    for of_all, gradient in zip(sums, gradients, strict=True):
        if gradient is not None:
            of_all.add_(gradient, alpha=factor)


def bounded_counts(histories: Histories, num_items: int, random: np.random.Generator) -> Array:
    """Number of users of every item; each user counts for at most :data:`COUNTED_ITEMS` items drawn
    at random: [N].

    Parameters
    ----------
    histories : Histories
        One row per user.
    num_items : int
        Number of items N.
    random : np.random.Generator
        Draws the items of users who have more.

    Returns
    -------
    array, [N] int64
        The exact counts, still without noise.
    """
    counts_N = np.zeros(num_items, dtype=np.int64)
    for start, stop in zip(
        histories.offsets_U1[:-1].tolist(), histories.offsets_U1[1:].tolist(), strict=True
    ):
        items = np.unique(histories.items_E[start:stop])
        if len(items) > COUNTED_ITEMS:
            items = random.choice(items, COUNTED_ITEMS, replace=False)
        counts_N[items] += 1
    return counts_N

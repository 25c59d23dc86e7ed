"""The weights that an update starts from: the parent's, extended to new users and items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pipelines.plumbing.opened_dataset import open_dataset
from pipelines.plumbing.run_folder import RunFolder
from pipelines.steps.stacking import OfParent
from pipelines.train import Descent
from recsys.config import Config
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Histories, Split
from recsys.errors import DataError
from recsys.evaluation.validation import Validator
from recsys.model import load_sizes
from recsys.registry.parent import Parent
from recsys.training.fresh_model import Start
from recsys.training.members import trained_part
from recsys.training.separate_models import own_config, own_weights, sections
from recsys.training.warm_start import Earlier, NewerOnly, newer_users, warm_start

# Weights with fewer validation users than this share of the best alternative are not used.
_ENOUGH: Final = 0.5


@dataclass(frozen=True)
class Held:
    """Weights of the parent, and the last split of its data that they were trained or chosen on."""

    earlier: Earlier
    through: Split


def held_weights(parent: Parent) -> list[Held]:
    """The parent's weights, those trained on most data first.

    A parent with ``train.final`` also holds its evaluated weights. They are needed if the new split
    tests on events that the final weights were trained on.
    """
    text = parent.bundle.info.text_identity
    # validation events count as seen, because they chose the epoch
    measured = Held(Earlier(parent.measured_training(), parent.measured().sizes, text), Split.VALID)
    if not parent.seen_all:
        return [measured]
    return [Held(Earlier(parent.training(), parent.bundle.model.sizes, text), Split.TEST), measured]


def chosen_weights(
    dataset: PreparedDataset, known: Histories, held: list[Held]
) -> tuple[Earlier, Array]:
    """The weights to start from, and the users whose validation events are new to them.

    These are the weights trained on most data, unless they were trained on test events, or too few
    users are left to choose epochs and weights of members.

    Parameters
    ----------
    dataset : PreparedDataset
        The dataset of the update.
    known : Histories
        All events of the parent.
    held : list[Held]
        The parent's weights, those trained on most data first.

    Returns
    -------
    tuple of (Earlier, Array)
        The weights, and bool [V]: the users to validate on.

    Raises
    ------
    DataError
        No weights can be validated and tested on this dataset.
    """
    found: list[tuple[Earlier, Array]] = []
    for number, one in enumerate(held, 1):
        try:
            found.append((one.earlier, newer_users(dataset, known.through(one.through))))
        except DataError:
            if number == len(held) and not found:
                raise
    # a few validation users would choose the epoch by chance
    most = max(int(newer_V.sum()) for _, newer_V in found)
    return next(pair for pair in found if pair[1].sum() >= _ENOUGH * most)


def descent_of(config: Config, folder: RunFolder, parent: Parent, held: list[Held]) -> Descent:
    """The parent's weights, extended to the new users and items, with validation on events new to
    them.

    Parameters
    ----------
    config : Config
        Configuration of the update.
    folder : RunFolder
        Folder of the update; it prints what is new.
    parent : Parent
        The model to start from.
    held : list[Held]
        The parent's weights, those trained on most data first.

    Returns
    -------
    Descent
        Start weights, validation and the reference to the parent.

    Raises
    ------
    ArtifactError
        The data, or a setting that decides shapes, is not that of the parent.
    """
    dataset: PreparedDataset = open_dataset(config.data, config.dataset_dir, config.seed)
    earlier, newer_V = chosen_weights(dataset, parent.bundle.histories, held)
    if earlier is not held[0].earlier:
        folder.progress(
            "the parent's final weights were trained on events that this split validates or tests"
            " on: starting from its evaluated weights"
        )
    settings = trained_part(config)
    grown, missing = warm_start(settings.model, settings.train, settings.seed, dataset, earlier)
    new = [
        f"{dataset.num_users - earlier.sizes.num_users:,} users",
        f"{dataset.num_items - earlier.sizes.num_items:,} items",
        f"{len(dataset.manifest.event_types) - earlier.sizes.num_types:,} event types",
    ]
    folder.progress(
        f"warm start; new: {', '.join(new)}; validation on {int(newer_V.sum()):,} users"
    )
    known = [
        name
        for name, section in sections(config.model).items()
        if section.signal in earlier.sizes.inputs
    ]
    # the parent's stacking dropped them
    missing = [*missing, *(name for name in sections(config.model) if name not in known)]
    if missing:
        folder.progress(
            f"training from scratch, because the parent has no weights for it: {', '.join(missing)}"
        )
    apart = {name: _grown_apart(config, dataset, earlier, name) for name in known}
    return Descent(
        grown,
        NewerOnly(Validator.of(config.train, config.evaluate), newer_V),
        parent.describe(),
        apart,
        OfParent(newer_V, member_weights(parent)),
    )


def member_weights(parent: Parent) -> dict[str, list[float]]:
    """The stacking weights of the parent by member and group; empty without stacking."""
    encoders = parent.bundle.model.encoders
    if encoders.stack is None:
        return {}
    weights_MG = encoders.stack.weights_GM.T.tolist()
    return dict(zip(encoders.members, weights_MG, strict=True))


def _grown_apart(config: Config, dataset: PreparedDataset, earlier: Earlier, name: str) -> Start:
    """The start weights of a separately trained model."""
    sizes = load_sizes(earlier.sizes.inputs[sections(config.model)[name].signal])
    own = Earlier(own_weights(earlier.weights, name), sizes, earlier.text_identity)
    settings = own_config(config, name)
    return warm_start(settings.model, settings.train, settings.seed, dataset, own)[0]

"""Build a fresh model and its graphs from a prepared dataset. Events after the given split are
never read.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.config import EvaluateConfig, ModelConfig, TrainConfig
from recsys.data.bounded import fitted_histories
from recsys.data.dataset import PreparedDataset
from recsys.data.event_table import EventTable
from recsys.data.histories import Array, Histories, Split
from recsys.data.loader import LoaderConfig, TrainingLoader
from recsys.data.look_ahead import default_look_ahead
from recsys.data.neighbours import Neighbours
from recsys.data.whitening import Whitening, whitened_width
from recsys.granularities import granularity_class
from recsys.granularities.base import Graphs, ModelSizes
from recsys.granularities.behaviour.section import USER_TEXT
from recsys.granularities.stratum.section import STRATUM
from recsys.model import MultigrainModel
from recsys.sharded_rows import Shard, from_all
from recsys.training.context import TrainContext


@dataclass(frozen=True)
class Start:
    """Where a training starts instead of at random: weights, and the
    shapes that their model fixed.
    """

    weights: dict[str, Tensor]
    # ``ModelSizes.inputs`` of the earlier model
    inputs: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()  # the trained granularities, in the order of λ in the weights

    def whitening(self) -> list[Whitening] | None:
        """The text axes on which the projections were trained, by group; None for a model without
        text.
        """
        if "model.tower.text_axes_GTW" not in self.weights:
            return None
        tensors = (
            self.weights[f"model.tower.text_{name}"].cpu() for name in ("mean_GT", "axes_GTW")
        )
        return [Whitening(mean_T, axes_TW) for mean_T, axes_TW in zip(*tensors, strict=True)]


def model_sizes(
    model: ModelConfig,
    dataset: PreparedDataset,
    through: Split,
    num_strata: int = 0,
    start: Start | None = None,
) -> ModelSizes:
    """The sizes of a model for a dataset, from the events through a split.

    Each granularity gives the size of its signal, or keeps the size in ``start``.

    Parameters
    ----------
    model : ModelConfig
        The section ``model`` of the configuration.
    dataset : PreparedDataset
        The dataset that the model is for.
    through : Split
        The last split whose events are read.
    num_strata : int
        The number of user clusters that was chosen; 0 for the most that the configuration allows.
    start : Start | None
        Where a warm start begins.
    """
    group_width = int(dataset.manifest.text.get("dimension", 0)) // len(dataset.text_groups)
    earlier = dict(start.inputs) if start else {}
    inputs: dict[str, Any] = {}
    for name, section in model.granularities.enabled().items():
        cls = granularity_class(name, section)
        if section.signal and section.signal not in inputs:
            keeps = cls.keeps_size and section.signal in earlier
            size = earlier[section.signal] if keeps else cls.size(section, dataset, through)
            inputs |= {} if size is None else {section.signal: size}
    if num_strata:
        inputs[STRATUM] = num_strata
    return ModelSizes(
        width=model.width,
        max_history=model.max_history,
        num_users=dataset.num_users,
        num_items=dataset.num_items,
        num_types=len(dataset.manifest.event_types),
        text_width=whitened_width(model.item.text_whiten, group_width) * len(dataset.text_groups),
        ordered=dataset.manifest.ordered,
        timed=dataset.manifest.timed,
        context=tuple((column.name, column.num_codes) for column in dataset.context),
        inputs=inputs,
    )


def build_model(
    section: ModelConfig,
    train: TrainConfig,
    dataset: PreparedDataset,
    through: Split,
    num_strata: int = 0,
    start: Start | None = None,
    shard: Shard | None = None,
) -> MultigrainModel:
    """A fresh model, which reads texts and attributes as the model of ``start`` does.

    Items without events through ``through`` have no id embedding. The parameters are those of
    :func:`model_sizes`.

    Parameters
    ----------
    section : ModelConfig
        The section ``model``.
    train : TrainConfig
        Whether the training is private.
    dataset : PreparedDataset
        The dataset that the model is for.
    through : Split
        The last split whose events are read.
    num_strata : int
        As for :func:`model_sizes`.
    start : Start or None
        Where a warm start begins. Only the shapes and the text axes are taken from it; the caller
        loads the weights.
    shard : Shard or None
        The id rows that this worker holds; None: all.

    Returns
    -------
    MultigrainModel
        The model, on the CPU.

    Raises
    ------
    ConfigError
        The dataset lacks what a granularity reads.
    """
    text_NT = torch.as_tensor(dataset.text_vectors_NT().astype(np.float32))
    trained_N = torch.as_tensor(dataset.item_counts_N(through) > 0)
    if train.privacy.epsilon:
        # the set of items without events would reveal private events
        trained_N = torch.ones_like(trained_N)
    sizes = model_sizes(section, dataset, through, num_strata, start)
    whitening = start.whitening() if start else None
    model = MultigrainModel(
        section, sizes, text_NT, trained_N, len(dataset.text_groups), whitening, shard
    )
    for _, module in model.encoders.each():
        module.adapt(dataset)
    return model


def build_loader(
    model: ModelConfig,
    train: TrainConfig,
    seed: int,
    dataset: PreparedDataset,
    through: Split,
    context: TrainContext,
) -> TrainingLoader:
    """The training batches of one worker.

    Parameters
    ----------
    model : ModelConfig
        Length of a history, and whether user texts are read.
    train : TrainConfig
        Batch size and other settings of the batches.
    seed : int
        Seed of the batches.
    dataset : PreparedDataset
        The dataset to train on.
    through : Split
        The last split to train on.
    context : TrainContext
        Rank of the worker, and number of workers.

    Raises
    ------
    DataError
        There are fewer trainable users than workers.
    ConfigError
        A setting has no effect on this data.
    """
    look_ahead = train.look_ahead
    if look_ahead is None:
        look_ahead = default_look_ahead(dataset) or 0
    settings = LoaderConfig(
        train.batch_size,
        model.max_history,
        train.history_mask_rate,
        train.loss.event_power,
        train.window_events,
        seed,
        any(section.signal == USER_TEXT for section in model.granularities.enabled().values()),
        train.shuffle_ties,
        look_ahead,
        train.short_history_rate,
    )
    return TrainingLoader(dataset, through, settings, context.rank, context.world_size)


def build_graphs(
    dataset: PreparedDataset,
    through: Split,
    model: MultigrainModel | None = None,
    evaluate: EvaluateConfig | None = None,
    seed: int = 0,
    context: TrainContext | None = None,
) -> Graphs:
    """The user–item events through a split, and the other inputs of the granularities of ``model``.

    Each item of a user occurs once. The events have the form that ``model`` needs: a table in
    files, lists in files, or counts only; without a model, a table.

    Ordered histories with repeats and times are loaded only if a granularity of ``model`` reads
    them, as they take 27 bytes per event. They are those that baselines are fitted on: an even
    sample of users with about ``evaluate.max_fit_events`` events, or all users without
    ``evaluate``.

    Parameters
    ----------
    dataset : PreparedDataset
        The dataset.
    through : Split
        The last split whose events are read.
    model : MultigrainModel or None
        The model that reads the graphs.
    evaluate : EvaluateConfig or None
        Bounds the histories; None: all users.
    seed : int
        Seed of the sample of users.
    context : TrainContext or None
        The worker, if all workers of a training call this: those of a machine share the table.

    Returns
    -------
    Graphs
        The graphs, on the CPU.
    """
    none = np.zeros(0, dtype=np.int32)
    table = EventTable(none, none, none.astype(np.float32))
    counted_N = None
    neighbours = None
    if model is None or model.reads_events:
        table = _table(dataset, through, context)
    if model is not None and model.is_sampled:
        neighbours = Neighbours.of_dataset(dataset, through)
    if model is not None and not model.reads_events:
        counted_N = (
            _users_of_items(dataset, through)
            if neighbours is None
            else neighbours.users_of_N.degree_X
        )
    return Graphs(
        dataset.num_users,
        dataset.num_items,
        torch.as_tensor(table.users_E),
        torch.as_tensor(table.items_E),
        values_E=torch.as_tensor(table.values_E),
        neighbours=neighbours,
        counted_N=None if counted_N is None else torch.as_tensor(counted_N).float(),
        histories=(
            _histories(dataset, through, evaluate, seed)
            if model is not None and model.reads_histories
            else None
        ),
        inputs={} if model is None else build_inputs(model, dataset, through),
    )


def build_inputs(
    model: MultigrainModel, dataset: PreparedDataset, through: Split
) -> dict[str, Any]:
    """The inputs of the granularities of a model besides the events, by signal.

    Parameters
    ----------
    model : MultigrainModel
        The model that reads the inputs.
    dataset : PreparedDataset
        The dataset.
    through : Split
        The last split that is read.

    Returns
    -------
    dict of str to object
        Signals without an input are left out.
    """
    inputs: dict[str, Any] = {}
    for name, section in model.config.granularities.enabled().items():
        if section.signal and section.signal not in inputs:
            found = granularity_class(name, section).build_input(
                section, model.sizes, dataset, through
            )
            inputs |= {} if found is None else {section.signal: found}
    return inputs


def _histories(
    dataset: PreparedDataset, through: Split, evaluate: EvaluateConfig | None, seed: int
) -> Histories:
    if evaluate is None:
        return dataset.histories(through=through)
    return fitted_histories(dataset, evaluate, seed, through)


def _table(dataset: PreparedDataset, through: Split, context: TrainContext | None) -> EventTable:
    """The table of events, which the first worker of each machine writes and the others map."""
    if context is None or context.world_size == 1:
        return EventTable.of_dataset(dataset, through)
    worker, machine = Shard(context.rank, context.world_size), socket.gethostname()
    writer = from_all(worker, machine).index(machine)
    with tempfile.TemporaryDirectory(prefix="multigrain-") as folder:
        table = EventTable.of_dataset(dataset, through, folder) if writer == worker.rank else None
        paths = from_all(worker, table.paths if table else [])[writer]
        found = table or EventTable.at(paths)
        from_all(worker, "mapped")  # before the names are removed
    return found


def _users_of_items(dataset: PreparedDataset, through: Split) -> Array:
    """The number of users of each item, counted shard by shard: [N]."""
    counted_N = np.zeros(dataset.num_items, dtype=np.int64)
    for shard in dataset.shards():
        seen = shard.through(through)
        rows_E = np.repeat(np.arange(len(seen)), seen.lengths_U)
        pairs = np.unique(rows_E * dataset.num_items + seen.items_E)
        counted_N += np.bincount(pairs % dataset.num_items, minlength=dataset.num_items)
    return counted_N

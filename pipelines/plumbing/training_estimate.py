"""Estimate memory, shuffle, steps and hours of a training from its configuration and data sizes.

The memory is estimated from the sizes of the tensors; a test compares it with measured peaks. It
should be between half and twice the truth. The hours are much rougher, from declared speeds.

Not covered: memory of GPUs, and media, profile and text of users.

Legend: B users of a step, L history length, D width, N items, V users, E events, U rows, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from recsys.config import DataConfig, EvaluateConfig, ModelConfig, SyntheticSource, TrainConfig
from recsys.config.sharding_rules import sharding_violations
from recsys.config.workload import FLOAT, DataSizes, Estimate, Workload
from recsys.data.dataset import PreparedDataset
from recsys.data.manifest import Manifest
from recsys.errors import UserError
from recsys.preparation.content_hash import settings_hash

_GIB: Final = 1 << 30
_PROGRAM: Final = 600 << 20  # bytes of Python, torch, Ray and their own allocations
_COPIES: Final = 6  # copies of a parameter: value, gradient, two moments, best epoch, checkpoint
_TRAINED_COPIES: Final = 4  # the copies that no training can do without
_SHARDED_COPIES: Final = 4  # of a sharded row: value, two moments, best epoch
_LOGITS: Final = 2**23  # logits in memory at a time in the full softmax
_EVENT: Final = 60  # bytes per event in a window, with the copies made by cutting and sorting
# The table of user–item events is in files. While it is written, an event of the shard that is read
# takes _SHARD_EVENT bytes; `prepare` makes shards of about _SHARD events.
_SHARD_EVENT, _SHARD = 200, 2**21
_TABLE_USER: Final = 64  # bytes per user of that table
_SCORES: Final = 2**25  # scores in memory at a time in a ranking
_SHUFFLED: Final = 120  # bytes per event in `prepare`, before and after the shuffle
# Declared speeds: those that training steps reach, not the peak of a device.
_CPU_FLOPS, _GPU_FLOPS, _CPU_STEP_S, _GPU_STEP_S = 1.5e10, 5e12, 0.01, 0.01


def _of_manifest(manifest: Manifest) -> DataSizes:
    counts = manifest.counts
    return DataSizes(
        counts.get("users", 0),
        counts.get("items", 0),
        counts.get("train", 0) + counts.get("valid", 0),
        int(manifest.text.get("dimension", 0)),
        counts.get("entities", 0),
        counts.get("triples", 0),
        counts.get("social_edges", 0),
        manifest.ordered,
    )


@dataclass(frozen=True)
class Need:
    """The memory, shuffle and time that a training needs."""

    memory: dict[str, float]  # part → bytes of one worker; all parts are in memory at the same time
    table_bytes: float  # embedding tables with gradient and moments
    row_bytes: float  # the part of them that ``train.shard_rows`` shards
    shuffle: float  # bytes through the object store in `prepare`
    steps: int
    hours: float

    @property
    def total(self) -> float:
        """Bytes of memory of one worker."""
        return sum(self.memory.values())


def sizes_of(
    data: DataConfig, dataset_dir: str, seed: int, manifest: Manifest | None = None
) -> DataSizes | None:
    """Data sizes from the prepared dataset or, if there is none, from the source; None if
    unknown.

    Parameters
    ----------
    data : DataConfig
        The section ``data``.
    dataset_dir : str
        Folder of the dataset.
    seed : int
        Seed of the configuration; a dataset of another seed is not read.
    manifest : Manifest, optional
        Manifest of the dataset, if it has been read already.
    """
    if manifest is not None:
        return _of_manifest(manifest)
    try:
        there = PreparedDataset(dataset_dir).manifest
        if there.settings_hash == settings_hash(data, seed):
            return _of_manifest(there)
    except (UserError, OSError):
        pass
    source = data.source
    if not isinstance(source, SyntheticSource):
        return None
    width = 384 if data.text.enabled else 0
    return DataSizes(
        source.num_users,
        source.num_items,
        int(source.num_users * source.events_per_user),
        width,
        exact=False,
    )


def need(
    model: ModelConfig,
    train: TrainConfig,
    evaluate: EvaluateConfig,
    sizes: DataSizes,
    gpu: bool = False,
) -> Need:
    """The estimate for one worker of ``train.num_workers``; each granularity reports its own
    part.

    Parameters
    ----------
    model : ModelConfig
        Width, history and granularities.
    train : TrainConfig
        Batch size, epochs and workers.
    evaluate : EvaluateConfig
        Number of users that are ranked at a time.
    sizes : DataSizes
        Numbers of users, items and events.
    gpu : bool
        Estimate the time on a GPU; the memory stays that of the host.

    Returns
    -------
    Need
        Memory in bytes, steps and hours.
    """
    width, workers = model.width * model.granularities.are_trained, train.num_workers
    steps, rows, length = _steps(model, train, sizes)
    parts = estimates(model, train, evaluate, sizes)
    shards = num_shards(train)
    rows_of_items = sizes.items * width * model.item.id / shards
    tables = sum(part.parameters for part in parts.values())
    dense = 12 * width**2 * sum(part.layers for part in parts.values())
    kept = min(model.item.text_whiten or sizes.text_width, sizes.text_width)
    copies = _COPIES + (workers > 1)
    row_copies = copies if shards == 1 else _SHARDED_COPIES
    memory = {
        "program": float(_PROGRAM),
        "tables": float((tables + dense) * FLOAT * copies + rows_of_items * FLOAT * row_copies),
        "text": float(sizes.items * (sizes.text_width * 6 + kept * 2 * FLOAT)),
        "graph": float(
            (min(sizes.events, _SHARD) * _SHARD_EVENT + sizes.users * _TABLE_USER)
            * any(part.reads_events for part in parts.values())
            + sum(part.graph for part in parts.values())
        ),
        "events": float(min(train.window_events, sizes.events) * _EVENT),
    }
    phases = {
        "step": _step(model, train, sizes, rows, length, parts),
        "validation": _validation(model, train, evaluate, sizes, parts),
        "fitted": max((part.fitting for part in parts.values()), default=0.0),
    }
    # the phases run one after the other, so the largest counts
    largest = max(phases, key=lambda name: phases[name])
    memory[largest] = phases[largest]
    seconds = _seconds(model, train, sizes, rows, length, parts, gpu) * steps
    return Need(
        memory,
        (tables + rows_of_items) * FLOAT * _TRAINED_COPIES,
        rows_of_items * FLOAT * _TRAINED_COPIES,
        float(sizes.events * _SHUFFLED),
        steps,
        seconds / 3600,
    )


def estimates(
    model: ModelConfig, train: TrainConfig, evaluate: EvaluateConfig, sizes: DataSizes
) -> dict[str, Estimate]:
    """The estimate of every enabled granularity.

    Parameters
    ----------
    model : ModelConfig
        Width, history and granularities.
    train : TrainConfig
        Batch size and workers.
    evaluate : EvaluateConfig
        Number of users that are ranked at a time, and of events that baselines are fitted on.
    sizes : DataSizes
        Numbers of users, items and events.
    """
    _, rows, length = _steps(model, train, sizes)
    longest = model.max_history
    work = Workload(
        data=sizes,
        width=model.width,
        max_history=longest,
        rows=rows,
        length=length,
        queries=rows * length if sizes.ordered else rows,
        longest=min(longest, 2 * length) if sizes.ordered else length,
        validation_rows=min(evaluate.chunk_users, sizes.users),
        validation_length=min(longest, 4 * length),
        fit_events=min(sizes.events, evaluate.max_fit_events),
    )
    return {name: section.estimate(work) for name, section in model.granularities.enabled().items()}


def _steps(model: ModelConfig, train: TrainConfig, sizes: DataSizes) -> tuple[int, float, float]:
    """Steps of both phases, rows in one worker's step, and length of a row in events."""
    longest = model.max_history
    mean = max(1.0, sizes.events / max(sizes.users, 1))
    # a long history becomes several rows
    windows = max(1.0, mean / longest) if sizes.ordered else 1.0
    all_rows = sizes.users * windows
    batch = min(train.batch_size, all_rows)
    epochs = train.epochs * (1 + train.refit + train.final)
    steps = max(1, -(-int(all_rows) // train.batch_size)) * epochs * model.granularities.are_trained
    # a batch has rows of similar length, and few rows are long
    return steps, max(1.0, batch / train.num_workers), min(mean, longest)


def _step(
    model: ModelConfig,
    train: TrainConfig,
    sizes: DataSizes,
    rows: float,
    length: float,
    parts: Mapping[str, Estimate],
) -> float:
    """Bytes of one training step: activations for the backward pass, and the softmax."""
    loss = train.loss
    if not model.granularities.are_trained:
        return 0.0
    width, queries = model.width, rows * length if sizes.ordered else rows
    found = sum(part.step for part in parts.values()) + rows * length * width * FLOAT * 4
    full = _is_full(train, sizes)
    logits = min(queries * sizes.items, _LOGITS) * 3 if full else queries * loss.num_negatives * 4
    # sharded rows are never in memory as a whole
    vectors = sizes.items * width * FLOAT * (4 if full else 2) * (num_shards(train) == 1)
    return found + logits * FLOAT + vectors


def _validation(
    model: ModelConfig,
    train: TrainConfig,
    evaluate: EvaluateConfig,
    sizes: DataSizes,
    parts: Mapping[str, Estimate],
) -> float:
    """Bytes to rank one chunk of users: scores of all items, and the inputs of the
    granularities.
    """
    scores = (
        min(min(evaluate.chunk_users, sizes.users) * sizes.items, max(_SCORES, sizes.items))
        * FLOAT
        * 4
    )
    # with sharded rows, a file has the vectors; what changes them makes a copy in memory
    changed = model.unit_vectors or not model.granularities.are_trained or len(parts) > 1
    copies = 2 if num_shards(train) == 1 else int(changed)
    return (
        scores
        + sizes.items * model.width * FLOAT * copies
        + sum(part.validation for part in parts.values())
    )


def _seconds(
    model: ModelConfig,
    train: TrainConfig,
    sizes: DataSizes,
    rows: float,
    length: float,
    parts: Mapping[str, Estimate],
    gpu: bool,
) -> float:
    """Seconds of one step: multiplications of forward and backward pass divided by a declared
    speed.
    """
    queries, width = (rows * length if sizes.ordered else rows), model.width
    candidates = sizes.items if _is_full(train, sizes) else train.loss.num_negatives
    flops = 6 * queries * candidates * width
    layers = sum(part.layers for part in parts.values())
    flops += 6 * rows * length * layers * (12 * width**2 + 2 * length * width)
    flops += (
        6 * sizes.items * min(model.item.text_whiten or sizes.text_width, sizes.text_width) * width
    )
    flops += sum(part.flops for part in parts.values())
    threads = train.threads or 1
    speed, least = (_GPU_FLOPS, _GPU_STEP_S) if gpu else (_CPU_FLOPS * threads, _CPU_STEP_S)
    return least + flops / speed


def num_shards(train: TrainConfig) -> int:
    """The number of workers over which the id rows of items are sharded; 1: every worker has
    all.
    """
    return train.num_workers if train.shard_rows == "yes" else 1


def can_shard(model: ModelConfig, train: TrainConfig, sizes: DataSizes) -> bool:
    """Whether the id rows of items can be sharded over several workers.

    Parameters
    ----------
    model : ModelConfig
        The granularities.
    train : TrainConfig
        Loss and privacy.
    sizes : DataSizes
        Sizes of the data.
    """
    is_refused = any(sharding_violations(model, train, sizes.events))
    return bool(model.item.id and not _is_full(train, sizes) and not is_refused)


def _is_full(train: TrainConfig, sizes: DataSizes) -> bool:
    loss = train.loss
    return loss.kind == "full_softmax" or (
        loss.kind == "auto" and sizes.items <= loss.max_full_items
    )


def described(
    model: ModelConfig,
    train: TrainConfig,
    evaluate: EvaluateConfig,
    sizes: DataSizes,
    with_time: bool = True,
) -> str:
    """The estimate: a line on memory and one on time.

    Parameters
    ----------
    model : ModelConfig
        Width, history and granularities.
    train : TrainConfig
        Batch size, epochs, workers and device.
    evaluate : EvaluateConfig
        Number of users that are ranked at a time.
    sizes : DataSizes
        Numbers of users, items and events.
    with_time : bool
        Add the line on time and on the object store.

    Returns
    -------
    str
        One or two lines; the first names the three largest parts of the memory.
    """
    wanted = need(model, train, evaluate, sizes, gpu=train.use_gpu == "yes")
    parts = sorted(wanted.memory.items(), key=lambda part: -part[1])[:3]
    known = "" if sizes.exact else ", from the settings of the source"
    largest = ", ".join(f"{name} {gib(size)}" for name, size in parts)
    memory = f"estimate: {gib(wanted.total)} a worker ({largest}){known}"
    if num_shards(train) > 1:
        memory += (
            f"; rows of the item table are sharded over {train.num_workers} workers:"
            f" {gib(wanted.row_bytes)} each"
        )
    if not with_time:
        return memory
    return (
        f"{memory}\nestimate: at most {wanted.steps:,} steps, roughly {_time(wanted.hours)}"
        f" (could be several times more or less); {gib(wanted.shuffle)} through the object store"
        " in prepare"
    )


def gib(size: float) -> str:
    """A size in GiB or MiB.

    >>> gib(3 << 29), gib(5 << 20)
    ('1.5 GiB', '5 MiB')
    """
    return f"{size / _GIB:.1f} GiB" if size >= _GIB else f"{size / (1 << 20):.0f} MiB"


def _time(hours: float) -> str:
    """A duration in minutes or hours.

    >>> _time(0.5), _time(30.0)
    ('30 minutes', '30 hours')
    """
    minutes = max(1, round(hours * 60))
    return (
        f"{hours:.0f} hours"
        if hours >= 2
        else f"{minutes} {'minute' if minutes == 1 else 'minutes'}"
    )

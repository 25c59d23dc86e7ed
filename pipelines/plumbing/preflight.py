"""Refuse a training before it starts where its estimated memory cannot fit the machines.

The estimate (:mod:`pipelines.plumbing.training_estimate`) should be between half and twice the
truth. So a training is refused only if *half* of the estimate does not fit: no training that fits
is refused. The estimated hours never refuse a training.

With several workers, a training whose item table does not fit into one of them is planned with
sharded rows (``train.shard_rows`` auto) instead of being refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from pipelines.plumbing.nodes import Node, local_nodes, reachable_nodes
from pipelines.plumbing.training_estimate import (
    Need,
    can_shard,
    described,
    estimates,
    gib,
    need,
    num_shards,
    sizes_of,
)
from recsys.config import Config, RayConfig, SubmitConfig, TrainConfig
from recsys.config.workload import DataSizes
from recsys.data.manifest import Manifest
from recsys.errors import ConfigError

_DOUBT: Final = 2.0  # the estimate may be too high by this factor
# of a configuration without a section model
UNKNOWN_MODEL: Final = "model auto: members and settings are chosen after the data is prepared"
_MOST_WORKERS: Final = 1024  # that a message may advise

_CURES: Final = {
    "tables": (
        "lower model.width, or set model.item.id false (items by their text), or prepare fewer"
        " items"
    ),
    "text": "lower model.item.text_whiten, or set data.text.enabled false",
    "graph": (
        "use machines with more memory, because every worker holds the graph of {readers}; or"
        " switch these off"
    ),
    "events": "lower train.window_events",
    "step": (
        "lower train.batch_size, raise train.num_workers, or set train.loss.kind sampled_softmax"
    ),
    "validation": "lower evaluate.chunk_users, or model.max_history",
    "fitted": "{smaller}",
}


def planned(config: Config, sizes: DataSizes, nodes: Sequence[Node]) -> Config:
    """The configuration with ``train.shard_rows`` decided.

    ``auto`` becomes ``yes`` if the training has several workers, does not fit without sharded rows,
    and embedding tables are the reason.

    Parameters
    ----------
    config : Config
        The configuration of the training.
    sizes : DataSizes
        Sizes of the data.
    nodes : Sequence of Node
        The machines.
    """
    if config.train.shard_rows != "auto":
        return config
    memories = _memories(config.ray, nodes)
    whole = need(config.model, config.train, config.evaluate, sizes)
    shards = bool(
        memories
        and config.train.num_workers > 1
        and can_shard(config.model, config.train, sizes)
        and not _fits(whole, config.train.num_workers, memories)
        and (whole.table_bytes > max(memories) or _largest_part(whole) == "tables")
    )
    return _sharded(config, "yes" if shards else "no", config.train.num_workers)


def planned_for(config: Config, manifest: Manifest) -> Config:
    """:func:`planned` for a prepared dataset and the machines of the connected cluster."""
    sizes = sizes_of(config.data, config.dataset_dir, config.seed, manifest)
    return config if sizes is None else planned(config, sizes, reachable_nodes(config.ray))


def _sharded(config: Config, shard_rows: str, workers: int) -> Config:
    train = config.train.model_copy(update={"shard_rows": shard_rows, "num_workers": workers})
    return config.model_copy(update={"train": train})


def _memories(ray: RayConfig, nodes: Sequence[Node]) -> list[int]:
    """The memory of each machine; empty if that of some is unknown or machines are added later."""
    memories = [node.memory for node in nodes if node.memory is not None]
    return [] if len(memories) < len(nodes) or ray.wait_s > 0 else memories


def _fits(wanted: Need, workers: int, memories: Sequence[int]) -> bool:
    """Whether half of the estimate fits, and the tables fit into the largest machine."""
    least = wanted.total / _DOUBT
    is_small = wanted.table_bytes <= max(memories) and least <= max(memories)
    return is_small and least * workers <= sum(memories)


def _largest_part(wanted: Need) -> str:
    return max(
        (name for name in wanted.memory if name in _CURES), key=lambda name: wanted.memory[name]
    )


def _enough_workers(config: Config, sizes: DataSizes, largest: int) -> str:
    """The cure of more workers for tables that are too large; empty if it does not exist."""
    if not can_shard(config.model, config.train, sizes):
        return ""
    for workers in range(2, _MOST_WORKERS + 1):
        many = _sharded(config, "yes", workers)
        wanted = need(many.model, many.train, many.evaluate, sizes)
        if _fits(wanted, 1, [largest]):
            return (
                f"set train.num_workers {workers} with as many machines of {gib(largest)} (rows of"
                f" the item table are then sharded over them: {gib(wanted.row_bytes)} each), or "
            )
    return ""


def check(config: Config, sizes: DataSizes, nodes: Sequence[Node]) -> None:
    """Refuse a training that cannot fit the machines.

    Machines that the cluster starts later (``ray.wait_s``) are unknown, so nothing is refused then.

    Parameters
    ----------
    config : Config
        The configuration of the training.
    sizes : DataSizes
        Sizes of the data.
    nodes : Sequence of Node
        The machines; their memory is in bytes, None if it is unknown.

    Raises
    ------
    ConfigError
        The training is too large; the message says which part, and the cure.
    """
    memories = _memories(config.ray, nodes)
    if not memories:
        return
    config = planned(config, sizes, nodes)
    model, train, evaluate = config.model, config.train, config.evaluate
    largest, wanted = max(memories), need(model, train, evaluate, sizes)
    if wanted.table_bytes > largest:
        raise ConfigError(
            f"preflight: the embedding tables of {sizes.items:,} items (model.width"
            f" {model.width}) take {gib(wanted.table_bytes)} with gradient and moments,"
            f" more than the {gib(largest)} of the largest machine; {_held(train)}:"
            f" {_enough_workers(config, sizes, largest)}{_CURES['tables']}"
        )
    workers = train.num_workers
    least = wanted.total / _DOUBT
    if _fits(wanted, workers, memories):
        return
    part = _largest_part(wanted)
    parts = estimates(model, train, evaluate, sizes)
    readers = [name for name, estimate in parts.items() if estimate.graph or estimate.reads_events]
    heaviest = max(parts, key=lambda name: parts[name].fitting)
    key = model.granularities.enabled()[heaviest].smaller
    smaller = (
        f"lower model.granularities.{heaviest}.{key}"
        if key
        else f"disable model.granularities.{heaviest}"
    )
    cure = _CURES[part].format(
        readers=", ".join(readers) or "social and knowledge", smaller=smaller
    )
    if part == "tables":
        cure = _enough_workers(config, sizes, largest) + cure
    raise ConfigError(
        f"preflight: {workers} training worker{'s' * (workers > 1)} of at least {gib(least)} each"
        f" (estimate {gib(wanted.total)}) cannot fit into {gib(sum(memories))} of memory,"
        f" {gib(largest)} on the largest machine; the largest part is {part}"
        f" ({gib(wanted.memory[part])}): {cure}; or use larger machines"
    )


def _held(train: TrainConfig) -> str:
    if num_shards(train) > 1:
        return f"that is the part of one of {train.num_workers} workers"
    return "every worker holds all of them"


def check_cluster(
    train: TrainConfig, ray: RayConfig, submit: SubmitConfig, nodes: Sequence[Node]
) -> None:
    """Refuse a job that needs more CPUs or GPUs than the cluster has, before it is queued.

    Parameters
    ----------
    train : TrainConfig
        Number of workers, and whether each needs a GPU.
    ray : RayConfig
        Says whether the cluster starts machines itself.
    submit : SubmitConfig
        CPUs of the job itself.
    nodes : Sequence of Node
        The machines; empty if they are unknown.

    Raises
    ------
    ConfigError
        There are too few, and the cluster starts no machines (``ray.wait_s`` 0).
    """
    if not nodes or ray.wait_s > 0:
        return
    for name, have, wanted in (
        ("CPUs", sum(node.cpus for node in nodes), train.num_workers + submit.cpus),
        (
            "GPUs",
            sum(node.gpus for node in nodes),
            train.num_workers * (train.use_gpu == "yes"),
        ),
    ):
        if have < wanted:
            raise ConfigError(
                f"preflight: the cluster has {have:g} {name}, but {wanted:g} are needed"
                " (train.num_workers, submit.cpus); lower these, add nodes, or set ray.wait_s if"
                " the cluster starts machines itself"
            )


def preflight(
    config: Config,
    say: Callable[[str], None],
    nodes: Sequence[Node],
    manifest: Manifest | None,
    with_time: bool = True,
) -> None:
    """Print the estimate for a training, and refuse one that cannot fit; without a section
    ``model``, neither is possible yet.

    Parameters
    ----------
    with_time : bool
        False if the time was measured, not only estimated.

    Raises
    ------
    ConfigError
        See :func:`check`.
    """
    if not config.has_model:
        say(UNKNOWN_MODEL)
        return
    sizes = sizes_of(config.data, config.dataset_dir, config.seed, manifest)
    if sizes is None:
        return
    config = planned(config, sizes, nodes)
    say(described(config.model, config.train, config.evaluate, sizes, with_time))
    check(config, sizes, nodes)


def preview(config: Config) -> str:
    """For a dry run: the estimate, and a refusal that this machine would cause."""
    if not config.has_model:
        return UNKNOWN_MODEL
    sizes = sizes_of(config.data, config.dataset_dir, config.seed)
    if sizes is None:
        return "estimate: memory and time are known after the data is prepared"
    nodes = local_nodes() if config.ray.address == "local" else []
    config = planned(config, sizes, nodes)
    lines = [described(config.model, config.train, config.evaluate, sizes)]
    try:
        check(config, sizes, nodes)
    except ConfigError as error:
        lines.append(f"would be refused: {error}")
    return "\n".join(lines)

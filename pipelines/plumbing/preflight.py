"""What a training will need, told before it is queued: memory, shuffle, steps, hours; what cannot fit is refused.

The memory is an estimate from the sizes of the tensors that the code makes, held against measured peaks by a test; it
is meant to be within half and twice the truth. So only what does not fit at *half* of the estimate is refused: nothing
that fits is turned away. The hours are far rougher, from declared speeds, and refuse nothing.

Not covered: the memory of GPUs, and media, profile and text of users.

Legend: B users of a step, L history length, D width, N items, V users, E events, U rows, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipelines.plumbing.memory import available_memory
from recsys.config import Config, SyntheticSource
from recsys.config.workload import FLOAT, DataSizes, Estimate, Workload
from recsys.data.dataset import Manifest, PreparedDataset
from recsys.errors import ConfigError, UserError
from recsys.preparation.content_hash import settings_hash

_GIB: Final = 1 << 30
_PROGRAM: Final = 600 << 20  # Python, torch, Ray and what they allocate by themselves
_COPIES: Final = 6  # of a parameter: itself, gradient, two moments, the best epoch's, the checkpoint's
_TRAINED_COPIES: Final = 4  # without which there is no training
_LOGITS: Final = 2**23  # held at a time by the full softmax
_EVENT: Final = 60  # bytes of an event in a window, with the copies that cutting and sorting make
_EDGE: Final = 90  # bytes of an edge user–item while the graphs are built
_SCORES: Final = 2**25  # held at a time by a ranking
_SHUFFLED: Final = 120  # bytes of an event on its way through `prepare`, before and after the exchange
_DOUBT: Final = 2.0  # the estimate may be so many times too high

# Declared speeds: what the steps of this model reach, not what a device could.
_CPU_FLOPS, _GPU_FLOPS, _CPU_STEP_S, _GPU_STEP_S = 1.5e10, 5e12, 0.01, 0.01

_CURES: Final = {
    "tables": "lower model.width, or set model.item.id false (items by their text), or prepare fewer items",
    "text": "lower model.item.text_whiten, or set data.text.enabled false",
    "graph": "take machines with more memory, as every worker holds all training events for {readers}; or switch "
    "them off (collaborative alone samples the graph beyond its max_edges, and holds none)",
    "events": "lower train.window_events",
    "step": "lower train.batch_size, raise train.num_workers, or set train.loss.kind sampled_softmax",
    "validation": "lower evaluate.chunk_users, or model.max_history",
    "fitted": "{smaller}",
}


Sizes = DataSizes  # what the preflight knows of the data


def _of_manifest(manifest: Manifest) -> Sizes:
    counts = manifest.counts
    return Sizes(
        counts.get("users", 0),
        counts.get("items", 0),
        counts.get("train", 0) + counts.get("valid", 0),
        int(manifest.text.get("dimension", 0)),
        counts.get("entities", 0),
        counts.get("facts", 0),
        counts.get("social_edges", 0),
        manifest.ordered,
    )


@dataclass(frozen=True)
class Node:
    """A machine of the cluster; None where a size is unknown."""

    cpus: float
    gpus: float
    memory: int | None


@dataclass(frozen=True)
class Need:
    """What a training needs, by part."""

    memory: dict[str, float]  # bytes of a worker that are there at the same time
    table_bytes: float  # of the embedding tables with gradient and moments
    shuffle: float  # bytes through the object store in `prepare`
    steps: int
    hours: float

    @property
    def total(self) -> float:
        return sum(self.memory.values())


def sizes_of(config: Config, manifest: Manifest | None = None) -> Sizes | None:
    """From the prepared dataset, else from the source where that says; None where nobody knows yet."""
    if manifest is not None:
        return _of_manifest(manifest)
    try:
        there = PreparedDataset(config.dataset_dir).manifest
        if there.settings_hash == settings_hash(config):
            return _of_manifest(there)
    except (UserError, OSError):
        pass
    source = config.data.source
    if not isinstance(source, SyntheticSource):
        return None
    width = 384 if config.data.text.enabled else 0
    return Sizes(source.num_users, source.num_items, int(source.num_users * source.events_per_user), width, exact=False)


def need(config: Config, sizes: Sizes, gpu: bool = False) -> Need:
    """The estimate for one worker of ``train.num_workers``: each granularity says what it adds."""
    train, model = config.train, config.model
    width, workers = model.width * model.granularities.are_trained, train.num_workers
    steps, rows, length = _steps(config, sizes)
    parts = estimates(config, sizes)
    tables = sizes.items * width * model.item.id + sum(part.parameters for part in parts.values())
    dense = 12 * width**2 * sum(part.layers for part in parts.values())
    kept = min(model.item.text_whiten or sizes.text_width, sizes.text_width)
    memory = {
        "program": float(_PROGRAM),
        "tables": float((tables + dense) * FLOAT * (_COPIES + (workers > 1))),
        "text": float(sizes.items * (sizes.text_width * 6 + kept * 2 * FLOAT)),
        "graph": float(
            sizes.events * _EDGE * any(part.holds_events for part in parts.values())
            + sum(part.graph for part in parts.values())
        ),
        "events": float(min(train.window_events, sizes.events) * _EVENT),
    }
    phases = {
        "step": _step(config, sizes, rows, length, parts),
        "validation": _validation(config, sizes, parts),
        "fitted": max((part.fitting for part in parts.values()), default=0.0),
    }
    largest = max(phases, key=lambda name: phases[name])  # one after the other: the largest counts
    memory[largest] = phases[largest]
    seconds = _seconds(config, sizes, rows, length, parts, gpu) * steps
    return Need(memory, tables * FLOAT * _TRAINED_COPIES, float(sizes.events * _SHUFFLED), steps, seconds / 3600)


def estimates(config: Config, sizes: Sizes) -> dict[str, Estimate]:
    """What every granularity that is switched on says it adds."""
    _, rows, length = _steps(config, sizes)
    longest = config.model.max_history
    work = Workload(
        data=sizes,
        width=config.model.width,
        max_history=longest,
        rows=rows,
        length=length,
        queries=rows * length if sizes.ordered else rows,
        longest=min(longest, 2 * length) if sizes.ordered else length,
        validation_rows=min(config.evaluate.chunk_users, sizes.users),
        validation_length=min(longest, 4 * length),
    )
    return {name: section.estimate(work) for name, section in config.model.granularities.enabled().items()}


def _steps(config: Config, sizes: Sizes) -> tuple[int, float, float]:
    """Steps of both phases, rows of a worker's step, and how long a row is."""
    longest = config.model.max_history
    mean = max(1.0, sizes.events / max(sizes.users, 1))
    windows = max(1.0, mean / longest) if sizes.ordered else 1.0  # a long history trains as several rows
    all_rows = sizes.users * windows
    batch = min(config.train.batch_size, all_rows)
    epochs = config.train.epochs * (1 + config.train.refit + config.train.final)
    steps = max(1, -(-int(all_rows) // config.train.batch_size)) * epochs * config.model.granularities.are_trained
    # a batch is of rows of like length: few of them are long
    return steps, max(1.0, batch / config.train.num_workers), min(mean, longest)


def _step(config: Config, sizes: Sizes, rows: float, length: float, parts: Mapping[str, Estimate]) -> float:
    """Bytes of one training step: what the backward pass needs of every layer, and the softmax."""
    model, loss = config.model, config.train.loss
    if not model.granularities.are_trained:
        return 0.0
    width, queries = model.width, rows * length if sizes.ordered else rows
    found = sum(part.step for part in parts.values()) + rows * length * width * FLOAT * 4
    full = _is_full(config, sizes)
    logits = min(queries * sizes.items, _LOGITS) * 3 if full else queries * loss.num_negatives * 4
    return found + logits * FLOAT + sizes.items * width * FLOAT * (4 if full else 2)


def _validation(config: Config, sizes: Sizes, parts: Mapping[str, Estimate]) -> float:
    """Bytes of a chunk of users that is ranked: scores of every item, and what a granularity looks at."""
    scores = min(min(config.evaluate.chunk_users, sizes.users) * sizes.items, max(_SCORES, sizes.items)) * FLOAT * 4
    return scores + sizes.items * config.model.width * FLOAT * 2 + sum(part.validation for part in parts.values())


def _seconds(
    config: Config, sizes: Sizes, rows: float, length: float, parts: Mapping[str, Estimate], gpu: bool
) -> float:
    """One step: multiplications of a forward and a backward pass over a declared speed."""
    model = config.model
    queries, width = (rows * length if sizes.ordered else rows), model.width
    candidates = sizes.items if _is_full(config, sizes) else config.train.loss.num_negatives
    flops = 6 * queries * candidates * width
    layers = sum(part.layers for part in parts.values())
    flops += 6 * rows * length * layers * (12 * width**2 + 2 * length * width)
    flops += 6 * sizes.items * min(model.item.text_whiten or sizes.text_width, sizes.text_width) * width
    flops += sum(part.flops for part in parts.values())
    threads = config.train.threads or 1
    speed, least = (_GPU_FLOPS, _GPU_STEP_S) if gpu else (_CPU_FLOPS * threads, _CPU_STEP_S)
    return least + flops / speed


def _is_full(config: Config, sizes: Sizes) -> bool:
    loss = config.train.loss
    return loss.kind == "full_softmax" or (loss.kind == "auto" and sizes.items <= loss.max_full_items)


# ---------------------------------------------------------------------------------------------------------- machines


def local_nodes() -> list[Node]:
    """This machine, by what is free on it now."""
    import os

    return [Node(float(os.cpu_count() or 1), 0.0, available_memory())]


def reachable_nodes(config: Config) -> list[Node]:
    """This machine for a local Ray, those of the connected cluster else."""
    return local_nodes() if config.ray.address == "local" else ray_nodes()


def ray_nodes() -> list[Node]:
    """The machines of the connected Ray cluster; what it set aside for objects and for the system is theirs, too."""
    import ray

    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return [
        Node(
            float(node.get("CPU", 0)),
            float(node.get("GPU", 0)),
            int((node["memory"] + node.get("object_store_memory", 0)) * 1.1) if node.get("memory") else None,
        )
        for node in found
    ]


def dashboard_nodes(summary: Any) -> list[Node]:
    """The machines in the answer of a dashboard to ``/nodes?view=summary``; none where it is of another form."""
    try:
        found = []
        for node in summary["data"]["summary"]:
            if node["raylet"].get("state") == "ALIVE":
                total = node["raylet"].get("resourcesTotal") or node["raylet"].get("resources_total") or {}
                memory = node.get("mem")
                cpus = total.get("CPU", node["cpus"][0] if node.get("cpus") else 0)
                found.append(Node(float(cpus), float(total.get("GPU", 0)), int(memory[0]) if memory else None))
        return found
    except (KeyError, TypeError, IndexError, ValueError):
        return []


# -------------------------------------------------------------------------------------------------------- judgement


def check(config: Config, sizes: Sizes, nodes: Sequence[Node]) -> None:
    """Refuse what cannot fit the machines. Machines that the cluster has yet to start (``ray.wait_s``) are unknown.

    Raises
    ------
    ConfigError
        with what is too large and the cure.
    """
    memories = [node.memory for node in nodes if node.memory is not None]
    if len(memories) < len(nodes) or not nodes or config.ray.wait_s > 0:
        return
    largest, wanted = max(memories), need(config, sizes)
    if wanted.table_bytes > largest:
        raise ConfigError(
            f"preflight: the embedding tables of {sizes.items:,} items (model.width {config.model.width}) take "
            f"{_gib(wanted.table_bytes)} with gradient and moments, more than the {_gib(largest)} of the largest "
            f"machine; every worker holds them whole: {_CURES['tables']}"
        )
    workers = config.train.num_workers
    least = wanted.total / _DOUBT
    if least <= largest and least * workers <= sum(memories):
        return
    part = max((name for name in wanted.memory if name in _CURES), key=lambda name: wanted.memory[name])
    parts = estimates(config, sizes)
    readers = [name for name, estimate in parts.items() if estimate.holds_events]
    heaviest = max(parts, key=lambda name: parts[name].fitting)
    key = config.model.granularities.enabled()[heaviest].smaller
    smaller = f"lower model.granularities.{heaviest}.{key}" if key else f"disable model.granularities.{heaviest}"
    cure = _CURES[part].format(readers=", ".join(readers) or "the friends and facts", smaller=smaller)
    raise ConfigError(
        f"preflight: {workers} training worker{'s' * (workers > 1)} of {_gib(least)} at the least (estimated "
        f"{_gib(wanted.total)}) cannot fit into {_gib(sum(memories))} of memory, {_gib(largest)} on the largest "
        f"machine; most of it is for {part} ({_gib(wanted.memory[part])}): {cure}; or take larger machines"
    )


def check_cluster(config: Config, nodes: Sequence[Node]) -> None:
    """Refuse more workers than a cluster has room for, before the job is queued.

    Raises
    ------
    ConfigError
        too few CPUs or GPUs, and the cluster starts none (``ray.wait_s`` 0).
    """
    if not nodes or config.ray.wait_s > 0:
        return
    for name, have, wanted in (
        ("CPUs", sum(node.cpus for node in nodes), config.train.num_workers + config.submit.cpus),
        ("GPUs", sum(node.gpus for node in nodes), config.train.num_workers * (config.train.use_gpu == "yes")),
    ):
        if have < wanted:
            raise ConfigError(
                f"preflight: the cluster has {have:g} {name}, and {wanted:g} are needed (train.num_workers, "
                "submit.cpus); lower them, join nodes, or set ray.wait_s where the cluster starts machines itself"
            )


def preflight(config: Config, say: Callable[[str], None], nodes: Sequence[Node], manifest: Manifest | None) -> None:
    """Say what a training will need, and refuse what cannot fit.

    Raises
    ------
    ConfigError
        see :func:`check`.
    """
    sizes = sizes_of(config, manifest)
    if sizes is None:
        return
    say(described(config, sizes))
    check(config, sizes, nodes)


def described(config: Config, sizes: Sizes) -> str:
    """The estimate in two lines."""
    wanted = need(config, sizes, gpu=config.train.use_gpu == "yes")
    parts = sorted(wanted.memory.items(), key=lambda part: -part[1])[:3]
    known = "" if sizes.exact else ", by what the source will make"
    largest = ", ".join(f"{name} {_gib(size)}" for name, size in parts)
    return (
        f"estimate: {_gib(wanted.total)} a worker ({largest}){known}\n"
        f"estimate: at most {wanted.steps:,} steps, about {_time(wanted.hours)}, perhaps a few times more or less; "
        f"{_gib(wanted.shuffle)} through the object store in prepare"
    )


def preview(config: Config) -> str:
    """For a dry run: the estimate, and what would be refused on this machine."""
    if not config.has_model:
        return "model auto: members and settings are chosen when the data is prepared, and said then"
    sizes = sizes_of(config)
    if sizes is None:
        return "estimate: memory and time are known once the data is prepared"
    lines = [described(config, sizes)]
    try:
        if config.ray.address == "local":
            check(config, sizes, local_nodes())
    except ConfigError as error:
        lines.append(f"would be refused: {error}")
    return "\n".join(lines)


def _gib(size: float) -> str:
    """
    >>> _gib(3 << 29), _gib(5 << 20)
    ('1.5 GiB', '5 MiB')
    """
    return f"{size / _GIB:.1f} GiB" if size >= _GIB else f"{size / (1 << 20):.0f} MiB"


def _time(hours: float) -> str:
    """
    >>> _time(0.5), _time(30.0)
    ('30 minutes', '30 hours')
    """
    minutes = max(1, round(hours * 60))
    return f"{hours:.0f} hours" if hours >= 2 else f"{minutes} {'minute' if minutes == 1 else 'minutes'}"

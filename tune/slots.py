"""How many trials run at once, and the resources of each; never more than the cluster has.

Why: otherwise Ray lets a trial wait forever, without a message, for resources that its own workers
hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from recsys.config import ModelConfig, TrainConfig, TuneConfig
from recsys.errors import ConfigError
from recsys.training.threads import fastest_threads, requested_threads, usable_threads

# a trial that wraps a trainer reserves memory and leaves the CPUs to its workers
_WRAPPER_BYTES = 100_000_000


@dataclass(frozen=True)
class Slots:
    """The number of concurrent trials, and the resources of each."""

    concurrent: int
    cpus: int  # per trial, over all its workers
    workers: int
    threads: int
    use_gpu: bool
    words: str  # description for the progress lines

    @property
    def resources(self) -> dict[str, float]:
        """The resources that Ray Tune reserves for a trial."""
        if self.workers > 1:
            return {"memory": _WRAPPER_BYTES}
        return {"CPU": self.cpus, **({"GPU": 1} if self.use_gpu else {})}


def share_out(
    train: TrainConfig,
    tune: TuneConfig,
    cluster: dict[str, float],
    node_cpus: int,
    fastest: int = 0,
) -> Slots:
    """Divide a cluster's CPUs and GPUs among trials. If possible, one CPU is kept free for the
    driver.

    Parameters
    ----------
    train : TrainConfig
        Workers, threads and GPUs.
    tune : TuneConfig
        CPUs of a trial, and concurrency.
    cluster : dict[str, float]
        Resources of all nodes.
    node_cpus : int
        CPUs of the smallest node.
    fastest : int
        Number of threads beyond which a trial of one process does not get faster; 0: unknown.

    Raises
    ------
    ConfigError
        A trial, or ``tune.concurrent`` trials, do not fit.
    """
    total, gpus = int(cluster.get("CPU", 0)), int(cluster.get("GPU", 0))
    workers = train.num_workers
    cpus = workers if workers > 1 else tune.cpus or train.threads or fastest or node_cpus
    use_gpu = train.use_gpu == "yes" or (train.use_gpu == "auto" and gpus >= workers)
    if train.use_gpu == "yes" and gpus < workers:
        raise ConfigError(
            f"train.use_gpu is yes and a trial has {workers} workers, but the cluster has {gpus}"
            " GPUs; lower train.num_workers or set train.use_gpu to auto"
        )
    limit = total // cpus if not use_gpu else min(total // cpus, gpus // workers)
    if limit < 1:
        key = "train.num_workers" if workers > 1 else "tune.cpus"
        raise ConfigError(f"a trial needs {cpus} CPUs, but the cluster has {total}; lower {key}")
    if tune.concurrent > limit:
        raise ConfigError(
            f"tune.concurrent: {tune.concurrent} trials of {cpus}"
            f" CPUs{' and a GPU a worker' if use_gpu else ''} do not fit into {total}"
            f" CPUs{f' and {gpus} GPUs' if use_gpu else ''}; expected at most {limit}, or 0"
        )
    roomy = min(limit, max(1, (total - 1) // cpus))
    concurrent = tune.concurrent or roomy
    how = "one trial after another" if concurrent == 1 else f"{concurrent} trials at once"
    free = (
        ""
        if tune.concurrent or total < (concurrent + 1) * cpus
        else ", one is kept free for the driver"
    )
    on = f" and {'a GPU' if workers == 1 else f'{workers} GPUs'}" if use_gpu else ""
    words = f"{how}: the cluster has {total} CPUs, a trial uses {cpus}{on}{free}"
    threads = train.threads or min(cpus, fastest or cpus)
    return Slots(concurrent, cpus, workers, threads, use_gpu, words)


def slots_of_cluster(
    model: ModelConfig,
    train: TrainConfig,
    tune: TuneConfig,
    num_items: int,
    say: Callable[[str], None],
) -> Slots:
    """:func:`share_out` for the connected cluster; ``say`` gets a line on the best number of
    threads.

    Parameters
    ----------
    model : ModelConfig
        The model whose best number of threads is measured.
    train : TrainConfig
        The requested workers and threads.
    tune : TuneConfig
        CPUs of a trial, and concurrency.
    num_items : int
        Number of items of the dataset; the best number of threads depends on it.
    say : Callable[[str], None]
        Prints a line.

    Returns
    -------
    Slots
        The number of concurrent trials, and the resources of each.

    Raises
    ------
    ConfigError
        A trial, or ``tune.concurrent`` trials, do not fit.
    """
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    cpus = [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]
    # a trial must fit any machine; a head node without CPUs takes none
    smallest = min((number for number in cpus if number > 0), default=1)
    fastest = 0
    if train.num_workers == 1 and not train.threads:
        fastest, why = requested_threads(train), ""
        if not fastest:
            fastest, why = fastest_threads(
                model,
                train,
                num_items,
                min(tune.cpus or smallest, usable_threads()),
            )
        fastest = min(fastest, smallest)
        if why:
            say(why)
    return share_out(train, tune, ray.cluster_resources(), smallest, fastest)  # type: ignore[no-untyped-call]

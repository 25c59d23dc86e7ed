"""Whether the Ray cluster has the CPUs and GPUs that a training needs, and waiting for them.

Why before the training: Ray waits forever for resources that no machine of the cluster has.
"""

from __future__ import annotations

import time

import ray
from ray.autoscaler.sdk import request_resources

from recsys.config import RayConfig, TrainConfig
from recsys.errors import ConfigError


def use_gpu(train: TrainConfig, ray: RayConfig) -> bool:
    """Whether every worker trains on a GPU of its own.

    Raises
    ------
    ConfigError
        ``train.use_gpu`` is yes, and the cluster has too few GPUs.
    """
    if train.use_gpu == "no":
        return False
    available = _cluster("GPU") if train.use_gpu == "auto" else _wait_for("GPU", train, ray)
    if available >= train.num_workers:
        return True
    if train.use_gpu == "yes":
        raise ConfigError(
            f"train.use_gpu is yes and train.num_workers {train.num_workers}, but the Ray"
            f" cluster has {available} GPUs; lower train.num_workers, set train.use_gpu to auto,"
            " or, if the cluster starts machines, give it time with ray.wait_s"
        )
    return False


def check_cpus(train: TrainConfig, ray: RayConfig) -> None:
    """Check that the cluster has a CPU for every worker, as Ray would wait for them forever.

    Raises
    ------
    ConfigError
        It has fewer, also after ``ray.wait_s``.
    """
    available = _wait_for("CPU", train, ray)
    if available < train.num_workers:
        raise ConfigError(
            f"train.num_workers is {train.num_workers}, but the Ray cluster has {available}"
            " CPUs, and each worker needs one; lower train.num_workers, raise ray.num_cpus to"
            " share cores (local), or, if the cluster starts machines, give it time with"
            " ray.wait_s"
        )


def _wait_for(resource: str, train: TrainConfig, ray: RayConfig) -> int:
    """The amount of a resource in the cluster, as soon as there is one per worker, or when
    ``ray.wait_s`` is over.

    Asks the autoscaler for them, as Ray itself asks only once the workers wait, which may be
    forever.
    """
    needed, last = train.num_workers, time.monotonic() + ray.wait_s
    requested = False
    while (found := _cluster(resource)) < needed and time.monotonic() < last:
        if not requested:
            request_resources(bundles=[{resource: 1}] * needed)
            requested = True
        time.sleep(min(2.0, max(0.0, last - time.monotonic())))
    if requested:
        request_resources(bundles=[])  # an outstanding request would keep the machines forever
    return found


def _cluster(resource: str) -> int:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get(resource, 0))

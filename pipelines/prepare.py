"""Stage ``prepare``: the source → the prepared dataset. It does nothing if the dataset is up to
date.

Reads ``data.source``; writes ``data.dir`` (default RUN/dataset).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from pipelines.plumbing.opened_dataset import open_dataset
from pipelines.plumbing.run_folder import RunFolder
from pipelines.plumbing.session import ray_session
from recsys.config import Config, RayConfig, TrainConfig

if TYPE_CHECKING:
    from recsys.data.dataset import PreparedDataset
    from recsys.sources.base import SourceAdapter

# With more, tasks on several cores save more time than Ray needs to start.
_SMALL_BYTES: Final = 2**24
_WORK = ("recsys.preparation.prepare", "recsys.data.foresight")


def prepare(config: Config, folder: RunFolder, **how: Any) -> PreparedDataset:
    """Make the dataset, or find it up to date. Only large data and texts without vectors need Ray.

    The options ``base``, ``earlier`` and ``least`` go to
    :func:`recsys.preparation.prepare.prepare`.
    """
    from recsys.sources import open_source

    with folder.progress.stage("prepare"):
        dataset, source = None, open_source(config.data.source)  # it hashes its files once
        if not how:
            from recsys.preparation.identity import Identity

            dataset = Identity.of(config.data, config.dataset_dir, config.seed, source).existing(
                config.dataset_dir, config.data.keep_events, source, folder.progress
            )
        if dataset is None:
            appends = how.get("earlier") is not None
            with workers(config.train, config.ray, source, appends):
                from recsys.preparation.prepare import prepare as prepare_dataset

                dataset = prepare_dataset(config, folder.progress, source, **how)
        _say_what_there_is(dataset, folder)
    return open_dataset(config.data, config.dataset_dir, config.seed)


@contextmanager
def workers(
    train: TrainConfig, cluster: RayConfig, source: SourceAdapter, appends: bool = False
) -> Iterator[None]:
    """What runs the tasks of a preparation in the block: Ray, or threads if the data are small.

    With threads, Ray starts only when texts or images must be encoded.

    Parameters
    ----------
    train : TrainConfig
        Number of workers, for the size of a local Ray.
    cluster : RayConfig
        The section ``ray``; a cluster is always used.
    source : SourceAdapter
        The source that is prepared.
    appends : bool
        Whether the events join an earlier dataset, which may be large.
    """
    if cluster.address != "local" or appends or source.size() > _SMALL_BYTES:
        with ray_session(train, cluster, _import_work):
            yield
        return
    from recsys.preparation.blocks import in_this_process

    with ExitStack() as stack:

        def start_ray() -> None:  # a session inside another one uses its Ray
            stack.enter_context(ray_session(train, cluster))

        with in_this_process(start_ray, cluster.num_cpus or os.cpu_count() or 1):
            yield


def _import_work() -> None:
    """Import the modules of this stage; runs while Ray starts."""
    for module in _WORK:
        import_module(module)


def _say_what_there_is(dataset: PreparedDataset, folder: RunFolder) -> None:
    from recsys.data.foresight import foresight

    counts, manifest = dataset.manifest.counts, dataset.manifest
    named = ("users", "items", "train", "valid", "test", "social_edges", "items_with_text")
    shown = ", ".join(
        f"{counts[name]:,} {name.replace('_', ' ')}" for name in named if counts.get(name)
    )
    bad, dropped = (_total(reasons) for reasons in (manifest.quarantined, manifest.dropped))
    folder.progress(
        f"{manifest.name}: {shown}; of {sum(manifest.read.values()):,} rows read, {bad:,} are in"
        f" quarantine and {dropped:,} are left out by rules"
    )
    if seen := foresight(dataset):
        folder.progress(seen.note)


def _total(reasons: dict[str, dict[str, int]]) -> int:
    """Sum of the rows of all tables and reasons."""
    return sum(sum(of_table.values()) for of_table in reasons.values())


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["prepare", *sys.argv[1:]]))

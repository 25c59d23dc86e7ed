"""The stage ``prepare``: from a source to a prepared dataset (see :mod:`recsys.data.dataset`).

Data flow::

    items, users ──► known ids ─────────────┐
    events ── pieces ──► buckets of users ──┴─► good rows + summary ──► vocabularies
              (a task each) (exchange)              │
              ┌─────────────────────────────────────┘
              └──► dense, ordered, no duplicates ──► cut-offs ──► shards, counts, item terms
    friends, triples ──► graphs      item fields + terms ──► text ──► vectors

No data that grows with the number of events passes through this process.
"""

from __future__ import annotations

from recsys.config import Config
from recsys.data.audit_shard import ShardFindings, audit_shard
from recsys.data.dataset import PreparedDataset
from recsys.data.leak_audit import Audit, audit, audit_newer
from recsys.data.manifest import Manifest
from recsys.data.vocabulary import Vocabulary
from recsys.preparation.append import Appending, NeedsAll
from recsys.preparation.appendable import (
    Least,
    can_touch,
    check_earlier,
    nothing_new,
    refuse_forgetting,
)
from recsys.preparation.blocks import fetch, task
from recsys.preparation.dataset_writer import DatasetWriter, Folder
from recsys.preparation.event_roles import EventRules
from recsys.preparation.event_store import files_read
from recsys.preparation.identity import Identity
from recsys.preparation.inputs import Inputs
from recsys.preparation.record import Progress
from recsys.preparation.steps import Preparation
from recsys.sources.base import SourceAdapter


def prepare(
    config: Config,
    progress: Progress = print,
    source: SourceAdapter | None = None,
    base: Vocabulary | None = None,
    earlier: PreparedDataset | None = None,
    least: Least | None = None,
) -> PreparedDataset:
    """Write the prepared dataset of a configuration, unless it exists. Ray must be initialised.

    Parameters
    ----------
    config : Config
        The sections ``data`` and ``run`` and the seed are used.
    progress : Progress
        Gets one line per step.
    source : SourceAdapter | None
        Source to use instead of ``data.source``.
    base : Vocabulary | None
        Ids that keep their dense numbers; new ids follow them.
    earlier : PreparedDataset | None
        A dataset with kept events, to which the events of new files are appended; ``base`` is then
        its vocabulary.
    least : Least | None
        Least number of events, so that an update loses none by mistake; None: no limit.

    Raises
    ------
    SourceError
        The source cannot be read.
    ConfigError
        A key contradicts the data or the dataset to append to.
    DataError
        There are too many bad rows, a split is empty, there are fewer events than ``least`` allows,
        or ``earlier`` has read all files before.
    """
    if source is None:
        from recsys.sources import open_source

        source = open_source(config.data.source)
    rules = EventRules.of(config.data)
    if earlier is not None:
        check_earlier(earlier, config.data, config.dataset_dir, config.seed)
        base = earlier.vocabulary()
        if not source.leave_out(files_read(earlier.manifest.store)):
            return nothing_new(earlier, config.data, config.dataset_dir, config.seed, progress)
    identity = Identity.of(config.data, config.dataset_dir, config.seed, source, base, earlier)
    if (
        existing := identity.existing(config.dataset_dir, config.data.keep_events, source, progress)
    ) is not None:
        return existing
    replaces = config.update.replace or (least is not None and least.replace)
    if earlier is None and not replaces:
        refuse_forgetting(config.dataset_dir, source)
    writer = DatasetWriter(config.dataset_dir)
    with writer.writing() as folder:
        keeps_lost = earlier is not None or replaces
        inputs = Inputs(
            config.data,
            config.seed,
            source,
            rules,
            writer,
            folder,
            progress,
            identity.guard,
            base,
            earlier,
            keeps_lost,
        )
        manifest, checked = _written(inputs, identity.digest)
        manifest.forgotten, manifest.pseudonyms = identity.guard.described(identity.whole)
        if least is not None:
            least.check(manifest, config.dataset_dir)
        _check_in_tasks(folder, manifest, checked, progress)
        writer.commit(manifest)
    progress(f"dataset {config.dataset_dir} is ready ({identity.digest[:12]})")
    return PreparedDataset(config.dataset_dir)


def _written(inputs: Inputs, digest: str) -> tuple[Manifest, list[str]]:
    """Write all files except the manifest; returns it and the names of the new history files."""
    kinds = (
        [Appending, Preparation]
        if can_touch(inputs.data, inputs.seed, inputs.earlier)
        else [Preparation]
    )
    for kind in kinds:
        preparation = kind(inputs)
        try:
            return preparation.run(digest), preparation.new_shards
        except NeedsAll as needed:
            preparation.quarantine.abandon()
            inputs.folder.clear()
            inputs.progress(f"processing all events again: {needed}")
        except BaseException:
            preparation.quarantine.abandon()
            raise
    raise AssertionError("a preparation of all events never raises NeedsAll")


def _check_in_tasks(
    folder: Folder, manifest: Manifest, checked: list[str], progress: Progress
) -> None:
    """Audit the new history files, and what is derived from all of them.

    Raises
    ------
    DataError
        The dataset has a leak or contradicts itself.
    """
    shards = [task(_audit_shard).remote(folder, manifest, name) for name in checked]
    if checked == manifest.shards:
        # in a task, because it may read all rows of text
        found = fetch(task(_audit).remote(folder, manifest, *shards))
    else:
        # the vocabularies are checked here while the tasks check the files
        dataset = PreparedDataset.unfinished(folder.filesystem, folder.path, manifest)
        found = audit_newer(dataset, map(fetch, shards))
    progress(f"audit: {len(found.checks)} checks for leaks passed on {found.events:,} events")


def _audit_shard(folder: Folder, manifest: Manifest, name: str) -> ShardFindings:
    return audit_shard(PreparedDataset.unfinished(folder.filesystem, folder.path, manifest), name)


def _audit(folder: Folder, manifest: Manifest, *findings: ShardFindings) -> Audit:
    return audit(PreparedDataset.unfinished(folder.filesystem, folder.path, manifest), findings)

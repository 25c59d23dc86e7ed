"""What a prepared dataset is made from, and whether it exists already. Needs no Ray."""

from __future__ import annotations

from dataclasses import dataclass

from recsys.config import DataConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.forgotten import Forgotten
from recsys.data.vocabulary import Vocabulary
from recsys.errors import ArtifactError
from recsys.preparation.content_hash import content_hash
from recsys.preparation.guarded_pieces import Guard
from recsys.preparation.record import Progress
from recsys.sources.base import SourceAdapter


@dataclass(frozen=True)
class Identity:
    """The hash of everything that determines a dataset."""

    guard: Guard
    whole: str  # the content hash before any user was forgotten
    digest: str  # the content hash

    @staticmethod
    def of(
        data: DataConfig,
        dataset_dir: str,
        seed: int,
        source: SourceAdapter,
        base: Vocabulary | None = None,
        earlier: PreparedDataset | None = None,
    ) -> Identity:
        """The identity of the dataset that :func:`recsys.preparation.prepare.prepare` makes of the
        same arguments.

        Parameters
        ----------
        data : DataConfig
            The section ``data``.
        dataset_dir : str
            Path of the dataset.
        seed : int
            The configuration's seed.
        source : SourceAdapter
            The source; its fingerprint is part of the identity.
        base : Vocabulary | None
            Vocabulary of a parent model to extend; None: none.
        earlier : PreparedDataset | None
            Dataset to append to; None: none.

        Returns
        -------
        Identity
            The identity.

        Raises
        ------
        SourceError
            The files of the source cannot be read.
        ConfigError
            ``earlier`` has other pseudonyms.
        """
        known = earlier.manifest.content_hash if earlier else base.digest() if base else ""
        guard = Guard.of(data, dataset_dir, base.forgotten if base else Forgotten())
        if earlier is not None:
            guard.check_same_key(earlier)
        fingerprint = source.fingerprint()
        if data.media.images.column:
            from recsys.preparation.media import image_fingerprint  # imports Ray

            fingerprint += image_fingerprint(source, data.media.images)
        whole = guard.keyed(content_hash(data, seed, fingerprint, known))
        return Identity(guard, whole, guard.forgotten.bound(whole))

    def existing(
        self, dataset_dir: str, keep_events: bool, source: SourceAdapter, progress: Progress
    ) -> PreparedDataset | None:
        """The dataset, if it exists and keeps its events as configured; ``progress`` gets a line
        then.

        Parameters
        ----------
        dataset_dir : str
            Path of the dataset.
        keep_events : bool
            Whether the dataset must keep its events, if the source can be appended to.
        source : SourceAdapter
            The source.
        progress : Progress
            Gets a line if the dataset is up to date.

        Returns
        -------
        PreparedDataset | None
            The dataset; None: it must be prepared.
        """
        try:
            dataset = PreparedDataset(dataset_dir)
        except ArtifactError:
            return None
        keeps = bool(dataset.manifest.store) or not (source.appends and keep_events)
        if dataset.manifest.content_hash != self.digest or not keeps:
            return None
        progress(f"dataset {dataset_dir} is up to date ({self.digest[:12]})")
        return dataset

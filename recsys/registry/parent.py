"""From an earlier bundle to the next model: the input of a warm start, and bundles with refitted
parameters.

Why separate from :mod:`~recsys.bundle.layout`: serving a bundle needs none of this.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recsys import __version__
from recsys.bundle.checksums import check_file, damaged, describe_error, writing_aside
from recsys.bundle.consistency import check_finite
from recsys.bundle.description import (
    CARD,
    DESCRIPTION,
    MEASURED,
    MEASURED_TRAINING,
    SELF_TEST,
    TRAINING,
    VOCABULARY,
    WEIGHTS,
)
from recsys.bundle.evaluated_model import has_measured, measured
from recsys.bundle.layout import Bundle, read_card
from recsys.data.forgotten import Forgotten
from recsys.data.vocabulary import Vocabulary
from recsys.errors import ArtifactError
from recsys.model import FrozenModel
from recsys.registry.minimum import num_events
from recsys.registry.resolve import pinned, resolve
from recsys.serving.bundles import finish, read_bundle
from recsys.serving.item_index import measure_again
from recsys.storage.uris import is_remote

_SERVED = {WEIGHTS: "encoders.", TRAINING: "model.encoders."}  # file → prefix of parameter names
_MEASURED = {MEASURED: "encoders.", MEASURED_TRAINING: "model.encoders."}


@dataclass(frozen=True)
class Parent:
    """An earlier model, with the name that always refers to it."""

    uri: str  # models:/NAME/VERSION, or the folder of the bundle
    folder: Path
    bundle: Bundle

    @property
    def card(self) -> str:
        """The text of its model card; empty where it has none."""
        return read_card(self.folder, self.bundle.info)

    def describe(self) -> dict[str, Any]:
        """The description of this model in the bundle of a descendant."""
        info = self.bundle.info
        return {
            "uri": self.uri,
            "created": info.created,
            "dataset": info.dataset.get("content_hash", ""),
            "events": num_events(info.dataset),
        }

    @property
    def seen_all(self) -> bool:
        """Whether the served model was trained on all of its events, including test."""
        return has_measured(self.bundle.info)

    def measured(self) -> FrozenModel:
        """The measured model, to which its metrics belong."""
        return measured(self.folder, self.bundle).model

    def training(self) -> dict[str, Tensor]:
        """The weights of the trainable model.

        Raises
        ------
        ArtifactError
            The bundle has no such weights, or they are damaged.
        """
        return self._training(TRAINING)

    def measured_training(self) -> dict[str, Tensor]:
        """As :meth:`training`, for the measured model, which has not seen the test split."""
        return self._training(MEASURED_TRAINING if self.seen_all else TRAINING)

    def _training(self, name: str) -> dict[str, Tensor]:
        if name not in self.bundle.info.files:
            raise ArtifactError(
                f"{self.uri} has no training weights ({name}), so training cannot continue from it;"
                " register the model again with `recsys register`"
            )
        check_file(self.folder, name, self.bundle.info.files[name])
        try:
            weights: dict[str, Tensor] = load_file(self.folder / name)
        except (OSError, ValueError, SafetensorError) as error:
            raise damaged(self.folder, str(error)) from None
        check_finite(weights, str(self.folder / name))
        return weights

    def vocabulary(self) -> Vocabulary:
        """The ids that keep their numbers in a descendant.

        Raises
        ------
        ArtifactError
            The file of entities is damaged.
        """  # noqa: DOC501
        info = self.bundle.info
        known = (
            pa.array(self.bundle.user_ids, pa.string()),
            pa.array(self.bundle.item_ids, pa.string()),
        )
        forgotten = Forgotten.of_json(info.dataset.get("forgotten", {}))
        if VOCABULARY not in info.files:
            return Vocabulary(
                *known, tuple(info.event_types), context=self.bundle.context, forgotten=forgotten
            )
        check_file(self.folder, VOCABULARY, info.files[VOCABULARY])
        try:
            table = pq.read_table(self.folder / VOCABULARY)
            entities, relations = (
                table.filter(pc.equal(table.column("kind"), kind)).column("id").combine_chunks()
                for kind in ("entity", "relation")
            )
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise damaged(self.folder, f"{VOCABULARY}: {describe_error(error)}") from None
        return Vocabulary(
            *known, tuple(info.event_types), entities, relations, self.bundle.context, forgotten
        )


def open_parent(uri: str, tracking_uri: str) -> Parent:
    """Open the model of ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, a run folder or a bundle
    folder.

    Raises
    ------
    ArtifactError
        There is no model, or it is damaged.
    """
    folder = resolve(uri, tracking_uri)
    name = uri if is_remote(uri) else str(folder.absolute())
    if uri.startswith("models:"):
        # an alias would name another model later
        name = pinned(uri, tracking_uri)
    return Parent(name, folder, read_bundle(folder))


def write_refitted(
    parent: Parent,
    target: str | Path,
    changed: Mapping[str, Tensor],
    metrics: Mapping[str, Any],
    extra: dict[str, Any],
    card: str = "",
    of_measured: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the parent's bundle with some changed parameters of its encoders, new metrics and a new
    card.

    Parameters
    ----------
    parent : Parent
        The earlier model.
    target : str | Path
        Folder of the new bundle; may be that of the parent.
    changed : Mapping[str, Tensor]
        Parameters by name in the state dict of the encoders, such as ``fusion.raw_K``.
    metrics : Mapping[str, Any]
        Metrics of the new bundle; those of the parent belong to other weights.
    extra : dict[str, Any]
        Added to the parent's ``extra``, in addition to ``parent``.
    card : str
        Card of the new bundle.
    of_measured : Mapping[str, Tensor] | None
        The same parameters for the measured model, where the parent has one and they differ.
    """
    info = parent.bundle.info.model_copy(deep=True)
    with writing_aside(target, DESCRIPTION) as aside:
        for name in info.files:
            shutil.copyfile(parent.folder / name, aside / name)
        sides = ((_SERVED, changed), (_MEASURED, changed if of_measured is None else of_measured))
        for heads, parameters in sides:
            for file in heads.keys() & info.files.keys():
                tensors = load_file(aside / file)
                named = {
                    f"{heads[file]}{name}": tensor.detach().contiguous()
                    for name, tensor in parameters.items()
                }
                assert named.keys() <= tensors.keys(), "the parameters are the parent's"
                check_finite(named, "the refitted parameters")
                save_file(tensors | named, aside / file)
        info.package_version = __version__
        info.created = datetime.now(UTC).isoformat(timespec="seconds")
        info.metrics, info.extra = dict(metrics), info.extra | extra | {"parent": parent.describe()}
        # these belong to the earlier weights, and ``finish`` writes them again
        for stale in (DESCRIPTION, SELF_TEST, CARD):
            (aside / stale).unlink(missing_ok=True)
        finish(aside, info, card)
        measure_again(aside)

"""Writing the files of a bundle from a trained model and the dataset that it was trained on.

Legend: U users, E events.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from recsys import __version__
from recsys.bundle.consistency import check_finite
from recsys.bundle.description import (
    CARD,
    FORMAT_VERSION,
    ITEMS,
    MEASURED,
    MEASURED_KEY,
    MEASURED_TRAINING,
    TRAINING,
    USERS,
    VOCABULARY,
    WEIGHTS,
    WITH_MEASURED,
    BundleInfo,
    OutsideEntry,
    write_description,
)
from recsys.bundle.rule_files import write_for_rules
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Histories
from recsys.data.titles import item_titles
from recsys.data.vocabulary import Vocabulary
from recsys.errors import ArtifactError
from recsys.granularities.behaviour.section import USER_TEXT
from recsys.model import FrozenModel, dump_sizes
from recsys.storage.uris import is_remote

_EVENT_COLUMNS: Final = {
    "items": pa.int32(),
    "types": pa.uint8(),
    "times": pa.int64(),
    "values": pa.float32(),
    "splits": pa.uint8(),
}
_ROWS_AT_A_TIME: Final = 65_536


@dataclass(frozen=True)
class Measured:
    """The measured model, where the served model was trained on all events."""

    model: FrozenModel
    training: Mapping[str, torch.Tensor]  # its trainable weights


def write_files(
    aside: Path,
    frozen: FrozenModel,
    dataset: PreparedDataset,
    extra: Mapping[str, Any],
    training: Mapping[str, torch.Tensor] | None = None,
    card: str = "",
    measured: Measured | None = None,
) -> None:
    """Write the files of a bundle into an empty folder, with their checksums.

    :func:`recsys.serving.bundles.write_bundle` adds the self-test.

    Parameters
    ----------
    aside : Path
        The empty folder.
    frozen : FrozenModel
        The model to serve.
    dataset : PreparedDataset
        The dataset that it was trained on.
    extra : Mapping[str, Any]
        Plain JSON values. ``extra["metrics"]`` becomes the bundle's metrics; the rest is stored
        unchanged.
    training : Mapping[str, torch.Tensor] | None
        Weights of the trainable model; without them no update can warm-start from the bundle.
    card : str
        Text of the model card.
    measured : Measured | None
        The model that the metrics belong to, where ``frozen`` has seen the test split.

    Raises
    ------
    ArtifactError
        The model was not trained on this dataset, or has values that are not finite.
    """
    _check_match(frozen, dataset)
    _save_model(aside / WEIGHTS, frozen)
    pq.write_table(_item_table(frozen, dataset), aside / ITEMS, compression="zstd")
    histories = _dense_histories(dataset)
    _write_users(aside / USERS, dataset.user_ids, histories)
    write_for_rules(aside, frozen, dataset)
    if training is not None:
        _save_training(aside / TRAINING, training)
        _write_vocabulary(aside / VOCABULARY, dataset.vocabulary())
    if measured is not None:
        _check_match(measured.model, dataset)
        _save_model(aside / MEASURED, measured.model)
        _save_training(aside / MEASURED_TRAINING, measured.training)
        extra = {**extra, MEASURED_KEY: {"sizes": dump_sizes(measured.model.sizes)}}
    # last: the description holds the checksums of all other files
    close(aside, _describe(frozen, dataset, histories, extra), card)


def _save_model(path: Path, frozen: FrozenModel) -> None:
    tensors = frozen.tensors()
    check_finite(tensors, "the trained model")
    save_file(tensors, path)


def _save_training(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, path)


def close(aside: Path, info: BundleInfo, card: str) -> None:
    """Write the card, and the checksums of all files, which must be complete.

    Parameters
    ----------
    aside : Path
        The temporary folder with all other files.
    info : BundleInfo
        Content of ``bundle.json``; its list of files is set.
    card : str
        Text of the model card; empty: no card is written.
    """
    if card:
        (aside / CARD).write_text(card, encoding="utf-8")
    write_description(aside, info)


def _write_vocabulary(path: Path, ids: Vocabulary) -> None:
    if len(ids.entities):
        kinds = ["entity"] * len(ids.entities) + ["relation"] * len(ids.relations)
        names = pa.concat_arrays([ids.entities.cast(pa.string()), ids.relations.cast(pa.string())])
        pq.write_table(pa.table({"kind": pa.array(kinds), "id": names}), path, compression="zstd")


def _check_match(frozen: FrozenModel, dataset: PreparedDataset) -> None:
    model = (frozen.sizes.num_users, frozen.sizes.num_items)
    data = (dataset.num_users, dataset.num_items)
    if model != data:
        raise ArtifactError(
            f"the model was trained for {model[0]} users and {model[1]} items, but {dataset.root}"
            f" has {data[0]} and {data[1]}; train again on this dataset"
        )


def _describe(
    frozen: FrozenModel, dataset: PreparedDataset, histories: Histories, extra: Mapping[str, Any]
) -> BundleInfo:
    manifest = dataset.manifest
    frequency = np.bincount(histories.types_E, minlength=max(len(manifest.event_types), 1))
    rest = {key: value for key, value in extra.items() if key != "metrics"}
    return BundleInfo(
        format_version=WITH_MEASURED if MEASURED_KEY in extra else FORMAT_VERSION,
        package_version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=frozen.config,
        sizes=dump_sizes(frozen.sizes),
        granularities=frozen.names,
        outside={
            name: OutsideEntry(target=offer.target, package=offer.package, version=offer.version)
            for name, offer in frozen.config.granularities.outside().items()
        },
        event_types=manifest.event_types,
        targets=manifest.targets,
        default_event_type=(
            manifest.event_types[int(frequency.argmax())] if manifest.event_types else ""
        ),
        dataset={
            "name": manifest.name,
            "content_hash": manifest.content_hash,
            "root": root_of(dataset),
            "counts": manifest.counts,
            "split": _plain(manifest.split),
            "ordered": manifest.ordered,
            "timed": manifest.timed,
            **({"forgotten": users} if (users := manifest.forgotten.get("users")) else {}),
            **({"pseudonyms": manifest.pseudonyms} if manifest.pseudonyms else {}),
        },
        context=[column.to_json() for column in dataset.context],
        text_model=str(manifest.text.get("model", "")),
        text_identity=str(manifest.text.get("identity", "")),
        user_text=_user_text(frozen, dataset),
        metrics=_plain(extra.get("metrics", {})),
        extra=_plain(rest),
        files={},
    )


def root_of(dataset: PreparedDataset) -> str:
    """The absolute path or URI of a dataset, for a later update."""
    return dataset.root if is_remote(dataset.root) else str(Path(dataset.root).absolute())


def _user_text(frozen: FrozenModel, dataset: PreparedDataset) -> dict[str, Any]:
    """The settings to encode histories as text; empty where the model does not read them."""
    users = dataset.manifest.text.get("users") or {}
    if not any(
        section.signal == USER_TEXT for section in frozen.config.granularities.enabled().values()
    ):
        return {}
    names = ("model", "fingerprint", "max_tokens", "encoder", "max_items")
    return {key: users[key] for key in names if key in users}


def _plain(value: Any) -> Any:
    """Values as JSON; numbers that are not finite become null, because JSON has no such numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (np.integer, np.floating)):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _item_table(frozen: FrozenModel, dataset: PreparedDataset) -> pa.Table:
    return pa.table(
        {
            "item_id": dataset.item_ids.cast(pa.string()),
            "title": pa.array(item_titles(dataset.features), pa.string()),
            "popularity": pa.array(frozen.popularity_N.cpu().numpy().astype(np.int64)),
        }
    )


def _dense_histories(dataset: PreparedDataset) -> Histories:
    """Every user's events, one row per dense id; users without events have an empty row."""
    shards = list(dataset.shards())
    found = Histories.concat(shards) if shards else Histories.of_items([])
    rows = np.full(dataset.num_users, -1, dtype=np.int64)
    rows[found.users_U] = np.arange(len(found))
    if len(found) == dataset.num_users and bool((rows == np.arange(len(rows))).all()):
        return found
    # one empty row at the end, which every user without events takes
    empty = Histories.of_items([[]])
    return Histories.concat([found, empty]).take(np.where(rows < 0, len(found), rows))


def _write_users(path: Path, user_ids: pa.Array, histories: Histories) -> None:
    num_context = histories.context_EC.shape[1]
    # large lists: their offsets have 64 bits, so a row group may hold more than 2³¹ events
    kinds = _EVENT_COLUMNS | ({"context": pa.int16()} if num_context else {})
    schema = pa.schema(
        {"user_id": pa.string(), **{name: pa.large_list(kind) for name, kind in kinds.items()}}
    )
    ids = user_ids.cast(pa.string())
    # in pieces, so that only some users are a second time in memory as Arrow lists
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, len(histories), _ROWS_AT_A_TIME):
            stop = min(start + _ROWS_AT_A_TIME, len(histories))
            offsets = histories.offsets_U1[start : stop + 1]
            span = slice(offsets[0], offsets[-1])
            lists = [
                pa.LargeListArray.from_arrays(
                    pa.array(offsets - offsets[0]), pa.array(values[span], kind)
                )
                for values, kind in zip(
                    _event_arrays(histories), _EVENT_COLUMNS.values(), strict=True
                )
            ]
            if num_context:  # event by event, all columns of each
                codes = pa.array(histories.context_EC[span].reshape(-1))
                lists.append(
                    pa.LargeListArray.from_arrays(
                        pa.array((offsets - offsets[0]) * num_context), codes
                    )
                )
            writer.write_table(pa.Table.from_arrays([ids[start:stop], *lists], schema=schema))


def _event_arrays(histories: Histories) -> tuple[Array, ...]:
    return (
        histories.items_E,
        histories.types_E,
        histories.times_E,
        histories.values_E,
        histories.splits_E,
    )

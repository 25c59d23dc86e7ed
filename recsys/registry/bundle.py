"""A bundle: one folder that holds all a recommender needs, complete in itself.

Why: who pulls a model must need neither the dataset nor the training code's state, and must be able to trust what
was pulled; so every file is checked against its SHA-256, and nothing is pickled.

Layout::

    bundle.json           format, model configuration, sizes, event types, dataset, metrics, checksums of the files
    weights.safetensors   FrozenModel.tensors(): encoders, item vectors, granularity states
    items.parquet         dense order: item_id, title, popularity (users, in the events the model was fitted on)
    users.parquet         dense order: user_id and the user's events: items, types, times, values, splits, and context
                          where the dataset has context columns
    training.safetensors  the trainable model's weights, for `recsys update` alone; see :mod:`recsys.registry.lineage`
    measured.safetensors  where the model that answers was trained on all events: the one that the figures are of,
                          which has not seen test and alone may be ranked on it; see :mod:`recsys.registry.measured`
    measured-training.safetensors  its trainable weights, for an update whose test part the other one has seen
    attributes.parquet    dense order: the columns of the table of items that requests may filter by
    text.safetensors      unit vectors of the items' texts in whole numbers of 1/127, where the weights hold no texts
    friends.parquet       dense order: the friends of every user, where the model reads them; to explain answers
    vocabulary.parquet    kind, id: entities and relations in dense order, where there are facts; for the same
    self_test.json        questions and the answers to them, asked again on every load: recsys.registry.self_test
    MODEL_CARD.md         what the model is, for people: recsys.registry.card
    index.faiss           of the items, where there are many; see :mod:`recsys.registry.item_index`

Legend: U users, E events, N items.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file

from recsys import __version__
from recsys.config import ModelConfig
from recsys.config.outside import from_artifact
from recsys.data.context import ContextColumn
from recsys.data.dataset import PreparedDataset, histories_from_table, types_mask
from recsys.data.histories import Array, Histories
from recsys.data.titles import item_titles
from recsys.data.vocabulary import Vocabulary
from recsys.errors import ArtifactError, UserError
from recsys.granularities.behaviour.section import USER_TEXT
from recsys.model import FrozenModel, dump_sizes, load_sizes
from recsys.registry.bundle_checks import Inconsistent, check_counts, check_names, check_outside, check_parts
from recsys.registry.for_rules import ATTRIBUTES, FRIENDS, TEXT, read_friends, read_text, write_for_rules
from recsys.registry.sealed import DESCRIPTION as DESCRIPTION
from recsys.registry.sealed import FileEntry, check_file, damaged, entry_of, said_by, writing_aside
from recsys.serving.item_attributes import ItemAttributes
from recsys.serving.retrieval import ItemIndex, can_index
from recsys.storage.uris import is_remote

FORMAT_VERSION: Final = 3  # 2: what friends send, and the training weights; 3: the test of itself
WITH_MEASURED: Final = 4  # of a bundle of two models: an earlier release would rank the one that has seen test
WEIGHTS: Final = "weights.safetensors"
ITEMS: Final = "items.parquet"
USERS: Final = "users.parquet"
TRAINING: Final = "training.safetensors"
MEASURED: Final = "measured.safetensors"
MEASURED_KEY: Final = "measured"  # of the description's extra: its sizes
MEASURED_TRAINING: Final = "measured-training.safetensors"
VOCABULARY: Final = "vocabulary.parquet"
SELF_TEST: Final = "self_test.json"
CARD: Final = "MODEL_CARD.md"
INDEX: Final = "index.faiss"

_LOG = logging.getLogger(__name__)
_EVENT_COLUMNS: Final = {
    "items": pa.int32(),
    "types": pa.uint8(),
    "times": pa.int64(),
    "values": pa.float32(),
    "splits": pa.uint8(),
}
_ROWS_AT_A_TIME: Final = 65_536


class OutsideEntry(BaseModel):
    """Where a granularity from outside this package comes from."""

    target: str  # module:Class of its section
    package: str  # empty: of no installed package when the model was trained
    version: str


class BundleInfo(BaseModel):
    """The content of ``bundle.json``."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    format_version: int
    package_version: str
    created: str  # ISO time, UTC
    model: ModelConfig
    sizes: dict[str, Any]
    granularities: list[str]
    outside: dict[str, OutsideEntry] = {}  # granularities that other packages provide, by name
    event_types: list[str]
    targets: list[str] = []  # event types that the model predicts; empty: all
    default_event_type: str  # of history events that a request gives without a type: the most frequent one
    dataset: dict[str, Any]  # name, content_hash, counts, split, ordered, timed
    context: list[dict[str, Any]] = []  # context columns, see ContextColumn
    text_model: str
    text_identity: str = ""  # of the language model's files, see recsys.data.text.vector_identity; empty: unknown
    user_text: dict[str, Any] = {}  # how users' pasts become text: model, fingerprint, max_tokens, max_items
    metrics: dict[str, Any]
    index: dict[str, Any] = {}  # how many times too long its lists are, and the recall of that
    extra: dict[str, Any]
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class Measured:
    """The model that the figures are of, beside one that was trained on all events."""

    model: FrozenModel
    training: Mapping[str, torch.Tensor]  # its trainable weights


@dataclass(frozen=True)
class Bundle:
    """A bundle in memory."""

    info: BundleInfo
    model: FrozenModel
    item_ids: list[str]
    titles: list[str]
    popularity_N: Array  # int64
    user_ids: list[str]
    histories: Histories  # row = dense user id; all events, with the part each belongs to
    index: ItemIndex | None = None  # of large catalogues: who answers by it need not score every item
    attributes: ItemAttributes | None = None  # what rules of requests read; None in bundles of earlier releases
    text_NT: Array | None = None  # int8 vectors of items' texts, zero without; None where the model has them, or none
    friends: tuple[Array, Array] | None = None  # where each user's friends begin [U + 1], and the friends, dense ids

    def friends_of(self, user: int) -> list[int]:
        """The friends of a known user, those of most weight first; none where the bundle does not say."""
        if self.friends is None or user < 0:
            return []
        starts_U1, friends_F = self.friends
        return [int(friend) for friend in friends_F[starts_U1[user] : starts_U1[user + 1]]]

    @property
    def item_text(self) -> Array | torch.Tensor | None:
        """Vectors of the items' texts [N, T], zero without a text; None where the bundle has none."""
        text_NT = self.model.items.text_ST
        return text_NT if text_NT.shape[1] else self.text_NT

    @cached_property
    def context(self) -> tuple[ContextColumn, ...]:
        """The context columns that histories and requests may carry."""
        return tuple(ContextColumn.from_json(column) for column in self.info.context)

    @property
    def exclude_seen(self) -> bool:
        """Whether what a user had is left out where a request does not say: as the model was evaluated."""
        return bool((self.info.extra.get("comparison") or {}).get("exclude_seen", True))

    @property
    def num_items(self) -> int:
        return len(self.item_ids)


# ---------------------------------------------------------------------------------------------------------- writing


def write_bundle(
    folder: str | Path,
    frozen: FrozenModel,
    dataset: PreparedDataset,
    extra: Mapping[str, Any],
    training: Mapping[str, torch.Tensor] | None = None,
    card: str = "",
    measured: Measured | None = None,
) -> None:
    """Write a bundle aside and rename it into place; one that is there already is replaced.

    ``extra["metrics"]`` becomes the bundle's metrics, everything else of ``extra`` (plain JSON values) is kept as is.
    ``training`` are the trainable model's weights: without them nothing can start warm from the bundle. ``card`` is the
    text of the model card. ``measured`` is the model that the metrics are of, where ``frozen`` has seen the test part.

    Raises:
        ArtifactError: the model was not trained on this dataset, has values that are not finite, or ``folder`` holds
            something that is not a bundle and would be lost.
    """
    _check_match(frozen, dataset)
    with writing_aside(folder, DESCRIPTION) as aside:
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
        finish(aside, _describe(frozen, dataset, histories, extra), card)


def _save_model(path: Path, frozen: FrozenModel) -> None:
    tensors = frozen.tensors()
    check_finite(tensors, "the trained model")
    save_file(tensors, path)


def _save_training(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, path)


def finish(aside: Path, info: BundleInfo, card: str) -> None:
    """Seal a bundle whose files are all written, with its card and the test of itself."""
    from recsys.registry.self_test import add_self_test  # it asks a recommender, which reads bundles

    if card:
        (aside / CARD).write_text(card, encoding="utf-8")
    seal(aside, info)
    add_self_test(aside)


def seal(folder: Path, info: BundleInfo) -> None:
    """Write ``bundle.json`` last, with the checksum of every other file."""
    info.files = {path.name: entry_of(path) for path in sorted(folder.iterdir()) if path.name != DESCRIPTION}
    (folder / DESCRIPTION).write_text(info.model_dump_json(indent=1), encoding="utf-8")


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
            f"the model was trained for {model[0]} users and {model[1]} items, {dataset.root} has "
            f"{data[0]} and {data[1]}; train again on this dataset"
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
        default_event_type=manifest.event_types[int(frequency.argmax())] if manifest.event_types else "",
        dataset={
            "name": manifest.name,
            "content_hash": manifest.content_hash,
            "root": place_of(dataset),
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


def place_of(dataset: PreparedDataset) -> str:
    """Where a dataset is, for whoever continues it."""
    return dataset.root if is_remote(dataset.root) else str(Path(dataset.root).absolute())


def _user_text(frozen: FrozenModel, dataset: PreparedDataset) -> dict[str, Any]:
    """What reading a request's past takes; nothing where the model does not read it."""
    users = dataset.manifest.text.get("users") or {}
    if not any(section.signal == USER_TEXT for section in frozen.config.granularities.enabled().values()):
        return {}
    return {key: users[key] for key in ("model", "fingerprint", "max_tokens", "max_items")}


def _plain(value: Any) -> Any:
    """JSON values; numbers that are not finite, which JSON lacks, become null."""
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
    """Every user's events, one row a dense id; users without events have an empty row."""
    shards = list(dataset.shards())
    found = Histories.concat(shards) if shards else Histories.of_items([])
    rows = np.full(dataset.num_users, -1, dtype=np.int64)
    rows[found.users_U] = np.arange(len(found))
    if len(found) == dataset.num_users and bool((rows == np.arange(len(rows))).all()):
        return found
    empty = Histories.of_items([[]])
    return Histories.concat([found, empty]).take(np.where(rows < 0, len(found), rows))


def _write_users(path: Path, user_ids: pa.Array, histories: Histories) -> None:
    num_context = histories.context_EC.shape[1]
    kinds = _EVENT_COLUMNS | ({"context": pa.int16()} if num_context else {})
    schema = pa.schema({"user_id": pa.string(), **{name: pa.large_list(kind) for name, kind in kinds.items()}})
    ids = user_ids.cast(pa.string())
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, len(histories), _ROWS_AT_A_TIME):
            stop = min(start + _ROWS_AT_A_TIME, len(histories))
            offsets = histories.offsets_U1[start : stop + 1]
            span = slice(offsets[0], offsets[-1])
            lists = [
                pa.LargeListArray.from_arrays(pa.array(offsets - offsets[0]), pa.array(values[span], kind))
                for values, kind in zip(_event_arrays(histories), _EVENT_COLUMNS.values(), strict=True)
            ]
            if num_context:  # all columns of an event, then the next event's
                codes = pa.array(histories.context_EC[span].reshape(-1))
                lists.append(pa.LargeListArray.from_arrays(pa.array((offsets - offsets[0]) * num_context), codes))
            writer.write_table(pa.Table.from_arrays([ids[start:stop], *lists], schema=schema))


def _event_arrays(histories: Histories) -> tuple[Array, ...]:
    return histories.items_E, histories.types_E, histories.times_E, histories.values_E, histories.splits_E


# ---------------------------------------------------------------------------------------------------------- reading


def read_bundle(folder: str | Path) -> Bundle:
    """Read and check a bundle, and ask it the questions whose answers it stores.

    Raises:
        ArtifactError: no bundle there, one of another format, one that is damaged, or one that answers otherwise here.
    """
    from recsys.registry.self_test import run_self_test  # it asks a recommender, which reads bundles

    folder = Path(folder)
    bundle = read_files(folder)
    check_file(folder, SELF_TEST, bundle.info.files.get(SELF_TEST))
    run_self_test(folder, bundle)
    read_card(folder, bundle.info)
    return bundle


def read_card(folder: Path, info: BundleInfo) -> str:
    """The text of the model card; empty where there is none.

    Raises:
        ArtifactError: it is not the file that was written, or no text.
    """
    if CARD not in info.files:
        return ""
    check_file(folder, CARD, info.files[CARD])
    try:
        return (folder / CARD).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise damaged(folder, f"{CARD}: {error}") from None


def read_files(folder: Path) -> Bundle:
    """:func:`read_bundle` without the questions."""
    info = read_info(folder)
    for name in (WEIGHTS, ITEMS, USERS):
        check_file(folder, name, info.files.get(name))
    try:
        return _read_parts(folder, info)
    except ArtifactError:
        raise
    except Exception as error:  # a bundle that was changed and sealed anew fails in any library that reads it
        raise damaged(folder, said_by(error)) from None


def _read_parts(folder: Path, info: BundleInfo) -> Bundle:
    """The files as a bundle; fails in many ways where they do not belong together."""
    items, users = pq.read_table(folder / ITEMS), pq.read_table(folder / USERS)
    sizes = load_sizes(info.sizes)
    check_counts(sizes, len(users), len(items))
    tensors = load_file(folder / WEIGHTS)
    check_finite(tensors, str(folder / WEIGHTS))
    bundle = Bundle(
        info,
        FrozenModel.from_tensors(info.model, sizes, tensors),
        items.column("item_id").to_pylist(),
        items.column("title").to_pylist(),
        items.column("popularity").to_numpy(),
        users.column("user_id").to_pylist(),
        _histories(users, info),
        _index(folder, info),
        ItemAttributes.read(folder / ATTRIBUTES, len(items)) if _has(folder, info, ATTRIBUTES) else None,
        read_text(folder / TEXT) if _has(folder, info, TEXT) else None,
        read_friends(folder / FRIENDS) if _has(folder, info, FRIENDS) else None,
    )
    check_parts(bundle)
    return bundle


def read_info(folder: str | Path) -> BundleInfo:
    """Only ``bundle.json``.

    Raises:
        ArtifactError: as :func:`read_bundle`.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        version = content.get("format_version") if isinstance(content, dict) else None
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"{folder} holds no model bundle ({DESCRIPTION} is missing); `recsys train` and `recsys register` make one"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(folder, f"{DESCRIPTION}: {said_by(error)}") from None
    if version not in (FORMAT_VERSION, WITH_MEASURED):
        raise ArtifactError(
            f"{folder} has bundle format {version}, this release ({__version__}) reads {FORMAT_VERSION}; "
            "register the model again, or use the release that made it"
        )
    check_outside(folder, content)
    try:
        with from_artifact():
            info = BundleInfo.model_validate(content)
        check_names(info)
    except (pydantic.ValidationError, UserError, Inconsistent, RecursionError) as error:
        raise damaged(folder, f"{DESCRIPTION}: {said_by(error)}") from None
    return info


def _index(folder: Path, info: BundleInfo) -> ItemIndex | None:
    """The index of the items; None where there is none, or nothing to read it with."""
    if INDEX not in info.files:
        return None
    check_file(folder, INDEX, info.files[INDEX])
    if not can_index():
        _LOG.warning("%s: faiss-cpu is not installed, so every item is scored: exact, but slower", folder)
        return None
    return ItemIndex.read(folder / INDEX, int(info.index["reorder"]))


def _has(folder: Path, info: BundleInfo, name: str) -> bool:
    """Whether the bundle has a file that earlier releases did not write, which is then checked."""
    if name not in info.files:
        return False
    check_file(folder, name, info.files[name])
    return True


def _histories(users: pa.Table, info: BundleInfo) -> Histories:
    """Rows of ``users.parquet`` as histories."""
    found = histories_from_table(users.append_column("user", pa.array(np.arange(len(users), dtype=np.int32))))
    return replace(found, targets_T=types_mask(info.event_types, info.targets))


def check_finite(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise :class:`ArtifactError` for a tensor that diverged."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ArtifactError(
                f"{where}: tensor {name} has values that are not finite; the training diverged, train again"
            )

"""The bundle: one self-contained folder with everything that a recommender needs.

Why: a user who pulls a model must need neither the dataset nor the state of the training, and must
be able to trust the files. So every file is checked against its SHA-256, and nothing is pickled.

Layout::

    bundle.json           format, model configuration, sizes, event types, dataset, metrics,
                          checksums of the files
    weights.safetensors   FrozenModel.tensors(): encoders, item vectors, granularity states
    items.parquet         dense order: item_id, title, popularity (users, in the fitted events)
    users.parquet         dense order: user_id and the user's events: items, types, times, values,
                          splits, and context where the dataset has context columns
    training.safetensors  weights of the trainable model, only for `recsys update`; see
                          :mod:`recsys.registry.parent`
    measured.safetensors  where the served model was trained on all events: the model that the
                          metrics belong to; only it may be ranked on test, which it has not seen;
                          see :mod:`recsys.bundle.evaluated_model`
    measured-training.safetensors
                          its trainable weights, for an update whose test split the served model
                          has already seen
    attributes.parquet    dense order: the columns of the table of items that requests may filter by
    text.safetensors      unit vectors of the items' texts in steps of 1/127, where the weights have
                          no texts
    friends.parquet       dense order: the friends of every user, where the model reads them; for
                          explanations
    vocabulary.parquet    kind, id: entities and relations of the knowledge graph in dense order;
                          for `recsys update`
    self_test.json        requests with their answers, checked on every load: see
                          :mod:`recsys.serving.self_test`
    MODEL_CARD.md         the model card, for people: see :mod:`recsys.registry.card`
    index.faiss           index of a large catalogue; see :mod:`recsys.serving.item_index`

Legend: U users, E events, N items.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from recsys.bundle.checksums import check_file, damaged, describe_error
from recsys.bundle.consistency import check_counts, check_finite, check_parts
from recsys.bundle.description import CARD, INDEX, ITEMS, USERS, WEIGHTS, BundleInfo, read_info
from recsys.bundle.rule_files import ATTRIBUTES, FRIENDS, TEXT, read_friends, read_text
from recsys.data.context_columns import ContextColumn
from recsys.data.dataset import types_mask
from recsys.data.histories import Array, Histories
from recsys.data.history_table import histories_from_table
from recsys.errors import ArtifactError
from recsys.model import FrozenModel, load_sizes
from recsys.retrieval.index import ItemIndex, can_index
from recsys.retrieval.item_attributes import ItemAttributes

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bundle:
    """A bundle in memory."""

    info: BundleInfo
    model: FrozenModel
    item_ids: list[str]
    titles: list[str]
    popularity_N: Array  # int64
    user_ids: list[str]
    histories: Histories  # row = dense user id; all events, each with its split
    index: ItemIndex | None = None  # for large catalogues, so that not every item must be scored
    # for rules of requests; None in bundles of earlier releases
    attributes: ItemAttributes | None = None
    # int8 text vectors of items, zero without text; None: in the weights, or no texts
    text_NT: Array | None = None
    # start of each user's friends [U + 1], and the friends' dense ids
    friends: tuple[Array, Array] | None = None

    def friends_of(self, user: int) -> list[int]:
        """The friends of a known user, largest weight first; empty where the bundle has none."""
        if self.friends is None or user < 0:
            return []
        starts_U1, friends_F = self.friends
        return [int(friend) for friend in friends_F[starts_U1[user] : starts_U1[user + 1]]]

    @property
    def item_text(self) -> Array | torch.Tensor | None:
        """Text vectors of the items [N, T], zero for an item without text; None where the bundle
        has none.
        """
        text_NT = self.model.items.text_ST
        return text_NT if text_NT.shape[1] else self.text_NT

    @cached_property
    def context(self) -> tuple[ContextColumn, ...]:
        """The context columns that histories and requests may carry."""
        return tuple(ContextColumn.from_json(column) for column in self.info.context)

    @property
    def exclude_seen(self) -> bool:
        """Whether seen items are left out by default: as the model was evaluated."""
        return bool((self.info.extra.get("comparison") or {}).get("exclude_seen", True))

    @property
    def num_items(self) -> int:
        """Number of items."""
        return len(self.item_ids)


def read_files(folder: Path) -> Bundle:
    """Read and check a bundle without running its self-test.

    Raises
    ------
    ArtifactError
        There is no bundle, its format is another one, or it is damaged.
    """  # noqa: DOC501
    info = read_info(folder)
    for name in (WEIGHTS, ITEMS, USERS):
        check_file(folder, name, info.files.get(name))
    try:
        return _read_parts(folder, info)
    except ArtifactError:
        raise
    except (
        Exception
    ) as error:  # a bundle that was changed together with its checksums can fail in any library
        raise damaged(folder, describe_error(error)) from None


def _read_parts(folder: Path, info: BundleInfo) -> Bundle:
    """The files as a bundle; raises many kinds of exceptions where they do not fit together."""
    items, users = pq.read_table(folder / ITEMS), pq.read_table(folder / USERS)
    sizes = load_sizes(info.sizes)
    # before any tensor is built: a wrong size in the file would allocate that much memory
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
        (
            ItemAttributes.read(folder / ATTRIBUTES, len(items))
            if _has(folder, info, ATTRIBUTES)
            else None
        ),
        read_text(folder / TEXT) if _has(folder, info, TEXT) else None,
        read_friends(folder / FRIENDS) if _has(folder, info, FRIENDS) else None,
    )
    check_parts(bundle)
    return bundle


def read_card(folder: Path, info: BundleInfo) -> str:
    """The text of the model card; empty where there is none.

    Raises
    ------
    ArtifactError
        The file was changed, or is not text.
    """  # noqa: DOC501
    if CARD not in info.files:
        return ""
    check_file(folder, CARD, info.files[CARD])
    try:
        return (folder / CARD).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise damaged(folder, f"{CARD}: {error}") from None


def _index(folder: Path, info: BundleInfo) -> ItemIndex | None:
    """The index of the items; None where there is none, or where Faiss is not installed."""
    if INDEX not in info.files:
        return None
    check_file(folder, INDEX, info.files[INDEX])
    if not can_index():
        _LOG.warning(
            "%s: faiss-cpu is not installed, so the index is not used and every item is scored:"
            " exact, but slower",
            folder,
        )
        return None
    return ItemIndex.read(folder / INDEX, int(info.index["reorder"]))


def _has(folder: Path, info: BundleInfo, name: str) -> bool:
    """Whether the bundle has an optional file, which is then checked; earlier releases did not
    write it.
    """
    if name not in info.files:
        return False
    check_file(folder, name, info.files[name])
    return True


def _histories(users: pa.Table, info: BundleInfo) -> Histories:
    """Rows of ``users.parquet`` as histories."""
    found = histories_from_table(
        users.append_column("user", pa.array(np.arange(len(users), dtype=np.int32)))
    )
    return replace(found, targets_T=types_mask(info.event_types, info.targets))

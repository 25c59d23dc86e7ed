"""Files of a bundle that the model itself does not read: item attributes, item texts and
friendships.

Why in the bundle: rules, similar items and explanations need them wherever the bundle is served,
without the dataset. A bundle of an earlier release has none of them and answers without them.

Legend: N items, T text width, U users, F friendships.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array
from recsys.model import FrozenModel
from recsys.retrieval.item_attributes import attribute_table

ATTRIBUTES: Final = "attributes.parquet"
TEXT: Final = "text.safetensors"
FRIENDS: Final = "friends.parquet"
_ROWS: Final = 65_536  # of texts at a time
_MAX_FRIENDS: Final = 200  # friends kept per user, those with the largest weight
_STEPS: Final = 127  # quantisation steps of a unit vector's components on each side of zero


def write_for_rules(folder: Path, frozen: FrozenModel, dataset: PreparedDataset) -> None:
    """Write the files that rules, similar items and explanations read in addition to the model.

    Parameters
    ----------
    folder : Path
        Folder of the bundle.
    frozen : FrozenModel
        The model; its settings decide which files it does not hold itself.
    dataset : PreparedDataset
        The dataset that the model was trained on.
    """
    pq.write_table(
        attribute_table(dataset.features, dataset.media_names),
        folder / ATTRIBUTES,
        compression="zstd",
    )
    text_NT = dataset.text_vectors_NT()
    if text_NT.shape[1] and not frozen.reads_text:
        pieces = [text_NT[start : start + _ROWS] for start in range(0, len(text_NT), _ROWS)]
        whole_NT = np.concatenate([_in_steps(piece.astype(np.float32)) for piece in pieces])
        save_file({"text": torch.from_numpy(whole_NT)}, folder / TEXT)
    if any(
        section.signal == "friends" for section in frozen.config.granularities.enabled().values()
    ):
        src_F, dst_F, weight_F = dataset.social_edges()
        order_F = np.lexsort((-weight_F, dst_F))  # edges lead from a friend to the user
        counts_U = np.bincount(dst_F, minlength=dataset.num_users)
        place_F = np.arange(len(order_F)) - (np.cumsum(counts_U) - counts_U)[dst_F[order_F]]
        kept = order_F[place_F < _MAX_FRIENDS]
        offsets = np.concatenate([[0], np.cumsum(np.minimum(counts_U, _MAX_FRIENDS))]).astype(
            np.int64
        )
        lists = pa.LargeListArray.from_arrays(
            pa.array(offsets), pa.array(src_F[kept].astype(np.int32))
        )
        pq.write_table(pa.table({"friends": lists}), folder / FRIENDS, compression="zstd")


def _in_steps(vectors_NT: Array) -> Array:
    """Vectors scaled to length 1 and quantised: int8."""
    lengths_N1 = np.maximum(np.linalg.norm(vectors_NT, axis=1, keepdims=True), 1e-12)
    return np.asarray(np.rint(vectors_NT / lengths_N1 * _STEPS), dtype=np.int8)


def read_text(path: Path) -> Array:
    """Read the text vectors of the items: int8 [N, T]."""
    return np.asarray(load_file(path)["text"].numpy())


def read_friends(path: Path) -> tuple[Array, Array]:
    """Read the start of each user's friends [U + 1], and the friends' dense ids."""
    lists = pq.read_table(path).column("friends").combine_chunks()
    lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), np.asarray(lists.flatten())

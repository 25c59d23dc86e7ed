"""The item index of a bundle: built and measured once, so that every way of serving uses the same
index.

Why in the bundle and not built on load: training and filling it takes about 15 s for 10⁶ items of
width 64, for every replica and every change of the model; and two indices of the same items need
not give the same lists.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from recsys.bundle.description import INDEX, write_description
from recsys.bundle.layout import Bundle, read_files
from recsys.pace import tell
from recsys.retrieval.index import LIST, RECALL, ItemIndex, calibrate, can_index
from recsys.serving.bundles import read_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.requests import Request

_NUM_SAMPLED: Final = 256  # number of users for the measured recall


def index_bundle(folder: str | Path, exact_items: int) -> str:
    """Add an index to a bundle with more than ``exact_items`` items.

    The recall is measured on users of the model. An index with a recall below
    :data:`~recsys.retrieval.index.RECALL` is not kept; the model then scores every item.

    Returns
    -------
    str
        A message for the user; empty where no index is needed.

    Raises
    ------
    ArtifactError
        There is no bundle, or it is damaged.
    """
    folder = Path(folder)
    bundle = read_bundle(folder)
    has_vectors = bundle.model.item_vectors_ND.shape[1] > 0  # none where every member is sparse
    if bundle.num_items <= exact_items or bundle.index is not None or not has_vectors:
        return ""
    if not can_index():
        return (
            f"no index was built, so every request scores all {bundle.num_items:,} items; to build"
            " one, which is faster, run `pip install 'multigrain[serve]'` and register again"
        )
    tell(f"building an index of {bundle.num_items:,} items")
    index = ItemIndex.build(bundle.model.item_vectors_ND)
    index.write(folder / INDEX)
    reached = _measure(folder, bundle, index)
    if reached < RECALL:
        return (
            f"no index was kept: its recall@{LIST} is {reached:.4f}, below {RECALL}, so every"
            " request scores all items"
        )
    return (
        f"index of {bundle.num_items:,} items: recall@{LIST} {reached:.4f}, {index.reorder}"
        " candidates per listed item"
    )


def measure_again(folder: Path) -> None:
    """Measure the index of a bundle again after the user vectors changed.

    The index may now need more candidates, or its recall may be too low; then it is removed. An
    index that cannot be measured because its library is missing is removed too.
    """
    bundle = read_files(folder)
    if INDEX in bundle.info.files:
        _measure(folder, bundle, bundle.index)


def _measure(folder: Path, bundle: Bundle, index: ItemIndex | None) -> float:
    """Write the recall of the index into the bundle, or remove an index with too low a recall;
    returns the recall.
    """
    reached = (
        calibrate(index, _users(bundle), bundle.model.item_vectors_ND) if index is not None else 0.0
    )
    if index is None or reached < RECALL:
        # an index with a low recall must not stay: a bundle with the file uses it
        (folder / INDEX).unlink()
        bundle.info.index = {}
    else:
        bundle.info.index = {"reorder": index.reorder, "recall": round(reached, 5), "at": LIST}
    write_description(folder, bundle.info)
    return reached


def _users(bundle: Bundle) -> Any:
    """Vectors of an even sample of the users with a history."""
    recommender = Recommender(bundle)
    known_U = np.flatnonzero(bundle.histories.lengths_U)
    chosen = known_U[:: max(1, len(known_U) // _NUM_SAMPLED)][:_NUM_SAMPLED]
    at = datetime.fromtimestamp(recommender.newest, UTC)
    queries = recommender.queries(
        [Request(user_id=bundle.user_ids[user], at=at) for user in chosen]
    )
    return bundle.model.contributions(queries).users_BD

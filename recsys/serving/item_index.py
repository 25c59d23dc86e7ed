"""The index of a bundle's items: made, measured and sealed once, so that every way of serving answers by the same one.

Why in the bundle and not made on load: to learn and fill it takes some 15 s for 10⁶ items of width 64, for every
replica and every swap of the model; and two indices of the same items need not give the same lists.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from recsys.bundle.description import INDEX, seal
from recsys.bundle.files import Bundle, read_files
from recsys.pace import tell
from recsys.retrieval.index import LIST, RECALL, ItemIndex, calibrate, can_index
from recsys.serving.bundles import read_bundle
from recsys.serving.recommender import Recommender
from recsys.serving.requests import Request

_ASKED: Final = 256  # users of whom the recall is measured


def index_bundle(folder: str | Path, exact_items: int) -> str:
    """Add an index to a bundle of more than ``exact_items`` items; returns what is to be said of it, if anything.

    The recall is measured on users of the model, and one that stays below :data:`~recsys.retrieval.index.RECALL`
    is not kept: the model then answers exactly.

    Raises
    ------
    ArtifactError
        no bundle there, or a damaged one.
    """
    folder = Path(folder)
    bundle = read_bundle(folder)
    has_vectors = bundle.model.item_vectors_ND.shape[1] > 0  # none where every member is sparse
    if bundle.num_items <= exact_items or bundle.index is not None or not has_vectors:
        return ""
    if not can_index():
        return (
            f"every one of {bundle.num_items:,} items will be scored: for an index, which is faster, run "
            "`pip install 'multigrain[serve]'` and register again"
        )
    tell(f"building an index of {bundle.num_items:,} items")
    index = ItemIndex.build(bundle.model.item_vectors_ND)
    index.write(folder / INDEX)
    reached = _measure(folder, bundle, index)
    if reached < RECALL:
        return f"an index would find {reached:.4f} of the exact lists, less than {RECALL}: every item will be scored"
    return f"index of {bundle.num_items:,} items: recall@{LIST} {reached:.4f}, lists {index.reorder} times too long"


def measure_again(folder: Path) -> None:
    """Measure the index of a bundle whose users' vectors have changed: it may need longer lists, or be of no use.

    One that cannot be measured here, as its library is missing, goes as well.
    """
    bundle = read_files(folder)
    if INDEX in bundle.info.files:
        _measure(folder, bundle, bundle.index)


def _measure(folder: Path, bundle: Bundle, index: ItemIndex | None) -> float:
    """Seal the bundle with what its index finds, or without one that finds too little; returns the recall."""
    reached = calibrate(index, _users(bundle), bundle.model.item_vectors_ND) if index is not None else 0.0
    if index is None or reached < RECALL:
        (folder / INDEX).unlink()
        bundle.info.index = {}
    else:
        bundle.info.index = {"reorder": index.reorder, "recall": round(reached, 5), "at": LIST}
    seal(folder, bundle.info)
    return reached


def _users(bundle: Bundle) -> Any:
    """Vectors of users with a history, evenly taken."""
    recommender = Recommender(bundle)
    known_U = np.flatnonzero(bundle.histories.lengths_U)
    chosen = known_U[:: max(1, len(known_U) // _ASKED)][:_ASKED]
    at = datetime.fromtimestamp(recommender.newest, UTC)
    queries = recommender.queries([Request(user_id=bundle.user_ids[user], at=at) for user in chosen])
    return bundle.model.parts(queries).users_BD

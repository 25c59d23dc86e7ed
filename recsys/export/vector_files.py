"""Item and user vectors for programs without this package: a FAISS index, arrays, and Parquet
tables.

Legend: D width of the item vectors, N items, B users at a time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from recsys.bundle.description import INDEX
from recsys.bundle.layout import Bundle
from recsys.data.histories import Array
from recsys.errors import ArtifactError, Refusal
from recsys.evaluation.top_items import tie_order
from recsys.export.questions import Examiner
from recsys.retrieval.exact import exact_top
from recsys.retrieval.index import LIST, recall
from recsys.serving.request_parsing import parse_requests

VECTORS: Final = "item_vectors.npy"
ITEMS: Final = "items.json"
FAISS: Final = "items.faiss"
ITEM_TABLE: Final = "items.parquet"
USER_TABLE: Final = "users.parquet"
TOLERANCE: Final = 1e-4
_TOP: Final = 10
_USERS_AT_A_TIME: Final = 512


def write_items(folder: Path, bundle: Bundle) -> None:
    """Write ids, titles and popularity of the items, and their order among equal scores, row by
    row.
    """
    content = {
        "item_ids": bundle.item_ids,
        "titles": bundle.titles,
        "popularity": bundle.popularity_N.tolist(),
    }
    content["order_of_equals"] = tie_order(bundle.num_items).tolist()
    (folder / ITEMS).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def write_vectors(folder: Path, bundle: Bundle) -> None:
    """Write the item vectors [N, D], float32, as a numpy file without pickle."""
    # a pickle can run code in the program that loads it
    np.save(folder / VECTORS, _vectors(bundle), allow_pickle=False)


def _vectors(bundle: Bundle) -> Array:
    return np.ascontiguousarray(bundle.model.item_vectors_ND.numpy(), dtype=np.float32)


def write_faiss(folder: Path, source: Path, bundle: Bundle, examiner: Examiner) -> dict[str, Any]:
    """Write an exact inner-product index, or the bundle's own compressed one; compare it with
    PyTorch.

    Parameters
    ----------
    folder : Path
        The folder of the export.
    source : Path
        The folder of the bundle, with its compressed index if it has one.
    bundle : Bundle
        The bundle.
    examiner : Examiner
        Asks varied queries of the bundle's model.

    Returns
    -------
    dict[str, Any]
        Entry for the manifest: file, kind, sizes and the self-test.

    Raises
    ------
    ArtifactError
        The items have no vectors.
    Refusal
        The exact index gives other lists than PyTorch.
    """
    import faiss

    _, parts = examiner.ask(examiner.questions())
    # with a zero vector all items tie, and any list is right
    users_BD = parts.users_BD[parts.users_BD.abs().sum(1) > 0]
    vectors_ND = bundle.model.item_vectors_ND
    if not vectors_ND.shape[1]:
        raise ArtifactError(
            "every member of this model is sparse, so items have no vectors to index; export to"
            " onnx only"
        )
    about: dict[str, Any] = {
        "file": FAISS,
        "items": bundle.num_items,
        "width": int(vectors_ND.shape[1]),
    }
    if bundle.index is not None:
        shutil.copyfile(source / INDEX, folder / FAISS)
        found = recall(bundle.index, users_BD, vectors_ND)
        return about | {
            "kind": (
                "PQ, four bits per dimension; score the items that it returns with the item vectors"
            ),
            "lists_too_long": bundle.index.reorder,
            "vectors": VECTORS,
            "self_test": {"questions": len(users_BD), f"recall@{LIST}": found},
        }
    index = faiss.IndexFlatIP(vectors_ND.shape[1])
    index.add(_vectors(bundle))
    faiss.write_index(index, str(folder / FAISS))
    worst = _largest_difference(folder, users_BD, vectors_ND)
    if not worst <= TOLERANCE:
        raise Refusal(
            f"scores of the index differ from PyTorch by {worst:.3g}, more than the allowed"
            f" {TOLERANCE:g}, so nothing was exported; install the version of faiss-cpu in"
            " constraints.txt, or export to parquet"
        )
    test = {"questions": len(users_BD), "largest_difference": worst, "tolerance": TOLERANCE}
    return about | {"kind": "IndexFlatIP", "self_test": test}


def _largest_difference(folder: Path, users_BD: Tensor, vectors_ND: Tensor) -> float:
    """The largest difference between the scores and lists of the written index and PyTorch's."""
    import faiss

    scores_BR, rows_BR = faiss.read_index(str(folder / FAISS)).search(
        users_BD.numpy(), min(_TOP, len(vectors_ND))
    )
    nothing = np.zeros(0, dtype=np.int64)
    top_BR = exact_top(users_BD, vectors_ND, rows_BR.shape[1], nothing, nothing)
    exact_BN = (users_BD @ vectors_ND.T).numpy()
    of_others = np.take_along_axis(exact_BN, top_BR.astype(np.int64), 1) - np.take_along_axis(
        exact_BN, rows_BR, 1
    )
    gaps = np.concatenate(
        [np.abs(of_others), np.abs(scores_BR - np.take_along_axis(exact_BN, rows_BR, 1))]
    )
    return float(gaps.max(initial=0.0))


def write_tables(folder: Path, bundle: Bundle, examiner: Examiner, users: bool) -> dict[str, Any]:
    """Write the items as a table and, with ``users``, the known users as another one.

    Parameters
    ----------
    folder : Path
        The folder of the export.
    bundle : Bundle
        The bundle.
    examiner : Examiner
        Computes the vectors of the known users.
    users : bool
        Whether to write the known users.

    Returns
    -------
    dict[str, Any]
        Entry for the manifest: file, number of rows and columns of each table.
    """
    vectors = _vectors(bundle)
    columns = {
        "item_id": bundle.item_ids,
        "title": bundle.titles,
        "popularity": bundle.popularity_N,
    }
    table = pa.table({**columns, "vector": _column(vectors)})
    pq.write_table(table, folder / ITEM_TABLE, compression="zstd")
    about: dict[str, Any] = {
        "items": {"file": ITEM_TABLE, "rows": len(table), "columns": _schema(table.schema)}
    }
    if users:
        rows = 0
        schema = pa.schema(
            [
                ("user_id", pa.string()),
                ("vector", pa.list_(pa.float32(), vectors.shape[1])),
                ("added_items", pa.list_(pa.int32())),
                ("added_values", pa.list_(pa.float32())),
            ]
        )
        with pq.ParquetWriter(folder / USER_TABLE, schema, compression="zstd") as writer:
            for part in _users(bundle, examiner):
                rows += len(part)
                writer.write_table(part.cast(schema))
        about["users"] = {"file": USER_TABLE, "rows": rows, "columns": _schema(schema)}
    return about


def _users(bundle: Bundle, examiner: Examiner) -> Iterator[pa.Table]:
    """Vectors of the known users for a request now, and the additions of sparse members by item
    row.

    Yields
    ------
    Table
        Some users, in the order of the bundle.
    """
    for start in range(0, len(bundle.user_ids), _USERS_AT_A_TIME):
        ids = bundle.user_ids[start : start + _USERS_AT_A_TIME]
        _, parts = examiner.ask(
            parse_requests([{"user_id": user, "at": examiner.asked_at} for user in ids])
        )
        added = parts.added
        offsets = np.searchsorted(added.rows_P.numpy(), np.arange(len(ids) + 1)).astype(np.int32)
        lists = [
            pa.ListArray.from_arrays(offsets, pa.array(values.numpy(), kind))
            for values, kind in ((added.items_P, pa.int32()), (added.values_P, pa.float32()))
        ]
        yield pa.table(
            {
                "user_id": pa.array(ids, pa.string()),
                "vector": _column(parts.users_BD.numpy()),
                "added_items": lists[0],
                "added_values": lists[1],
            }
        )


def _column(vectors_XD: Array) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(vectors_XD, dtype=np.float32).reshape(-1))
    if not vectors_XD.shape[1]:
        return pa.array([[]] * len(vectors_XD), pa.list_(pa.float32(), 0))
    return pa.FixedSizeListArray.from_arrays(flat, vectors_XD.shape[1])


def _schema(schema: pa.Schema) -> dict[str, str]:
    return {field.name: str(field.type) for field in schema}

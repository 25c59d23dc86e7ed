"""Encode image files as vectors in Ray tasks, with a cache keyed by the content of the files.

Why before training: each image of a dataset is encoded once, and an image of several items is
encoded once for all.

Legend: B images of a batch, P patches (and other tokens), M width of the vision model.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs

from recsys import schema
from recsys.config import ImagesConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array
from recsys.encoders.images import (
    ImageEncoder,
    ImageSettings,
    image_model_identity,
    open_image,
    read_bytes,
)
from recsys.encoders.text import usable_cores
from recsys.pace import Pace, with_progress
from recsys.preparation.blocks import cluster_resources, results_of
from recsys.preparation.vector_cache import VectorCache, cluster_dtype, default_cache_dir

MISSING: Final = "missing"  # no such file
UNREADABLE: Final = "unreadable"  # the file is not an image or is damaged
_BLOCK_IMAGES: Final = 512


def encode_images(
    paths: Sequence[str], config: ImagesConfig
) -> tuple[Array, list[str | None], dict[str, int]]:
    """Encode the image files at local paths or URIs.

    Returns
    -------
    tuple[Array, list[str | None], dict[str, int]]
        Vectors [B, M] float16, zero rows for images with an error; the error of each image
        (:data:`MISSING`, :data:`UNREADABLE` or None); and the numbers of distinct images encoded
        and taken from the cache.

    Raises
    ------
    ConfigError
        The model is not available or is not a vision model.
    """
    settings, num_tasks, num_gpus = _settings(config)
    cache = VectorCache(
        config.cache_dir or default_cache_dir("images"),
        f"{image_model_identity(config)}-{settings.dtype}",
    )
    pieces = [
        pa.table({"path": pa.array(paths[i : i + 4096], pa.string())})
        for i in range(0, len(paths), 4096)
    ]
    digests: list[str] = []
    for found in with_progress(
        "reading images", results_of(digest_block, pieces, num_tasks), len(pieces)
    ):
        digests += found
    wanted = {
        key: path
        for key, path in zip(digests, paths, strict=True)
        if key not in (MISSING, UNREADABLE)
    }
    vectors = cache.load(list(wanted))
    cached = len(vectors)
    left = {key: wanted[key] for key in sorted(set(wanted) - set(vectors))}
    vectors |= _encode_new(left, settings, num_tasks, num_gpus, cache)
    reasons = [
        None if key in vectors else MISSING if key == MISSING else UNREADABLE for key in digests
    ]
    width = len(next(iter(vectors.values()))) if vectors else 0
    rows = [vectors.get(key, np.zeros(width, np.float16)) for key in digests]
    stacked = np.stack(rows) if rows else np.zeros((0, width), np.float16)
    return stacked, reasons, {"encoded": len(vectors) - cached, "cached": cached}


def kept_vectors(
    items: pa.Table, old_R: Array, config: ImagesConfig, earlier: PreparedDataset | None
) -> Array | None:
    """The vectors of the items that are only in an earlier dataset, if the same model made them:
    [R, M] float16, zero rows for the others; else None.

    Why: their images may be gone, and relative paths start at a folder that is no longer known.

    Parameters
    ----------
    items : pa.Table
        The items table, [R].
    old_R : array, [R] bool
        Which rows are from the earlier dataset.
    config : ImagesConfig
        The section ``data.media.images``.
    earlier : PreparedDataset | None
        The earlier dataset.
    """
    described = earlier.manifest.media.get(config.name, {}) if earlier is not None else {}
    if earlier is None or described.get("identity") != image_model_identity(config):
        return None
    vectors_RM = np.zeros((items.num_rows, int(described["dimension"])), dtype=np.float16)
    ids = items.column(schema.ITEM_ID).filter(pa.array(old_R))
    rows = pc.index_in(ids, value_set=earlier.item_ids)
    vectors_RM[old_R] = earlier.media_vectors(config.name)[np.asarray(rows)]
    return vectors_RM


def _encode_new(
    paths: dict[str, str],
    settings: ImageSettings,
    num_tasks: int,
    num_gpus: int,
    cache: VectorCache,
) -> dict[str, Array]:
    """The vectors of images (key → path) that are not in the cache, which gets them."""
    columns = {"key": list(paths), "path": list(paths.values())}
    table = pa.table({name: pa.array(texts, pa.string()) for name, texts in columns.items()})
    left, vectors = list(paths), dict[str, Array]()
    blocks = [table.slice(start, _BLOCK_IMAGES) for start in range(0, len(left), _BLOCK_IMAGES)]
    pace = Pace("encoding images", len(left))
    for block, (keys, vectors_BM) in zip(
        blocks,
        results_of(functools.partial(encode_block, settings=settings), blocks, num_tasks, num_gpus),
        strict=True,
    ):
        pace.add(len(block))
        if keys:
            cache.store(keys, vectors_BM)
            vectors.update(zip(keys, vectors_BM, strict=True))
    return vectors


def _settings(config: ImagesConfig) -> tuple[ImageSettings, int, int]:
    """The encoder's settings, the number of parallel tasks, and the number of GPUs per task."""
    resources = cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), max(int(resources.get("CPU", 1)), 1)
    num_tasks = min(config.num_actors, gpus or cpus)
    settings = ImageSettings(
        config.model,
        config.pooling,
        config.batch_size,
        cluster_dtype(config.dtype),
        config.allow_download,
        max(usable_cores() // num_tasks, 1),
        gpus > 0,
    )
    return settings, num_tasks, min(gpus, 1)


def digest_block(table: pa.Table) -> list[str]:
    """The SHA-256 of every file of a block (column ``path``), or the reason why there is none; runs
    in a task.
    """
    return [_digest(path) for path in table.column("path").to_pylist()]


def _digest(path: str) -> str:
    try:
        return hashlib.sha256(read_bytes(path)).hexdigest()
    except FileNotFoundError:
        return MISSING
    except (OSError, pa.ArrowException):
        return UNREADABLE


def encode_block(table: pa.Table, settings: ImageSettings) -> tuple[list[str], Array]:
    """Keys and vectors of the readable images of a block (columns ``key``, ``path``); runs in a
    task and holds one batch at a time.
    """
    encoder = _encoder(settings)
    keys, found = [], []
    for start in range(0, table.num_rows, settings.batch_size):
        piece = table.slice(start, settings.batch_size)
        images = [
            (key, open_image(path))
            for key, path in zip(*map(pa.ChunkedArray.to_pylist, piece.columns), strict=True)
        ]
        good = [(key, image) for key, image in images if image is not None]
        if good:
            keys += [key for key, _ in good]
            found.append(encoder.encode([image for _, image in good]))
    return keys, np.concatenate(found) if found else np.zeros((0, 0), np.float16)


@functools.lru_cache(maxsize=1)
def _encoder(settings: ImageSettings) -> ImageEncoder:
    return ImageEncoder(settings)

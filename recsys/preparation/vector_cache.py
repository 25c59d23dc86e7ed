"""A cache of text vectors, and the encoding of missing texts on Ray.

Why: the language model is the slowest step of ``prepare``, and most texts are the same every day.
The cache is a folder of immutable Parquet files, keyed by the hash of (model, tokens, precision,
text). Processes can share it, and the vectors of a damaged file are only computed again.
"""

from __future__ import annotations

import functools
import hashlib
import os
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from recsys.config import TextConfig
from recsys.data.histories import Array
from recsys.encoders.adapter import Adapter
from recsys.encoders.text import (
    EncoderSettings,
    TextEncoder,
    resolve_dtype,
    text_model_identity,
    usable_cores,
)
from recsys.pace import Pace
from recsys.preparation.blocks import (
    cluster_resources,
    fetch,
    quiet,
    ray_task,
    results_of,
    user_errors,
)
from recsys.storage.filesystems import filesystem_of

_ONE_TASK_TEXTS: Final = 2000  # up to this number one task is faster than several
_BLOCK_TEXTS: Final = 2048  # texts per task
_PIECE_TEXTS: Final = 512  # texts per progress report


class VectorCache:
    """A folder of vectors by key; ``namespace`` separates models."""

    def __init__(self, root: str, namespace: str) -> None:
        self._filesystem, base = filesystem_of(root or default_cache_dir())
        self._folder = f"{base}/{namespace}"

    def load(self, keys: Sequence[str]) -> dict[str, Array]:
        """The cached vectors by key; skips unreadable files."""
        wanted = set(keys)
        found: dict[str, Array] = {}
        for info in self._filesystem.get_file_info(
            pyarrow.fs.FileSelector(self._folder, allow_not_found=True)
        ):
            if info.base_name.endswith(".parquet"):
                found.update(self._read(info.path, wanted))
        return found

    def _read(self, path: str, wanted: set[str]) -> dict[str, Array]:
        try:
            table = pq.read_table(
                path, filesystem=self._filesystem, page_checksum_verification=True
            )
            # a set: pyarrow's is_in would hash all wanted keys again for each of many small files
            is_wanted = [key in wanted for key in table.column("key").to_pylist()]
            table = table.filter(pa.array(is_wanted, pa.bool_()))
            column = table.column("vector").combine_chunks()
            vectors_NT = np.asarray(column.flatten()).reshape(len(column), column.type.list_size)
        except (pa.ArrowException, OSError, KeyError, AttributeError):
            return {}
        usable_N = np.isfinite(vectors_NT).all(axis=1)
        keys = table.column("key").to_pylist()
        return {key: vectors_NT[row] for row, key in enumerate(keys) if usable_N[row]}

    def store(self, keys: Sequence[str], vectors_NT: Array) -> None:
        """Add a file; it has another name until it is complete.

        A folder without write access, for example in a read-only home, gives only a warning: the
        next run computes the vectors again.
        """
        try:
            self._write(keys, vectors_NT)
        except OSError as error:
            warnings.warn(
                f"vectors are not kept for the next run: {self._folder} is not writable ({error});"
                " set data.text.cache_dir or data.media.images.cache_dir to a writable folder",
                stacklevel=2,
            )

    def _write(self, keys: Sequence[str], vectors_NT: Array) -> None:
        self._filesystem.create_dir(self._folder, recursive=True)
        column = pa.FixedSizeListArray.from_arrays(
            pa.array(vectors_NT.reshape(-1)), vectors_NT.shape[1]
        )
        table = pa.table({"key": pa.array(keys, pa.string()), "vector": column})
        name = f"{self._folder}/{uuid.uuid4().hex}"
        pq.write_table(table, f"{name}.tmp", filesystem=self._filesystem, write_page_checksum=True)
        self._filesystem.move(f"{name}.tmp", f"{name}.parquet")


def forget_texts(root: str, texts: Sequence[str]) -> int:
    """Remove the vectors of these texts from the cache, for all models; returns their number.
    Damaged files are deleted, because their texts are unknown.

    Why: the key is a hash of the text, so a person who guesses a user's text can check whether it
    was encoded.
    """
    filesystem, base = filesystem_of(root or default_cache_dir())
    removed = 0
    for space in filesystem.get_file_info(pyarrow.fs.FileSelector(base, allow_not_found=True)):
        if space.type != pyarrow.fs.FileType.Directory:
            continue
        keys = pa.array(text_keys(texts, space.base_name), pa.string())
        for info in filesystem.get_file_info(
            pyarrow.fs.FileSelector(space.path, allow_not_found=True)
        ):
            if not info.base_name.endswith(".parquet"):
                continue
            with suppress(FileNotFoundError):  # another process has removed it
                removed += _forget_in(filesystem, info.path, keys)
    return removed


def _forget_in(filesystem: Any, path: str, keys: pa.Array) -> int:
    """Remove the keys from one file; returns their number."""
    try:
        table = pq.read_table(path, filesystem=filesystem, page_checksum_verification=True)
        is_gone = pa.compute.is_in(table.column("key"), value_set=keys)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, KeyError):
        filesystem.delete_file(path)
        return 0
    kept = table.filter(pa.compute.invert(is_gone))
    if kept.num_rows < table.num_rows:
        pq.write_table(kept, f"{path}.tmp", filesystem=filesystem, write_page_checksum=True)
        filesystem.move(f"{path}.tmp", path)
    return int(table.num_rows - kept.num_rows)


def default_cache_dir(kind: str = "text") -> str:
    """The folder ``$XDG_CACHE_HOME/multigrain/KIND``."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(home, "multigrain", kind)


def text_keys(texts: Sequence[str], namespace: str) -> list[str]:
    """The hash of every text within a namespace (model, number of tokens, precision)."""
    return [hashlib.sha256(f"{namespace}\0{text}".encode()).hexdigest() for text in texts]


def cluster_dtype(wanted: str) -> str:
    """The precision of all tasks; ``auto`` is resolved once, in a task on the cluster."""
    if wanted != "auto":
        return wanted
    num_gpus = min(int(cluster_resources().get("GPU", 0)), 1)
    return str(fetch(ray_task(resolve_dtype, num_gpus=num_gpus).remote(wanted, num_gpus > 0)))


def encode_texts(
    texts: Sequence[str | None], config: TextConfig, adapter: Adapter | None = None
) -> tuple[Array, dict[str, int]]:
    """Vectors of the texts ([N, T] float16, zero rows for None), and the numbers of distinct texts
    encoded and cached.

    Parameters
    ----------
    texts : Sequence[str | None]
        Texts; None: no text.
    config : TextConfig
        The language model and the cache.
    adapter : Adapter | None
        Adapter that is merged into the language model.

    Raises
    ------
    ConfigError
        The model is not available.
    """
    is_static = config.encoder == "static"
    dtype = "float32" if is_static else cluster_dtype(config.dtype)
    config = config.model_copy(update={"dtype": dtype})
    adapted = f"-{adapter.digest[:24]}" if adapter else ""
    namespace = f"{text_model_identity(config)}{adapted}-{config.dtype}"
    cache = VectorCache(config.cache_dir, namespace)
    unique = sorted({text for text in texts if text is not None})
    keys = text_keys(unique, namespace)
    vectors = cache.load(keys)
    cached = len(vectors)
    missing = [(key, text) for key, text in zip(keys, unique, strict=True) if key not in vectors]
    length_of = {key: len(text) + 1 for key, text in missing}  # approximate cost of a text
    pace = Pace("encoding texts", len(missing), sum(length_of.values()))
    for new_keys, new_vectors in _encode_missing(missing, config, adapter):
        pace.add(len(new_keys), sum(length_of[key] for key in new_keys))
        cache.store(new_keys, new_vectors)
        vectors.update(zip(new_keys, new_vectors, strict=True))
    by_text = dict(zip(unique, keys, strict=True))
    dimension = len(next(iter(vectors.values()))) if vectors else 0
    vectors_NT = np.zeros((len(texts), dimension), dtype=np.float16)
    for row, text in enumerate(texts):
        if text is not None:
            vectors_NT[row] = vectors[by_text[text]]
    return vectors_NT, {"encoded": len(missing), "cached": cached}


def _encode_missing(
    missing: list[tuple[str, str]], config: TextConfig, adapter: Adapter | None
) -> Iterator[tuple[list[str], Array]]:
    """Encode on the cluster: one task for a few texts, a pool of tasks over blocks of similar
    lengths for many.

    Why tasks and not actors: Ray runs a lost task again, and the worker process keeps the model for
    the next block.

    Yields
    ------
    tuple of (list of str, Array)
        Keys of some texts and their vectors.
    """
    if not missing:
        return
    resources = cluster_resources()
    num_gpus = int(resources.get("GPU", 0))
    missing = sorted(missing, key=lambda pair: (-len(pair[1]), pair[1]))
    table = pa.table({"key": [key for key, _ in missing], "text": [text for _, text in missing]})
    if len(missing) <= _ONE_TASK_TEXTS and not num_gpus:
        encode = functools.partial(
            encode_block, settings=EncoderSettings.of(config, adapter=adapter)
        )
        pieces = [
            table.slice(start, _PIECE_TEXTS) for start in range(0, len(missing), _PIECE_TEXTS)
        ]
        yield from map(_unpacked, results_of(encode, pieces, 1))
        return
    import ray.data

    available = num_gpus or max(int(resources.get("CPU", 1)), 1)
    num_tasks = min(config.num_actors, available, -(-len(missing) // _BLOCK_TEXTS))
    threads = max(usable_cores() // num_tasks, 1)
    settings = EncoderSettings.of(config, threads, gpu=num_gpus > 0, adapter=adapter)
    pieces = [table.slice(start, _PIECE_TEXTS) for start in range(0, len(missing), _PIECE_TEXTS)]
    encoded = ray.data.from_arrow(pieces).map_batches(
        functools.partial(encode_block, settings=settings),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=num_tasks),
        num_gpus=1 if num_gpus else None,
        num_cpus=None if num_gpus else 1,
    )
    with quiet(), user_errors():
        for batch in encoded.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        ):
            yield _unpacked(batch)


def encode_block(table: pa.Table, settings: EncoderSettings) -> pa.Table:
    """Encode the texts of a block (columns ``key``, ``text``) as vectors (columns ``key``,
    ``vector``); runs in a task.
    """
    vectors_NT = _encoder(settings).encode(table.column("text").to_pylist())
    column = pa.FixedSizeListArray.from_arrays(
        pa.array(vectors_NT.reshape(-1)), vectors_NT.shape[1]
    )
    return pa.table({"key": table.column("key"), "vector": column})


@functools.lru_cache(maxsize=1)
def _encoder(settings: EncoderSettings) -> TextEncoder:
    return TextEncoder(settings)


def _unpacked(table: Any) -> tuple[list[str], Array]:
    column = table.column("vector").combine_chunks()
    vectors_NT = np.asarray(column.flatten()).reshape(len(column), column.type.list_size)
    return table.column("key").to_pylist(), vectors_NT

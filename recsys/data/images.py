"""Image files to vectors by a pretrained vision model, in Ray tasks, cached by the content of the files.

Why apart from the model that is trained: an image is looked at once in the life of a data set (as a text is read
once), and a picture that many items share is encoded once.

Legend: B images of a batch, P patches (and other tokens), M width of the vision model.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.fs

from recsys.config import ImagesConfig
from recsys.data.blocks import cluster_resources, results_of
from recsys.data.histories import Array
from recsys.data.text import model_fingerprint, resolve_dtype, resolve_model, usable_cores
from recsys.data.text_cache import VectorCache, cluster_dtype, default_cache_dir
from recsys.errors import ConfigError
from recsys.pace import Pace, paced
from recsys.storage.places import filesystem_of

MISSING: Final = "missing"  # no such file
UNREADABLE: Final = "unreadable"  # there is something, but it is no image, or damaged
MODEL_KEY: Final = "data.media.images.model"
_BLOCK_IMAGES: Final = 512


@dataclass(frozen=True)
class ImageSettings:
    """What an encoder is made of; sent to tasks instead of the model."""

    model: str
    pooling: str
    batch_size: int
    dtype: str
    allow_download: bool
    threads: int = 0  # 0: the cores this process may use
    gpu: bool = False


class ImageEncoder:
    """A vision model ready to turn images into unit vectors.

    ``pooling`` auto takes the pooled output where the model was saved with one; a pooling layer that the file lacks
    would be drawn at random, so then (and for ``mean``) it is the mean over the patches.

    Raises:
        ConfigError: there is no such model, or it is no vision model.
    """

    def __init__(self, settings: ImageSettings) -> None:
        if not settings.allow_download:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported
        import torch
        import transformers

        messages: Any = transformers.logging
        messages.set_verbosity_error()
        messages.disable_progress_bar()
        torch.set_num_threads(settings.threads or usable_cores())
        folder = resolve_model(settings.model, settings.allow_download, MODEL_KEY)
        self._settings = settings
        self._device = torch.device("cuda" if settings.gpu and torch.cuda.is_available() else "cpu")
        self._dtype = getattr(torch, resolve_dtype(settings.dtype, settings.gpu))
        try:
            processors: Any = transformers.AutoImageProcessor
            self._processor = processors.from_pretrained(folder, local_files_only=True)
            model, report = transformers.AutoModel.from_pretrained(
                folder, local_files_only=True, dtype=self._dtype, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ConfigError(
                f"{MODEL_KEY}: {settings.model} cannot be loaded as a vision model ({str(error).splitlines()[0]}); "
                "expected a folder that transformers' AutoImageProcessor and AutoModel read"
            ) from None
        self._model: Any = model.eval().to(self._device)
        self._has_pooler = not any("pool" in name for name in report["missing_keys"])
        if settings.pooling == "pooled" and not self._has_pooler:
            raise ConfigError(f"data.media.images.pooling pooled: {settings.model} was saved without a pooling layer")

    def encode(self, images: Sequence[Any]) -> Array:
        """Unit vectors of RGB images, in their order: [B, M] float16."""
        import torch

        size = self._settings.batch_size
        batches = [images[start : start + size] for start in range(0, len(images), size)]
        with torch.inference_mode():
            found = [torch.nn.functional.normalize(self._pool(batch), dim=-1) for batch in batches]
        vectors: Array = torch.cat(found).cpu().numpy().astype(np.float16)
        return vectors

    def _pool(self, images: Sequence[Any]) -> Any:
        """[B, M] float32, by what the model gives: token models [B, P, M], convolutions [B, M, rows, columns]."""
        inputs = self._processor(images=list(images), return_tensors="pt").to(self._device)
        pixels = inputs["pixel_values"].to(self._dtype)
        if hasattr(self._model, "get_image_features"):  # models of image and text, such as CLIP
            found = self._model.get_image_features(pixel_values=pixels)
            return getattr(found, "pooler_output", found).float()
        output = self._model(pixel_values=pixels)
        pooled = getattr(output, "pooler_output", None)
        if pooled is not None and self._has_pooler and self._settings.pooling != "mean":
            return pooled.float().flatten(1)
        hidden = output.last_hidden_state.float()
        if hidden.ndim == 4:
            return hidden.mean((2, 3))
        return hidden[:, -self._num_patches(pixels, hidden.shape[1]) :].mean(1)

    def _num_patches(self, pixels: Any, num_tokens: int) -> int:
        """Tokens that are patches, which stand last; all where the model does not say how large its patches are."""
        patch = getattr(self._model.config, "patch_size", None)
        if not isinstance(patch, int):
            return num_tokens
        return min((pixels.shape[2] // patch) * (pixels.shape[3] // patch), num_tokens) or num_tokens


def image_model_identity(config: ImagesConfig) -> str:
    """What the vectors depend on beside the images and the precision."""
    fingerprint = model_fingerprint(resolve_model(config.model, config.allow_download, MODEL_KEY))
    return f"{fingerprint[:24]}-{config.pooling}"


def encode_images(paths: Sequence[str], config: ImagesConfig) -> tuple[Array, list[str | None], dict[str, int]]:
    """Vectors of the image files at local paths or URIs.

    Returns:
        Vectors [B, M] float16, zero rows where there is none; what is wrong with each (:data:`MISSING`,
        :data:`UNREADABLE`, or None); and how many distinct images were encoded and taken from the cache.

    Raises:
        ConfigError: the model cannot be found, or is no vision model.
    """
    settings, num_tasks, num_gpus = _settings(config)
    cache = VectorCache(
        config.cache_dir or default_cache_dir("images"), f"{image_model_identity(config)}-{settings.dtype}"
    )
    pieces = [pa.table({"path": pa.array(paths[i : i + 4096], pa.string())}) for i in range(0, len(paths), 4096)]
    digests: list[str] = []
    for found in paced("reading images", results_of(digest_block, pieces, num_tasks), len(pieces)):
        digests += found
    wanted = {key: path for key, path in zip(digests, paths, strict=True) if key not in (MISSING, UNREADABLE)}
    vectors = cache.load(list(wanted))
    cached, left = len(vectors), sorted(set(wanted) - set(vectors))
    table = pa.table({"key": pa.array(left, pa.string()), "path": pa.array([wanted[key] for key in left], pa.string())})
    blocks = [table.slice(start, _BLOCK_IMAGES) for start in range(0, len(left), _BLOCK_IMAGES)]
    pace = Pace("encoding images", len(left))
    for block, (keys, vectors_BM) in zip(
        blocks, results_of(functools.partial(encode_block, settings=settings), blocks, num_tasks, num_gpus), strict=True
    ):
        pace.add(len(block))
        if keys:
            cache.store(keys, vectors_BM)
            vectors.update(zip(keys, vectors_BM, strict=True))
    reasons = [None if key in vectors else MISSING if key == MISSING else UNREADABLE for key in digests]
    width = len(next(iter(vectors.values()))) if vectors else 0
    rows = [vectors.get(key, np.zeros(width, np.float16)) for key in digests]
    stacked = np.stack(rows) if rows else np.zeros((0, width), np.float16)
    return stacked, reasons, {"encoded": len(vectors) - cached, "cached": cached}


def _settings(config: ImagesConfig) -> tuple[ImageSettings, int, int]:
    """The encoder's settings, how many tasks work side by side, and the GPUs of each."""
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
    """The SHA-256 of every file of a block (path), or why there is none; runs in a task."""
    return [_digest(path) for path in table.column("path").to_pylist()]


def _digest(path: str) -> str:
    try:
        return hashlib.sha256(_bytes(path)).hexdigest()
    except FileNotFoundError:
        return MISSING
    except (OSError, pa.ArrowException):
        return UNREADABLE


def encode_block(table: pa.Table, settings: ImageSettings) -> tuple[list[str], Array]:
    """The readable images of a block (key, path) as keys and vectors; runs in a task, a batch in memory at a time."""
    encoder = _encoder(settings)
    keys, found = [], []
    for start in range(0, table.num_rows, settings.batch_size):
        piece = table.slice(start, settings.batch_size)
        images = [
            (key, open_image(path)) for key, path in zip(*map(pa.ChunkedArray.to_pylist, piece.columns), strict=True)
        ]
        good = [(key, image) for key, image in images if image is not None]
        if good:
            keys += [key for key, _ in good]
            found.append(encoder.encode([image for _, image in good]))
    return keys, np.concatenate(found) if found else np.zeros((0, 0), np.float16)


def open_image(path: str) -> Any:
    """The upright RGB image of a file, the first of several frames; None where it is no image or is damaged."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise ConfigError(
            "data.media.images needs the package pillow; run `pip install 'multigrain[media]'`, or set "
            "data.media.images.column ''"
        ) from None
    try:
        with Image.open(io.BytesIO(_bytes(path))) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except Exception:  # a damaged file raises whatever its decoder stumbles over; the row is set aside with a reason
        return None


def _bytes(path: str) -> bytes:
    filesystem, inner = filesystem_of(path)
    with filesystem.open_input_stream(inner, compression=None) as stream:
        return bytes(stream.readall())


@functools.lru_cache(maxsize=1)
def _encoder(settings: ImageSettings) -> ImageEncoder:
    return ImageEncoder(settings)

"""Encode images as vectors with a pretrained vision model.

Legend: B images of a batch, P patches (and other tokens), M width of the vision model.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from recsys.config import ImagesConfig
from recsys.data.histories import Array
from recsys.encoders.text import (
    model_fingerprint,
    resolve_dtype,
    resolve_model,
    settle_device_contexts,
    usable_cores,
)
from recsys.errors import ConfigError
from recsys.processor import choose_matrix_library
from recsys.storage.filesystems import filesystem_of

MODEL_KEY: Final = "data.media.images.model"


@dataclass(frozen=True)
class ImageSettings:
    """Settings of an encoder; tasks get them instead of the model."""

    model: str
    pooling: str
    batch_size: int
    dtype: str
    allow_download: bool
    threads: int = 0  # 0: all cores that this process may use
    gpu: bool = False


class ImageEncoder:
    """A loaded vision model that encodes images as unit vectors.

    ``pooling`` auto takes the pooled output if the model was saved with a pooling layer.
    transformers initialises a missing layer at random, so in that case, and for ``mean``, the
    vector is the mean over the patches.

    Raises
    ------
    ConfigError
        The model does not exist or is not a vision model.
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
        choose_matrix_library()
        settle_device_contexts()
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
                f"{MODEL_KEY}: {settings.model} cannot be loaded as a vision model"
                f" ({str(error).splitlines()[0]}); expected a folder that transformers'"
                " AutoImageProcessor and AutoModel read"
            ) from None
        self._model: Any = model.eval().to(self._device)
        self._has_pooler = not any("pool" in name for name in report["missing_keys"])
        if settings.pooling == "pooled" and not self._has_pooler:
            raise ConfigError(
                f"data.media.images.pooling pooled: {settings.model} was saved without a pooling"
                " layer; set data.media.images.pooling to mean"
            )

    def encode(self, images: Sequence[Any]) -> Array:
        """Unit vectors of RGB images, in their order: [B, M] float16."""
        import torch

        size = self._settings.batch_size
        batches = [images[start : start + size] for start in range(0, len(images), size)]
        with torch.inference_mode():
            found = [torch.nn.functional.normalize(self._pool(batch), dim=-1) for batch in batches]
        # NumPy has no bfloat16; half the size of float32 is enough for unit vectors
        vectors: Array = torch.cat(found).cpu().numpy().astype(np.float16)
        return vectors

    def _pool(self, images: Sequence[Any]) -> Any:
        """[B, M] float32 from the output of the model: tokens [B, P, M] or feature maps [B, M,
        rows, columns].
        """
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
        # without class and register tokens, which come first
        return hidden[:, -self._num_patches(pixels, hidden.shape[1]) :].mean(1)

    def _num_patches(self, pixels: Any, num_tokens: int) -> int:
        """Number of patch tokens, which come last; all tokens if the model has no patch size."""
        patch = getattr(self._model.config, "patch_size", None)
        if not isinstance(patch, int):
            return num_tokens
        return (
            min((pixels.shape[2] // patch) * (pixels.shape[3] // patch), num_tokens) or num_tokens
        )


def image_model_identity(config: ImagesConfig) -> str:
    """Identity of model and pooling, on which the vectors depend besides images and precision."""
    fingerprint = model_fingerprint(resolve_model(config.model, config.allow_download, MODEL_KEY))
    return f"{fingerprint[:24]}-{config.pooling}"


def open_image(path: str) -> Any:
    """The first frame of an image file, upright, in RGB; None where the file is not an image or is
    damaged.

    Raises
    ------
    ConfigError
        The package pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise ConfigError(
            "data.media.images needs the package pillow; run `pip install 'multigrain[media]'`, or"
            " set data.media.images.column ''"
        ) from None
    try:
        with Image.open(io.BytesIO(read_bytes(path))) as image:
            # cameras store photos sideways and note the orientation
            return ImageOps.exif_transpose(image).convert("RGB")
    except Exception:  # decoders of damaged files raise any exception; the row is quarantined
        return None


def read_bytes(path: str) -> bytes:
    """The content of the file at a local path or URI."""
    filesystem, inner = filesystem_of(path)
    # Arrow would decompress by the ending of the name
    with filesystem.open_input_stream(inner, compression=None) as stream:
        return bytes(stream.readall())

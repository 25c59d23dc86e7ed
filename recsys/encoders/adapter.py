"""Low-rank adapters (LoRA, Hu et al. 2021) of a language model whose own weights stay unchanged.

Why as bytes: tasks on any machine get the adapter with their settings, from a dataset on any
filesystem. On disk it is a folder in the format of the library peft, so ``data.text.model`` may
also name such a folder.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from recsys.errors import ConfigError

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
# Names of the attention projections in language models (last part of a module's name).
PROJECTIONS: Final = (
    *(
        "query",
        "key",
        "value",
        "q_proj",
        "k_proj",
        "v_proj",
        "q_lin",
        "k_lin",
        "v_lin",
        "q",
        "k",
        "v",
    ),
    *(
        "Wqkv",
        "qkv",
        "qkv_proj",
        "query_key_value",
        "c_attn",
        "in_proj",
        "attn_q",
        "attn_k",
        "attn_v",
    ),
)


@dataclass(frozen=True)
class Adapter:
    """The two files of an adapter."""

    config: str
    weights: bytes

    @property
    def digest(self) -> str:
        """Hash of both files: on one base model, equal digests give equal vectors."""
        return hashlib.sha256(self.config.encode() + b"\0" + self.weights).hexdigest()

    @property
    def base(self) -> str:
        """The language model that it adapts, as named in ``data.text.model``."""
        return str(json.loads(self.config).get("base_model_name_or_path") or "")

    @staticmethod
    def read(folder: Path) -> Adapter:
        """Read a folder in the format of peft.

        Raises
        ------
        ConfigError
            There are no safetensors weights, or the configuration names no base model.
        """
        if not (folder / WEIGHTS).is_file():
            raise ConfigError(
                f"data.text.model: {folder} has {CONFIG} but no {WEIGHTS}; save the adapter again"
            )
        found = Adapter(
            (folder / CONFIG).read_text(encoding="utf-8"), (folder / WEIGHTS).read_bytes()
        )
        if not found.base:
            raise ConfigError(
                f"data.text.model: {folder}/{CONFIG} names no base_model_name_or_path; add it"
            )
        return found

    def merged_into(self, model: Any) -> Any:
        """The base model with the adapter merged into its weights; changes the given model.

        Raises
        ------
        ConfigError
            The adapter has weights that this base model lacks.
        """
        import safetensors.torch

        peft = require_peft("an adapted language model")
        settings = peft.LoraConfig(
            # another release of peft may not know a field, and fields without a value say nothing
            **{key: value for key, value in json.loads(self.config).items() if value is not None}
        )
        adapted = peft.get_peft_model(model, settings)
        outcome = peft.set_peft_model_state_dict(adapted, safetensors.torch.load(self.weights))
        if outcome.unexpected_keys:
            raise ConfigError(
                f"the adapter does not fit {self.base}: it has weights for"
                f" {outcome.unexpected_keys[0]}; set data.text.model to an adapter that was trained"
                " for this model"
            )
        return adapted.merge_and_unload()

    @staticmethod
    def of(adapted: Any, base: str) -> Adapter:
        """The adapter that a peft model has learned."""
        import safetensors.torch

        peft = require_peft("fine-tuning")
        weights = {
            name: part.detach().cpu().contiguous()
            for name, part in peft.get_peft_model_state_dict(adapted).items()
        }
        settings = adapted.peft_config["default"].to_dict() | {
            "base_model_name_or_path": base,
            "inference_mode": True,
        }
        plain = {
            # peft stores target modules as a set, whose order changes, and the digest must not
            key: sorted(value) if isinstance(value, set) else value
            for key, value in settings.items()
        }
        return Adapter(
            json.dumps(plain, sort_keys=True, default=str), safetensors.torch.save(weights)
        )


def is_adapter(folder: Path) -> bool:
    """Whether a folder contains an adapter and not a whole model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def with_adapter(model: Any, rank: int, name: str) -> Any:
    """The model with new low-rank adapters on its attention projections; only the adapters are
    trained.

    Parameters
    ----------
    model : transformers model
        The language model.
    rank : int
        Rank of the adapters.
    name : str
        Name of the model, for the error.

    Returns
    -------
    peft model
        The wrapped model.

    Raises
    ------
    ConfigError
        peft is not installed, or the model has no attention projection with a known name.
    """
    peft = require_peft("data.text.finetune")
    import torch

    linear = {part for part, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    targets = sorted({part.rsplit(".", 1)[-1] for part in linear} & set(PROJECTIONS))
    if not targets:
        raise ConfigError(
            f"data.text.finetune: {name} has no attention projection called one of"
            f" {', '.join(PROJECTIONS[:6])} …; set data.text.finetune.enabled false"
        )
    settings = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=targets
    )
    return peft.get_peft_model(model, settings)


def require_peft(what: str) -> Any:
    """Import peft.

    Raises
    ------
    ConfigError
        peft is not installed.
    """
    try:
        import peft
    except ImportError:
        raise ConfigError(
            f"{what} needs the package peft; run `pip install 'multigrain[finetune]'`"
        ) from None
    return peft

"""A request's past as text, read by the language model when it is asked for.

Why optional: a served model should not need a language model. Where the one that the model was trained with is
installed, users who are new, or bring new events, get a text of all they did; else their text is that of training (a
known user) or missing (a new one), and the pooled vectors answer for it where ``behaviour.input`` is both. A model
that ``data.text.finetune`` adapted counts as not installed: the adapter stays with the dataset.

Legend: B requests, T width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.data.histories import Array
from recsys.data.text_rows import TextRules, compose
from recsys.encoders.text import EncoderSettings, TextEncoder, language_model_fingerprint
from recsys.errors import ConfigError

Past = tuple[Array, Array]  # items and event types, oldest first


class PastReader:
    """Texts of pasts to vectors, by the language model that ``described`` (of the bundle) names."""

    def __init__(self, described: dict[str, Any], titles: Sequence[str], event_types: Sequence[str]) -> None:
        self._described, self._titles = described, titles
        self._rules = TextRules(tuple(event_types), True, int(described["max_items"]), 1, 1)

    @cached_property
    def encoder(self) -> TextEncoder | None:
        """The language model; None where it is not installed, or has other weights than in training."""
        name = str(self._described["model"])
        try:
            if language_model_fingerprint(name) != self._described["fingerprint"]:
                return None
            settings = EncoderSettings(name, int(self._described["max_tokens"]), dtype="float32", threads=1)
            return TextEncoder(settings)
        except (ConfigError, ImportError):
            return None

    def vectors(self, pasts: Sequence[Past | None]) -> Tensor | None:
        """Vectors of the pasts, zero rows for None: [B, T]; None where there is none to read, or nobody to read it."""
        texts = [
            compose(past[0].tolist(), past[1].tolist(), self._titles, self._rules) if past and len(past[0]) else ""
            for past in pasts
        ]
        rows = [row for row, text in enumerate(texts) if text]
        if not rows or self.encoder is None:
            return None
        vectors_BT = np.zeros((len(texts), self.encoder.dimension), dtype=np.float32)
        vectors_BT[rows] = self.encoder.encode([texts[row] for row in rows])
        return torch.from_numpy(vectors_BT)
